package simulator

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
)

// newHub creates the hubs of a server.
func (s *Server) newHub(onTelemetry func(hub.Telemetry)) *hub.Hub {
	if onTelemetry == nil {
		onTelemetry = func(hub.Telemetry) {}
	}
	return &hub.Hub{
		Assigned: func(name, deviceID string) (hub.Device, bool) {
			r, found := s.service.records.find(name, deviceID)
			return hub.Device{
				RegistrationID: r.RegistrationID, Attestation: r.Attestation, CertificateID: r.CertificateID, Disabled: r.AtHub == atHubDisabled,
			}, found && r.AtHub != atHubDeleted
		},
		Enrollments: func() enroll.Entries { return *s.entries.Load() },
		Issued:      s.checkIssued,
		Now:         s.now,
		Telemetry:   onTelemetry,
		Connected:   func(u hub.User) bool { return s.connected(u.Key()) },
		Disconnect:  func(u hub.User, reason string) { s.eject(u.Key(), reason) },
	}
}

// AddDevice creates the identity of a device at the hub that its enrollment assigns, without a
// registration, for a program that uses only the hub. The credential is the same as at DPS. The
// identity exists until the server ends.
func (s *Server) AddDevice(registrationID string) {
	name, deviceID := s.entries.Load().Assignment(registrationID)
	s.hub.Add(name, deviceID, hub.Device{RegistrationID: registrationID})
}

// DisableDevice disables the identity of a device at its hub, or enables it again. The hub ends the
// connections of a disabled device and of its modules. It returns false if the hub has no identity
// that DPS created for the device.
func (s *Server) DisableDevice(registrationID string, disabled bool) bool {
	what, reason := "", ""
	if disabled {
		what, reason = atHubDisabled, "403012 DeviceDisabled: the device has been disabled at the hub"
	}
	return s.changeAtHub(registrationID, what, reason)
}

// DeleteDevice deletes the identity of a device at its hub, with its module identities, and ends
// their connections. DPS keeps its record, and creates the identity again when the device registers.
// It returns false if the hub has no identity that DPS created for the device.
func (s *Server) DeleteDevice(registrationID string) bool {
	return s.changeAtHub(registrationID, atHubDeleted, "404001 DeviceNotFound: the device has been deleted at the hub")
}

// changeAtHub changes a device at its hub, and ends its connections if the change requires it.
func (s *Server) changeAtHub(registrationID, what, reason string) bool {
	modules := s.Modules(registrationID)
	r, found := s.service.records.setAtHub(registrationID, what)
	if !found || reason == "" {
		return found
	}
	u := hub.User{Hub: r.Hub, Device: r.DeviceID}
	s.eject(u.Key(), reason)
	for _, m := range modules {
		u.Module = m.ModuleID
		s.eject(u.Key(), reason)
	}
	return true
}

// SendToDevice sends a cloud-to-device message. The message waits at the hub until the device
// receives it, or until the server stops. The result is nil unless the hub refuses the message: because
// the device is unknown (404001), because 50 messages are already waiting (403004), or because the
// message is larger than 64 KB (413001).
func (s *Server) SendToDevice(registrationID string, payload []byte) *enroll.Refusal {
	name, deviceID := s.atHub(registrationID)
	if _, found := s.hub.Find(name, deviceID); !found {
		return &enroll.Refusal{Code: 404001, Message: "DeviceNotFound", Explanation: enroll.Explanation{Reason: "the device does not exist at its hub"}}
	}
	return s.hub.Messages.Send(hub.User{Hub: name, Device: deviceID}, payload)
}

// atHub returns the hub of a device, and the device ID there.
func (s *Server) atHub(registrationID string) (name, deviceID string) {
	if r, found := s.service.records.get(registrationID); found {
		return r.Hub, r.DeviceID
	}
	return s.entries.Load().Assignment(registrationID) // AddDevice may have added it
}

// Modules returns the module identities of a device at its hub, with their keys, in the order of
// their IDs.
func (s *Server) Modules(registrationID string) []hub.Module {
	return s.hub.Modules.List(s.atHub(registrationID))
}

// allNames returns all names of the hubs, which are in alphabetical order.
func allNames(hubs []string) []string {
	names := make([]string, 0, 2*len(hubs))
	for _, name := range hubs {
		names = append(names, hub.Names(name)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// hubSession is a hub for one MQTT session.
type hubSession struct {
	s              *session
	user           hub.User
	wrong          error  // in the user name
	registrationID string // "" if the hub does not know the device
	grant          hub.Grant
	granted        map[string]byte
	will           packets.Packet    // a PUBLISH, if the client has a will
	receiver       *hub.Receiver     // nil unless the client has subscribed to cloud-to-device messages
	locks          map[uint16]string // of the messages that await a PUBACK, by packet identifier
}

// newHubSession takes the identity from the CONNECT, whether or not it is valid.
func newHubSession(s *session, p *packets.Packet) *hubSession {
	h := &hubSession{s: s, granted: map[string]byte{}}
	if h.user, h.wrong = hub.ParseUser(string(p.Connect.Username)); h.wrong != nil {
		h.user = hub.User{Hub: cmp.Or(h.user.Hub, s.c.tls.ConnectionState().ServerName), Device: cmp.Or(h.user.Device, p.Connect.ClientIdentifier)}
	}
	known, _ := s.c.server.hub.Find(h.user.Hub, h.user.Device)
	h.registrationID = known.RegistrationID
	return h
}

func (h *hubSession) identify(e *Entry) {
	e.Service, e.Hub, e.DeviceID, e.ModuleID, e.RegistrationID = "hub", h.user.Hub, h.user.Device, h.user.Module, h.registrationID
}

// key contains a slash, which no registration ID does.
func (h *hubSession) key() string { return h.user.Key() }

func (h *hubSession) replaced() string {
	return "400027 ConnectionForcefullyClosedOnNewConnection: a newer connection has the same client identifier"
}

func (h *hubSession) check(p *packets.Packet) error {
	switch p.FixedHeader.Type {
	case packets.Connect:
		if !p.Connect.WillFlag {
			return nil
		}
		if at, err := h.user.ParseTopic(p.Connect.WillTopic); err != nil || at.Kind != hub.Message {
			return fmt.Errorf("the topic of the will is not that of the client's messages")
		}
	case packets.Publish:
		if len(p.Payload) > hub.MaxMessage {
			return errors.New("the message is larger than 256 KB")
		}
		_, err := h.user.ParseTopic(p.TopicName)
		return err
	case packets.Subscribe, packets.Unsubscribe:
		for _, f := range p.Filters {
			if _, err := h.user.Filter(f.Filter); err != nil {
				return err
			}
		}
	}
	return nil
}

// hubStageOf maps packets of the client to the stages that they begin. A PUBLISH can also be a
// request for the twin. The other packets have no stage.
var hubStageOf = map[byte]Stage{
	packets.Connect: OnHubConnect, packets.Subscribe: OnHubSubscribe, packets.Publish: OnHubPublish, packets.Pingreq: OnHubPing,
}

func (h *hubSession) rule(p *packets.Packet) *Rule {
	on := hubStageOf[p.FixedHeader.Type]
	if on == OnHubPublish {
		if at, _ := h.user.ParseTopic(p.TopicName); at.Kind != hub.Message { // check has reported an error
			on = OnHubTwin
		}
	}
	c := h.s.c
	return c.server.script.Load().MatchHub(on, c.protocol, hub.Names(h.user.Hub), h.user.Device, h.user.Module, c.tls.ConnectionState().DidResume)
}

// connect refuses every client with 5, because MQTT 3.1.1 has no code for the reason.
func (h *hubSession) connect(rule *Rule, p *packets.Packet) (code int, detail string) {
	c := h.s.c
	state := c.tls.ConnectionState()
	refuse := func(why enroll.Explanation) (int, string) {
		h.s.refuse("CONNACK 5", why)
		return 5, why.Reason
	}
	switch {
	case rule.Connack != nil:
		if code, detail = *rule.Connack, scripted.Reason; code != 0 {
			h.s.refuse(fmt.Sprintf("CONNACK %d", code), scripted)
		}
	case rule.ErrorCode != 0:
		h.s.refuse(fmt.Sprintf("CONNACK 5 for %d", rule.ErrorCode), scripted)
		return 5, strings.TrimSpace(fmt.Sprintf("%d %s", rule.ErrorCode, rule.ErrorMessage)) + ": scenario"
	case h.wrong != nil:
		return refuse(enroll.Explanation{Reason: h.wrong.Error(), Expected: "{hub}/{deviceId}/?api-version={version}", Given: enroll.Quote(string(p.Connect.Username))})
	case p.Connect.ClientIdentifier != h.user.ClientID():
		return refuse(enroll.Explanation{Reason: "the client identifier is not the device ID", Expected: enroll.Quote(h.user.ClientID()), Given: enroll.Quote(p.Connect.ClientIdentifier)})
	case c.server.isOtherHub(state.ServerName, h.user.Hub):
		return refuse(enroll.Explanation{Reason: "the TLS server name belongs to a different hub", Expected: enroll.Quote(h.user.Hub), Given: enroll.Quote(state.ServerName)})
	default:
		grant, refused := c.server.hub.Authenticate(h.user, string(p.Connect.Password), state)
		if refused == nil && !grant.Connects() {
			refused = grant.Refuse(hub.EndpointEvents)
		}
		if refused != nil {
			h.s.refuse(fmt.Sprintf("CONNACK 5 for %d", refused.Code), refused.Explanation)
			return 5, fmt.Sprintf("%d %s: %s", refused.Code, refused.Message, refused.Reason)
		}
		h.grant = grant
		if expiry := grant.Expiry; !expiry.IsZero() {
			h.s.after(expiry.Sub(c.server.now()), func() {
				h.s.refuse("the connection was closed for 401003", enroll.Explanation{Reason: "the token has expired", Advice: "A device must connect again with a new token before its token expires."})
				h.s.end("401003 IotHubUnauthorized: the token has expired")
			})
		}
	}
	if code == 0 && p.Connect.WillFlag {
		h.will = packets.Packet{TopicName: p.Connect.WillTopic, Payload: p.Connect.WillPayload}
	}
	return code, detail
}

// isOtherHub reports whether the server name of TLS names another hub than the user name does.
// Other server names, such as localhost, do not matter.
func (s *Server) isOtherHub(serverName, name string) bool {
	return serverName != "localhost" && !hub.Same(serverName, name) && slices.Contains(*s.hubNames.Load(), strings.ToLower(serverName))
}

func (h *hubSession) subscribe(_ *Rule, filters packets.Subscriptions, codes []byte) []packets.Packet {
	for i, f := range filters {
		endpoint, _ := h.user.Filter(f.Filter) // check has reported an error
		if !h.grant.Allows(endpoint) {
			codes[i] = 0x80
			h.s.refuse("SUBACK 128", h.grant.Refuse(endpoint).Explanation)
		}
		if codes[i] < 0x80 {
			h.granted[f.Filter] = codes[i]
			h.receive(f.Filter)
		}
	}
	return nil
}

func (h *hubSession) unsubscribe(filters packets.Subscriptions) {
	for _, f := range filters {
		delete(h.granted, f.Filter)
		if h.receiver != nil && f.Filter == h.user.MessageFilter() {
			h.s.c.server.hub.Messages.Unsubscribe(h.user, h.receiver)
		}
	}
}

// receive begins the delivery of cloud-to-device messages if a filter selects them.
func (h *hubSession) receive(filter string) {
	if h.user.Module != "" || filter != h.user.MessageFilter() {
		return
	}
	if h.receiver == nil {
		h.receiver, h.locks = &hub.Receiver{Wake: h.s.wake}, map[uint16]string{}
	}
	h.s.c.server.hub.Messages.Subscribe(h.user, h.receiver)
}

// awake sends the queued cloud-to-device messages. A message that is sent at QoS 0 is complete; a
// message that is sent at QoS 1 awaits its PUBACK.
func (h *hubSession) awake() {
	server := h.s.c.server
	qos, subscribed := h.granted[h.user.MessageFilter()]
	if !subscribed {
		return
	}
	all, next := server.hub.Messages.Take(h.user, h.receiver, server.now())
	for _, d := range all {
		p := h.s.message(qos, h.user.MessageTopic(), d.Payload)
		if h.s.send(&Rule{}, p); qos > 0 {
			h.locks[p.PacketID] = d.Lock
		} else if !h.s.over {
			server.hub.Messages.Complete(h.user, d.Lock, server.now())
		}
	}
	if !next.IsZero() { // the device has locked a message over HTTPS
		h.s.after(next.Sub(server.now()), h.s.wake)
	}
}

func (h *hubSession) acknowledged(id uint16) {
	if lock := h.locks[id]; lock != "" {
		delete(h.locks, id)
		h.s.c.server.hub.Messages.Complete(h.user, lock, h.s.c.server.now())
	}
}

// publish passes telemetry on, or answers a request for the twin. A device that has not
// subscribed to the answers does not receive any.
func (h *hubSession) publish(rule *Rule, p *packets.Packet, acked bool) {
	at, _ := h.user.ParseTopic(p.TopicName) // check has reported an error
	if refused := h.grant.Refuse(at.Endpoint()); !h.grant.Allows(at.Endpoint()) {
		h.s.refuse("the connection was closed for 401003", refused.Explanation)
		h.s.end("401003 IotHubUnauthorized: " + refused.Reason)
		return
	}
	h.s.respond(rule, p, acked, 0, func() []packets.Packet {
		if at.Kind == hub.Message {
			h.telemetry(at.Properties, p.Payload)
			return nil
		}
		var topic string
		var body []byte
		if rule.Status == 0 {
			var wrong error
			if topic, body, wrong = h.s.c.server.hub.Twins.Answer(h.user, at, p.Payload); wrong != nil {
				h.s.refuse("twin 400", enroll.Explanation{Reason: wrong.Error()})
			}
		} else if topic = hub.ResponseTopic(rule.Status, at.RequestID); rule.Status >= 400 {
			h.s.refuse(fmt.Sprintf("twin %d", rule.Status), scripted)
		}
		if rule.Body != nil {
			body = []byte(*rule.Body)
		}
		qos, subscribed := h.granted[hub.Responses]
		if !subscribed {
			return nil
		}
		return []packets.Packet{h.s.message(qos, topic, body)}
	})
}

func (h *hubSession) telemetry(properties string, payload []byte) {
	c := h.s.c
	c.server.hub.Telemetry(hub.Telemetry{
		Time: c.server.now(), Hub: h.user.Hub, Device: h.user.Device, Module: h.user.Module, Protocol: c.protocol, Properties: properties, Payload: payload,
	})
}

// ended queues the unacknowledged messages again, and sends the will unless the client has
// disconnected [MQTT-3.1.2-8].
func (h *hubSession) ended(disconnected bool) {
	if h.receiver != nil {
		h.s.c.server.hub.Messages.Release(h.user, h.receiver)
	}
	if disconnected || h.will.TopicName == "" {
		return
	}
	at, _ := h.user.ParseTopic(h.will.TopicName) // checked before
	if !h.grant.Allows(at.Endpoint()) {
		return
	}
	h.telemetry(at.Properties, h.will.Payload)
}
