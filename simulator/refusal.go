package simulator

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Refusal is why the simulator refused a connection or a request. It contains no key, no
// signature and no password.
type Refusal struct {
	Time       time.Time
	Connection int    // its number, see Entry
	Protocol   string // see Entry
	// RegistrationID is that of the device, or "" if it is unknown.
	RegistrationID string
	// Hub and DeviceID are set for a device that connects to its hub.
	Hub      string
	DeviceID string
	// Address is that of the client.
	Address string
	// Answer is what the device received, such as "CONNACK 5" or "401, error code 401000".
	Answer string
	enroll.Explanation
}

// String returns the refusal as one line of text: who was refused, how, and why.
func (r Refusal) String() string {
	who := "a client"
	switch {
	case r.Hub != "":
		who = fmt.Sprintf("%s at the hub %s", enroll.Quote(r.DeviceID), enroll.Quote(r.Hub))
	case r.RegistrationID != "":
		who = enroll.Quote(r.RegistrationID)
	}
	return fmt.Sprintf("refused %s from %s over %s (%s): %s", who, r.Address, r.Protocol, r.Answer, r.Explanation)
}

// refuse records a refusal and reports it. who contains what is known about the client.
func (c *connection) refuse(who Entry, answer string, why enroll.Explanation) {
	now := c.server.now()
	who.Packet, who.Detail, who.Refusal = "REFUSAL", answer, &why
	c.note(who)
	c.server.onRefusal(Refusal{
		Time: now, Connection: c.number, Protocol: c.protocol, RegistrationID: who.RegistrationID, Hub: who.Hub, DeviceID: who.DeviceID,
		Address: c.raw.RemoteAddr().String(), Answer: answer, Explanation: why,
	})
}

// violationHints explains some violations further. Each begins with words of the violation.
var violationHints = []struct {
	says string
	enroll.Explanation
}{
	{"there is no subscription", enroll.Explanation{
		Expected: "a SUBSCRIBE to " + responseFilter + " before the first PUBLISH",
		Advice:   "The service sends its reply as a message, which a program that only publishes, such as mosquitto_pub, cannot receive.",
	}},
	{"the topic is unknown", enroll.Explanation{
		Expected: registerPrefix + "$rid={n} or " + pollPrefix + "$rid={n}&operationId={id}",
		Advice:   "In a shell, put the topic in single quotes, so that the shell does not expand $dps and $rid.",
	}},
	{"the topic has no $rid", enroll.Explanation{
		Expected: "$rid={n}", Advice: "In a shell, put the topic in single quotes, so that the shell does not expand $rid.",
	}},
	{"the filter is not", enroll.Explanation{Advice: "In a shell, put the filter in single quotes, so that the shell does not expand $dps."}},
	{"the protocol level is not 4", enroll.Explanation{Expected: "MQTT 3.1.1", Advice: "The service does not speak MQTT 5 or MQTT 3.1. Select version 3.1.1 in the client."}},
	{"the subprotocol mqtt is not offered", enroll.Explanation{Expected: "the header Sec-WebSocket-Protocol: mqtt"}},
	{"the service does not have this path", enroll.Explanation{Expected: "the path " + documentedPath}},
	{"before CONNECT", enroll.Explanation{Advice: "The first packet must be CONNECT. Check that the client speaks MQTT."}},
}

// explainViolation explains a violation.
func explainViolation(reason string) enroll.Explanation {
	e := enroll.Explanation{Reason: reason}
	for _, hint := range violationHints {
		if strings.Contains(reason, hint.says) {
			e.Expected, e.Advice = hint.Expected, hint.Advice
		}
	}
	return e
}

// explainTLS explains a handshake that failed. read is the beginning of what the client sent.
// ok is false for a
// client that sent nothing, such as a port scan, and for a fault of the scenario.
func explainTLS(err error, read []byte) (e enroll.Explanation, ok bool) {
	e = enroll.Explanation{Reason: "the TLS handshake failed (" + err.Error() + ")"}
	says := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(err.Error(), part) })
	}
	const trust = "The client must trust the certificate authority in ca.pem, and connect to a host name that the server's certificate contains."
	switch {
	case len(read) == 0 || errors.Is(err, errScenario):
		return e, false
	case says("remote error") && says("unknown certificate authority", "bad certificate", "unknown certificate", "expired certificate"):
		e.Reason, e.Advice = "the client rejected the server's certificate ("+err.Error()+")", trust
	case says("unsupported versions", "protocol version"):
		e.Expected, e.Advice = "TLS 1.2", "The settings tls_min and tls_max change the supported versions."
	case says("first record does not look like a TLS handshake"):
		e.Expected, e.Given = "TLS", "bytes that are not TLS"
		switch {
		case read[0] == 0x10: // CONNECT
			e.Given = "MQTT without TLS"
		case slices.Contains([]string{"GET ", "PUT ", "POST"}, string(read[:min(4, len(read))])):
			e.Given = "HTTP without TLS"
		}
		e.Advice = "The service accepts only TLS connections."
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), says("connection reset", "closed pipe"):
		e.Reason, e.Advice = "the client ended the TLS handshake without giving a reason", "Many clients do this if they do not trust the server's certificate. "+trust
	}
	return e, true
}

// explainSilence explains a client that ends the connection after TLS without a request.
func explainSilence() enroll.Explanation {
	return enroll.Explanation{
		Reason: "the client closed the connection after the TLS handshake, before its first request",
		Advice: "Programs that check the certificate after the handshake, such as Node programs, do this if they do not trust it or its names do not match. For Node, set NODE_EXTRA_CA_CERTS to the path of ca.pem.",
	}
}

func explainUserName(user string, err error) enroll.Explanation {
	e := enroll.Explanation{
		Reason: err.Error(), Expected: "{idScope}/registrations/{registrationId}/api-version={version}", Given: enroll.Quote(user),
	}
	switch {
	case user == "":
		e.Given = "no user name"
	case strings.Contains(user, "/?api-version"):
		e.Advice = "Unlike the user name for a hub, the user name for DPS has no question mark before api-version."
	}
	return e
}

func (s *Server) explainScope(given string) enroll.Explanation {
	return enroll.Explanation{
		Reason: "the ID scope does not match", Expected: enroll.Quote(s.material.scope), Given: enroll.Quote(given),
		Advice: "The file id-scope in the simulator's directory contains the ID scope.",
	}
}

func explainVersion(set Settings, given string) enroll.Explanation {
	served := set.APIVersions
	if len(served) == 0 {
		served = slices.Sorted(maps.Keys(set.Features))
	}
	return enroll.Explanation{
		Reason: "the api-version is not supported", Expected: cmp.Or(strings.Join(served, ", "), "none"), Given: enroll.Quote(given),
		Advice: "The settings api_versions, features and unknown_api_version define which versions are supported.",
	}
}
