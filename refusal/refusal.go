// Package refusal decides when dpsd registers again because local services report that the IoT
// hub refuses them. It performs no I/O, and the current time is always an argument.
package refusal

// Policy is the value of on_refusal.
type Policy string

// The policies.
const (
	Reprovision Policy = "reprovision" // register again if the reports justify it
	ReportOnly  Policy = "report"      // only show the reports
)
