package hub

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The domains of the two names that a hub can have; see Names.
const (
	classicDomain = ".azure-devices.net"
	deviceDomain  = ".device.azure-devices.net"
)

// Names returns the names of a hub in lower case. NAME.azure-devices.net is also
// NAME.device.azure-devices.net, and the other way round. The classic name is the first.
func Names(hub string) []string {
	hub = strings.ToLower(hub)
	if name, found := strings.CutSuffix(hub, deviceDomain); found && !strings.Contains(name, ".") && name != "" {
		return []string{name + classicDomain, hub}
	}
	if name, found := strings.CutSuffix(hub, classicDomain); found && !strings.Contains(name, ".") && name != "" {
		return []string{hub, name + deviceDomain}
	}
	return []string{hub}
}

// Same reports whether two names are those of the same hub.
func Same(a, b string) bool { return Names(a)[0] == Names(b)[0] }

// User is the identity in the user name of a CONNECT.
type User struct {
	Hub        string // host name, as received
	Device     string // device ID
	Module     string // module ID, or "" for the device itself
	APIVersion string // "" if there is none
}

// ParseUser parses {hub}/{deviceId}[/{moduleId}]/?api-version={version}[&{name}={value}]…. Devices
// in the field omit the question mark, or the last part.
func ParseUser(text string) (User, error) {
	parts := strings.Split(text, "/")
	query := ""
	if last := parts[len(parts)-1]; strings.ContainsAny(last, "?=") {
		query, parts = strings.TrimPrefix(last, "?"), parts[:len(parts)-1]
	}
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" || parts[len(parts)-1] == "" {
		return User{}, errors.New("the user name does not have the form {hub}/{deviceId}/?api-version=…")
	}
	u := User{Hub: parts[0], Device: parts[1]}
	if len(parts) == 3 {
		u.Module = parts[2]
	}
	if query == "" {
		return u, nil
	}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := url.PathUnescape(value)
		switch {
		case err != nil:
			return u, errors.New("the user name is not percent-encoded")
		case key == "api-version":
			u.APIVersion = value
		}
	}
	return u, nil
}

// Addressed reports whether a client addresses a hub, and not DPS: by its user name or, if this
// has neither form, by the server name of TLS. The form of DPS is
// {idScope}/registrations/{registrationId}/api-version=…. hubs are the names of the hubs.
func Addressed(user, serverName string, hubs []string) bool {
	known := func(name string) bool {
		return slices.ContainsFunc(hubs, func(h string) bool { return Same(h, name) })
	}
	parts := strings.Split(user, "/")
	switch {
	case len(parts) > 3 && parts[1] == "registrations": // also with the question mark of a hub by mistake
		return false
	case len(parts) > 1 && strings.HasPrefix(parts[len(parts)-1], "?"):
		return true
	case len(parts) > 1 && parts[1] == "registrations":
		return false
	case len(parts) > 1 && (known(parts[0]) || strings.HasSuffix(strings.ToLower(parts[0]), classicDomain)):
		return true
	}
	return known(serverName) && !strings.EqualFold(serverName, "localhost") // DPS has that name, too
}

// Kind is what a device asks of a hub with a PUBLISH.
type Kind int

// The kinds of a PUBLISH.
const (
	Message   Kind = iota // telemetry: a message for the cloud
	TwinGet               // read the device twin
	TwinPatch             // change the reported properties of the device twin
)

// Publication is the parsed topic of a PUBLISH of a device.
type Publication struct {
	Kind       Kind
	RequestID  string // as received; the answer repeats it
	Properties string // of telemetry, as received: {name}={value}&…
}

// Filters and topics; see "Communicate with an IoT hub using the MQTT protocol".
const (
	twinGet   = "$iothub/twin/GET/?"
	twinPatch = "$iothub/twin/PATCH/properties/reported/?"
)

// Responses is the filter of the answers to requests for the twin.
const Responses = "$iothub/twin/res/#"

// MaxMessage is the maximum size of a message in bytes.
const MaxMessage = 256 << 10

// ParseTopic parses the topics that a device may publish to.
func (u User) ParseTopic(topic string) (Publication, error) {
	events := strings.TrimPrefix(u.path(), "/") + "/messages/events"
	if rest, found := strings.CutPrefix(topic, events); found && (rest == "" || rest[0] == '/') {
		p := Publication{Kind: Message, Properties: strings.TrimPrefix(rest, "/")}
		if _, err := url.PathUnescape(p.Properties); err != nil {
			return p, errors.New("the properties of the message are not percent-encoded")
		}
		return p, nil
	}
	p := Publication{Kind: TwinGet}
	query, found := strings.CutPrefix(topic, twinGet)
	if !found {
		if query, found = strings.CutPrefix(topic, twinPatch); !found {
			return p, fmt.Errorf("a hub is not an MQTT broker: the topic is neither %s/ nor a topic of the device twin", events)
		}
		p.Kind = TwinPatch
	}
	for pair := range strings.SplitSeq(query, "&") {
		if key, value, _ := strings.Cut(pair, "="); key == "$rid" {
			p.RequestID = value
		}
	}
	if p.RequestID == "" {
		return p, errors.New("the topic has no $rid")
	}
	return p, nil
}

// Filter returns the endpoint of a topic filter, or an error if a device or module may not subscribe
// to it. There are fewer filters than the limit of a hub, which is five for each device.
func (u User) Filter(filter string) (endpoint string, err error) {
	own := strings.TrimPrefix(u.path(), "/")
	messages := []string{own + "/messages/devicebound/#"}
	if u.Module != "" { // messages to a module arrive at its inputs; some SDKs subscribe to everything
		messages = []string{own + "/inputs/#", own + "/#"}
	}
	switch {
	case filter == Responses || filter == "$iothub/twin/PATCH/properties/desired/#":
		return EndpointTwin, nil
	case filter == "$iothub/methods/POST/#":
		return EndpointMethods, nil
	case slices.Contains(messages, filter):
		return EndpointDeviceBound, nil
	}
	return "", fmt.Errorf("a hub is not an MQTT broker: it has no filter %q for %q", filter, u.ClientID())
}

// Endpoint returns the endpoint of a publication.
func (p Publication) Endpoint() string {
	if p.Kind == Message {
		return EndpointEvents
	}
	return EndpointTwin
}
