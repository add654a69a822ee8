package hub

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Owns reports whether an HTTPS request is one for a hub, and not for DPS.
func Owns(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/devices/") }

// RequestUser returns the identity that an HTTPS request concerns, and the action, such as
// "messages/events". For a request about one or all modules, the action is "modules".
func RequestUser(r *http.Request) (u User, action string) {
	u = User{Hub: r.Host, APIVersion: r.URL.Query().Get("api-version")}
	if name, _, err := net.SplitHostPort(r.Host); err == nil {
		u.Hub = name
	}
	parts := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.EscapedPath(), "/devices/"), "/"), "/")
	for i := range parts {
		if text, err := url.PathUnescape(parts[i]); err == nil { // net/http refuses other paths
			parts[i] = text
		}
	}
	u.Device = parts[0]
	if len(parts) == 3 && parts[1] == endpointModules {
		u.Module = parts[2]
		return u, endpointModules
	}
	return u, strings.Join(parts[1:], "/")
}

// Response is the answer to an HTTPS request.
type Response struct {
	Status  int
	Body    []byte          // JSON unless Header has another type, or nothing
	ETag    string          // of the entity, without quotes; "" if it has none
	Header  http.Header     // more fields
	Refused *enroll.Refusal // nil if the request is not refused
}

// Failure is the answer to a request that is refused.
func Failure(status int, refused *enroll.Refusal) Response {
	body, err := enroll.JSON(struct {
		ErrorCode int    `json:"errorCode"`
		Message   string `json:"Message"` //nolint:tagliatelle // as the service writes it
	}{refused.Code, fmt.Sprintf("ErrorCode:%s;%s", refused.Message, refused.Message)})
	if err != nil { // a number and a text are always JSON
		status = http.StatusInternalServerError
	}
	return Response{Status: status, Body: body, Refused: refused}
}

// Answer answers the HTTPS requests of a device, which do not replace its MQTT connection: they manage
// the module identities of the device, receive its messages, and send telemetry. A module cannot send
// requests.
func (h *Hub) Answer(r *http.Request, body []byte, state tls.ConnectionState) Response {
	u, action := RequestUser(r)
	device := User{Hub: u.Hub, Device: u.Device}
	grant, refused := h.Authenticate(device, r.Header.Get("Authorization"), state)
	if refused != nil {
		return Failure(refused.Code/1000, refused)
	}
	endpoint := action
	if u.Module != "" {
		endpoint += "/" + u.Module
	} else if action != endpointModules {
		endpoint = strings.ToLower(action)
	}
	events := r.Method == http.MethodPost && endpoint == EndpointEvents
	messages := endpoint == EndpointDeviceBound || strings.HasPrefix(endpoint, EndpointDeviceBound+"/")
	switch {
	case !events && !messages && action != endpointModules:
		return unsupported(r)
	case !grant.Allows(endpoint):
		refused := grant.Refuse(endpoint)
		return Failure(refused.Code/1000, refused)
	case action == endpointModules:
		return h.answerModules(u, r, body)
	case messages:
		return h.answerMessages(device, r, endpoint)
	}
	h.Telemetry(Telemetry{Time: h.Now(), Hub: u.Hub, Device: u.Device, Protocol: "https", Payload: body})
	return Response{Status: http.StatusNoContent}
}

// unsupported is the response to a request that the hub does not support.
func unsupported(r *http.Request) Response {
	return Failure(http.StatusNotFound, refuse(404000, "NotFound", "the hub does not support "+r.Method+" "+enroll.Quote(r.URL.Path)))
}
