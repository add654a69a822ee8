package page

import (
	"fmt"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// Faults are the rules of a running simulator that the page may change. A *simulator.Server
// implements it.
type Faults interface {
	AddFault(simulator.Rule) (number int, err error)
	RemoveFault(number int) bool
	Faults() []scenario.Added
}

// preset is a fault that the page offers.
type preset struct {
	Name, Label string
	// All means that the fault acts before the CONNECT, so that it cannot be limited to one device.
	All  bool
	rule simulator.Rule
}

// presets returns the faults that the page offers.
func presets() []preset {
	return []preset{
		{Name: "unauthorized", Label: "Refuse the credential: 401", rule: simulator.Rule{
			On: simulator.OnRegister, Status: 401, ErrorCode: 401002, ErrorMessage: "Unauthorized"}},
		{Name: "not-found", Label: "Unknown device: 404", rule: simulator.Rule{
			On: simulator.OnRegister, Status: 404, ErrorCode: 404201, ErrorMessage: "Registration not found."}},
		{Name: "throttled", Label: "Throttle registrations: 429, retry after 30 s", rule: simulator.Rule{
			On: simulator.OnRegister, Status: 429, ErrorCode: 429001, ErrorMessage: "Too many requests.", RetryAfter: "30"}},
		{Name: "throttled-poll", Label: "Throttle polls: 429, retry after 30 s", rule: simulator.Rule{
			On: simulator.OnPoll, Status: 429, ErrorCode: 429001, ErrorMessage: "Too many requests.", RetryAfter: "30"}},
		{Name: "service-error", Label: "Service error: 500", rule: simulator.Rule{
			On: simulator.OnRegister, Status: 500, ErrorMessage: "Internal server error."}},
		{Name: "failed", Label: "Fail the registration: 400207", rule: simulator.Rule{
			On: simulator.OnPoll, State: "failed", ErrorCode: 400207, ErrorMessage: "Custom allocation failed with status code: 400"}},
		{Name: "disabled", Label: "Disabled enrollment", rule: simulator.Rule{On: simulator.OnRegister, State: "disabled"}},
		{Name: "no-reply", Label: "Acknowledge, but never answer", rule: simulator.Rule{
			On: simulator.OnRegister, AfterPuback: true, Silent: true}},
		{Name: "slow", Label: "Answer after 10 s", rule: simulator.Rule{On: simulator.OnRegister, Delay: 10 * time.Second}},
		{Name: "lost", Label: "Drop the connection instead of answering", rule: simulator.Rule{On: simulator.OnRegister, Reset: true}},
		{Name: "connack-3", Label: "CONNACK 3: server unavailable", rule: simulator.Rule{On: simulator.OnConnect, Connack: new(3)}},
		{Name: "connack-5", Label: "CONNACK 5: not authorized", rule: simulator.Rule{On: simulator.OnConnect, Connack: new(5)}},
		{Name: "expired", Label: "Expired server certificate (all devices)", All: true, rule: simulator.Rule{
			On: simulator.OnTLS, ServerCertificate: "expired"}},
		{Name: "unreachable", Label: "Refuse connections for 30 s (all devices)", All: true, rule: simulator.Rule{
			On: simulator.OnAccept, Refuse: 30 * time.Second}},
	}
}

// newFault returns the rule for a preset. The pattern selects devices, and "" means all; times is
// how often the rule acts for each device, and 0 means always.
func newFault(name, pattern string, times int) (simulator.Rule, error) {
	all := presets()
	i := slices.IndexFunc(all, func(p preset) bool { return p.Name == name })
	switch {
	case i < 0:
		return simulator.Rule{}, fmt.Errorf("there is no fault %q", name)
	case all[i].All && pattern != "":
		return simulator.Rule{}, fmt.Errorf("the fault %q applies to all devices, because it acts before the device identifies itself: leave the Devices field empty", all[i].Label)
	case times < 0:
		return simulator.Rule{}, fmt.Errorf("%d times: the number must not be negative", times)
	}
	rule := all[i].rule
	rule.RegistrationID, rule.Times = pattern, times
	return rule, nil
}

// activeFault is a fault that is in use, as the page shows it.
type activeFault struct {
	Number        int
	Label, Device string
	Times, Acted  int
}

func activeFaults(added []scenario.Added) []activeFault {
	all := make([]activeFault, 0, len(added))
	for _, a := range added {
		label := "A rule at the stage " + string(a.Rule.On)
		for _, p := range presets() {
			if rule, err := newFault(p.Name, "", a.Rule.Times); err == nil && same(rule, a.Rule) {
				label = p.Label
			}
		}
		all = append(all, activeFault{a.Number, label, a.Rule.RegistrationID, a.Rule.Times, a.Acted})
	}
	return all
}

// same reports whether two rules differ in nothing but the devices.
func same(a, b simulator.Rule) bool {
	a.RegistrationID, b.RegistrationID = "", ""
	if a.Connack != nil && b.Connack != nil {
		a.Status, b.Status = *a.Connack, *b.Connack
	}
	a.Connack, b.Connack = nil, nil
	return fmt.Sprint(a) == fmt.Sprint(b)
}
