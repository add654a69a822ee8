package scenario

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// Script is a scenario while it is followed: it counts how often each rule has met each
// device. Its methods may be called from several goroutines.
type Script struct {
	Scenario
	draw  func(purpose string, n int) []byte
	start time.Time
	mu    sync.Mutex
	met   map[encounter]int // how often a rule has met a device
	drawn map[encounter]int // how often chance was asked
}

// encounter is of a rule, by its index, and a device.
type encounter struct {
	rule           int
	registrationID string
}

// NewScript begins a scenario, nil for a well-behaved service. draw returns n bytes that
// look random, the same ones for the same purpose.
func NewScript(sc *Scenario, draw func(purpose string, n int) []byte) *Script {
	s := &Script{draw: draw, start: time.Now(), met: map[encounter]int{}, drawn: map[encounter]int{}}
	if sc != nil {
		s.Scenario = Scenario{sc.Settings, slices.Clone(sc.Rules)}
	}
	s.Settings = s.Settings.withDefaults()
	return s
}

// Match returns the rule for an event, and counts it; never nil, and not to be changed. A rule that an earlier
// one keeps from acting does not count the event: so rules of one stage form a sequence.
func (s *Script) Match(on Stage, protocol, registrationID string, resumed bool) *Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.start)
	for i := range s.Rules {
		r := &s.Rules[i]
		if r.On != on || r.Protocol != "" && r.Protocol != protocol || r.Resumed && !resumed {
			continue
		}
		if r.RegistrationID != "" {
			if ok, _ := path.Match(r.RegistrationID, registrationID); !ok {
				continue
			}
		}
		if age < r.From || r.Until > 0 && age >= r.Until || !s.chance(encounter{i, registrationID}) {
			continue
		}
		n := s.met[encounter{i, registrationID}]
		if r.Times > 0 && n >= r.Skip+r.Times {
			continue
		}
		if n < r.Skip || r.Times > 0 {
			s.met[encounter{i, registrationID}]++
		}
		if n >= r.Skip {
			return r
		}
	}
	return &Rule{On: on}
}

// chance draws whether a rule may act now; s.mu is held.
func (s *Script) chance(e encounter) bool {
	chance := s.Rules[e.rule].Chance
	if chance == 0 {
		return true
	}
	s.drawn[e]++
	b := s.draw(fmt.Sprintf("chance %d %s %d", e.rule, e.registrationID, s.drawn[e]), 8)
	return float64(binary.BigEndian.Uint64(b)>>11)/(1<<53) < chance
}

// GarbageBytes returns what Garbage or GarbageHex says.
func (r *Rule) GarbageBytes() []byte {
	if r.GarbageHex == "" {
		return []byte(r.Garbage)
	}
	b, _ := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")) // was checked
	return b
}
