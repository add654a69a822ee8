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
	Settings Settings
	draw     func(purpose string, n int) []byte
	start    time.Time

	mu    sync.Mutex
	rules []numbered
	next  int               // the number of the next rule
	met   map[encounter]int // how often a rule has matched a device
	drawn map[encounter]int // how often chance was called
}

// numbered is a rule in use.
type numbered struct {
	Rule
	number  int
	added   bool          // by Add
	started time.Duration // since the start of the script
	acted   int           // how often it has acted
}

// encounter identifies a rule, by its number, and a device, by its registration ID, or by its
// hub and its device ID.
type encounter struct {
	rule   int
	device string
}

// Added is a rule that Script.Add has added.
type Added struct {
	Rule   Rule
	Number int // identifies the rule for Remove
	Acted  int // how often it has acted
}

// NewScript starts a scenario; nil means a well-behaved service. draw returns n bytes that
// look random, always the same for the same purpose.
func NewScript(sc *Scenario, draw func(purpose string, n int) []byte) *Script {
	s := &Script{draw: draw, start: time.Now(), met: map[encounter]int{}, drawn: map[encounter]int{}}
	if sc != nil {
		s.Settings = sc.Settings
		for _, r := range sc.Rules {
			s.rules = append(s.rules, numbered{Rule: r, number: s.next})
			s.next++
		}
	}
	s.Settings = s.Settings.withDefaults()
	return s
}

// Add adds a rule before all others, without restarting their counters, and returns its number.
// From and Until of the rule count from now on.
func (s *Script) Add(r Rule) (number int, err error) {
	if err := (&Scenario{Rules: []Rule{r}}).Validate(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number = s.next
	s.next++
	s.rules = slices.Insert(s.rules, 0, numbered{Rule: r, number: number, added: true, started: time.Since(s.start)})
	return number, nil
}

// Remove removes an added rule, and reports whether it existed.
func (s *Script) Remove(number int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.rules)
	s.rules = slices.DeleteFunc(s.rules, func(r numbered) bool { return r.added && r.number == number })
	return len(s.rules) < before
}

// Added returns the added rules, the newest first.
func (s *Script) Added() (all []Added) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rules {
		if r.added {
			all = append(all, Added{r.Rule, r.number, r.acted})
		}
	}
	return all
}

// Event is something at DPS on which a rule can act.
type Event struct {
	On             Stage
	Protocol       string // as in Rule
	RegistrationID string // "" before OnConnect
	Resumed        bool   // the connection has resumed a TLS session
	// CSR reports whether the event concerns a CSR, see Rule. Nil means that it does not. The
	// function is called only for rules with CSR.
	CSR func() bool
}

// Match returns the rule for an event, and counts the event. The result is never nil and must
// not be modified. A rule does not count an event on which an earlier rule acts: therefore
// rules of one stage form a sequence.
func (s *Script) Match(e Event) *Rule {
	return s.match(e.On, e.Protocol, e.RegistrationID, e.Resumed, func(r *Rule) bool {
		return matches(r.RegistrationID, e.RegistrationID) && (!r.CSR || e.CSR != nil && e.CSR())
	})
}

// MatchHub does the same as Match for an event at one of the stages of a hub. The hub can have
// several names. module is "" for the device itself.
func (s *Script) MatchHub(on Stage, protocol string, names []string, device, module string, resumed bool) *Rule {
	who := device
	if module != "" {
		who += "/" + module
	}
	return s.match(on, protocol, names[0]+"/"+who, resumed, func(r *Rule) bool {
		return (matches(r.Device, device) || matches(r.Device, who)) && slices.ContainsFunc(names, func(name string) bool { return matches(r.Hub, name) })
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
	for i := range s.rules {
		r := &s.rules[i]
		if r.On != on || r.Protocol != "" && r.Protocol != protocol || r.Resumed && !resumed {
			continue
		}
		if !selects(&r.Rule) {
			continue
		}
		since, e := age-r.started, encounter{r.number, who}
		if since < r.From || r.Until > 0 && since >= r.Until || !s.chance(r.Chance, e) {
			continue
		}
		n := s.met[e]
		if r.Times > 0 && n >= r.Skip+r.Times {
			continue
		}
		if n < r.Skip || r.Times > 0 {
			s.met[e]++
		}
		if n >= r.Skip {
			r.acted++
			rule := r.Rule
			return &rule
		}
	}
	return &Rule{On: on}
}

// chance reports whether a rule with this Chance acts. The caller holds s.mu.
func (s *Script) chance(chance float64, e encounter) bool {
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
