package consumer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/dpsd-project/dpsd/stream"
)

// Event is a line of GET /v1/events. Each line contains the complete current state.
type Event struct {
	Event      EventKind `json:"event"`
	Generation uint64    `json:"generation"` // 0: the device is not assigned
	// Available reports whether the consumer can get its credential. Code is the reason if not.
	Available bool `json:"available"`
	Code      Code `json:"code,omitempty"`
	// Expiry is when the last token that dpsd issued to the consumer expires, and ExpiresIn is the
	// number of seconds until then.
	Expiry    time.Time `json:"expiry,omitzero"`
	ExpiresIn int       `json:"expiresIn,omitempty"`
	// CertificateNotAfter is when the certificate expires, for a consumer that may use it.
	CertificateNotAfter time.Time `json:"certificateNotAfter,omitzero"`
}

// EventKind is the kind of an Event.
type EventKind string

// The events.
const (
	Present        EventKind = "present"            // the first line: nothing has happened
	NewGeneration  EventKind = "generation"         // the hub or the device ID may have changed
	Available      EventKind = "available"          // the consumer can get its credential again
	Withheld       EventKind = "withheld"           // the consumer cannot get its credential
	NewCertificate EventKind = "certificate"        // the certificate has been replaced
	TokenExpires   EventKind = "token-expires-soon" // the consumer should get a new token
)

// tokenSoon is the part of its lifetime after which a token expires soon.
const tokenSoon = 0.8

// view is the part of a State that a consumer observes.
type view struct {
	generation  uint64
	code        Code
	certificate Files
}

func (s *Server) view(state *State) (v view) {
	v.generation = state.Generation
	if wrong := s.unavailable(state); wrong != nil {
		v.code = wrong.Code
	}
	if s.Consumer.Certificate && state.Certificate != nil {
		v.certificate = *state.Certificate
	}
	return v
}

// since lists what has happened since an earlier view.
func (v view) since(earlier view) (happened []EventKind) {
	if v.generation != earlier.generation {
		happened = append(happened, NewGeneration)
	}
	if v.code != earlier.code {
		if v.code == "" {
			happened = append(happened, Available)
		} else {
			happened = append(happened, Withheld)
		}
	}
	if v.certificate != earlier.certificate {
		happened = append(happened, NewCertificate)
	}
	return happened
}

// events sends the current state and then each event, until the client closes the connection or
// the server stops. It closes the connection to a client that does not read. A slow client
// misses intermediate states but not the latest.
func (s *Server) events(w http.ResponseWriter) {
	if !enter(s.streams) {
		s.Usage.count(limited)
		limit(TooManyAtOnce, fmt.Sprintf("%d event streams are already open", maxStreams), soon).send(w)
		return
	}
	defer leave(s.streams)
	stream.Respond(s.stopping, w, "application/x-ndjson", s.patience(), s.follow)
}

// follow writes the lines of a stream until ctx ends.
func (s *Server) follow(ctx context.Context, write func([]byte) error) {
	var last view
	var warned time.Time // the expiry of the last token that was announced
	for first := true; ; first = false {
		state, changed := s.Board.Watch()
		counts, issued := s.Usage.watch()
		now := s.now().Round(0) // an expiry is a time of the wall clock
		present := s.view(&state)
		happened := present.since(last)
		if first {
			happened = []EventKind{Present}
		}
		if first && !counts.Expiry.After(now) {
			warned = counts.Expiry // it expired before the stream began
		}
		issue := counts.Issued.Round(0)
		soon := issue.Add(time.Duration(tokenSoon * float64(counts.Expiry.Sub(issue))))
		var timer <-chan time.Time
		if !counts.Expiry.Equal(warned) {
			if wait := soon.Sub(now); wait > 0 {
				timer = time.After(wait)
			} else {
				happened, warned = append(happened, TokenExpires), counts.Expiry
			}
		}
		for _, what := range happened {
			line := Event{Event: what, Generation: present.generation, Available: present.code == "", Code: present.code, CertificateNotAfter: present.certificate.NotAfter}
			if counts.Expiry.After(now) {
				line.Expiry, line.ExpiresIn = counts.Expiry.UTC(), int(counts.Expiry.Sub(now).Seconds())
			}
			text, _ := json.Marshal(line) // cannot fail
			if write(append(text, '\n')) != nil {
				return
			}
		}
		last = present
		select {
		case <-changed:
		case <-issued:
		case <-timer:
		case <-ctx.Done():
			return
		}
	}
}
