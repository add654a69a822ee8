// Package page is the web page of a simulator: a live list of the devices, each exchange
// decoded next to its bytes, the reason for each refusal, and faults by click.
//
// A Feed receives the packet log and keeps the recent part of it in bounded memory. A Page
// serves it.
package page

import (
	"bytes"
	"container/list"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// The defaults of a Feed. A registration has about 15 entries with 2 KB in all.
const (
	defaultDevices = 20_000
	defaultEntries = 60_000
	defaultBytes   = 16 << 20
)

// The limits of a Feed for one device and for one packet.
const (
	maxDeviceEntries = 200
	maxRaw           = 8 << 10
	maxName          = 256 // bytes; a registration ID has at most 128
)

// Feed keeps the recent part of a packet log. It discards the oldest entries first, and then
// the devices that were inactive for the longest time. The zero value is ready for use, and its
// methods are safe for concurrent use.
type Feed struct {
	// Devices is how many devices are kept; 0 means 20,000.
	Devices int
	// Entries is how many entries of the log are kept; 0 means 60,000.
	Entries int
	// Bytes is how many bytes of packets are kept; 0 means 16 MiB.
	Bytes int

	viewing  sync.Mutex // held by one view at a time and before mu, so that Add waits for one view at most
	mu       sync.Mutex
	devices  map[string]*device // by lower-case registration ID, "" for connections without a CONNECT
	assigned map[string]*device // by device ID, if it is not the registration ID
	recent   list.List          // of *device, the most recently active one first
	sessions map[int]*session   // open connections by number
	records  []*record          // a ring, of which the first one is at oldest
	oldest   int                // index in records, if it is full
	raw      int                // bytes in all records
	rawFrom  int                // number of the oldest record that may have bytes
	next     int                // number of the next record
	watchers map[chan<- struct{}]bool
}

// record is one entry of the log.
type record struct {
	number int
	entry  simulator.Entry // Raw contains no secret, and at most maxRaw bytes
	device *device         // nil as long as it is not known
}

// session is an open connection.
type session struct {
	device   *device   // nil before the CONNECT
	pending  []*record // those before the CONNECT
	hub      bool      // it is a connection to a hub instead of DPS
	attached bool      // the hub has accepted it
	request  string    // what the last request over HTTPS asks for, see asks
}

// device is what is known about a registration ID.
type device struct {
	id          string // the spelling that it used first
	key         string
	outcome     Outcome
	explanation enroll.Explanation
	hub         string // that it was assigned to
	deviceID    string // at the hub
	attached    int    // open connections to a hub
	protocol    string // of its last connection
	tls         string // of its last connection
	last        time.Time
	connections int
	registers   int
	polls       int
	announced   enroll.Explanation // of a refusal whose answer follows
	records     []*record
	element     *list.Element // nil for a device that is no longer kept
}

// Add adds an entry. It modifies neither the entry nor its bytes.
func (f *Feed) Add(e simulator.Entry) {
	e.Raw = withoutSecrets(e.Packet, e.Raw)
	kept := e
	kept.Raw = bytes.Clone(e.Raw[:min(len(e.Raw), maxRaw)])
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.devices == nil {
		f.devices, f.assigned, f.sessions = map[string]*device{}, map[string]*device{}, map[int]*session{}
	}
	s := f.sessions[e.Connection]
	if s == nil {
		s = &session{}
		if e.Packet != "CLOSE" {
			f.sessions[e.Connection] = s
		}
	}
	r := &record{number: f.next, entry: kept}
	f.next++
	switch {
	case e.RegistrationID != "":
		f.attach(s, e.RegistrationID)
		s.device.add(r)
	case e.DeviceID != "": // at a hub
		f.attach(s, f.registered(e.DeviceID))
		s.device.add(r)
	case s.device != nil:
		f.keep(s.device)
		s.device.add(r)
	case e.Packet == "CLOSE": // it ended before the CONNECT
		f.attach(s, "")
		s.device.add(r)
	default:
		if len(s.pending) == maxDeviceEntries {
			s.pending = slices.Delete(s.pending, 0, 1)
		}
		s.pending = append(s.pending, r)
	}
	f.store(r)
	if d := s.device; d != nil {
		d.apply(s, e)
		if d.deviceID != "" && d.deviceID != d.id {
			f.assigned[d.deviceID] = d
		}
	}
	if e.Packet == "CLOSE" {
		delete(f.sessions, e.Connection)
	}
	f.wake()
}

// attach connects a session with its device, and makes the device the most recent one.
func (f *Feed) attach(s *session, id string) {
	id = shorten(id)
	key := strings.ToLower(id)
	d := f.devices[key]
	if d == nil {
		d = &device{id: id, key: key}
	}
	f.keep(d)
	if s.device == d {
		return
	}
	s.device = d
	d.connections++
	if s.attached { // before Clear
		d.attached++
		d.outcome = Connected
	}
	for _, r := range s.pending {
		d.add(r)
		d.apply(s, r.entry)
	}
	s.pending = nil
}

// shorten cuts a name that is too long for a registration ID. Links repeat the names of devices and
// the text of the search, so the size of the page depends on them.
func shorten(name string) string {
	if len(name) <= maxName {
		return name
	}
	return strings.ToValidUTF8(name[:maxName], "")
}

// registered returns the registration ID of a device that connects to a hub. Without an
// assignment on the page, it is the device ID.
func (f *Feed) registered(deviceID string) string {
	if d := f.assigned[deviceID]; d != nil {
		return d.id
	}
	return deviceID
}

// keep makes a device the most recent one.
func (f *Feed) keep(d *device) {
	if d.element != nil {
		f.recent.MoveToFront(d.element)
		return
	}
	f.devices[d.key] = d
	d.element = f.recent.PushFront(d)
	if f.recent.Len() > positive(f.Devices, defaultDevices) {
		last := f.recent.Remove(f.recent.Back()).(*device)
		last.element, last.records = nil, nil
		delete(f.devices, last.key)
		if f.assigned[last.deviceID] == last {
			delete(f.assigned, last.deviceID)
		}
	}
}

// add adds a record to those of the device.
func (d *device) add(r *record) {
	r.device = d
	if len(d.records) == maxDeviceEntries {
		d.records = slices.Delete(d.records, 0, 1)
	}
	d.records = append(d.records, r)
	d.last = r.entry.Time
}

// store puts a record into the ring, and discards what exceeds the limits.
func (f *Feed) store(r *record) {
	if capacity := positive(f.Entries, defaultEntries); len(f.records) < capacity {
		f.records = append(f.records, r)
	} else {
		old := f.records[f.oldest]
		f.raw -= len(old.entry.Raw)
		if d := old.device; d != nil && len(d.records) > 0 && d.records[0] == old {
			d.records = d.records[1:]
		}
		f.records[f.oldest] = r
		f.oldest = (f.oldest + 1) % len(f.records)
	}
	f.raw += len(r.entry.Raw)
	f.rawFrom = max(f.rawFrom, f.next-len(f.records))
	for f.raw > positive(f.Bytes, defaultBytes) {
		old := f.record(f.rawFrom)
		f.raw -= len(old.entry.Raw)
		old.entry.Raw = nil
		f.rawFrom++
	}
}

// record returns a record of the ring by its number.
func (f *Feed) record(number int) *record {
	first := f.next - len(f.records)
	return f.records[(f.oldest+number-first)%len(f.records)]
}

// Clear discards everything, and keeps only which connections are open.
func (f *Feed) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.devices {
		d.element, d.records = nil, nil
		d.connections, d.registers, d.polls = 0, 0, 0
	}
	clear(f.devices)
	clear(f.assigned)
	f.recent.Init()
	for _, s := range f.sessions {
		s.pending = nil
	}
	f.records, f.oldest, f.raw = nil, 0, 0
	f.rawFrom = f.next
	f.wake()
}

// Log returns the entries that are kept, the oldest first. Their bytes contain no secrets.
func (f *Feed) Log() iter.Seq[simulator.Entry] {
	f.mu.Lock()
	records := slices.Concat(f.records[f.oldest:], f.records[:f.oldest])
	f.mu.Unlock()
	return func(yield func(simulator.Entry) bool) {
		for _, r := range records {
			e := r.entry
			e.Raw = nil
			if !yield(e) {
				return
			}
		}
	}
}

// watch returns a channel that receives a value after a change. Call stop at the end.
func (f *Feed) watch() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.watchers == nil {
		f.watchers = map[chan<- struct{}]bool{}
	}
	f.watchers[c] = true
	return c, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, c)
	}
}

// Changed reports a change outside of the feed to all readers of the page.
func (f *Feed) Changed() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wake()
}

func (f *Feed) wake() {
	for c := range f.watchers {
		select {
		case c <- struct{}{}:
		default: // it has not yet seen the previous change
		}
	}
}

// positive returns n, or a default if n is not positive.
func positive(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}
