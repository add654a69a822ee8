package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

// stall is a link that stops without closing: after that many bytes it passes nothing more in
// one direction, and not the end of the stream either.
type stall struct {
	direction string // "down", "up" (sent data is lost) or "blocked" (sent data stays in a full buffer)
	after     int

	mu       sync.Mutex
	at       time.Time // when the first byte did not pass; zero: all did
	up, down int       // bytes that passed
}

// dead returns the time at which the link stopped.
func (s *stall) dead() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// pass counts n bytes in a direction, and returns how many of them pass.
func (s *stall) pass(up bool, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := &s.down
	if up {
		count = &s.up
	}
	if up == (s.direction != "down") {
		if left := s.after - *count; n > left {
			n = left
			if s.at.IsZero() {
				s.at = time.Now()
			}
		}
	}
	*count += n
	return n
}

// stalling is a connection over such a link. The abyss is a pipe whose other end is not used:
// reads and writes block there until a deadline or the end.
type stalling struct {
	net.Conn
	*stall
	abyss   net.Conn
	drained sync.Once
}

func newStalling(c net.Conn, s *stall) *stalling {
	abyss, _ := net.Pipe()
	return &stalling{Conn: c, stall: s, abyss: abyss}
}

func (c *stalling) Read(b []byte) (int, error) {
	if c.direction == "down" && c.after == 0 {
		c.pass(false, 1) // dead from the start, whether or not data arrives
		return c.abyss.Read(b)
	}
	n, err := c.Conn.Read(b)
	if passed := c.pass(false, n); passed > 0 || n == 0 && c.dead().IsZero() {
		return passed, err
	}
	// The peer must not notice: a kernel would accept its data.
	c.drained.Do(func() { go func() { _, _ = io.Copy(io.Discard, c.Conn) }() })
	return c.abyss.Read(b)
}

func (c *stalling) Write(b []byte) (int, error) {
	passed := c.pass(true, len(b))
	if passed > 0 {
		if n, err := c.Conn.Write(b[:passed]); err != nil {
			return n, err
		}
	}
	if passed < len(b) && c.direction == "blocked" {
		n, err := c.abyss.Write(b[passed:])
		return passed + n, err
	}
	return len(b), nil
}

func (c *stalling) Close() error {
	_ = c.abyss.Close()
	return c.Conn.Close()
}

func (c *stalling) SetDeadline(t time.Time) error {
	_ = c.abyss.SetDeadline(t)
	return c.Conn.SetDeadline(t)
}

func (c *stalling) SetReadDeadline(t time.Time) error {
	_ = c.abyss.SetReadDeadline(t)
	return c.Conn.SetReadDeadline(t)
}

func (c *stalling) SetWriteDeadline(t time.Time) error {
	_ = c.abyss.SetWriteDeadline(t)
	return c.Conn.SetWriteDeadline(t)
}

// stallOn makes the nth connection from now use the link.
func (g *gateway) stallOn(nth int, s *stall) {
	dial := g.Settings.Dialer.DialContext
	nth += g.dials
	g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err == nil && g.dials == nth {
			return newStalling(c, s), nil
		}
		return c, err
	}
}

// wantRecovery checks the behaviour after a stall: the fault within the deadline of the phase,
// then a successful attempt, and messages to the service manager all the time.
func (g *gateway) wantRecovery(s *stall) {
	g.t.Helper()
	about := fmt.Sprintf("%s, after %d bytes: ", s.direction, s.after)
	faults := g.log.FilterMessage("fault").All()
	if g.log.FilterMessage("hung").Len() > 0 {
		g.t.Errorf("%sthe watchdog was needed", about)
	}
	if len(faults) > 1 || s.dead().IsZero() && len(faults) > 0 {
		g.t.Errorf("%sfaults %v; the link died at %v", about, g.faults(), s.dead())
		return
	}
	g.wantAssigned()
	if len(faults) == 0 {
		return
	}
	f := faults[0]
	var phase string
	var limit, since time.Duration
	for _, e := range g.log.FilterMessage("phase").All() {
		if !e.Time.After(f.Time) {
			phase, limit, since = e.ContextMap()["stage"].(string), e.ContextMap()["limit"].(time.Duration), f.Time.Sub(e.Time)
		}
	}
	longest := 60 * time.Second // response_timeout
	if phase == string(fault.StageTCP) {
		longest = 30 * time.Second // connect_timeout
	}
	if limit > longest || since > limit+time.Second {
		g.t.Errorf("%sthe fault came %s after the start of the phase %s, whose limit is %s (never more than %s)", about, since, phase, limit, longest)
	}
	if took := f.Time.Sub(s.dead()); took > longest+time.Second {
		g.t.Errorf("%sthe fault came %s after the link died, in the phase %s", about, took, phase)
	}
	code := fault.Code(f.ContextMap()["fault"].(string))
	// A peer that receives nothing may time out first, and can still report that.
	impatient := s.direction != "down" && code == fault.ConnectionLost
	if code != fault.NoReply && code != fault.ConnectTimeout && !impatient {
		g.t.Errorf("%sthe code is %s in the phase %s: %v", about, code, phase, f.ContextMap()["cause"])
	}
	again := f.Time.Add(f.ContextMap()["retryIn"].(time.Duration))
	assigned := g.log.FilterMessage("assigned").All()
	if last := assigned[len(assigned)-1].Time; last.Sub(again).Round(time.Millisecond) > 6*time.Second {
		g.t.Errorf("%sthe next attempt began at %s and was done %s later", about, again.Sub(g.start), last.Sub(again))
	}
}

// wantBeats requires a message at the given interval, first of one kind, then of the other.
func (g *gateway) wantBeats(every time.Duration) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	last := g.start
	for _, m := range g.notes {
		if strings.HasPrefix(m.state, "EXTEND_TIMEOUT_USEC=") || m.state == "WATCHDOG=1" || strings.HasPrefix(m.state, "READY=1") {
			if gap := m.at.Sub(last); gap > every {
				g.t.Errorf("no message for %s before %s", gap, m.at.Sub(g.start))
			}
			last = m.at
		}
	}
	if gap := time.Since(last); gap > every {
		g.t.Errorf("no message for the last %s", gap)
	}
}

// step spreads the samples over n offsets. "make test-faults" tests every offset, which takes
// minutes.
func step(n, samples int) int {
	if os.Getenv("DPSD_STALL") == "every-byte" {
		return 1
	}
	return max(1, n/samples)
}

func TestPromise6NothingHangs(t *testing.T) {
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		for _, direction := range []string{"down", "up", "blocked"} {
			t.Run(string(protocol)+" "+direction, func(t *testing.T) {
				t.Parallel()
				whole := stall{direction: direction, after: 1 << 30}
				play := func(s *stall) {
					synctest.Test(t, func(t *testing.T) {
						g := newGateway(t)
						g.Settings.Dialer.Protocols = []transport.Protocol{protocol}
						g.Watchdog = 30 * time.Second
						g.stallOn(1, s)
						g.run()
						time.Sleep(2 * time.Minute)
						synctest.Wait()
						g.wantRecovery(s)
						g.wantBeats(15 * time.Second)
						if err := g.end(); err != nil {
							t.Errorf("%s, after %d bytes: %v", direction, s.after, err)
						}
					})
				}
				play(&whole)
				length := whole.down
				if direction != "down" {
					length = whole.up
				}
				if length < 500 {
					t.Fatalf("a session has %d bytes", length)
				}
				faults := 0
				for n := 0; n <= length; n += step(length, 60) {
					s := &stall{direction: direction, after: n}
					play(s)
					if !s.at.IsZero() {
						faults++
					}
				}
				t.Logf("%d bytes, %d links died", length, faults)
			})
		}
	}
}

// After READY the watchdog applies: here the second registration stalls.
func TestTheWatchdogIsServedWhileARegistrationStalls(t *testing.T) {
	for _, after := range []int{0, 100, 600, 1200, 1600, 2000} {
		for _, direction := range []string{"down", "up", "blocked"} {
			t.Run(fmt.Sprint(direction, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					g := newGateway(t)
					reload := make(chan os.Signal, 1)
					g.Hangup = reload
					g.Reload = func() (*Settings, error) { return nil, nil }
					g.Watchdog = 30 * time.Second
					s := &stall{direction: direction, after: after}
					g.stallOn(2, s)
					g.run()
					g.until("assigned", 1)
					reload <- os.Interrupt
					time.Sleep(2 * time.Minute)
					synctest.Wait()
					g.wantRecovery(s)
					g.wantBeats(15 * time.Second)
					if n := g.log.FilterMessage("assigned").Len(); n != 2 {
						t.Errorf("assigned %d times", n)
					}
					if err := g.end(); err != nil {
						t.Error(err)
					}
					if slices.Contains(g.faults(), string(fault.Internal)) {
						t.Error("a fault has no name")
					}
				})
			})
		}
	}
}
