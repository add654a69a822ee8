package control

import (
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
)

const (
	// maxConnections bounds what strangers can hold open, in connections; so many
	// again are kept for those who are trusted. One process gets perProcess of them.
	maxConnections = 128
	perProcess     = 16
	// patience is that of a Server which names none, and of a Client.
	patience = 5 * time.Second
	// maxHeader bounds a request, in bytes; no request has a body.
	maxHeader = 4 << 10
)

// Server answers on the control socket. Its fields are set before Serve and are
// called from many goroutines at once.
type Server struct {
	Board *Board
	// Reprovision asks for a registration. nil: nobody can.
	Reprovision func(context.Context) (Reprovision, error)
	// Metrics writes Prometheus text. nil: there is none.
	Metrics func(io.Writer)
	// Patience is how long a client may take to send a request, and to take each
	// piece of an answer. 0 stands for 5 s.
	Patience time.Duration
}

// Listen makes the socket, with mode 0666: what may be asked by whom is decided
// for each request. A socket that an earlier process left behind is replaced; the
// caller holds the lock of the state directory, so nobody listens there.
func Listen(path string) (*net.UnixListener, error) {
	// Bound under another name and moved when its mode is right: nobody finds it
	// half made, and a umask does not matter.
	temporary := filepath.Join(filepath.Dir(path), ".s") // short: unix(7) allows 107 bytes
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temporary, 0o666); err == nil { //nolint:gosec // for everybody, see above
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temporary)
		return nil, err
	}
	return l, nil
}

// Serve answers until ctx ends, then closes the listener and every connection,
// and returns when all goroutines have ended. The error is one of accepting.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	server := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: s.patience(),
		ReadTimeout:       s.patience(),
		IdleTimeout:       s.patience(),
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0), // what strangers send is no news
	}
	bounded := &boundedListener{UnixListener: l, processes: map[int32]int{}}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(bounded) }()
	var err error
	select {
	case <-ctx.Done():
		_ = server.Close()
		err = <-ended
	case err = <-ended:
		_ = server.Close()
	}
	bounded.open.Wait()
	if ctx.Err() == nil {
		return err
	}
	return nil
}

func (s *Server) patience() time.Duration {
	if s.Patience > 0 {
		return s.Patience
	}
	return patience
}

func (s *Server) routes() http.Handler {
	routes := map[string]struct {
		method string
		handle http.HandlerFunc
	}{
		"/v1/status":      {http.MethodGet, s.status},
		"/v1/events":      {http.MethodGet, s.events},
		"/v1/reprovision": {http.MethodPost, s.reprovision},
		"/metrics":        {http.MethodGet, s.metrics},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Each answer has a deadline of its own, which events prolong.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.patience()))
		route, found := routes[r.URL.Path]
		switch {
		case !found:
			paths := slices.Sorted(maps.Keys(routes))
			answer(w, http.StatusNotFound, Problem{Error: "there is no such path", Advice: "there are " + strings.Join(paths, ", ")})
		case r.Method != route.method:
			w.Header().Set("Allow", route.method)
			answer(w, http.StatusMethodNotAllowed, Problem{Error: "the method is " + route.method})
		default:
			route.handle(w, r)
		}
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // who has gone misses it
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	document, _ := s.Board.Document(time.Now())
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(document) // who has gone misses it
}

// events is a line of JSON for the present status and for each change. A client
// that does not read is dropped; one that reads slowly misses what it was too
// slow for, never the latest.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = s.Board.Follow(r.Context(), func(document []byte) error {
		_ = control.SetWriteDeadline(time.Now().Add(s.patience()))
		if _, err := w.Write(document); err != nil {
			return err
		}
		return control.Flush()
	})
}

func (s *Server) reprovision(w http.ResponseWriter, r *http.Request) {
	if !peerOf(r.Context()).trusted() {
		answer(w, http.StatusForbidden, Problem{
			Error:  "only root and members of the service's group may ask for a registration",
			Advice: "sudo dpsd reprovision, or: usermod -a -G dpsd USER",
		})
		return
	}
	if s.Reprovision == nil {
		answer(w, http.StatusServiceUnavailable, Problem{Error: "nobody takes the request"})
		return
	}
	due, err := s.Reprovision(r.Context())
	if err != nil {
		answer(w, http.StatusServiceUnavailable, Problem{Error: err.Error()})
		return
	}
	answer(w, http.StatusAccepted, due)
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if s.Metrics != nil {
		s.Metrics(w)
	}
}

// boundedListener asks who connects, and closes at once what is too much.
type boundedListener struct {
	*net.UnixListener

	mu        sync.Mutex
	strangers int
	trusted   int
	processes map[int32]int // by pid
	open      sync.WaitGroup
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if held := l.take(c); held != nil {
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

// counted is a connection that is counted until it is closed.
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
