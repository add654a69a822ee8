package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/accept"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/refusal"
)

const (
	// patience is the default of Server.Patience.
	patience = 5 * time.Second
	// grace is how long a server that stops waits for running requests: dpsd must stop within the
	// time limit of its service manager.
	grace = time.Second
	// maxHeader and maxBody limit a request, in bytes.
	maxHeader = 4 << 10
	maxBody   = 1 << 10
)

// Server serves the socket of one consumer. Its fields must be set before Serve; its functions
// are called concurrently.
type Server struct {
	Consumer Consumer
	// Unconfigured means that the configuration does not contain the consumer. All requests are
	// then refused.
	Unconfigured bool
	Board        *Board
	// MAC returns the HMAC-SHA256 of a statement of package sas under the key of an identity at the
	// hub. It must fail if the identity of the device has changed. Its error is not sent to the
	// consumer, so the function must report the error to the administrator.
	MAC func(ctx context.Context, of hub.Identity, statement []byte) ([]byte, error)
	// Refused accepts a report from the consumer that the hub refuses it. An error means that the
	// daemon cannot accept the report; its text is not sent to the consumer. If the function is nil,
	// the consumer cannot send reports.
	Refused func(ctx context.Context, name string, code refusal.Code) (refusal.Answer, error)
	// Now returns the current time; nil means time.Now. Tests replace it to avoid waiting for the
	// rate limit.
	Now func() time.Time
	// Usage counts what the consumer does; nil: the numbers are not available.
	Usage *Usage
	// Handler, if not nil, answers the requests instead of the interface of this package, within the
	// same limits. Board, MAC and Refused are then not used.
	Handler http.Handler
	// Failed is called with an error of accept(2), and not again until a client has connected. The
	// server tries again. nil: nothing is called.
	Failed func(error)
	// Patience is how long a client may take to send a request and to read each part of a
	// response. 0 means 5 s.
	Patience time.Duration

	rate    bucket
	running chan struct{} // contains an element for each request that is being answered
	streams chan struct{} // contains an element for each stream
	// stopping ends when the server stops.
	stopping context.Context
}

// Serve serves until ctx ends. It then closes the listener, gives running requests a second to
// finish, closes every connection, and returns when that is done, even if MAC has not returned. It
// closes a Unix socket without removing its file, which belongs to systemd. The error means that
// another goroutine has closed the listener. Serve must be called only once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if socket, is := l.(*net.UnixListener); is {
		socket.SetUnlinkOnClose(false)
	}
	if s.Usage == nil {
		s.Usage = &Usage{}
	}
	stopping, stop := context.WithCancel(ctx)
	defer stop()
	s.running, s.streams, s.stopping = make(chan struct{}, maxRunning), make(chan struct{}, maxStreams), stopping
	server := &http.Server{
		Handler:                      http.HandlerFunc(s.serve),
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            s.patience(),
		ReadTimeout:                  s.patience(),
		IdleTimeout:                  s.patience(),
		MaxHeaderBytes:               maxHeader,
		// A request that runs when ctx ends is not interrupted.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    log.New(io.Discard, "", 0), // errors of clients are not logged
	}
	bounded := &listener{Listener: accept.New(l, s.Failed), refuse: s.refuseConnection, slots: make(chan struct{}, maxConnections)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(bounded) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		s.finish(context.WithoutCancel(ctx), server)
		err = <-ended
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	_ = server.Close()
	stop() // ends the streams, which the server does not know
	bounded.open.Wait()
	return err
}

// finish closes the listener, and gives the requests that are being received or answered a moment
// to complete.
func (s *Server) finish(ctx context.Context, server *http.Server) {
	moment, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	_ = server.Shutdown(moment) // afterwards, the caller closes the connections that are left
}

func (s *Server) patience() time.Duration { return cmp.Or(s.Patience, patience) }

func (s *Server) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// refuseConnection answers a connection beyond the limit without reading from it.
func (s *Server) refuseConnection(c net.Conn) {
	s.Usage.count(limited)
	_ = c.SetWriteDeadline(time.Now().Add(s.patience()))
	_, _ = c.Write(s.limit(TooManyAtOnce, fmt.Sprintf("more than %d connections are open", maxConnections), interval).raw())
	_ = c.Close()
}

// route is what a path does. A handler returns the body of the answer 200.
type route struct {
	method string
	handle func(ctx context.Context, body []byte) (any, *problem)
}

func (s *Server) routes() map[string]route {
	return map[string]route{
		"/v1/hub":         {http.MethodGet, s.hub},
		"/v1/token":       {http.MethodPost, s.token},
		"/v1/certificate": {http.MethodGet, s.certificate},
		"/v1/refused":     {http.MethodPost, s.refused},
		"/v1/events":      {http.MethodGet, nil}, // a stream
	}
}

// serve answers a request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	deadlines := http.NewResponseController(w)
	extend := func() { _ = deadlines.SetWriteDeadline(time.Now().Add(s.patience())) }
	extend()
	defer extend() // the rest of the response is sent after the return
	s.Usage.count(requests)
	if wait := s.rate.take(s.now()); wait > 0 {
		s.Usage.count(limited)
		s.limit(TooManyRequests, fmt.Sprintf("the limit is a burst of %d requests, and then one every %.0f seconds", burst, interval.Seconds()), wait).send(w)
		return
	}
	if s.Handler != nil {
		s.run(w, func() { s.Handler.ServeHTTP(w, r) })
		return
	}
	if s.Unconfigured {
		notConfigured.send(w)
		return
	}
	route, wrong := s.route(r)
	if wrong != nil {
		if wrong.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", route.method)
		}
		wrong.send(w)
		return
	}
	body, wrong := read(w, r)
	if wrong != nil {
		wrong.send(w)
		return
	}
	// When the read deadline passes, net/http cancels the request, but a TPM may take longer.
	_ = deadlines.SetReadDeadline(time.Time{})
	if route.handle == nil {
		s.events(w)
		return
	}
	s.run(w, func() {
		answer, wrong := route.handle(r.Context(), body)
		if wrong != nil {
			wrong.send(w)
		} else {
			send(w, http.StatusOK, answer)
		}
	})
}

// run answers a request unless too many are running.
func (s *Server) run(w http.ResponseWriter, answer func()) {
	if !enter(s.running) {
		s.Usage.count(limited)
		s.limit(TooManyAtOnce, fmt.Sprintf("%d requests are already running", maxRunning), time.Second).send(w)
		return
	}
	defer leave(s.running)
	answer()
}

// limit returns the problem of a request that exceeds a limit.
func (s *Server) limit(code Code, text string, wait time.Duration) *problem {
	p := limit(code, text, wait)
	if s.Handler != nil {
		p.Message = p.Error
	}
	return p
}

// enter takes a slot, if one is free.
func enter(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func leave(slots chan struct{}) { <-slots }

// route finds the route of a request. The path must be written exactly as documented, without
// escapes, host or query.
func (s *Server) route(r *http.Request) (route, *problem) {
	routes := s.routes()
	route, found := routes[r.RequestURI]
	switch {
	case found && r.Method != route.method:
		return route, &problem{Problem: Problem{Code: WrongMethod, Error: "this path accepts only " + route.method}, status: http.StatusMethodNotAllowed}
	case found:
		return route, nil
	case strings.Contains(r.RequestURI, "?"):
		return route, badRequest("the request must not have a query", "the socket determines what a token is for; send lifetime in the body of POST /v1/token")
	}
	paths := slices.Sorted(maps.Keys(routes))
	return route, &problem{Problem: Problem{Code: UnknownPath, Error: "unknown path", Advice: "the paths are " + strings.Join(paths, ", ")}, status: http.StatusNotFound}
}
