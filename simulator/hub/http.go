package hub

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Owns reports whether an HTTPS request is one for a hub, and not for DPS.
func Owns(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/devices/") }

// RequestUser returns the identity that an HTTPS request claims.
func RequestUser(r *http.Request) User {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	device, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/devices/"), "/")
	return User{Hub: host, Device: device, APIVersion: r.URL.Query().Get("api-version")}
}

// Response is the answer to an HTTPS request.
type Response struct {
	Status  int
	Body    []byte          // JSON, or nothing
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

// Answer answers the requests of a device that do not replace its MQTT connection: it lists
// the modules of the device, of which there are none, looks for a message to the device, of
// which there is none either, and accepts telemetry.
func (h *Hub) Answer(r *http.Request, body []byte, state tls.ConnectionState) Response {
	u := RequestUser(r)
	if _, refused := h.Authenticate(u, r.Header.Get("Authorization"), state); refused != nil {
		return Failure(refused.Code/1000, refused)
	}
	action := strings.TrimPrefix(r.URL.Path, "/devices/"+u.Device)
	switch r.Method + " " + strings.ToLower(strings.Trim(action, "/")) {
	case "GET modules":
		return Response{Status: http.StatusOK, Body: []byte("[]")}
	case "GET messages/devicebound":
		return Response{Status: http.StatusNoContent}
	case "POST messages/events":
		h.Telemetry(Telemetry{Time: h.Now(), Hub: u.Hub, Device: u.Device, Protocol: "https", Payload: body})
		return Response{Status: http.StatusNoContent}
	}
	return Failure(http.StatusNotFound, refuse(404000, "NotFound", "the hub does not support "+r.Method+" "+enroll.Quote(r.URL.Path)))
}
