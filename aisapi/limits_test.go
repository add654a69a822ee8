package aisapi_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/consumer"
)

const identityTarget = "/identities/identity?api-version=2022-08-01"

// checkLimited checks that a response says when to try again, in the format of the Identity Service.
func checkLimited(t *testing.T, response *http.Response, body []byte) {
	t.Helper()
	if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("Retry-After") == "" {
		t.Fatalf("%s, Retry-After %q: %s", response.Status, response.Header.Get("Retry-After"), body)
	}
	published(t, "2022-08-01").check(t, "#/components/schemas/ErrorResponse", body)
}

func TestMoreRequestsThanAConsumerMaySendAreRefused(t *testing.T) {
	c := client(listen(t, assigned()))
	for range 10 {
		if response, body := get(t, c, identityTarget); response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", response.Status, body)
		}
	}
	response, body := get(t, c, identityTarget)
	checkLimited(t, response, body)
}

func TestOnlyFourRequestsRunAtATime(t *testing.T) {
	g := assigned()
	running, release := make(chan struct{}), make(chan struct{})
	c := client(serve(t, &aisapi.Handler{State: func() consumer.State {
		running <- struct{}{}
		<-release
		return g.state
	}}))
	answers := make(chan int, 4)
	for range 4 {
		go func() {
			response, err := c.Get("http://identityd.sock" + identityTarget)
			if err != nil {
				answers <- 0
				return
			}
			_ = response.Body.Close()
			answers <- response.StatusCode
		}()
		<-running
	}
	response, body := get(t, c, identityTarget)
	checkLimited(t, response, body)
	close(release)
	for range 4 {
		if code := <-answers; code != http.StatusOK {
			t.Errorf("status %d for a request within the limit", code)
		}
	}
}

func TestAConnectionBeyondTheLimitGetsAnAnswer(t *testing.T) {
	socket := listen(t, assigned())
	var last net.Conn
	for range 33 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		last = c
	}
	response, err := http.ReadResponse(bufio.NewReader(last), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkLimited(t, response, body)
}
