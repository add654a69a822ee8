package page

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// pageSize is the number of devices on a page of the list. It bounds the work of a browser,
// regardless of the number of devices.
const pageSize = 50

// query is what a reader of the page has selected. It is in the address of the page, so that a
// link leads to the same view.
type query struct {
	Text       string  // a part of the registration ID
	Outcome    Outcome // "" for all
	Page       int     // from 1
	Device     string
	Selected   bool // Device is set; it may be "", for connections that ended before the CONNECT
	Connection int  // 0 for the last one
	Paused     bool
}

func parseQuery(v url.Values) query {
	q := query{
		Text: shorten(v.Get("q")), Outcome: Outcome(v.Get("outcome")),
		Device: shorten(v.Get("device")), Selected: v.Has("device"), Paused: v.Has("paused"),
	}
	if !slices.ContainsFunc(outcomes, func(o outcomeName) bool { return o.Outcome == q.Outcome }) {
		q.Outcome = ""
	}
	q.Page, _ = strconv.Atoi(v.Get("page")) // what is not a number is the first page
	q.Page = max(q.Page, 1)
	q.Connection, _ = strconv.Atoi(v.Get("connection"))
	return q
}

// encode returns the query as a part of an address, without the defaults.
func (q query) encode() string {
	v := url.Values{}
	set := func(name, value string, there bool) {
		if there {
			v.Set(name, value)
		}
	}
	set("q", q.Text, q.Text != "")
	set("outcome", string(q.Outcome), q.Outcome != "")
	set("page", strconv.Itoa(q.Page), q.Page > 1)
	set("device", q.Device, q.Selected)
	set("connection", strconv.Itoa(q.Connection), q.Connection > 0)
	set("paused", "1", q.Paused)
	return v.Encode()
}

// link returns the address of this view with a change.
func (q query) link(change func(*query)) string {
	change(&q)
	return "/?" + q.encode()
}

// view is what the template shows.
type view struct {
	Query    query
	Encoded  string // the query
	Here     string // link to this view
	IDScope  string
	Summary  string
	Chips    []chip
	Rows     []row
	Total    int
	From, To int // of the rows, from 1
	Matching int
	Previous string // links, or ""
	Next     string
	Pause    string // link to pause or to resume
	Close    string // link to the list without the device
	Detail   *detail
	Allowed  bool // faults may be caused
	Presets  []preset
	Active   []activeFault
}

// chip is a filter by outcome.
type chip struct {
	Label, Symbol, Outcome, Link string
	Count                        int
	Selected                     bool
}

// row is a device in the list.
type row struct {
	Anchor, Link, Name, Note, Protocol string
	Outcome                            outcomeName
	Last                               time.Time
	Registers                          int
	Selected                           bool
	Unnamed                            bool // these are connections that ended before the CONNECT
}

// detail is the selected device.
type detail struct {
	row
	ID          string
	Explanation enroll.Explanation
	Facts       []field
	Commands    []command
	Connections []connection
	Packets     []packet
	Opened      time.Time // when the shown connection began
}

// connection is a link to a connection of the device.
type connection struct {
	Number   int
	Link     string
	Began    time.Time
	Protocol string
	Selected bool
}

// packet is an entry of the log, decoded.
type packet struct {
	Number              int
	Name, Summary, Note string
	Up, Down, Faulty    bool
	Open                bool
	Since               string
	Size, Kept          int
	decoded
	Dump string
}

// unnamed is how the page calls the connections that ended before the CONNECT.
const unnamed = "Before CONNECT"

func nameOf(o Outcome) outcomeName {
	if i := slices.IndexFunc(outcomes, func(n outcomeName) bool { return n.Outcome == o }); i >= 0 {
		return outcomes[i]
	}
	return outcomeName{Waiting, "In progress", "…"}
}

func (d *device) row(q query) row {
	r := row{
		Anchor: "d" + hex.EncodeToString([]byte(d.key)), Name: d.id, Protocol: protocolName(d.protocol),
		Outcome: nameOf(d.outcome), Last: d.last, Registers: d.registers, Selected: q.Selected && strings.EqualFold(q.Device, d.id),
		Link: q.link(func(q *query) { q.Device, q.Selected, q.Connection = d.id, true, 0 }),
	}
	if d.key == "" {
		r.Name, r.Unnamed = unnamed, true
	}
	r.Note = d.explanation.Reason
	if r.Note == "" && d.hub != "" {
		r.Note = d.hub
	}
	return r
}

func protocolName(protocol string) string {
	switch protocol {
	case "mqtt":
		return "MQTT"
	case "websocket":
		return "WebSocket"
	case "https":
		return "HTTPS"
	}
	return protocol
}

// view collects what a query shows.
func (f *Feed) view(q query) view {
	f.viewing.Lock()
	defer f.viewing.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	v := view{Query: q, Encoded: q.encode(), Here: q.link(func(*query) {})}
	counts := map[Outcome]int{}
	text := strings.ToLower(strings.TrimSpace(q.Text))
	first := (q.Page - 1) * pageSize
	found := 0
	for e := f.recent.Front(); e != nil; e = e.Next() {
		d := e.Value.(*device)
		v.Total++
		if !strings.Contains(d.key, text) {
			continue
		}
		name := nameOf(d.outcome)
		found++
		counts[name.Outcome]++
		if q.Outcome != "" && q.Outcome != name.Outcome {
			continue
		}
		if v.Matching++; v.Matching > first && v.Matching <= first+pageSize {
			v.Rows = append(v.Rows, d.row(q))
		}
	}
	if len(v.Rows) > 0 {
		v.From, v.To = first+1, first+len(v.Rows)
	}
	if q.Page > 1 {
		before := min(q.Page-1, max(1, (v.Matching+pageSize-1)/pageSize))
		v.Previous = q.link(func(q *query) { q.Page = before })
	}
	if v.Matching > first+pageSize {
		v.Next = q.link(func(q *query) { q.Page++ })
	}
	v.Chips = append(v.Chips, chip{Label: "All", Link: q.link(func(q *query) { q.Outcome, q.Page = "", 1 }), Count: found, Selected: q.Outcome == ""})
	var summary []string
	for _, o := range outcomes {
		if counts[o.Outcome] > 0 || q.Outcome == o.Outcome {
			v.Chips = append(v.Chips, chip{
				Label: o.Label, Symbol: o.Symbol, Outcome: string(o.Outcome), Count: counts[o.Outcome], Selected: q.Outcome == o.Outcome,
				Link: q.link(func(q *query) { q.Outcome, q.Page = o.Outcome, 1 }),
			})
			summary = append(summary, fmt.Sprintf("%s %s", o.Label, thousands(counts[o.Outcome])))
		}
	}
	v.Summary = thousands(v.Total) + " devices"
	if len(summary) > 0 {
		v.Summary += ": " + strings.Join(summary, ", ")
	}
	v.Pause = q.link(func(q *query) { q.Paused = !q.Paused })
	v.Close = q.link(func(q *query) { q.Device, q.Selected, q.Connection = "", false, 0 })
	if q.Selected {
		d := f.devices[strings.ToLower(q.Device)]
		if d == nil {
			d = &device{id: q.Device, key: strings.ToLower(q.Device), outcome: Ended, explanation: enroll.Explanation{Reason: "No packets from this device have been seen."}}
		}
		v.Detail = d.detail(q)
	}
	return v
}

func (d *device) detail(q query) *detail {
	v := &detail{row: d.row(q), ID: d.id, Explanation: d.explanation}
	fact := func(name, value string) {
		if value != "" && value != "0" {
			v.Facts = append(v.Facts, field{name, value})
		}
	}
	fact("Assigned hub", d.hub)
	fact("Device ID", d.deviceID)
	fact("Transport", v.Protocol)
	version, _, _ := strings.Cut(strings.TrimPrefix(d.tls, "TLS "), " ")
	fact("TLS", version)
	fact("Connections", thousands(d.connections))
	fact("Registrations", thousands(d.registers))
	fact("Polls", thousands(d.polls))
	last := 0
	for _, r := range d.records {
		e := r.entry
		if i := slices.IndexFunc(v.Connections, func(c connection) bool { return c.Number == e.Connection }); i < 0 {
			v.Connections = append(v.Connections, connection{
				Number: e.Connection, Began: e.Time, Protocol: protocolName(e.Protocol),
				Link: q.link(func(q *query) { q.Connection = e.Connection }),
			})
		}
		last = e.Connection
	}
	slices.Reverse(v.Connections)
	if slices.ContainsFunc(v.Connections, func(c connection) bool { return c.Number == q.Connection }) {
		last = q.Connection
	}
	for i := range v.Connections {
		v.Connections[i].Selected = v.Connections[i].Number == last
	}
	shown := -1 // the packet that is open: the last reply or, without a reply, the CONNECT
	for _, r := range d.records {
		if r.entry.Connection != last {
			continue
		}
		if v.Opened.IsZero() {
			v.Opened = r.entry.Time
		}
		p := newPacket(r, v.Opened)
		if isReply := p.Name == "RESPONSE" || p.Name == "PUBLISH" && p.Down; p.Dump != "" && (isReply || p.Name == "CONNECT" && shown < 0) {
			shown = len(v.Packets)
		}
		v.Packets = append(v.Packets, p)
	}
	if shown >= 0 {
		v.Packets[shown].Open = true
	}
	return v
}

// newPacket decodes an entry.
func newPacket(r *record, began time.Time) packet {
	e := r.entry
	p := packet{
		Number: r.number, Name: e.Packet, Up: e.Direction == "up", Down: e.Direction == "down",
		Since: fmt.Sprintf("%.3f s", e.Time.Sub(began).Seconds()), Size: max(e.Size, len(e.Raw)), Kept: len(e.Raw), Dump: dump(e.Raw),
		Summary: summary(e), Note: e.Detail, Faulty: e.Violation != "",
	}
	if p.Name == "TLS" {
		p.Note = strings.ReplaceAll(strings.TrimPrefix(p.Note, "TLS "), "_", "\u200b_") // long names may wrap
	}
	if e.Violation != "" {
		p.Note = e.Violation
	}
	if e.Refusal != nil {
		p.Note, p.Faulty = e.Detail+": "+e.Refusal.Reason, true
	}
	if len(e.Raw) > 0 && e.Packet != "GARBAGE" {
		p.decoded = decode(e.Packet, e.Raw)
	}
	return p
}

// summary describes a packet in a few words.
func summary(e simulator.Entry) string {
	switch p, _ := parse(e.Raw); {
	case e.Packet == "CONNECT" && strings.HasPrefix(string(p.Connect.Password), tokenPrefix):
		return "with a SAS token"
	case e.Packet == "CONNECT" && len(p.Connect.Password) > 0:
		return "with a password that is not a SAS token"
	case e.Packet == "CONNECT":
		return "without a password"
	case e.Packet == "SUBSCRIBE" && len(p.Filters) > 0:
		return p.Filters[0].Filter
	case e.Packet == "PUBACK":
		return fmt.Sprintf("packet %d", e.PacketID)
	case asks(e) != "":
		return asks(e)
	case e.Packet == "RESPONSE" && e.ReturnCode != nil:
		return fmt.Sprintf("%d %s", *e.ReturnCode, http.StatusText(*e.ReturnCode))
	case strings.HasPrefix(e.Topic, replyTopic):
		status, rest, _ := strings.Cut(strings.TrimPrefix(e.Topic, replyTopic), "/")
		text := "reply " + status
		if _, after, there := strings.Cut(rest, "retry-after="); there {
			text += ", retry after " + after + " s"
		}
		return text
	case e.Topic != "":
		return e.Topic
	case e.Packet == "CONNACK" && e.ReturnCode != nil:
		return fmt.Sprintf("%d, %s", *e.ReturnCode, connackMeaning(*e.ReturnCode))
	case e.Packet == "SUBACK" && e.ReturnCode != nil:
		if *e.ReturnCode == 0x80 {
			return "refused"
		}
		return fmt.Sprintf("granted QoS %d", *e.ReturnCode)
	}
	return ""
}

// thousands writes a number with commas.
func thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
