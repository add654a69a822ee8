package stream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server sends a stream to each client.
type server struct {
	t     *testing.T
	path  string
	ended chan error // the result of send for each stream, after Respond has returned
}

// serve starts a server on a Unix socket, like those of dpsd. Its streams end with ctx.
func serve(ctx context.Context, t *testing.T, patience time.Duration, send func(ctx context.Context, write func([]byte) error) error) *server {
	t.Helper()
	s := &server{t: t, path: filepath.Join(t.TempDir(), "s"), ended: make(chan error, 10)}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// The time limits of the server must not affect a stream.
		passed, limits := time.Now().Add(-time.Second), http.NewResponseController(w)
		err := errors.Join(limits.SetReadDeadline(passed), limits.SetWriteDeadline(passed))
		if err != nil {
			t.Error(err)
		}
		stream.Respond(ctx, w, "application/x-ndjson", patience, func(ctx context.Context, write func([]byte) error) { err = send(ctx, write) })
		s.ended <- err
	})}
	closed := make(chan error)
	go func() { closed <- h.Serve(l) }()
	t.Cleanup(func() {
		_ = h.Close()
		<-closed
	})
	return s
}

// request sends a request, and more after it.
func (s *server) request(more string) net.Conn {
	s.t.Helper()
	c, err := net.Dial("unix", s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: dpsd\r\n\r\n"+more); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// response reads the header of a stream.
func response(t *testing.T, c net.Conn) (*http.Response, *bufio.Reader) {
	t.Helper()
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r, bufio.NewReader(r.Body)
}

// line reads a line of a stream.
func line(t *testing.T, from *bufio.Reader) string {
	t.Helper()
	text, err := from.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

// untilDone sends a part, and waits until the stream ends.
func untilDone(ctx context.Context, write func([]byte) error) error {
	if err := write([]byte("begin\n")); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func TestEachPartArrivesWhenItIsWritten(t *testing.T) {
	parts := make(chan string)
	s := serve(t.Context(), t, time.Minute, func(_ context.Context, write func([]byte) error) error {
		for part := range parts {
			if err := write([]byte(part)); err != nil {
				return err
			}
		}
		return nil
	})
	r, lines := response(t, s.request(""))
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != "application/x-ndjson" || r.Header.Get("Cache-Control") != "no-store" || !r.Close || r.ContentLength != -1 {
		t.Errorf("%+v", r)
	}
	for n := range 3 {
		parts <- fmt.Sprintln("part", n)
		if got := line(t, lines); got != fmt.Sprint("part ", n) {
			t.Errorf("got %q", got)
		}
	}
	close(parts)
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("the stream ends with %q, %v", rest, err)
	}
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

func TestAStreamEndsWithItsClient(t *testing.T) {
	for says, end := range map[string]func(c *net.UnixConn) error{
		"that closes the connection": func(c *net.UnixConn) error { return c.Close() },
		"that sends no more":         func(c *net.UnixConn) error { return c.CloseWrite() },
		"that sends another request": func(c *net.UnixConn) error { _, err := io.WriteString(c, "GET / HTTP/1.1\r\n"); return err },
	} {
		t.Run(says, func(t *testing.T) {
			s := serve(t.Context(), t, time.Minute, untilDone)
			c := s.request("")
			_, lines := response(t, c)
			if got := line(t, lines); got != "begin" {
				t.Errorf("got %q", got)
			}
			if err := end(c.(*net.UnixConn)); err != nil {
				t.Fatal(err)
			}
			if err := <-s.ended; !errors.Is(err, context.Canceled) {
				t.Errorf("send returns %v", err)
			}
		})
	}
	t.Run("that has already sent another request", func(t *testing.T) {
		s := serve(t.Context(), t, time.Minute, untilDone)
		c := s.request("GET / HTTP/1.1\r\nHost: dpsd\r\n\r\n")
		<-s.ended
		text, err := io.ReadAll(c)
		if n := strings.Count(string(text), "HTTP/1.1"); n > 1 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %d responses, %v", n, err)
		}
	})
}

func TestAStreamEndsWithItsContextAlthoughItsClientDoesNotRead(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	full := make(chan struct{}, 1)
	s := serve(ctx, t, time.Hour, func(_ context.Context, write func([]byte) error) error {
		for part := make([]byte, 1<<16); ; {
			select {
			case full <- struct{}{}:
			default:
			}
			if err := write(part); err != nil {
				return err
			}
		}
	})
	s.request("")
	<-full
	stop()
	if err := <-s.ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("send returns %v", err)
	}
}

func TestAClientThatDoesNotReadIsDisconnectedAfterThePatience(t *testing.T) {
	s := serve(t.Context(), t, time.Second, func(_ context.Context, write func([]byte) error) error {
		for part := make([]byte, 1<<16); ; {
			if err := write(part); err != nil {
				return err
			}
		}
	})
	c := s.request("")
	if err := <-s.ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("send returns %v", err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection ends with %v", err)
	}
}

func TestAWriterWhoseConnectionCannotBeTakenOverGetsAnError(t *testing.T) {
	w := httptest.NewRecorder()
	stream.Respond(t.Context(), w, "application/x-ndjson", time.Minute, func(context.Context, func([]byte) error) { t.Error("a stream begins") })
	if w.Code != http.StatusInternalServerError {
		t.Errorf("got %d", w.Code)
	}
}
