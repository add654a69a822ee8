package simulator

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// provisioning is DPS for one MQTT session.
type provisioning struct {
	s          *session
	who        *principal
	subscribed bool
	granted    byte // QoS of the subscription
}

// newProvisioning takes the registration ID from the CONNECT, whether or not it is valid.
func newProvisioning(s *session, p *packets.Packet) *provisioning {
	u, _ := parseUserName(string(p.Connect.Username))
	id := cmp.Or(u.registrationID, p.Connect.ClientIdentifier)
	return &provisioning{s: s, who: &principal{registrationID: id, enrollment: &enroll.Entry{}}}
}

func (d *provisioning) identify(e *Entry) {
	e.Service, e.RegistrationID = "dps", d.who.registrationID
}

func (d *provisioning) key() string { return strings.ToLower(d.who.registrationID) }

func (d *provisioning) replaced() string {
	return "another connection has taken over the client identifier [MQTT-3.1.4-2]"
}

func (d *provisioning) check(p *packets.Packet) error {
	switch p.FixedHeader.Type {
	case packets.Connect:
		if p.Connect.WillFlag {
			return errors.New("the service does not accept a will")
		}
	case packets.Publish:
		switch _, err := parseRequest(p.TopicName); {
		case p.FixedHeader.Retain:
			return errors.New("the service does not retain messages")
		case len(p.Payload) > maxMessage:
			return errors.New("the message is larger than 96 KB")
		case err != nil:
			return err
		case !d.subscribed:
			return errors.New("there is no subscription: the reply would be lost")
		}
	case packets.Subscribe, packets.Unsubscribe:
		for _, f := range p.Filters {
			if f.Filter != responseFilter {
				return errors.New("the filter is not " + responseFilter)
			}
		}
	}
	return nil
}

// stageOf maps packets of the client to the stages that they begin. A PUBLISH can also be a poll.
var stageOf = map[byte]Stage{
	packets.Connect: OnConnect, packets.Subscribe: OnSubscribe, packets.Publish: OnRegister, packets.Puback: OnPuback,
	packets.Unsubscribe: OnUnsubscribe, packets.Pingreq: OnPing, packets.Disconnect: OnDisconnect,
}

func (d *provisioning) rule(p *packets.Packet) *Rule {
	c := d.s.c
	e := scenario.Event{
		On: stageOf[p.FixedHeader.Type], Protocol: c.protocol, RegistrationID: d.who.registrationID, Resumed: c.tls.ConnectionState().DidResume,
	}
	if e.On == OnRegister {
		req, _ := parseRequest(p.TopicName) // check has reported an error
		if req.poll {
			e.On = OnPoll
		}
		e.CSR = func() bool { return c.server.service.concernsCSR(e.RegistrationID, req, p.Payload) }
	}
	return c.server.script.Load().Match(e)
}

func (d *provisioning) connect(rule *Rule, p *packets.Packet) (code int, detail string) {
	c := d.s.c
	who, code, why := c.server.authenticate(p.Connect.ClientIdentifier, string(p.Connect.Username), p.Connect.Password, c.tls.ConnectionState())
	if rule.Connack != nil {
		code, why = *rule.Connack, scripted
		who.refused = nil
	}
	who.registrationID = cmp.Or(who.registrationID, p.Connect.ClientIdentifier)
	d.who = who
	if code != 0 {
		d.s.refuse(fmt.Sprintf("CONNACK %d", code), why)
	}
	return code, why.Reason
}

func (d *provisioning) subscribe(rule *Rule, _ packets.Subscriptions, codes []byte) []packets.Packet {
	for _, code := range codes {
		if code < 0x80 {
			d.subscribed, d.granted = true, code
		}
	}
	if !rule.BeforeSuback {
		return nil
	}
	unasked := *rule
	unasked.State = cmp.Or(rule.State, "assigned")
	r := d.s.c.server.service.unasked(d.who, &unasked, d.s.c.server.now())
	return []packets.Packet{d.reply(&unasked, r, cmp.Or(rule.RequestID, "1"))}
}

func (d *provisioning) unsubscribe(packets.Subscriptions) { d.subscribed = false }

func (d *provisioning) ended(bool) {}

func (d *provisioning) acknowledged(uint16) {}

func (d *provisioning) awake() {}

// publish answers a register or poll request.
func (d *provisioning) publish(rule *Rule, p *packets.Packet, acked bool) {
	server := d.s.c.server
	req, _ := parseRequest(p.TopicName) // check has reported an error
	d.s.respond(rule, p, acked, server.script.Load().Settings.ReplyDelay, func() []packets.Packet {
		r := server.service.answer(req, p.Payload, d.who, rule, server.now())
		if r.refusal != nil {
			d.s.refuse(r.answer(), r.refusal.Explanation)
		}
		out := make([]packets.Packet, 0, 4)
		for range max(1, rule.Replies) {
			out = append(out, d.reply(rule, r, cmp.Or(rule.RequestID, req.requestID)))
		}
		if rule.Duplicate {
			again := out[len(out)-1]
			if again.FixedHeader.Qos > 0 {
				again.FixedHeader.Dup = true
				d.s.unacked[again.PacketID]++
			}
			out = append(out, again)
		}
		return out
	})
}

// reply builds the PUBLISH of a reply.
func (d *provisioning) reply(rule *Rule, r reply, requestID string) packets.Packet {
	topic := fmt.Sprintf("$dps/registrations/res/%d/?$rid=%s", r.status, requestID)
	if after := cmp.Or(rule.RetryAfter, r.retryAfter); after != "none" {
		topic += "&retry-after=" + after
	}
	payload, err := r.encode(rule)
	if err != nil { // every value here came from JSON
		d.s.end(err.Error())
	}
	return d.s.message(d.granted, cmp.Or(strings.ReplaceAll(rule.Topic, "{rid}", requestID), topic), payload)
}
