package consumer_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

// pipes is a listener whose connections are in memory, so that they work in virtual time.
type pipes struct {
	connections chan net.Conn
	closed      chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.connections:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.connections <- server
	return client
}

// virtual is a server in a bubble of virtual time.
type virtual struct {
	t      *testing.T
	server *consumer.Server
	board  *consumer.Board
	pipes  *pipes
	stop   context.CancelFunc
	ended  chan error
}

// inVirtualTime runs a test with a server that has the limits of real time.
func inVirtualTime(t *testing.T, c consumer.Consumer, test func(v *virtual)) {
	synctest.Test(t, func(t *testing.T) {
		v := &virtual{t: t, board: &consumer.Board{}, pipes: &pipes{make(chan net.Conn), make(chan struct{})}, ended: make(chan error, 1)}
		v.server = &consumer.Server{
			Consumer: c, Board: v.board, Usage: &consumer.Usage{},
			MAC: func(_ context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
				return sas.MAC(key, statement), nil
			},
		}
		v.board.Post(assigned())
		ctx, cancel := context.WithCancel(t.Context())
		v.stop = cancel
		go func() { v.ended <- v.server.Serve(ctx, v.pipes) }()
		test(v)
		cancel()
		if err := <-v.ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// request sends a request on a new connection, and returns its status, Retry-After and body.
func (v *virtual) request(method, path, body string) (status int, retry, text string) {
	v.t.Helper()
	c := v.pipes.dial()
	defer c.Close()
	go fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: dpsd\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		v.t.Fatal(err)
	}
	all, err := io.ReadAll(response.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return response.StatusCode, response.Header.Get("Retry-After"), string(all)
}

// token gets a token that is valid for some seconds.
func (v *virtual) token(seconds int) {
	v.t.Helper()
	if status, _, text := v.request(http.MethodPost, "/v1/token", fmt.Sprintf(`{"lifetime":%d}`, seconds)); status != http.StatusOK {
		v.t.Fatalf("got %d: %s", status, text)
	}
}

// observer reads a stream of events.
type observer struct {
	net.Conn
	v      *virtual
	events chan consumer.Event
}

// observe opens a stream whose events can be read at any time.
func (v *virtual) observe() *observer {
	v.t.Helper()
	o := &observer{v.pipes.dial(), v, make(chan consumer.Event, 100)}
	fmt.Fprint(o, "GET /v1/events HTTP/1.1\r\nHost: dpsd\r\n\r\n")
	go func() {
		defer close(o.events)
		response, err := http.ReadResponse(bufio.NewReader(o), nil)
		if err != nil {
			return
		}
		for d := json.NewDecoder(response.Body); ; {
			var e consumer.Event
			if d.Decode(&e) != nil {
				return
			}
			o.events <- e
		}
	}()
	return o
}

// wants fails unless exactly these events have arrived.
func (o *observer) wants(want ...consumer.Event) {
	o.v.t.Helper()
	synctest.Wait()
	var got []consumer.Event
	for {
		select {
		case e, open := <-o.events:
			if !open {
				o.v.t.Fatalf("the stream has ended after %+v", got)
			}
			got = append(got, e)
			continue
		default:
		}
		break
	}
	if len(got) != len(want) {
		o.v.t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			o.v.t.Errorf("event %d:\ngot  %+v\nwant %+v", i, got[i], want[i])
		}
	}
}

func TestAStreamBeginsWithThePresentStateAndContainsEachChange(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a", Certificate: true}, func(v *virtual) {
		v.board.Post(consumer.State{})
		o := v.observe()
		defer o.Close()
		o.wants(consumer.Event{Event: consumer.Present, Code: "not-assigned"})
		s := assigned()
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.NewGeneration, Generation: 7, Available: true}, consumer.Event{Event: consumer.Available, Generation: 7, Available: true})
		v.board.Post(s)
		o.wants()
		s.Generation = 8
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.NewGeneration, Generation: 8, Available: true})
		s.Withheld = consumer.ClockImplausible
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.Withheld, Generation: 8, Code: "clock-implausible"})
		s.Withheld = consumer.OtherConfiguration
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.Withheld, Generation: 8, Code: "other-configuration"})
		s.Withheld = ""
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.Available, Generation: 8, Available: true})
		until := time.Now().Add(time.Hour).UTC()
		s.Certificate = &consumer.Files{Certificate: "/1.crt", PrivateKey: "/1.key", NotAfter: until}
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.NewCertificate, Generation: 8, Available: true, CertificateNotAfter: until})
		s.Certificate = &consumer.Files{Certificate: "/2.crt", PrivateKey: "/1.key", NotAfter: until}
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.NewCertificate, Generation: 8, Available: true, CertificateNotAfter: until})
		s.Modules = map[string]consumer.Module{"other": {Ready: true}}
		v.board.Post(s)
		o.wants()
	})
}

func TestAStreamDoesNotMentionACertificateThatTheConsumerMayNotUse(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a", Scope: consumer.Scope{Module: "updater"}}, func(v *virtual) {
		o := v.observe()
		defer o.Close()
		o.wants(consumer.Event{Event: consumer.Present, Generation: 7, Code: consumer.ModuleNotReady})
		s := assigned()
		s.Certificate = &consumer.Files{Certificate: "/1.crt", PrivateKey: "/1.key", NotAfter: time.Now()}
		v.board.Post(s)
		o.wants()
		s.Modules = map[string]consumer.Module{"updater": {Ready: true}}
		v.board.Post(s)
		o.wants(consumer.Event{Event: consumer.Available, Generation: 7, Available: true})
	})
}

func TestAStreamAnnouncesTheExpiryOfTheLastToken(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		o := v.observe()
		defer o.Close()
		o.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
		begin := time.Now().UTC()
		v.token(1000)
		o.wants()
		time.Sleep(799 * time.Second)
		o.wants()
		time.Sleep(time.Second)
		expires := consumer.Event{Event: consumer.TokenExpires, Generation: 7, Available: true, Expiry: begin.Add(1000 * time.Second), ExpiresIn: 200}
		o.wants(expires)

		// A stream that is opened later gets the same event, once.
		late := v.observe()
		present := expires
		present.Event = consumer.Present
		late.wants(present, expires)
		late.Close()
		time.Sleep(time.Hour)
		o.wants()
		begin = time.Now().UTC()
		none := v.observe()
		none.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
		none.Close()

		// A new token postpones the event.
		v.token(1000)
		time.Sleep(500 * time.Second)
		v.token(1000)
		time.Sleep(799 * time.Second)
		o.wants()
		time.Sleep(time.Second)
		o.wants(consumer.Event{Event: consumer.TokenExpires, Generation: 7, Available: true, Expiry: begin.Add(1500 * time.Second), ExpiresIn: 200})
	})
}

// Without the event, a client that waits for it would keep a token that has expired.
func TestAStepOfTheClockPostponesNoEventAboutTheExpiry(t *testing.T) {
	for says, test := range map[string]struct {
		step, sleep time.Duration
		noticed     bool // the daemon notices the step
		want        consumer.Event
	}{
		"to the last fifth of the lifetime": {step: 900 * time.Second, noticed: true, want: consumer.Event{ExpiresIn: 100}},
		"after the expiry":                  {step: 2000 * time.Second, noticed: true},
		"without notice, after the expiry":  {step: 2000 * time.Second, sleep: 800 * time.Second},
		"back":                              {step: -500 * time.Second, sleep: 1300 * time.Second, noticed: true, want: consumer.Event{ExpiresIn: 200}},
		"back, without notice":              {step: -500 * time.Second, sleep: 1300 * time.Second, want: consumer.Event{ExpiresIn: 200}},
	} {
		t.Run(says, func(t *testing.T) {
			inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
				var step atomic.Int64
				v.server.Now = func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
				o := v.observe()
				defer o.Close()
				o.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
				expiry := time.Now().UTC().Add(1000 * time.Second)
				v.token(1000)
				synctest.Wait()
				step.Store(int64(test.step))
				if test.noticed {
					v.board.ClockStepped()
				}
				if test.sleep > 0 {
					time.Sleep(test.sleep - 1)
					o.wants()
					time.Sleep(time.Nanosecond)
				}
				test.want.Event, test.want.Generation, test.want.Available = consumer.TokenExpires, 7, true
				if test.want.ExpiresIn > 0 {
					test.want.Expiry = expiry
				}
				o.wants(test.want)
				time.Sleep(time.Hour)
				o.wants()
			})
		})
	}
}

func TestASlowClientMissesIntermediateStatesButNotTheLatest(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		c := v.pipes.dial()
		defer c.Close()
		fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: dpsd\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the server waits for the client to read the first line
		s := assigned()
		for s.Generation = 8; s.Generation < 1000; s.Generation++ {
			v.board.Post(s)
			synctest.Wait()
		}
		time.Sleep(4 * time.Second)
		d := json.NewDecoder(response.Body)
		for _, generation := range []uint64{7, 999} {
			var e consumer.Event
			if err := d.Decode(&e); err != nil || e.Generation != generation {
				t.Errorf("got %+v, %v, want generation %d", e, err, generation)
			}
		}
	})
}

func TestAClientThatDoesNotReadIsDisconnected(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		for _, request := range []string{"GET /v1/events HTTP/1.1\r\nHost: dpsd\r\n\r\n", "GET /v1/hub HTTP/1.1\r\nHost: dpsd\r\n\r\n"} {
			c := v.pipes.dial()
			fmt.Fprint(c, request)
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if text, err := io.ReadAll(c); err != nil || len(text) > 0 {
				t.Errorf("got %q, %v", text, err)
			}
		}
	})
}

func TestAClientThatSendsSlowlyIsDisconnected(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		for begin, answer := range map[string]string{
			"":                              "",
			"GET /v1/hub HTTP/1.1\r\nHost:": "",
			"POST /v1/token HTTP/1.1\r\nHost: dpsd\r\nContent-Length: 5\r\n\r\n{": "the body is incomplete",
		} {
			c := v.pipes.dial()
			go io.WriteString(c, begin)
			began := time.Now()
			text, err := io.ReadAll(c)
			if err != nil || strings.Contains(string(text), " 200 ") || !strings.Contains(string(text), answer) {
				t.Errorf("%q: got %q, %v", begin, text, err)
			}
			if took := time.Since(began); took != 5*time.Second {
				t.Errorf("%q: the connection was closed after %v", begin, took)
			}
		}
	})
}

// A TPM that several services use may take longer than the time that a client has to send a request.
func TestASlowKeyDoesNotEndARequest(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		v.server.MAC = func(ctx context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
			select {
			case <-time.After(time.Minute):
				return sas.MAC(key, statement), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		status, _, text := v.request(http.MethodPost, "/v1/token", `{"lifetime": 90}`)
		var got consumer.Token
		if err := json.Unmarshal([]byte(text), &got); err != nil || status != http.StatusOK {
			t.Fatalf("got %d: %s", status, text)
		}
		if got.ExpiresIn != 30 || !got.Expiry.Equal(time.Now().Add(30*time.Second)) {
			t.Errorf("the token expires at %v, in %d s", got.Expiry, got.ExpiresIn)
		}
		if counts := v.server.Usage.Counts(); !counts.Issued.Equal(time.Now()) {
			t.Errorf("the token was issued at %v", counts.Issued)
		}
		if status, retry, text := v.request(http.MethodPost, "/v1/token", `{"lifetime": 60}`); status != http.StatusServiceUnavailable || retry == "" || !strings.Contains(text, string(consumer.KeyUnavailable)) {
			t.Errorf("a token that has expired: got %d: %s", status, text)
		}
		if n := v.server.Usage.Counts().Tokens; n != 1 {
			t.Errorf("%d tokens were counted", n)
		}
	})
}

func TestATokenIsNotSentIfItsReasonsChangeWhileTheKeyIsUsed(t *testing.T) {
	for says, test := range map[string]struct {
		change func(*consumer.State)
		step   time.Duration // of the clock
		status int
		want   string
	}{
		"another configuration":                {change: func(s *consumer.State) { s.Withheld = consumer.OtherConfiguration }, status: http.StatusServiceUnavailable, want: string(consumer.OtherConfiguration)},
		"an implausible clock":                 {change: func(s *consumer.State) { s.Withheld = consumer.ClockImplausible }, status: http.StatusServiceUnavailable, want: string(consumer.ClockImplausible)},
		"another device ID":                    {change: func(s *consumer.State) { s.Hub.DeviceID = "gw-2" }, status: http.StatusServiceUnavailable, want: string(consumer.KeyUnavailable)},
		"a hub that accepts no tokens":         {change: func(s *consumer.State) { s.Profile = "mqttV5" }, status: http.StatusConflict, want: string(consumer.ProfileWithoutTokens)},
		"a clock that is set forward":          {step: time.Hour, status: http.StatusServiceUnavailable, want: string(consumer.KeyUnavailable)},
		"a clock that is set back":             {step: -time.Hour, status: http.StatusServiceUnavailable, want: string(consumer.KeyUnavailable)},
		"a new record with the same device ID": {change: func(s *consumer.State) { s.Generation = 8 }, status: http.StatusOK, want: `"generation":8`},
	} {
		t.Run(says, func(t *testing.T) {
			inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
				var step atomic.Int64
				v.server.Now = func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
				v.server.MAC = func(_ context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
					state := assigned()
					if test.change != nil {
						test.change(&state)
					}
					v.board.Post(state)
					step.Store(int64(test.step))
					return sas.MAC(key, statement), nil
				}
				if status, _, text := v.request(http.MethodPost, "/v1/token", ""); status != test.status || !strings.Contains(text, test.want) {
					t.Errorf("got %d: %s", status, text)
				}
			})
		})
	}
}

func TestRequestsBeyondTheRateAreAnsweredWithTheTimeToWait(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		for range 10 {
			if status, _, text := v.request(http.MethodGet, "/v1/hub", ""); status != http.StatusOK {
				t.Fatalf("got %d: %s", status, text)
			}
		}
		for range 3 {
			status, retry, text := v.request(http.MethodGet, "/v1/hub", "")
			if status != http.StatusTooManyRequests || retry != "3" || !strings.Contains(text, `"code":"too-many-requests"`) || !strings.Contains(text, `"retryIn":3`) {
				t.Errorf("got %d, %q: %s", status, retry, text)
			}
		}
		time.Sleep(3 * time.Second)
		for _, want := range []int{http.StatusOK, http.StatusTooManyRequests} {
			if status, _, text := v.request(http.MethodGet, "/v1/hub", ""); status != want {
				t.Errorf("got %d, want %d: %s", status, want, text)
			}
		}
		if got := v.server.Usage.Counts(); got.Requests != 15 || got.Limited != 4 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestFourRequestsRunAtATime(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		release := make(chan struct{})
		v.server.MAC = func(_ context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
			<-release
			return sas.MAC(key, statement), nil
		}
		statuses := make(chan int)
		for range 4 {
			go func() {
				status, _, _ := v.request(http.MethodPost, "/v1/token", "")
				statuses <- status
			}()
		}
		synctest.Wait()
		status, retry, text := v.request(http.MethodGet, "/v1/hub", "")
		if status != http.StatusTooManyRequests || retry != "1" || !strings.Contains(text, `"code":"too-many-at-once"`) {
			t.Errorf("got %d, %q: %s", status, retry, text)
		}
		close(release)
		for range 4 {
			if status := <-statuses; status != http.StatusOK {
				t.Errorf("got %d", status)
			}
		}
		if status, _, _ := v.request(http.MethodGet, "/v1/hub", ""); status != http.StatusOK {
			t.Errorf("got %d", status)
		}
	})
}

func TestAStreamEndsWhenItsClientHasSentMoreThanTheRequest(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		c := v.pipes.dial()
		defer c.Close()
		go fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: dpsd\r\n\r\nPOST /v1/token HTTP/1.1\r\nHost: dpsd\r\n\r\n")
		text, err := io.ReadAll(c)
		if err != nil || strings.Contains(string(text), "SharedAccessSignature") {
			t.Errorf("got %q, %v", text, err)
		}
		if n := v.server.Usage.Counts().Requests; n != 1 {
			t.Errorf("%d requests were answered", n)
		}
	})
}

func TestEightStreamsAreOpenAtATime(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		var last *observer
		for range 8 {
			last = v.observe()
			defer last.Close()
			last.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
		}
		if status, retry, text := v.request(http.MethodGet, "/v1/events", ""); status != http.StatusTooManyRequests || retry != "10" {
			t.Errorf("got %d, %q: %s", status, retry, text)
		}
		// Streams do not count as running requests.
		if status, _, _ := v.request(http.MethodGet, "/v1/hub", ""); status != http.StatusOK {
			t.Errorf("got %d", status)
		}
		last.Close()
		time.Sleep(time.Minute)
		o := v.observe()
		defer o.Close()
		o.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
	})
}

func TestThirtyTwoConnectionsAreOpenAtATime(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		for range 32 {
			c := v.pipes.dial()
			defer c.Close()
		}
		status, retry, text := v.request(http.MethodGet, "/v1/hub", "")
		if status != http.StatusTooManyRequests || retry != "3" || !strings.Contains(text, `"code":"too-many-at-once"`) {
			t.Errorf("got %d, %q: %s", status, retry, text)
		}
		if got := v.server.Usage.Counts(); got.Requests != 0 || got.Limited != 1 {
			t.Errorf("got %+v", got)
		}
		time.Sleep(6 * time.Second) // they have sent nothing
		if status, _, text := v.request(http.MethodGet, "/v1/hub", ""); status != http.StatusOK {
			t.Errorf("got %d: %s", status, text)
		}
	})
}

func TestAStoppingServerFinishesRunningRequestsForASecondAndEndsEverythingElse(t *testing.T) {
	inVirtualTime(t, consumer.Consumer{Name: "a"}, func(v *virtual) {
		v.server.MAC = func(ctx context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
			time.Sleep(900 * time.Millisecond)
			return sas.MAC(key, statement), ctx.Err()
		}
		began := time.Now()
		o := v.observe()
		o.wants(consumer.Event{Event: consumer.Present, Generation: 7, Available: true})
		half := v.pipes.dial()
		fmt.Fprint(half, "GET /v1/hub HTTP/1.1\r\nHost:")
		status := make(chan int)
		go func() {
			code, _, _ := v.request(http.MethodPost, "/v1/token", "")
			status <- code
		}()
		synctest.Wait()
		v.stop()
		synctest.Wait()
		if _, open := <-o.events; open || !time.Now().Equal(began) {
			t.Errorf("after %v, the stream is open: %t", time.Since(began), open)
		}
		if code := <-status; code != http.StatusOK {
			t.Errorf("the running request gets %d", code)
		}
		if _, err := io.ReadAll(half); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
		err := <-v.ended
		if took := time.Since(began); took != time.Second {
			t.Errorf("the server stopped after %v", took)
		}
		v.ended <- err
	})
}
