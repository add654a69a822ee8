package refusal

import "time"

// Answer describes to a consumer what dpsd does because of its report.
type Answer struct {
	Action  Action    `json:"action"`
	Because string    `json:"because"`     // a sentence
	At      time.Time `json:"at,omitzero"` // when dpsd acts, or the earliest time at which it can
	In      float64   `json:"in,omitzero"` // seconds until At
}

// Action is what dpsd does because of the reports of a consumer.
type Action string

// The actions.
const (
	None           Action = "none"           // nothing: the report is not a reason to register
	Counting       Action = "counting"       // further reports are necessary
	Verifying      Action = "verifying"      // dpsd checks the hub before it decides
	Reprovisioning Action = "reprovisioning" // dpsd registers again
)
