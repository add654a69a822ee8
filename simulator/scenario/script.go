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

// Script is a scenario in use: it counts how often each rule has matched each device. Its
// methods are safe for concurrent use.
type Script struct {
	Scenario
	draw  func(purpose string, n int) []byte
	start time.Time
	mu    sync.Mutex
	met   map[encounter]int // how often a rule has matched a device
	drawn map[encounter]int // how often chance was called
}

// encounter identifies a rule, by its index, and a device, by its registration ID, or by its
// hub and its device ID.
type encounter struct {
	rule   int
	device string
}

// NewScript starts a scenario; nil means a well-behaved service. draw returns n bytes that
// look random, always the same for the same purpose.
func NewScript(sc *Scenario, draw func(purpose string, n int) []byte) *Script {
	s := &Script{draw: draw, start: time.Now(), met: map[encounter]int{}, drawn: map[encounter]int{}}
	if sc != nil {
		s.Scenario = Scenario{sc.Settings, slices.Clone(sc.Rules)}
	}
	s.Settings = s.Settings.withDefaults()
	return s
}

// Match returns the rule for an event, and counts the event. The result is never nil and must
// not be modified. A rule does not count an event on which an earlier rule acts: therefore
// rules of one stage form a sequence.
func (s *Script) Match(on Stage, protocol, registrationID string, resumed bool) *Rule {
	return s.match(on, protocol, registrationID, resumed, func(r *Rule) bool { return matches(r.RegistrationID, registrationID) })
}

// MatchHub does the same as Match for an event at one of the stages of a hub. The hub can have
// several names.
func (s *Script) MatchHub(on Stage, protocol string, names []string, device string, resumed bool) *Rule {
	return s.match(on, protocol, names[0]+"/"+device, resumed, func(r *Rule) bool {
		return matches(r.Device, device) && slices.ContainsFunc(names, func(name string) bool { return matches(r.Hub, name) })
	})
}

// matches reports whether a text matches a valid pattern. The empty pattern matches every text.
func matches(pattern, text string) bool {
	ok, _ := path.Match(pattern, text)
	return ok || pattern == ""
}

func (s *Script) match(on Stage, protocol, who string, resumed bool, selects func(*Rule) bool) *Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.start)
	for i := range s.Rules {
		r := &s.Rules[i]
		if r.On != on || r.Protocol != "" && r.Protocol != protocol || r.Resumed && !resumed {
			continue
		}
		if !selects(r) {
			continue
		}
		if age < r.From || r.Until > 0 && age >= r.Until || !s.chance(encounter{i, who}) {
			continue
		}
		n := s.met[encounter{i, who}]
		if r.Times > 0 && n >= r.Skip+r.Times {
			continue
		}
		if n < r.Skip || r.Times > 0 {
			s.met[encounter{i, who}]++
		}
		if n >= r.Skip {
			return r
		}
	}
	return &Rule{On: on}
}

// chance reports whether a rule acts according to its Chance. The caller holds s.mu.
func (s *Script) chance(e encounter) bool {
	chance := s.Rules[e.rule].Chance
	if chance == 0 {
		return true
	}
	s.drawn[e]++
	b := s.draw(fmt.Sprintf("chance %d %s %d", e.rule, e.device, s.drawn[e]), 8)
	return float64(binary.BigEndian.Uint64(b)>>11)/(1<<53) < chance
}

// GarbageBytes returns the bytes of Garbage or GarbageHex.
func (r *Rule) GarbageBytes() []byte {
	if r.GarbageHex == "" {
		return []byte(r.Garbage)
	}
	b, _ := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")) // it is valid
	return b
}
