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

// broken is a listener that fails after one connection.
type broken struct {
	*pipes
	fail     chan struct{} // closed when Accept is to fail
	accepted bool
}

var errAccept = errors.New("accept failed")

func (b *broken) Accept() (net.Conn, error) {
	if b.accepted {
		<-b.fail
		return nil, errAccept
	}
	b.accepted = true
	return b.pipes.Accept()
}

func TestASocketThatFailsEndsTheStreamsAndTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &broken{pipes: &pipes{make(chan net.Conn), make(chan struct{})}, fail: make(chan struct{})}
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
		close(l.fail)
		if err := <-ended; !errors.Is(err, errAccept) {
			t.Errorf("Serve: %v", err)
		}
	})
}
