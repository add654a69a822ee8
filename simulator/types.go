package simulator

import "github.com/dpsd-project/dpsd/simulator/scenario"

// The types of a scenario, so that a test in Go needs one import; see package scenario.
type (
	Scenario = scenario.Scenario
	Settings = scenario.Settings
	Rule     = scenario.Rule
	Stage    = scenario.Stage
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
)
