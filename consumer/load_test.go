package consumer_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
)

// resources are the quantities that a leak would increase.
type resources struct {
	goroutines, descriptors int
	heap                    int64
}

func (f *fixture) resources() (r resources) {
	f.t.Helper()
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		f.t.Fatal(err)
	}
	return resources{runtime.NumGoroutine(), len(open), int64(m.HeapAlloc)}
}

// settled returns the resources as soon as they do not exceed those before, or after a time in which
// the server would have closed each connection several times.
func (f *fixture) settled(before resources) (r resources) {
	f.t.Helper()
	for range 200 {
		r = f.resources()
		if r.goroutines <= before.goroutines && r.descriptors <= before.descriptors {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return r
}

// load gets the answers to a number of requests over eight connections, and counts those that
// succeed.
func (f *fixture) load(requests int) (succeeded int64) {
	f.t.Helper()
	var all sync.WaitGroup
	var ok atomic.Int64
	for range 8 {
		all.Go(func() {
			for answered := 0; answered < requests/8; {
				c, err := net.Dial("unix", f.path)
				if err != nil {
					f.t.Error(err)
					return
				}
				// The server may close a connection that does not get the processor in time.
				for in := bufio.NewReader(c); answered < requests/8; answered++ {
					text := "POST /v1/token HTTP/1.1\r\nHost: dpsd\r\nContent-Length: 0\r\n\r\n"
					if answered%2 == 1 {
						text = "GET /v1/hub HTTP/1.1\r\nHost: dpsd\r\n\r\n"
					}
					_, _ = io.WriteString(c, text)
					response, err := http.ReadResponse(in, nil)
					if err != nil {
						break
					}
					_, _ = io.Copy(io.Discard, response.Body)
					if response.StatusCode == http.StatusOK {
						ok.Add(1)
					}
				}
				_ = c.Close()
			}
		})
	}
	all.Wait()
	return ok.Load()
}

// slow opens connections that send their request slowly, do not send it completely, or do not
// read the answer, until the server closes them.
func (f *fixture) slow(clients int) {
	f.t.Helper()
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			c, err := net.Dial("unix", f.path)
			if err != nil {
				f.t.Error(err)
				return
			}
			defer c.Close()
			switch n % 4 {
			case 0: // a byte at a time
				for _, b := range []byte("GET /v1/hub HTTP/1.1\r\nX: " + strings.Repeat("x", 1000)) {
					if _, err := c.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			case 1: // no body
				fmt.Fprint(c, "POST /v1/token HTTP/1.1\r\nHost: dpsd\r\nContent-Length: 100\r\n\r\n{")
			case 2: // nothing
			case 3: // keeps the connection open after the answer
				fmt.Fprint(c, "GET /v1/hub HTTP/1.1\r\nHost: dpsd\r\n\r\n")
			}
			_, _ = io.Copy(io.Discard, c)
		})
	}
	all.Wait()
}

func TestRequestsAndSlowClientsLeaveNothingBehind(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, func(s *consumer.Server) { s.Patience = time.Second })
	next, end := f.stream()
	if _, err := next(); err != nil {
		t.Fatal(err)
	}
	f.load(8000) // so that the server has allocated its permanent buffers
	f.slow(40)
	before := f.settled(resources{})
	const requests = 100_000
	succeeded := f.load(requests)
	f.slow(200)
	after := f.settled(before)
	t.Logf("before %+v, after %+v", before, after)
	if after.goroutines > before.goroutines || after.descriptors > before.descriptors {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if grown := after.heap - before.heap; grown > 256<<10 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	// Eight requests may arrive at the same time, so some are limited.
	if succeeded < requests/4 {
		t.Errorf("only %d of %d requests succeeded", succeeded, requests)
	}
	end()
}
