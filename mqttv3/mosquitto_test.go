package mqttv3_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/dpsd-project/dpsd/mqttv3"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// broker is a mosquitto on loopback with a listener for TLS and one for WebSocket over TLS.
type broker struct {
	tls, websocket string // addresses
	roots          *x509.CertPool
	log            *logbook
}

// logbook keeps the broker's log and lets a test wait for a line.
type logbook struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
	ended bool
}

// await returns the first line that contains text.
func (l *logbook) await(t *testing.T, text string) string {
	t.Helper()
	late := time.After(20 * time.Second)
	for seen := 0; ; {
		l.mu.Lock()
		lines, more, ended := l.lines, l.more, l.ended
		l.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if strings.Contains(lines[seen], text) {
				return lines[seen]
			}
		}
		if ended {
			t.Fatalf("the broker ended without logging %q:\n%s", text, strings.Join(lines, "\n"))
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("the broker did not log %q:\n%s", text, strings.Join(lines, "\n"))
		}
	}
}

func (l *logbook) add(line string, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ended {
		l.lines = append(l.lines, line)
	}
	l.ended = ended
	close(l.more)
	l.more = make(chan struct{})
}

func startMosquitto(t *testing.T) *broker {
	t.Helper()
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		program = "/usr/sbin/mosquitto" // Debian; sbin may not be in the path
		_, err = os.Stat(program)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mosquitto is not installed: %v", err)
		}
		t.Skip("mosquitto is not installed: conformance with an independent broker is not checked")
	}
	dir := t.TempDir()
	certificate := selfSigned(t)
	keyDER, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	certFile := write("cert.pem", certPEM)
	keyFile := write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	aclFile := write("acl", []byte("pattern readwrite t/#\n"))
	b := &broker{tls: freeAddress(t), websocket: freeAddress(t), roots: x509.NewCertPool(), log: &logbook{more: make(chan struct{})}}
	b.roots.AddCert(certificate.Leaf)
	var conf strings.Builder
	for _, listener := range []struct{ address, protocol string }{{b.tls, "mqtt"}, {b.websocket, "websockets"}} {
		_, port, _ := net.SplitHostPort(listener.address)
		fmt.Fprintf(&conf, "listener %s 127.0.0.1\nprotocol %s\ncertfile %s\nkeyfile %s\n", port, listener.protocol, certFile, keyFile)
	}
	fmt.Fprintf(&conf, "allow_anonymous true\nacl_file %s\nlog_type all\nlog_dest stderr\npersistence false\n", aclFile)
	if os.Getuid() == 0 {
		fmt.Fprintf(&conf, "user root\n") // so that it can read the files of this test
	}

	command := exec.Command(program, "-c", write("mosquitto.conf", []byte(conf.String())))
	output, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(output); lines.Scan(); {
			b.log.add(lines.Text(), false)
		}
		b.log.add("", true)
	})
	t.Cleanup(func() {
		command.Process.Kill()
		reading.Wait()
		command.Wait()
	})
	b.log.await(t, "running")
	for _, address := range []string{b.tls, b.websocket} {
		conn, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			t.Fatalf("mosquitto does not listen: %v", err)
		}
		conn.Close()
	}
	return b
}

// freeAddress returns a loopback address that is not in use.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (b *broker) dialTLS(ctx context.Context, t *testing.T) net.Conn {
	t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: b.roots}}
	conn, err := dialer.DialContext(ctx, "tcp", b.tls)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (b *broker) dialWebSocket(ctx context.Context, t *testing.T) net.Conn {
	t.Helper()
	roundTripper := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: b.roots}}
	t.Cleanup(roundTripper.CloseIdleConnections)
	ws, response, err := websocket.Dial(ctx, "wss://"+b.websocket+"/mqtt", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: roundTripper}, Subprotocols: []string{"mqtt"}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		t.Fatalf("%v (%v)", err, response)
	}
	return closeNow{websocket.NetConn(context.Background(), ws, websocket.MessageBinary), ws}
}

// closeNow closes without the closing handshake.
type closeNow struct {
	net.Conn
	ws *websocket.Conn
}

func (c closeNow) Close() error { return c.ws.CloseNow() }

func TestMosquitto(t *testing.T) {
	b := startMosquitto(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, over := range []struct {
		name string
		dial func(context.Context, *testing.T) net.Conn
	}{{"TLS", b.dialTLS}, {"WebSocket", b.dialWebSocket}} {
		t.Run("over "+over.name, func(t *testing.T) {
			t.Run("a whole exchange, at level 4 with a clean session", func(t *testing.T) {
				id := "gw-exchange-" + over.name
				w := &wire{Conn: over.dial(ctx, t)}
				c, err := mqttv3.Connect(ctx, w, mqttv3.Options{ClientID: id, UserName: "u", Password: secret, KeepAlive: time.Minute})
				if err != nil {
					t.Fatal(err)
				}
				topic := "t/" + over.name
				if err := c.Subscribe(ctx, topic+"/#", 1); err != nil {
					t.Fatal(err)
				}
				for _, payload := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte("x"), 4000)} {
					for qos := range byte(2) {
						if err := c.Publish(ctx, topic+"/$rid=1", payload, qos); err != nil {
							t.Fatalf("%d bytes at QoS %d: %v", len(payload), qos, err)
						}
						m, err := c.Receive(ctx)
						if err != nil || m.Topic != topic+"/$rid=1" || !bytes.Equal(m.Payload, payload) || m.QoS != qos || m.Dup {
							t.Fatalf("%d bytes at QoS %d came back as %.80v, %v", len(payload), qos, m, err)
						}
					}
				}
				closeClean(t, c)

				// "New client connected from … as gw-… (p2, c1, k60, u'u')": protocol 2
				// is mosquitto's name for 3.1.1 (p1 is 3.1, p5 is 5.0), c1 a clean session.
				if line := b.log.await(t, " as "+id+" ("); !strings.Contains(line, "(p2, c1, k60, u'u')") {
					t.Errorf("mosquitto saw another protocol: %s", line)
				}
				b.log.await(t, "Received DISCONNECT from "+id)
				var kinds []string
				for _, packet := range w.written() {
					p, err := mqttv3.DecodeMochi(packet)
					if err != nil {
						t.Errorf("% x: %v", packet, err)
					}
					kinds = append(kinds, mochi.PacketNames[p.FixedHeader.Type])
				}
				if first := w.written()[0]; first[0] != 0x10 || !bytes.Equal(first[2:9], unhex("00044d515454 04")) {
					t.Errorf("CONNECT begins % x, want protocol MQTT, level 4", first[:9])
				}
				if want := 1 + 1 + 6 + 3 + 1; len(kinds) != want || kinds[len(kinds)-1] != "Disconnect" {
					t.Errorf("%d packets, want %d, DISCONNECT last: %v", len(kinds), want, kinds)
				}
			})
			t.Run("PINGREQ keeps an idle connection alive", func(t *testing.T) {
				id := "gw-silent-" + over.name
				c, err := mqttv3.Connect(ctx, over.dial(ctx, t), mqttv3.Options{ClientID: id, KeepAlive: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				b.log.await(t, "Sending PINGRESP to "+id)
				if c.Err() != nil {
					t.Error(c.Err())
				}
				closeClean(t, c)
			})
			t.Run("a second connection with the same client identifier ends the first", func(t *testing.T) {
				o := mqttv3.Options{ClientID: "gw-twice-" + over.name}
				first, err := mqttv3.Connect(ctx, over.dial(ctx, t), o)
				if err != nil {
					t.Fatal(err)
				}
				second, err := mqttv3.Connect(ctx, over.dial(ctx, t), o)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := first.Receive(ctx); !errors.Is(err, mqttv3.ErrClosed) {
					t.Errorf("got %v, want ErrClosed", err)
				}
				first.Close(ctx)
				closeClean(t, second)
			})
		})
	}
}
