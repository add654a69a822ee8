package consumer_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/refusal"
)

func TestAReportGetsAResponseEvenIfDpsdStopsBeforeAcceptingIt(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		v.server.Refused = func(ctx context.Context, _ string, _ refusal.Code) (refusal.Answer, error) {
			<-ctx.Done()
			return refusal.Answer{}, context.Cause(ctx)
		}
		c := v.pipes.dial()
		defer c.Close()
		// Because of the byte after the request, package net/http does not notice the end of the connection.
		go fmt.Fprint(c, "POST /v1/refused HTTP/1.1\r\nHost: dpsd\r\nContent-Length: 10\r\n\r\n{\"code\":5}x")
		synctest.Wait()
		began := time.Now()
		v.stop()
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" || !strings.Contains(string(text), string(consumer.ReportsUnavailable)) {
			t.Errorf("got %d: %s", response.StatusCode, text)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the answer comes after %v", took)
		}
	})
}

func TestASocketThatAnotherGoroutineClosesEndsTheStreamsAndTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		s := &consumer.Server{Board: &consumer.Board{}}
		ended := make(chan error)
		go func() { ended <- s.Serve(t.Context(), l) }()
		c := l.dial()
		defer c.Close()
		fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: dpsd\r\n\r\n")
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, c) }()
		synctest.Wait()
		_ = l.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

// scarce is a listener that has no file descriptors while it contains an error.
type scarce struct {
	*pipes
	err atomic.Pointer[error]
}

func (s *scarce) Accept() (net.Conn, error) {
	if err := s.err.Load(); err != nil {
		return nil, *err
	}
	return s.pipes.Accept()
}

// fails makes Accept fail from the next connection on.
func (s *scarce) fails(err *error) {
	s.err.Store(err)
	_ = s.dial().Close() // the running Accept returns it
}

func TestErrorsOfAcceptEndNeitherTheServerNorItsStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &scarce{pipes: &pipes{make(chan net.Conn), make(chan struct{})}}
		reported := make(chan error, 100)
		s := &consumer.Server{Board: &consumer.Board{}, Failed: func(err error) { reported <- err }}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Serve(ctx, l) }()
		v := &virtual{t: t, pipes: l.pipes}
		o := v.observe()
		defer o.Close()
		o.wants(consumer.Event{Event: consumer.Present, Code: "not-assigned"})
		failure := error(syscall.ENOMEM) // net/http would end
		l.fails(&failure)
		time.Sleep(time.Hour)
		if err := <-reported; !errors.Is(err, failure) || len(reported) > 0 {
			t.Errorf("%v and %d more errors were reported", err, len(reported))
		}
		o.wants() // the stream is open
		l.err.Store(nil)
		time.Sleep(time.Minute)
		if status, _, text := v.request(http.MethodGet, "/v1/hub", ""); status != http.StatusServiceUnavailable {
			t.Errorf("got %d: %s", status, text)
		}
		l.fails(&failure)
		time.Sleep(time.Hour)
		began := time.Now()
		stop()
		if err := <-ended; err != nil || time.Since(began) > time.Second {
			t.Errorf("Serve: %v, after %v", err, time.Since(began))
		}
	})
}
