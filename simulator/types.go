package simulator

import "github.com/dpsd-project/dpsd/simulator/scenario"

// With these aliases, a Go test that creates a scenario needs only one import.
type (
	// Scenario is the behaviour of the service.
	Scenario = scenario.Scenario
	// Settings are properties of a well-behaved service.
	Settings = scenario.Settings
	// Rule is one fault.
	Rule = scenario.Rule
	// Stage is a point of a connection at which a rule can act.
	Stage = scenario.Stage
)

// The stages of a connection, see package scenario.
const (
	OnAccept      = scenario.OnAccept
	OnTLS         = scenario.OnTLS
	OnUpgrade     = scenario.OnUpgrade
	OnConnect     = scenario.OnConnect
	OnSubscribe   = scenario.OnSubscribe
	OnRegister    = scenario.OnRegister
	OnPoll        = scenario.OnPoll
	OnPuback      = scenario.OnPuback
	OnPing        = scenario.OnPing
	OnUnsubscribe = scenario.OnUnsubscribe
	OnDisconnect  = scenario.OnDisconnect

	OnHubConnect   = scenario.OnHubConnect
	OnHubSubscribe = scenario.OnHubSubscribe
	OnHubPublish   = scenario.OnHubPublish
	OnHubTwin      = scenario.OnHubTwin
	OnHubPing      = scenario.OnHubPing
	OnHubRequest   = scenario.OnHubRequest
)
