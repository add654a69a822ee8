// Package hub describes how a device addresses an IoT hub: the user name and the client ID of MQTT,
// the ports, and the resources of tokens. It performs no I/O.
package hub

// APIVersion is the version of the hub's device API in the user name (Azure page "Communicate
// with an IoT hub using the MQTT protocol").
const APIVersion = "2021-04-12"

// WebSocketPath is the path of MQTT over WebSocket, with the subprotocol "mqtt".
const WebSocketPath = "/$iothub/websocket"

// Identity is a device at an IoT hub, or one of its modules.
type Identity struct {
	Host     string // host name of the hub, as DPS has assigned it
	DeviceID string
	ModuleID string // "": the device itself
}

// ClientID returns the client ID of an MQTT connection. Its case matters.
func (i Identity) ClientID() string {
	if i.ModuleID == "" {
		return i.DeviceID
	}
	return i.DeviceID + "/" + i.ModuleID
}

// UserName returns the user name of an MQTT connection to a hub with the Classic profile. The
// IDs are not encoded, not even a # or a percent sign.
func (i Identity) UserName() string {
	return i.Host + "/" + i.ClientID() + "/?api-version=" + APIVersion
}

// Resource returns the resource of a token, not encoded: package sas encodes it as a whole, like
// Microsoft's SDKs. It covers everything that the identity may do or, if events is true, only
// sending messages.
func (i Identity) Resource(events bool) string {
	resource := i.Host + "/devices/" + i.DeviceID
	if i.ModuleID != "" {
		resource += "/modules/" + i.ModuleID
	}
	if events {
		resource += "/messages/events"
	}
	return resource
}

// Profile is the connection profile of a hub, which DPS reports with the assignment. A value
// that is not among the constants belongs to a later protocol, which dpsd does not know.
type Profile string

// The profiles.
const (
	Classic Profile = "classic" // MQTT 3.1.1, AMQP and HTTPS, with a token or a certificate
	MQTTV5  Profile = "mqttV5"  // MQTT 5 with a certificate; the hub accepts no token
)

// Named returns the profile with the name that DPS has reported. An assignment without a profile
// is for a Classic hub.
func Named(name string) Profile {
	if name == "" {
		return Classic
	}
	return Profile(name)
}

// Ports are the TCP ports of a hub by protocol; 0 means that the hub does not support the protocol.
type Ports struct {
	MQTT      int `json:"mqtt,omitempty"`
	WebSocket int `json:"webSocket,omitempty"` // MQTT over WebSocket, see WebSocketPath
	AMQP      int `json:"amqp,omitempty"`
	HTTPS     int `json:"https,omitempty"`
}

// Ports returns the ports of a hub with the profile.
func (p Profile) Ports() Ports {
	switch p {
	case Classic:
		return Ports{MQTT: 8883, WebSocket: 443, AMQP: 5671, HTTPS: 443}
	case MQTTV5:
		return Ports{MQTT: 8883, WebSocket: 443}
	}
	return Ports{}
}
