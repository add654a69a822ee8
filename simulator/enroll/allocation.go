package enroll

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// DefaultHub is the hub of enrollments that name no hub, unless Enrollments.DefaultHub is set.
const DefaultHub = "dpsd-sim.azure-devices.net"

// Hub is an IoT hub that is linked to the service.
type Hub struct {
	// Name is its host name.
	Name string `toml:"name"`
	// Weight is its share of the devices with the allocation "hashed", 1 to 1000; 0 means 1.
	Weight int `toml:"weight"`
	// ConnectionProfile is sent to devices whose api-version has that feature:
	// "classic", "mqttV5" or any other text. If it is empty, nothing is sent.
	ConnectionProfile string `toml:"connection_profile"`
}

// Latency defines the latency between some devices and the hubs.
type Latency struct {
	// RegistrationID is a pattern of path.Match. If it is empty, it matches all IDs.
	RegistrationID string `toml:"registration_id"`
	// Milliseconds is the latency by hub. A hub that is not listed is farthest.
	Milliseconds map[string]int `toml:"milliseconds"`
}

// Custom is one case of the function of a custom allocation.
type Custom struct {
	// When holds members of the request's payload that must match: a text is
	// a pattern of path.Match; numbers, booleans and tables of such values are also
	// possible. If it is empty, it matches every payload.
	When map[string]any `toml:"when,omitempty"`
	// Hub is the assigned hub. If it is empty, the hub is chosen as with the allocation "hashed".
	Hub string `toml:"hub,omitempty"`
	// Payload is a JSON object that is returned to the device. In its texts,
	// ${payload.a.b}, ${payload}, ${registrationId}, ${deviceId} and ${hub} are replaced.
	// A text that consists only of one of these becomes the value itself.
	Payload string `toml:"payload,omitempty"`
	// Status is the HTTP status of a function that fails, 400 to 599. The registration then
	// fails with 400207.
	Status int `toml:"status,omitempty"`
}

// hub returns the hub with the given name, regardless of case.
func hub(hubs []Hub, name string) (Hub, bool) {
	i := slices.IndexFunc(hubs, func(h Hub) bool { return strings.EqualFold(h.Name, name) })
	if i < 0 {
		return Hub{Name: name}, false
	}
	return hubs[i], true
}

// linked reports whether a hub may be named. Every hub may be named if none is linked.
func (e *Enrollments) linked(name string) bool {
	_, found := hub(e.Hubs, name)
	return found || len(e.Hubs) == 0
}

// candidates returns the hubs from which an enrollment chooses.
func (e *Enrollments) candidates(names []string) []Hub {
	switch {
	case len(names) == 0 && len(e.Hubs) == 0:
		return []Hub{{Name: cmp.Or(e.DefaultHub, DefaultHub)}}
	case len(names) == 0:
		return e.Hubs
	}
	all := make([]Hub, 0, len(names))
	for _, name := range names {
		h, _ := hub(e.Hubs, name)
		all = append(all, h)
	}
	return all
}

// checkHubs checks the fields that all enrollments share.
func (e *Enrollments) checkHubs(problems *tomlfile.Problems) {
	seen := map[string]bool{}
	for i, h := range e.Hubs {
		bad := problems.In("hub", i)
		if !IsHostName(h.Name) {
			bad("name", "%q is not a host name", h.Name)
		}
		if seen[strings.ToLower(h.Name)] {
			bad("name", "%q is linked twice", h.Name)
		}
		seen[strings.ToLower(h.Name)] = true
		if h.Weight < 0 || h.Weight > 1000 {
			bad("weight", "%d is not between 1 and 1000", h.Weight)
		}
	}
	for i, l := range e.Latencies {
		bad := problems.In("latency", i)
		bad.Pattern("registration_id", l.RegistrationID)
		if len(l.Milliseconds) == 0 {
			bad("milliseconds", "is missing")
		}
		for name, ms := range l.Milliseconds {
			if !IsHostName(name) || !e.linked(name) {
				bad("milliseconds", "%q is not a linked hub", name)
			}
			if ms < 0 {
				bad("milliseconds", "%d is negative", ms)
			}
		}
	}
}

func (n *Entry) checkCustom(c *Custom, bad tomlfile.Reporter) {
	if _, found := hub(n.hubs, c.Hub); c.Hub != "" && !found {
		bad("hub", "%q is not one of the enrollment's hubs", c.Hub)
	}
	if err := checkWhen(c.When); err != nil {
		bad("when", "%v", err)
	}
	if c.Status != 0 && (c.Status < 400 || c.Status > 599) {
		bad("status", "%d is not between 400 and 599", c.Status)
	}
	if c.Status != 0 && (c.Hub != "" || c.Payload != "") {
		bad("status", "a function that fails returns neither a hub nor a payload")
	}
	if c.Payload != "" && checkObject("payload", c.Payload, bad) {
		if _, err := fill(c.Payload, func(string) any { return nil }); err != nil {
			bad("payload", "%v", err)
		}
	}
}

// Placement is the hub of a device and the data that is returned to the device.
type Placement struct {
	Hub     Hub
	Payload string
	Failed  *Refusal // if not nil, the operation fails
}

// Place chooses the hub of a device. request is the payload of its request, or nil.
func (n *Entry) Place(registrationID, deviceID string, request any) Placement {
	h := n.hashed(registrationID)
	switch n.Allocation {
	case "lowest-latency":
		h = n.nearest(registrationID, h)
	case "custom":
		return n.function(registrationID, deviceID, request, h)
	}
	return Placement{Hub: h, Payload: n.Payload}
}

// hashed chooses by the registration ID, regardless of case, and always chooses the same hub
// for the same ID.
func (n *Entry) hashed(registrationID string) Hub {
	if len(n.hubs) == 0 { // a connection that was accepted without checking its credential
		return Hub{Name: DefaultHub}
	}
	total := 0
	for _, h := range n.hubs {
		total += max(1, h.Weight)
	}
	// FNV is unsuitable: its lowest bits depend only on the lowest bits of the text.
	sum := sha256.Sum256([]byte(strings.ToLower(registrationID)))
	at := int(binary.BigEndian.Uint32(sum[:]) % uint32(total))
	for _, h := range n.hubs {
		if at -= max(1, h.Weight); at < 0 {
			return h
		}
	}
	return n.hubs[0]
}

// nearest chooses by the first latency entry that matches. Otherwise it returns the given hub.
func (n *Entry) nearest(registrationID string, otherwise Hub) Hub {
	for _, l := range n.latencies {
		if !matches(l.RegistrationID, registrationID) {
			continue
		}
		best, least := otherwise, -1
		for _, h := range n.hubs {
			for name, ms := range l.Milliseconds {
				if strings.EqualFold(name, h.Name) && (least < 0 || ms < least) {
					best, least = h, ms
				}
			}
		}
		return best
	}
	return otherwise
}

// matches reports whether an ID matches a pattern, regardless of case. An empty pattern matches
// all IDs.
func matches(pattern, id string) bool {
	ok, _ := path.Match(strings.ToLower(pattern), strings.ToLower(id)) // the pattern is valid
	return ok || pattern == ""
}

// function does what the function of a custom allocation would do.
func (n *Entry) function(registrationID, deviceID string, request any, otherwise Hub) Placement {
	for _, c := range n.Custom {
		if !fits(c.When, request) {
			continue
		}
		if c.Status != 0 {
			return Placement{Failed: functionFailed(c.Status)}
		}
		p := Placement{Hub: otherwise, Payload: n.Payload}
		if h, found := hub(n.hubs, c.Hub); found {
			p.Hub = h
		}
		if c.Payload != "" {
			values := map[string]any{"registrationId": registrationID, "deviceId": deviceID, "hub": p.Hub.Name, "payload": request}
			p.Payload, _ = fill(c.Payload, func(name string) any { return look(values, name) }) // the payload is valid
		}
		return p
	}
	return Placement{Failed: functionFailed(404)}
}

// functionFailed returns the service's error for a function that did not answer 200.
func functionFailed(status int) *Refusal {
	return &Refusal{400207, fmt.Sprintf("Custom allocation failed with status code: %d", status), Explanation{
		Reason: fmt.Sprintf("the custom allocation failed with the HTTP status %d", status),
	}}
}

// checkWhen returns an error for conditions that can never match.
func checkWhen(when map[string]any) error {
	for key, want := range when {
		switch want := want.(type) {
		case string:
			if _, err := path.Match(want, ""); err != nil {
				return fmt.Errorf("%s: %q is not a pattern", key, want)
			}
		case bool, int, int64, float64:
		case map[string]any:
			if err := checkWhen(want); err != nil {
				return fmt.Errorf("%s.%w", key, err)
			}
		default:
			return fmt.Errorf("%s: not a string, a number, true, false or a table", key)
		}
	}
	return nil
}

// fits reports whether a JSON value, decoded with numbers as json.Number, has the required members.
func fits(when map[string]any, value any) bool {
	members, _ := value.(map[string]any)
	for key, want := range when {
		got, there := members[key]
		if !there {
			return false
		}
		ok := false
		switch want := want.(type) {
		case string:
			text, is := got.(string)
			same, _ := path.Match(want, text)
			ok = is && same
		case bool:
			ok = got == want
		case int, int64, float64:
			number, is := got.(json.Number)
			a, err := number.Float64()
			b, wrong := json.Number(fmt.Sprint(want)).Float64()
			ok = is && err == nil && wrong == nil && a == b
		case map[string]any:
			_, is := got.(map[string]any)
			ok = is && fits(want, got)
		}
		if !ok {
			return false
		}
	}
	return true
}

// look returns a.b.c in nested objects, or nil if it does not exist.
func look(values any, name string) any {
	for part := range strings.SplitSeq(name, ".") {
		members, _ := values.(map[string]any)
		values = members[part]
	}
	return values
}

// fill rewrites a JSON text in compact form, keeps the order of its members, and replaces
// ${name} in its texts. A text that consists of a single ${name} becomes that value.
func fill(text string, value func(name string) any) (string, error) {
	in := json.NewDecoder(strings.NewReader(text))
	in.UseNumber()
	var out bytes.Buffer
	if err := fillValue(in, &out, value); err != nil {
		return "", err
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("unexpected data after the JSON object")
	}
	return out.String(), nil
}

func fillValue(in *json.Decoder, out *bytes.Buffer, value func(name string) any) error {
	token, err := in.Token()
	if err != nil {
		return err
	}
	var done any = token
	switch token := token.(type) {
	case json.Delim:
		out.WriteByte(byte(token))
		for i := 0; in.More(); i++ {
			if i > 0 {
				out.WriteByte(',')
			}
			if token == '{' {
				key, err := in.Token()
				if err != nil {
					return err
				}
				if err := writeJSON(out, key); err != nil {
					return err
				}
				out.WriteByte(':')
			}
			if err := fillValue(in, out, value); err != nil {
				return err
			}
		}
		end, err := in.Token()
		if err != nil {
			return err
		}
		out.WriteByte(byte(end.(json.Delim)))
		return nil
	case string:
		if done, err = fillText(token, value); err != nil {
			return err
		}
	}
	return writeJSON(out, done)
}

// JSON encodes a value as the service does: it does not escape <, > and &.
func JSON(v any) ([]byte, error) {
	var b bytes.Buffer
	out := json.NewEncoder(&b)
	out.SetEscapeHTML(false)
	err := out.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

func writeJSON(out *bytes.Buffer, v any) error {
	text, err := JSON(v)
	out.Write(text)
	return err
}

// fillText replaces each ${name} in a text.
func fillText(text string, value func(name string) any) (any, error) {
	var out bytes.Buffer
	for rest := text; ; {
		before, after, found := strings.Cut(rest, "${")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, behind, closed := strings.Cut(after, "}")
		root, _, _ := strings.Cut(name, ".")
		if !closed || !slices.Contains([]string{"payload", "registrationId", "deviceId", "hub"}, root) || name != root && root != "payload" {
			return nil, fmt.Errorf("${%s: not one of ${payload}, ${payload.…}, ${registrationId}, ${deviceId}, ${hub}", strings.TrimSuffix(after, behind))
		}
		got := value(name)
		if before == "" && behind == "" && rest == text {
			return got, nil
		}
		switch got := got.(type) {
		case nil:
		case string:
			out.WriteString(got)
		default:
			if err := writeJSON(&out, got); err != nil {
				return nil, err
			}
		}
		rest = behind
	}
}
