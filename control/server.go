package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/accept"
	"github.com/dpsd-project/dpsd/stream"
)

const (
	// maxConnections limits the connections of untrusted peers; the same number is reserved
	// for trusted ones. perProcess limits the connections of one process.
	maxConnections = 128
	perProcess     = 16
	// patience is the default of Server.Patience, and the time limit of a Client.
	patience = 5 * time.Second
	// maxHeader limits a request, in bytes; requests have no body.
	maxHeader = 4 << 10
)

// Server serves the control socket. Its fields must be set before Serve; its functions are
// called concurrently.
type Server struct {
	Board *Board
	// Reprovision requests a registration. If it is nil, clients cannot request one.
	Reprovision func(context.Context) (Reprovision, error)
	// RenewCertificate requests a registration with a certificate request. Its error is
	// ErrNotConfigured if the daemon requests no certificates. If the function is nil, clients
	// get the same error.
	RenewCertificate func(context.Context) (Reprovision, error)
	// Metrics writes Prometheus text. If it is nil, there are no metrics.
	Metrics func(io.Writer)
	// Failed is called with an error of accept(2), and not again until a client has connected. The
	// server tries again. nil: nothing is called.
	Failed func(error)
	// Patience is how long a client may take to send a request and to read each part of a
	// response. 0 means 5 s.
	Patience time.Duration
}

// Listen creates the socket with mode 0666, since permissions are checked for each request.
// It replaces the socket of an earlier process; no other process listens on it, because the
// caller holds the lock of the state directory.
func Listen(path string) (*net.UnixListener, error) {
	// The socket is renamed after its mode has been set, so that clients never see it with
	// a mode that depends on the umask.
	temporary := filepath.Join(filepath.Dir(path), ".s") // short: unix(7) allows 107 bytes
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temporary, 0o666); err == nil { //nolint:gosec // for all users, see above
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temporary)
		return nil, err
	}
	return l, nil
}

// Serve serves until ctx ends, then closes the listener and every connection, and returns
// when all goroutines have ended. The error means that another goroutine has closed the listener.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	serving, end := context.WithCancel(ctx)
	defer end()
	server := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: s.patience(),
		ReadTimeout:       s.patience(),
		IdleTimeout:       s.patience(),
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		BaseContext:       func(net.Listener) context.Context { return serving },
		ErrorLog:          log.New(io.Discard, "", 0), // errors of clients are not logged
	}
	bounded := &boundedListener{Listener: accept.New(l, s.Failed), processes: map[int32]int{}}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(bounded) }()
	var err error
	select {
	case <-ctx.Done():
		_ = server.Close()
		err = <-ended
	case err = <-ended:
		_ = server.Close()
		end() // ends the streams
	}
	bounded.open.Wait()
	if ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *Server) patience() time.Duration { return cmp.Or(s.Patience, patience) }

func (s *Server) routes() http.Handler {
	routes := map[string]struct {
		method string
		handle http.HandlerFunc
	}{
		"/v1/status":            {http.MethodGet, s.status},
		"/v1/events":            {http.MethodGet, s.events},
		"/v1/reprovision":       {http.MethodPost, s.reprovision},
		"/v1/certificate/renew": {http.MethodPost, s.renewCertificate},
		"/metrics":              {http.MethodGet, s.metrics},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Each response has its own deadline, which events extend.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.patience()))
		route, found := routes[r.URL.Path]
		switch {
		case !found:
			paths := slices.Sorted(maps.Keys(routes))
			answer(w, http.StatusNotFound, Problem{Error: "unknown path", Advice: "the paths are " + strings.Join(paths, ", ")})
		case r.Method != route.method:
			w.Header().Set("Allow", route.method)
			answer(w, http.StatusMethodNotAllowed, Problem{Error: "this path accepts only " + route.method})
		default:
			route.handle(w, r)
		}
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may have closed the connection
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	document, _ := s.Board.Document(time.Now())
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(document) // the client may have closed the connection
}

// events sends a line of JSON for the current status and for each change. It closes the
// connection to a client that does not read; a slow client misses intermediate states but
// not the latest.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	stream.Respond(r.Context(), w, "application/x-ndjson", s.patience(), func(ctx context.Context, write func([]byte) error) {
		_ = s.Board.Follow(ctx, write)
	})
}

func (s *Server) reprovision(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, "a registration", "dpsd reprovision") {
		return
	}
	if s.Reprovision == nil {
		answer(w, http.StatusServiceUnavailable, Problem{Error: "the daemon does not accept requests"})
		return
	}
	forward(w, r, s.Reprovision)
}

func (s *Server) renewCertificate(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, "a certificate", "dpsd certificate renew") {
		return
	}
	renew := s.RenewCertificate
	if renew == nil {
		renew = func(context.Context) (Reprovision, error) { return Reprovision{}, ErrNotConfigured }
	}
	forward(w, r, renew)
}

// allowed reports whether the client may request something. If not, it sends the answer.
// command is the command that root can run instead.
func allowed(w http.ResponseWriter, r *http.Request, something, command string) bool {
	if peerOf(r.Context()).trusted() {
		return true
	}
	answer(w, http.StatusForbidden, Problem{
		Error:  "only root and members of the service's group may request " + something,
		Advice: "run: sudo " + command + "; or add the user to the group: usermod -a -G dpsd USER",
	})
	return false
}

// forward passes a request to the daemon and answers with the time of the registration.
func forward(w http.ResponseWriter, r *http.Request, request func(context.Context) (Reprovision, error)) {
	due, err := request(r.Context())
	switch {
	case errors.Is(err, ErrNotConfigured):
		answer(w, http.StatusConflict, Problem{Error: err.Error(), Advice: "add the table [certificate] to dpsd.toml"})
	case err != nil:
		answer(w, http.StatusServiceUnavailable, Problem{Error: err.Error()})
	default:
		answer(w, http.StatusAccepted, due)
	}
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if s.Metrics != nil {
		s.Metrics(w)
	}
}

// boundedListener identifies peers and immediately closes connections above the limits.
type boundedListener struct {
	net.Listener // of a Unix socket

	mu        sync.Mutex
	strangers int
	trusted   int
	processes map[int32]int // number of connections by PID
	open      sync.WaitGroup
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if held := l.take(c.(*net.UnixConn)); held != nil {
			return held, nil
		}
		_ = c.Close()
	}
}

func (l *boundedListener) take(c *net.UnixConn) *counted {
	p := identify(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	n := &l.strangers
	if p.trusted() {
		n = &l.trusted
	}
	if *n >= maxConnections || l.processes[p.pid] >= perProcess {
		return nil
	}
	*n++
	l.processes[p.pid]++
	l.open.Add(1)
	return &counted{UnixConn: c, peer: p, listener: l, n: n}
}

// counted is a connection that counts until it is closed.
type counted struct {
	*net.UnixConn
	peer     peer
	listener *boundedListener
	n        *int
	once     sync.Once
}

// Close implements net.Conn.
func (c *counted) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() {
		c.listener.mu.Lock()
		*c.n--
		if c.listener.processes[c.peer.pid]--; c.listener.processes[c.peer.pid] == 0 {
			delete(c.listener.processes, c.peer.pid)
		}
		c.listener.mu.Unlock()
		c.listener.open.Done()
	})
	return err
}
