package mqttv3_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/mqttv3"
	mochi "github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Packets that servers send.
const (
	connackAccepted = "20 02 00 00"
	subackQoS1      = "90 03 00 01 01"
	puback2         = "40 02 00 02"
	pingresp        = "d0 00"
	// A message of QoS 1, packet identifier 2, topic "r/1", payload "{}".
	messageQoS1 = "32 09 00 03 72 2f 31 00 02 7b 7d"
	// The same with QoS 0.
	messageQoS0 = "30 07 00 03 72 2f 31 7b 7d"
)

func unhex(digits string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
	if err != nil {
		panic(err) // the argument is a constant
	}
	return b
}

// wire is the client's end of a pipe. It keeps every write.
type wire struct {
	net.Conn
	mu     sync.Mutex
	writes [][]byte
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	w.writes = append(w.writes, bytes.Clone(b))
	w.mu.Unlock()
	return w.Conn.Write(b)
}

func (w *wire) written() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}

// server is the other end: a script that reads with mochi-mqtt's decoder and writes bytes.
type server struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

// serve runs script in a goroutine and closes the connection after it. The test waits for
// the script to end.
func serve(t testing.TB, script func(*server)) *wire {
	client, conn := net.Pipe()
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		defer conn.Close()
		script(&server{t: t, conn: conn, r: bufio.NewReader(conn)})
	}()
	return &wire{Conn: client}
}

// next reads a packet; its second result is false at the end of the connection.
func (s *server) next() (mochi.Packet, bool) {
	first, err := s.r.ReadByte()
	if err != nil {
		return mochi.Packet{}, false
	}
	packet := []byte{first}
	for len(packet) == 1 || packet[len(packet)-1] >= 0x80 {
		b, err := s.r.ReadByte()
		if err != nil {
			return mochi.Packet{}, false
		}
		packet = append(packet, b)
	}
	length, _, err := mochi.DecodeLength(bytes.NewReader(packet[1:]))
	if err != nil {
		s.t.Errorf("server: length of % x: %v", packet, err)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(s.r, body); err != nil {
		return mochi.Packet{}, false
	}
	p, err := mqttv3.DecodeMochi(append(packet, body...))
	if err != nil {
		s.t.Errorf("server: % x: %v", append(packet, body...), err)
	}
	return p, true
}

// expect reads a packet and checks its type.
func (s *server) expect(packetType byte) mochi.Packet {
	p, ok := s.next()
	if !ok {
		s.t.Errorf("server: the connection ended, %s expected", mochi.PacketNames[packetType])
	} else if p.FixedHeader.Type != packetType {
		s.t.Errorf("server: got %s, want %s", mochi.PacketNames[p.FixedHeader.Type], mochi.PacketNames[packetType])
	}
	return p
}

// expectEnd expects that the client closes the connection.
func (s *server) expectEnd() {
	if p, ok := s.next(); ok {
		s.t.Errorf("server: got %s, want the end of the connection", mochi.PacketNames[p.FixedHeader.Type])
	}
}

// drain reads until the client closes the connection.
func (s *server) drain() {
	io.Copy(io.Discard, s.r)
}

// write sends bytes. It ignores errors, since the client may have closed the connection.
func (s *server) write(digits string) { s.conn.Write(unhex(digits)) }

// accept reads CONNECT and sends a CONNACK.
func (s *server) accept() {
	s.expect(mochi.Connect)
	s.write(connackAccepted)
}

var options = mqttv3.Options{ClientID: "gw1", UserName: "scope/registrations/gw1", Password: secret}

const secret = "SharedAccessSignature-very-secret"

// connect connects to script. The test fails if it cannot.
func connect(t testing.TB, o mqttv3.Options, script func(*server)) (*mqttv3.Client, *wire) {
	t.Helper()
	w := serve(t, script)
	c, err := mqttv3.Connect(context.Background(), w, o)
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	return c, w
}

// closeClean closes the client and expects that DISCONNECT could be sent.
func closeClean(t testing.TB, c *mqttv3.Client) {
	t.Helper()
	if err := c.Close(context.Background()); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// wantCause checks that err is the end of the connection, for this cause.
func wantCause(t testing.TB, err, cause error) {
	t.Helper()
	if !errors.Is(err, mqttv3.ErrClosed) || !errors.Is(err, cause) {
		t.Errorf("got %v, want ErrClosed because of %v", err, cause)
	}
}

// immediately checks that f takes no time on the clock of the bubble.
func immediately(t testing.TB, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d != 0 {
		t.Errorf("took %v, want no time", d)
	}
}
