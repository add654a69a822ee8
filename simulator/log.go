package simulator

import (
	"encoding/json"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Entry is one line of the packet log. Entries contain no secrets: the password of a CONNECT is
// never logged, and its user name only in a refusal because of it, without what looks like a key.
type Entry struct {
	// Connection numbers the connections in the order of their arrival, starting at 1.
	Connection int       `json:"connection"`
	Time       time.Time `json:"time"`
	// Protocol is "mqtt" or "websocket", the listener. A connection to the listener for
	// WebSocket whose first request does not start a WebSocket has "https" from then on.
	Protocol string `json:"protocol"`
	// Direction is "up" from the client, "down" to the client, and "" for an entry that is not
	// a packet.
	Direction string `json:"direction,omitempty"`
	// Packet is an MQTT packet type in capitals, REQUEST or RESPONSE over HTTPS, or OPEN, TLS,
	// UPGRADE, GARBAGE, STALL, VIOLATION, REFUSAL or CLOSE for an event of the connection.
	Packet         string `json:"packet"`
	RegistrationID string `json:"registrationId,omitempty"`
	// Service is what the client uses, "dps" or "hub". It is known from CONNECT on, with the CLOSE
	// of MQTT, and with the requests over HTTPS.
	Service string `json:"service,omitempty"`
	// Hub and DeviceID are set if Service is "hub": the names that the device uses.
	Hub      string `json:"hub,omitempty"`
	DeviceID string `json:"deviceId,omitempty"`
	// ModuleID is set for a module at a hub, and for a request about a module identity.
	ModuleID string `json:"moduleId,omitempty"`
	// Size is the size of the MQTT packet in bytes, including the fixed header, or the size of
	// the body over HTTPS.
	Size     int  `json:"size,omitempty"`
	PacketID int  `json:"packetId,omitempty"`
	QoS      int  `json:"qos,omitempty"`
	Dup      bool `json:"dup,omitempty"`
	// Topic is the topic of a PUBLISH, or the method and the target of a REQUEST.
	Topic string `json:"topic,omitempty"`
	// ReturnCode is that of CONNACK and SUBACK, or the status of a RESPONSE.
	ReturnCode *int `json:"returnCode,omitempty"`
	// Violation names the rule of MQTT or DPS that the client violated.
	Violation string `json:"violation,omitempty"`
	// Refusal explains an entry REFUSAL, which precedes the answer that refuses the device.
	Refusal *enroll.Explanation `json:"refusal,omitempty"`
	// Detail explains the entry: why a connection was refused or ended, the TLS version, or the
	// HTTP path.
	Detail string `json:"detail,omitempty"`
	// BytesUp and BytesDown are set with CLOSE: all bytes of the TCP connection, including TLS.
	BytesUp   int64 `json:"bytesUp,omitempty"`
	BytesDown int64 `json:"bytesDown,omitempty"`
	// Raw are the bytes of the packet, or of a REQUEST or RESPONSE with its header. Only
	// Options.Observe receives them. Those of a CONNECT and of a REQUEST contain the password or the
	// token.
	Raw []byte `json:"-"`
}

// request is the request that a device makes with this entry. asked is false if there is none.
func (e Entry) request() (r request, asked bool) {
	switch e.Packet {
	case "PUBLISH":
		if e.Direction != "up" {
			return r, false
		}
		r, err := parseRequest(e.Topic)
		return r, err == nil
	case "REQUEST":
		method, target, _ := strings.Cut(e.Topic, " ")
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return r, false
		}
		api, err := parseAPIRequest(method, u)
		return request{poll: api.operation == operationPoll, operationID: api.operationID}, err == nil && api.operation != operationLookup
	}
	return r, false
}

// packetLog keeps entries, writes them as JSON lines, and passes them to an observer.
type packetLog struct {
	mu      sync.Mutex
	discard bool
	out     *json.Encoder
	observe func(Entry)
	entries []Entry
}

func newPacketLog(w io.Writer, discard bool, observe func(Entry)) *packetLog {
	l := &packetLog{discard: discard, observe: observe}
	if w != nil {
		l.out = json.NewEncoder(w)
		l.out.SetEscapeHTML(false)
	}
	return l
}

// add records an entry. It ignores errors of writing, because they must not change what the
// device sees.
func (l *packetLog) add(e Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out != nil {
		_ = l.out.Encode(e)
	}
	if l.observe != nil {
		l.observe(e)
	}
	e.Raw = nil
	if !l.discard {
		l.entries = append(l.entries, e)
	}
}

func (l *packetLog) all() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// ReadLog reads a packet log of JSON lines.
func ReadLog(r io.Reader) ([]Entry, error) {
	var entries []Entry
	for in := json.NewDecoder(r); ; {
		var e Entry
		switch err := in.Decode(&e); err {
		case nil:
			entries = append(entries, e)
		case io.EOF:
			return entries, nil
		default:
			return entries, err
		}
	}
}
