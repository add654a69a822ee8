package simulator

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// The names of the service; see the DPS page "Communicate with DPS using the MQTT protocol".
const (
	responseFilter = "$dps/registrations/res/#"
	registerPrefix = "$dps/registrations/PUT/iotdps-register/?"
	pollPrefix     = "$dps/registrations/GET/iotdps-get-operationstatus/?"
)

// userName is a parsed CONNECT user name.
type userName struct {
	scope          string
	registrationID string
	apiVersion     string
}

// parseUserName parses
// {idScope}/registrations/{registrationId}/api-version={v}[&ClientVersion={text}].
func parseUserName(text string) (userName, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 4 || parts[1] != "registrations" {
		return userName{}, errors.New("the user name does not have the four parts {idScope}/registrations/{registrationId}/api-version=…")
	}
	u := userName{scope: parts[0], registrationID: parts[2]}
	if u.scope == "" {
		return u, errors.New("the user name has no ID scope")
	}
	if !enroll.IsRegistrationID(u.registrationID) {
		return u, fmt.Errorf("%q is not a registration ID", u.registrationID)
	}
	for i, pair := range strings.Split(parts[3], "&") {
		key, value, ok := strings.Cut(pair, "=")
		switch {
		case !ok || key == "":
			return u, errors.New("the user name has a parameter without a value")
		case i == 0 && key != "api-version":
			return u, errors.New("the user name's first parameter is not api-version")
		case i == 0:
			u.apiVersion = value
		case key == "api-version":
			return u, errors.New("the user name has api-version twice")
		}
		if _, err := url.PathUnescape(value); err != nil {
			return u, errors.New("the user name is not percent-encoded")
		}
	}
	if !scenario.IsAPIVersion(u.apiVersion) {
		return u, errors.New("the api-version is not of the form YYYY-MM-DD[-preview]")
	}
	return u, nil
}

// isIDScope is lenient, because the form of an ID scope is not documented.
func isIDScope(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsAny(s, "/+#& \t\r\n")
}

// request is the parsed topic of a PUBLISH of a device.
type request struct {
	poll        bool
	requestID   string // as received; the reply repeats it verbatim; "" if the name lacks its $
	operationID string // percent-decoded, because one SDK encodes it
}

// parseRequest parses the two topics that a device may publish to.
func parseRequest(topic string) (request, error) {
	var r request
	query, ok := strings.CutPrefix(topic, registerPrefix)
	if !ok {
		if query, r.poll = strings.CutPrefix(topic, pollPrefix); !r.poll {
			return r, errors.New("the topic is unknown to the service")
		}
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" || seen[key] {
			return r, fmt.Errorf("the topic's parameter %q is repeated or has no value", key)
		}
		seen[key] = true
		decoded, err := url.PathUnescape(value)
		if err != nil {
			return r, errors.New("the topic is not percent-encoded")
		}
		switch {
		case key == "$rid":
			r.requestID = value
		case key == "rid": // the service answers with an empty $rid
		case key == "operationId" && r.poll:
			r.operationID = decoded
		default:
			return r, fmt.Errorf("the topic has the unknown parameter %q", key)
		}
	}
	if !seen["$rid"] && !seen["rid"] {
		return r, errors.New("the topic has no $rid")
	}
	if r.poll && r.operationID == "" {
		return r, errors.New("the topic has no operationId")
	}
	return r, nil
}
