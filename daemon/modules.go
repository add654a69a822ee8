package daemon

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
)

// This file decides when dpsd creates or removes the module identities of local services.
// modules.json contains the identities that exist, so dpsd contacts the hub only after a change of the
// configuration or of the assignment, after reports of refusals, and after a requested registration.

// moduleIdentities is what the loop knows about the module identities.
type moduleIdentities struct {
	stored  store.Modules // modules.json, as it was last read or written
	stale   bool          // modules.json could not be read, or does not contain stored
	verify  bool          // the modules at the hub may have changed without dpsd
	next    time.Time     // when the next job begins; zero: none is necessary, or possible
	retry   time.Time     // the earliest time for the next job for the same goal
	history pace.History  // of consecutive failures
	lane    pace.Lane     // the retry class of the fault of the last job; "": it did not fail
	faults  map[string]fault.Code
	last    fault.Code // of the last job, for modules that are not in faults

	// planned is the goal of the last job. A job for a different goal does not wait for retry.
	planned moduleGoal

	keys atomic.Pointer[modules.Keys] // for the servers; nil: there are none
}

// moduleGoal is the state that a job is to achieve.
type moduleGoal struct {
	device hub.Identity
	wanted []string // sorted
}

func (g moduleGoal) equal(other moduleGoal) bool {
	return g.device == other.device && slices.Equal(g.wanted, other.wanted)
}

// openModules reads modules.json. The first job reports an error.
func (s *supervisor) openModules(now time.Time) {
	stored, err := s.store.Modules(now)
	s.logNotices()
	s.modules.stored, s.modules.stale = stored, err != nil
}

// wantedModules returns the modules of the local services, sorted.
func wantedModules(all []consumer.Consumer) []string {
	wanted := map[string]bool{}
	for _, c := range all {
		if c.Scope.Module != "" {
			wanted[c.Scope.Module] = true
		}
	}
	return slices.Sorted(maps.Keys(wanted))
}

// concern reports whether there are, or may be, module identities, recorded or wanted.
func (m *moduleIdentities) concern(all []consumer.Consumer) bool {
	return m.stale || len(m.stored.Identities) > 0 || len(wantedModules(all)) > 0
}

// recorded returns the modules of a device in modules.json, and those among them that its hub has
// confirmed.
func recorded(in store.Modules, device hub.Identity) (all, confirmed []string) {
	for _, i := range in.Identities {
		if i.AssignedHub != device.Host || i.DeviceID != device.DeviceID {
			continue
		}
		all = append(all, i.ModuleID)
		if i.Created {
			confirmed = append(confirmed, i.ModuleID)
		}
	}
	return all, confirmed
}

// necessary reports whether the hub has to be asked to achieve a goal.
func necessary(goal moduleGoal, stored store.Modules, verify bool) bool {
	all, confirmed := recorded(stored, goal.device)
	return verify && len(goal.wanted) > 0 || modules.Needed(goal.wanted, all, confirmed)
}

func deviceOf(rec store.Record) hub.Identity {
	return hub.Identity{Host: rec.AssignedHub, DeviceID: rec.DeviceID}
}

// planModules decides when the next job begins.
func (s *supervisor) planModules(now time.Time) {
	m := &s.modules
	if s.running.active() {
		return
	}
	m.next = time.Time{}
	if s.Once || !m.concern(s.settings.Consumers) {
		s.modulesSettled()
		return
	}
	if s.withheld(now) != "" {
		return
	}
	goal := moduleGoal{deviceOf(s.consumers.record), wantedModules(s.settings.Consumers)}
	if !m.stale && !necessary(goal, m.stored, m.verify) {
		s.modulesSettled()
		return
	}
	if !goal.equal(m.planned) {
		m.planned, m.history, m.faults, m.last = goal, pace.History{}, nil, ""
		m.retry = now.Add(s.floors.remaining(moduleFloor(goal.device)))
	}
	m.next = m.retry
}

// manageModules begins a job.
func (s *supervisor) manageModules(ctx context.Context, now time.Time) {
	s.modules.next = time.Time{}
	s.launch(ctx, now, &moduleJob{
		reporter:  reporter{s.eventLog, s.running.phases, nil, s.now},
		hubAccess: hubAccess{s.settings, s.Secrets, s.consumers.record, s.hubCredential()},
		store:     s.store, goal: s.modules.planned, verify: s.modules.verify,
	})
}

// modulesSettled forgets the failures when nothing is left to do.
func (s *supervisor) modulesSettled() {
	m := &s.modules
	if m.lane != "" {
		s.history.resolved(ofHub)
		s.faultsResolved()
	}
	m.planned, m.history, m.lane, m.faults, m.last, m.verify = moduleGoal{}, pace.History{}, "", nil, "", false
}

// clockSet ends a wait whose cause may have been the clock: a hub refuses a token from another time.
func (m *moduleIdentities) clockSet(now time.Time) {
	if m.lane == pace.LaneRefused {
		m.retry = now
	}
}

// moduleFloor returns the key of the earliest time at which a hub allows further requests.
func moduleFloor(device hub.Identity) string {
	return floorKey(device.Host, device.DeviceID+"/modules")
}

// states returns the states of the wanted modules, for the services.
func (m *moduleIdentities) states(device hub.Identity, all []consumer.Consumer) map[string]consumer.Module {
	wanted := wantedModules(all)
	if len(wanted) == 0 {
		return nil
	}
	_, confirmed := recorded(m.stored, device)
	states := make(map[string]consumer.Module, len(wanted))
	for _, id := range wanted {
		state := consumer.Module{Ready: slices.Contains(confirmed, id)}
		if !state.Ready {
			code := m.last
			if own, found := m.faults[id]; found {
				code = own
			}
			state.Fault = string(code)
		}
		states[id] = state
	}
	return states
}

// status adds the state of the module to each service.
func (m *moduleIdentities) status(all []control.Consumer, states map[string]consumer.Module) []control.Consumer {
	for i := range all {
		scope, _ := consumer.ParseScope(all[i].Scope)
		if scope.Module == "" {
			continue
		}
		switch state := states[scope.Module]; {
		case state.Ready:
			all[i].Module = control.ModuleReady
		case state.Fault != "":
			all[i].Module = state.Fault
		default:
			all[i].Module = control.ModulePending
		}
	}
	return all
}

// useKeys gives the servers the keys of the modules of a device.
func (m *moduleIdentities) useKeys(device hub.Identity) {
	if len(m.stored.Root) == 0 {
		m.keys.Store(nil)
		return
	}
	m.keys.Store(&modules.Keys{Root: m.stored.Root, Device: device})
}

// mac returns the HMAC-SHA256 of a statement under the key of a module of a device.
func (m *moduleIdentities) mac(device hub.Identity, module string, statement []byte) ([]byte, error) {
	keys := m.keys.Load()
	switch {
	case keys == nil:
		return nil, errNoKey
	case keys.Device != device:
		return nil, errMoved
	}
	return keys.MAC(module, statement), nil
}

func (o modulesOutcome) learn(s *supervisor) {
	if s.modules.stale = o.unread || o.unsaved; !o.unread { // services keep the keys that are known
		s.modules.stored = o.stored
	}
	for _, id := range o.created {
		s.log(event.ModuleCreated, zap.String("module", foreign.Line(id, foreign.MaxText)), zap.String("hub", o.device.Host), zap.String("deviceId", o.device.DeviceID))
	}
	for _, id := range o.removed {
		s.log(event.ModuleRemoved, zap.String("module", foreign.Line(id, foreign.MaxText)), zap.String("hub", o.device.Host), zap.String("deviceId", o.device.DeviceID))
	}
}

func (o modulesOutcome) finish(s *supervisor, now time.Time) error {
	m := &s.modules
	m.faults, m.last = map[string]fault.Code{}, ""
	switch {
	case o.interrupted: // by a registration, which was more urgent
		m.retry = now
		return nil
	case o.err == nil:
		s.modulesSettled()
		return nil
	}
	c := classify.Circumstances{Implausible: s.implausible(now), Secrets: o.secrets}
	for _, refused := range o.refused {
		m.faults[refused.Module] = c.Classify(refused).Code
	}
	f := failure{Fault: c.Classify(o.err), Credential: o.credential}
	f.Fault.Stage = fault.StageHub // saving modules.json belongs to the job
	if len(o.refused) == 0 {
		m.last = f.Fault.Code
	}
	f.Advice = f.Fault.Advice()
	f.Wait, f.Lane = s.settings.Retry.After(f.Fault, false, &m.history, s.random)
	m.retry, m.lane = now.Add(f.Wait), f.Lane
	if f.Lane == pace.LaneThrottled {
		if err := s.floors.raise(moduleFloor(o.device), f.Wait); err != nil {
			s.log(event.FloorNotKept, zap.Error(err), zap.Duration("wait", f.Wait))
		}
	}
	s.history.noted(f, now)
	s.measures.fault(string(f.Fault.Code)).Inc()
	s.logFailure(f)
	return nil
}
