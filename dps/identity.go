// Package dps is the device side of the Azure IoT Hub Device Provisioning
// Service over MQTT, without any I/O: user name, topics, bodies, the parsing of
// every reply, and [Registration], the state machine of one registration.
//
// Nothing here knows a socket or a clock. A caller hands in the time and the
// messages it received, sends what a [Step] tells it to send, and comes back at
// [Registration.Deadline]. Errors are typed: [ServiceError] is the service
// saying no, [MalformedError] is an answer nobody can use, [ErrNoReply] is no
// answer at all.
package dps

import (
	"fmt"
	"strings"
)

// DefaultAPIVersion is the api-version that the documentation of DPS over MQTT
// and most device SDKs use.
const DefaultAPIVersion = "2019-03-31"

// ResponseFilter is the one topic filter a device subscribes to. Register only
// after its SUBACK: the service keeps no answers for those who come late.
const ResponseFilter = "$dps/registrations/res/#"

const (
	responsePrefix = "$dps/registrations/res/"
	registerPrefix = "$dps/registrations/PUT/iotdps-register/?$rid="
	pollPrefix     = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid="
)

// The two requests of the protocol, as [ServiceError] and its kin name them.
const (
	RequestRegister = "register"
	RequestPoll     = "poll"
)

// Identity says who registers, and how the connection introduces itself.
type Identity struct {
	IDScope        string // the ID scope of the DPS instance, e.g. "0ne00000000"
	RegistrationID string // 1..128 characters of [A-Za-z0-9._:-]
	APIVersion     string // "" is DefaultAPIVersion
	ClientVersion  string // free text about the client; "" sends none
}

// ClientID returns the MQTT client identifier: the registration ID, byte for
// byte. The service refuses the connection when it differs from the one in the
// user name.
func (id Identity) ClientID() string { return id.RegistrationID }

// UserName returns the MQTT user name. The ID scope and the registration ID go in
// raw, as every SDK sends them; the client version is percent-encoded.
func (id Identity) UserName() string {
	version := id.APIVersion
	if version == "" {
		version = DefaultAPIVersion
	}
	name := id.Resource() + "/api-version=" + version
	if id.ClientVersion != "" {
		name += "&ClientVersion=" + escape(id.ClientVersion)
	}
	return name
}

// Resource returns "{idScope}/registrations/{registrationId}", the resource that a
// SAS token is made for.
func (id Identity) Resource() string {
	return id.IDScope + "/registrations/" + id.RegistrationID
}

// escape percent-encodes everything but the unreserved characters of RFC 3986.
func escape(s string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var b strings.Builder
	for _, c := range []byte(s) {
		if strings.IndexByte(unreserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
