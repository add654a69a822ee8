package hub

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Twins holds the twins of all devices and modules in memory. The zero value has none. Its methods are safe
// for concurrent use.
type Twins struct {
	mu  sync.Mutex
	all map[string]*twin // by User.Key
}

// twin is the twin of a device or module, which the simulated cloud never changes.
type twin struct {
	reported map[string]any
	version  int // of reported
}

// of returns the twin of a device. The caller holds t.mu.
func (t *Twins) of(key string) *twin {
	if t.all == nil {
		t.all = map[string]*twin{}
	}
	if t.all[key] == nil {
		t.all[key] = &twin{reported: map[string]any{}, version: 1}
	}
	return t.all[key]
}

// Answer performs a request of a device, and returns the topic and the body of the answer. wrong
// is why it refuses the request, or nil.
func (t *Twins) Answer(u User, p Publication, body []byte) (topic string, answer []byte, wrong error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.of(u.Key())
	if p.Kind == TwinGet {
		reported := maps.Clone(w.reported)
		reported["$version"] = w.version
		answer, err := enroll.JSON(map[string]any{"desired": map[string]any{"$version": 1}, "reported": reported})
		if err != nil { // every value came from JSON
			return ResponseTopic(http.StatusInternalServerError, p.RequestID), nil, err
		}
		return ResponseTopic(http.StatusOK, p.RequestID), answer, nil
	}
	refuse := func(reason string) (string, []byte, error) {
		answer, _ := enroll.JSON(map[string]string{"message": reason}) // a text is always JSON
		return ResponseTopic(http.StatusBadRequest, p.RequestID), answer, errors.New(reason)
	}
	var patch map[string]any
	in := json.NewDecoder(bytes.NewReader(body))
	in.UseNumber()
	if err := in.Decode(&patch); err != nil || patch == nil || !atEnd(in) {
		return refuse("the reported properties are not a JSON object")
	}
	for name := range patch {
		if strings.HasPrefix(name, "$") {
			return refuse("the name of a reported property begins with $")
		}
	}
	merge(w.reported, patch)
	w.version++
	return fmt.Sprintf("%s&$version=%d", ResponseTopic(http.StatusNoContent, p.RequestID), w.version), nil, nil
}

// forget removes the twin of a device or module.
func (t *Twins) forget(u User) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, u.Key())
}

// ResponseTopic is the topic of an answer to a request for the twin.
func ResponseTopic(status int, requestID string) string {
	return fmt.Sprintf("$iothub/twin/res/%d/?$rid=%s", status, requestID)
}

// merge applies a JSON merge patch, RFC 7396.
func merge(object, patch map[string]any) {
	for name, value := range patch {
		inner, isObject := value.(map[string]any)
		switch before, was := object[name].(map[string]any); {
		case value == nil:
			delete(object, name)
		case isObject && was:
			merge(before, inner)
		case isObject:
			made := map[string]any{}
			merge(made, inner) // without its nulls
			object[name] = made
		default:
			object[name] = value
		}
	}
}
