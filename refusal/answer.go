package refusal

import "time"

// Answer tells a consumer what dpsd does about its report.
type Answer struct {
	Action  Action    `json:"action"`
	Because string    `json:"because"`     // a sentence
	At      time.Time `json:"at,omitzero"` // when dpsd acts, or may act at the earliest
	In      float64   `json:"in,omitzero"` // seconds until then
}

// Action is what dpsd does about the reports of a consumer.
type Action string

// The actions.
const (
	None           Action = "none"           // the report is no reason to register
	Counting       Action = "counting"       // further reports are necessary
	Verifying      Action = "verifying"      // dpsd checks the hub before it decides
	Reprovisioning Action = "reprovisioning" // dpsd registers again
)
