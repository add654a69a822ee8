package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Outcome is what has become of a device, as far as its exchange shows it.
type Outcome string

// The outcomes, in the order in which the page lists them.
const (
	Assigned  Outcome = "assigned"
	Connected Outcome = "connected"
	Waiting   Outcome = "in-progress"
	Refused   Outcome = "refused"
	Throttled Outcome = "throttled"
	Failed    Outcome = "failed"
	Disabled  Outcome = "disabled"
	Violation Outcome = "violation"
	Ended     Outcome = "no-result"
)

// outcomeName is how the page shows an outcome. The symbol is there because colour must not be
// the only difference.
type outcomeName struct {
	Outcome       Outcome
	Label, Symbol string
}

// outcomes lists all outcomes.
var outcomes = []outcomeName{
	{Assigned, "Assigned", "✓"},
	{Connected, "Connected to hub", "⇄"},
	{Waiting, "In progress", "…"},
	{Refused, "Refused", "✕"},
	{Throttled, "Throttled", "◷"},
	{Failed, "Failed", "!"},
	{Disabled, "Disabled", "⊘"},
	{Violation, "Protocol error", "⚠"},
	{Ended, "No result", "–"},
}

// apply lets an entry change what is known about the device.
func (d *device) apply(s *session, e simulator.Entry) {
	d.protocol = e.Protocol
	if e.Packet == "REQUEST" {
		s.request = asks(e)
	}
	switch {
	case e.Packet == "TLS":
		d.tls = e.Detail
	case e.Packet == "REFUSAL" && e.Refusal != nil: // the answer follows
		d.announced = *e.Refusal
	case e.Packet == "CONNECT" && e.Direction == "up":
		s.hub = e.Service == "hub"
		if !s.hub {
			d.outcome, d.explanation = Waiting, enroll.Explanation{}
		}
	case e.Packet == "CONNACK":
		d.connack(s, e)
	case asks(e) == "register":
		d.registers++
		d.outcome, d.explanation = Waiting, enroll.Explanation{}
	case asks(e) == "poll":
		d.polls++
	case e.Packet == "RESPONSE" && e.ReturnCode != nil && (s.request != "" || *e.ReturnCode >= 400): // a lookup has no outcome
		_, body, _ := bytes.Cut(e.Raw, []byte("\r\n\r\n"))
		d.reply(*e.ReturnCode, body)
	case e.Packet == "PUBLISH" && e.Direction == "down" && strings.HasPrefix(e.Topic, replyTopic):
		text, _, _ := strings.Cut(strings.TrimPrefix(e.Topic, replyTopic), "/")
		code, _ := strconv.Atoi(text) // a topic without a number has no meaning for the device either
		p, _ := parse(e.Raw)
		d.reply(code, p.Payload)
	case e.Violation != "":
		if d.outcome == Waiting || d.outcome == Connected || d.outcome == "" {
			d.outcome = Violation
		}
		if d.outcome == Violation {
			d.explain("The device violated the protocol", e.Violation)
		}
	case e.Packet == "CLOSE":
		d.close(s, e)
	}
}

// explain sets the explanation to what happened and why: as a refusal has announced, or else
// with a reason, which may be empty.
func (d *device) explain(what, reason string) {
	d.explanation, d.announced = d.announced, enroll.Explanation{}
	if d.explanation.Reason != "" {
		reason = d.explanation.Reason
	}
	if reason != "" {
		what += ": " + reason
	}
	d.explanation.Reason = strings.TrimSuffix(what, ".") + "."
}

// The topics of DPS.
const (
	registerTopic = "$dps/registrations/PUT/iotdps-register/"
	pollTopic     = "$dps/registrations/GET/iotdps-get-operationstatus/"
	replyTopic    = "$dps/registrations/res/"
)

func (d *device) connack(s *session, e simulator.Entry) {
	code := 0
	if e.ReturnCode != nil {
		code = *e.ReturnCode
	}
	switch {
	case code != 0:
		d.outcome = Refused
		d.explain(fmt.Sprintf("The service refused the connection with CONNACK %d (%s)", code, connackMeaning(code)), e.Detail)
	case s.hub:
		s.attached = true
		d.attached++
		d.outcome, d.explanation = Connected, enroll.Explanation{}
	}
}

// status is the part of a reply's body that the page uses.
type status struct {
	Status            string
	ErrorCode         int
	Message           string
	RegistrationState struct {
		AssignedHub, DeviceID, ErrorMessage string
		ErrorCode                           int
	}
}

// asks returns what a device asks for with an entry: "register", "poll" or "".
func asks(e simulator.Entry) string {
	path, _, _ := strings.Cut(e.Topic, "?")
	switch {
	case e.Packet == "PUBLISH" && e.Direction == "up" && strings.HasPrefix(e.Topic, registerTopic),
		e.Packet == "REQUEST" && strings.HasPrefix(path, "PUT ") && strings.HasSuffix(path, "/register"):
		return "register"
	case e.Packet == "PUBLISH" && e.Direction == "up" && strings.HasPrefix(e.Topic, pollTopic),
		e.Packet == "REQUEST" && strings.HasPrefix(path, "GET ") && strings.Contains(path, "/operations/"):
		return "poll"
	}
	return ""
}

// reply interprets a reply as a device does: by its status, and by its body.
func (d *device) reply(code int, text []byte) {
	var body status
	_ = json.Unmarshal(text, &body) // a body that is not JSON has no status
	state := body.RegistrationState
	switch {
	case code >= 400:
		switch {
		case code == 429:
			d.outcome = Throttled
		case code >= 500:
			d.outcome = Failed
		default:
			d.outcome = Refused
		}
		what := fmt.Sprintf("The service answered with %d", code)
		if body.ErrorCode != 0 {
			what += fmt.Sprintf(" (%d %s)", body.ErrorCode, strings.TrimSuffix(body.Message, "."))
		}
		d.explain(what, "")
	case body.Status == "assigned":
		d.outcome, d.explanation = Assigned, enroll.Explanation{}
		d.hub, d.deviceID = state.AssignedHub, state.DeviceID
	case body.Status == "failed":
		d.outcome = Failed
		d.explain(fmt.Sprintf("The registration failed (%d)", state.ErrorCode), state.ErrorMessage)
	case body.Status == "disabled":
		d.outcome = Disabled
		d.explanation = enroll.Explanation{Reason: "The enrollment is disabled."}
	case body.Status == "assigning":
		d.outcome = Waiting
	}
}

func (d *device) close(s *session, e simulator.Entry) {
	if s.hub {
		if !s.attached {
			return
		}
		if d.attached--; d.attached == 0 && d.outcome == Connected {
			d.outcome = Ended
			if d.hub != "" {
				d.outcome = Assigned
			}
			d.explain("The connection to the hub has ended", e.Detail)
		}
		return
	}
	reason, handshake := strings.CutPrefix(e.Detail, "TLS: ")
	switch {
	case d.outcome != Waiting && d.outcome != "" && d.key != "":
	case handshake:
		d.outcome = Ended
		d.explain("The TLS handshake failed", reason)
	default:
		d.outcome = Ended
		d.explain("The connection ended without a result", e.Detail)
	}
}

// connackMeaning returns what MQTT 3.1.1 3.2.2.3 calls a return code.
func connackMeaning(code int) string {
	names := []string{
		"accepted", "unacceptable protocol version", "identifier rejected", "server unavailable",
		"bad user name or password", "not authorized",
	}
	if code >= 0 && code < len(names) {
		return names[code]
	}
	return "reserved"
}
