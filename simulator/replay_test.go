package simulator_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// stubborn is a device that ignores the answers, and therefore causes the same events in
// every run.
type stubborn struct {
	conn net.Conn
	mu   sync.Mutex
	got  []byte
}

// pause is how long a device waits for an answer. It coincides with no time of a scenario.
const pause = 2137 * time.Millisecond

// say sends bytes, and returns what it receives within the pause.
func (d *stubborn) say(b []byte) string {
	_, _ = d.conn.Write(b)
	time.Sleep(pause)
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	received := string(d.got)
	d.got = nil
	return received
}

// visit makes one connection, up to the stage that the server allows.
func visit(s *simulator.Server, protocol string) {
	if s.Refuses(protocol) {
		time.Sleep(pause)
		return
	}
	mine, theirs := net.Pipe()
	wrap := func(b []byte) []byte { return b }
	if protocol == "websocket" {
		go s.ServeWebSocket(theirs)
		wrap = func(b []byte) []byte { return frame(0x82, b) }
	} else {
		go s.ServeMQTT(theirs)
	}
	defer synctest.Wait()
	defer mine.Close()
	_ = mine.SetDeadline(time.Now().Add(time.Minute + 7*time.Millisecond))
	conn := tls.Client(mine, clientConfig(s))
	if conn.Handshake() != nil {
		return
	}
	d := &stubborn{conn: conn}
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := conn.Read(b)
			d.mu.Lock()
			d.got = append(d.got, b[:n]...)
			d.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	if protocol == "websocket" {
		d.say([]byte(strings.Join(upgradeRequest, "\r\n") + "\r\n\r\n"))
	}
	d.say(wrap(goodConnect(s, "gw-1")))
	d.say(wrap(subscribePacket(1, 1)))
	operation := "unknown"
	if found := regexp.MustCompile(`"operationId":"([^"]+)"`).FindStringSubmatch(d.say(wrap(publishPacket(0x32, registerTopic("1"), 2, "")))); found != nil {
		operation = found[1]
	}
	for id := range uint16(3) {
		d.say(wrap([]byte{0x40, 2, 0, 2}))
		d.say(wrap(publishPacket(0x32, pollTopic("2", operation), 3+id, "")))
	}
	d.say(wrap([]byte{0xe0, 0}))
}

// A second run with the same seed and scenario gives the same packet log. In virtual time, the
// times and all counts of bytes are also the same.
func TestASecondRunGivesTheSamePacketLog(t *testing.T) {
	text, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	played := func(t *testing.T, block []byte, protocol string) (lines []string) {
		synctest.Test(t, func(t *testing.T) {
			sc, err := scenario.Parse("example", bytes.NewReader(block))
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, simulator.Options{Seed: 42, Scenario: sc})
			for range 4 {
				visit(s, protocol)
			}
			s.Close()
			for _, e := range s.Log() {
				b, err := json.Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, string(b))
			}
		})
		return lines
	}
	n := 0
	for _, found := range regexp.MustCompile("(?s)```toml\n(# dpsd.*?)```").FindAllSubmatch(text, -1) {
		protocol := "mqtt"
		if bytes.HasPrefix(found[1], []byte("# dpsd over WebSocket")) {
			protocol = "websocket"
		}
		n++
		name, _, _ := strings.Cut(string(found[1]), "\n[[rule]]\n")
		t.Run(name, func(t *testing.T) {
			first, second := played(t, found[1], protocol), played(t, found[1], protocol)
			if d := cmp.Diff(first, second); d != "" || len(first) < 2 {
				t.Errorf("%d lines; %s", len(first), d)
			}
		})
	}
	if n < 50 {
		t.Errorf("%d scenarios", n)
	}
	t.Run("another seed gives a different log", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			rolls := map[string]bool{}
			for seed := range uint64(8) {
				s := start(t, simulator.Options{Seed: seed, Scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: "ping", Chance: 0.5, Status: 0, Delay: time.Millisecond}}}})
				c := open(t, s, "connect")
				roll := ""
				for range 16 {
					begin := time.Now()
					c.lives()
					roll += time.Since(begin).String() + " "
				}
				rolls[roll] = true
			}
			if len(rolls) != 8 {
				t.Errorf("8 seeds give %d courses: %v", len(rolls), rolls)
			}
		})
	})
}
