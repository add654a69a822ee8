// Package dps implements the device side of the Azure IoT Hub Device Provisioning Service
// over MQTT, without any I/O: user names, topics, bodies, a parser for all replies, and
// [Registration], the state machine of one registration.
//
// The package uses neither sockets nor clocks. A caller passes in the time and the messages
// it received, sends the message of each [Step], and calls Advance at
// [Registration.Deadline]. Errors are typed: a [ServiceError] is a rejection by the
// service, a [MalformedError] is an unusable reply, and [ErrNoReply] is a missing reply.
package dps

import (
	"fmt"
	"strings"
)

// DefaultAPIVersion is the api-version that the documentation of DPS over MQTT
// and most device SDKs use.
const DefaultAPIVersion = "2019-03-31"

// ResponseFilter is the only topic filter that a device subscribes to. Register only after
// its SUBACK: the service does not keep replies for later subscribers.
const ResponseFilter = "$dps/registrations/res/#"

const (
	responsePrefix = "$dps/registrations/res/"
	registerPrefix = "$dps/registrations/PUT/iotdps-register/?$rid="
	pollPrefix     = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid="
)

// The two requests of the protocol, as named in errors such as [ServiceError].
const (
	RequestRegister = "register"
	RequestPoll     = "poll"
)

// Identity identifies the device that registers and the client that it uses.
type Identity struct {
	IDScope        string // the ID scope of the DPS instance, e.g. "0ne00000000"
	RegistrationID string // 1..128 characters of [A-Za-z0-9._:-]
	APIVersion     string // "" means DefaultAPIVersion
	ClientVersion  string // free text about the client; not sent if ""
}

// ClientID returns the MQTT client identifier: the registration ID, byte for byte. The
// service refuses the connection if it differs from the registration ID in the user name.
func (id Identity) ClientID() string { return id.RegistrationID }

// UserName returns the MQTT user name. It contains the ID scope and the registration ID
// unescaped, as every SDK sends them; the client version is percent-encoded.
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

// Resource returns "{idScope}/registrations/{registrationId}", the resource that a SAS
// token grants access to.
func (id Identity) Resource() string {
	return id.IDScope + "/registrations/" + id.RegistrationID
}

// escape percent-encodes everything except the unreserved characters of RFC 3986.
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
