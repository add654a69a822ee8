package simulator_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// The tests have their own MQTT code: they assemble every byte that a device sends, and
// check every byte that it receives.

const device = "sample-device-01"

// start creates a server for a test.
func start(t *testing.T, o simulator.Options) *simulator.Server {
	t.Helper()
	s, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// client is the device's end of a connection. It reads in its own goroutine, as net.Pipe
// requires.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// pipe connects to a server without a network; raw is the stream below TLS.
func pipe(t *testing.T, s *simulator.Server) net.Conn {
	t.Helper()
	mine, theirs := net.Pipe()
	go s.ServeMQTT(theirs)
	t.Cleanup(func() { mine.Close() })
	return mine
}

func clientConfig(s *simulator.Server) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA())
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
}

// dial opens TLS, with a client certificate if there is one.
func dial(t *testing.T, s *simulator.Server, certificates ...tls.Certificate) *client {
	t.Helper()
	config := clientConfig(s)
	config.Certificates = certificates
	conn := tls.Client(pipe(t, s), config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func newClient(t *testing.T, conn net.Conn) *client {
	// net.Pipe has no buffer, so the data of the server is read immediately.
	r, w := io.Pipe()
	queue := make(chan []byte, 1<<12)
	var end error // nil for every end other than a deadline
	go func() {
		defer close(queue)
		for {
			b := make([]byte, 4096)
			n, err := conn.Read(b)
			if n > 0 {
				queue <- b[:n]
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				end = err
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		for b := range queue {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
		w.CloseWithError(end)
	}()
	c := &client{t: t, conn: conn, in: bufio.NewReader(r)}
	t.Cleanup(func() { conn.Close(); r.Close() })
	return c
}

func (c *client) send(b ...byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

// expect reads exactly these bytes.
func (c *client) expect(why string, want ...byte) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.in, got); err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("%s: got % x (%v), want % x", why, got[:n], err, want)
	}
}

// expectEnd waits for the end of the connection without any more bytes.
func (c *client) expectEnd(why string) {
	c.t.Helper()
	if b, err := io.ReadAll(c.in); err != nil || len(b) > 0 {
		c.t.Fatalf("%s: got % x (%v), want the end of the connection", why, b, err)
	}
}

// publish is a PUBLISH from the server.
type publish struct {
	flags   byte
	topic   string
	id      uint16
	payload string
}

var errEnded = errors.New("the connection has ended")

// readPacket reads one packet: its first byte and what follows the length.
func (c *client) readPacket() (byte, []byte, error) {
	first, err := c.in.ReadByte()
	if err != nil {
		return 0, nil, errEnded
	}
	length, err := binary.ReadUvarint(c.in)
	if err != nil {
		return 0, nil, err
	}
	body := make([]byte, length)
	_, err = io.ReadFull(c.in, body)
	return first, body, err
}

func (c *client) expectPublish(why string) publish {
	c.t.Helper()
	first, body, err := c.readPacket()
	if err != nil || first>>4 != 3 {
		c.t.Fatalf("%s: got %#x % x (%v), want a PUBLISH", why, first, body, err)
	}
	p := publish{flags: first & 0x0f}
	n := int(binary.BigEndian.Uint16(body))
	p.topic, body = string(body[2:2+n]), body[2+n:]
	if first&0x06 != 0 {
		p.id, body = binary.BigEndian.Uint16(body), body[2:]
	}
	p.payload = string(body)
	return p
}

// Packets by hand:

func packet(first byte, body ...[]byte) []byte {
	all := bytes.Join(body, nil)
	return append(binary.AppendUvarint([]byte{first}, uint64(len(all))), all...)
}

func text(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func userNameOf(s *simulator.Server, id string) string {
	return s.IDScope() + "/registrations/" + id + "/api-version=2019-03-31&ClientVersion=test"
}

func connectPacket(flags byte, keepAlive uint16, fields ...string) []byte {
	body := [][]byte{text("MQTT"), {4, flags}, binary.BigEndian.AppendUint16(nil, keepAlive)}
	for _, f := range fields {
		body = append(body, text(f))
	}
	return packet(0x10, body...)
}

// token creates a SAS token. It signs the resource unchanged.
func token(key, resource string, expiry time.Time, rest string) string {
	raw, _ := base64.StdEncoding.DecodeString(key)
	mac := hmac.New(sha256.New, raw)
	fmt.Fprintf(mac, "%s\n%d", resource, expiry.Unix())
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d%s", resource, sig, expiry.Unix(), rest)
}

func resourceOf(s *simulator.Server, id string) string {
	return url.QueryEscape(s.IDScope() + "/registrations/" + id)
}

func goodToken(s *simulator.Server, id string) string {
	return token(s.DeviceKey(id), resourceOf(s, id), time.Now().Add(time.Hour), "&skn=registration")
}

func goodConnect(s *simulator.Server, id string) []byte {
	return connectPacket(0xc2, 0, id, userNameOf(s, id), goodToken(s, id))
}

func subscribePacket(id byte, qos byte) []byte {
	return packet(0x82, []byte{0, id}, text("$dps/registrations/res/#"), []byte{qos})
}

func publishPacket(first byte, topic string, id uint16, payload string) []byte {
	if first&0x06 == 0 {
		return packet(first, text(topic), []byte(payload))
	}
	return packet(first, text(topic), binary.BigEndian.AppendUint16(nil, id), []byte(payload))
}

func registerTopic(rid string) string { return "$dps/registrations/PUT/iotdps-register/?$rid=" + rid }

func pollTopic(rid, operation string) string {
	return "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=" + rid + "&operationId=" + operation
}

// connect continues up to the CONNACK, subscribe up to the SUBACK.
func (c *client) connect(s *simulator.Server, id string) *client {
	c.t.Helper()
	c.send(goodConnect(s, id)...)
	c.expect("a good CONNECT is accepted without a session", 0x20, 2, 0, 0)
	return c
}

func (c *client) subscribe() *client {
	c.t.Helper()
	c.send(subscribePacket(1, 1)...)
	c.expect("the response filter is granted at QoS 1", 0x90, 3, 0, 1, 1)
	return c
}

func ready(t *testing.T, s *simulator.Server) *client {
	t.Helper()
	return dial(t, s).connect(s, device).subscribe()
}

// body is the JSON of a reply.
type body struct {
	OperationID       string                     `json:"operationId"`
	Status            string                     `json:"status"`
	RegistrationState map[string]json.RawMessage `json:"registrationState"`
	ErrorCode         int                        `json:"errorCode"`
	Message           string                     `json:"message"`
	TrackingID        string                     `json:"trackingId"`
}

func (p publish) parse(t *testing.T) body {
	t.Helper()
	var b body
	if err := json.Unmarshal([]byte(p.payload), &b); err != nil {
		t.Fatalf("%q: %v", p.payload, err)
	}
	return b
}

// register sends a register request at QoS 0 and reads the reply.
func (c *client) register(rid string) publish {
	c.t.Helper()
	c.send(publishPacket(0x30, registerTopic(rid), 0, "")...)
	return c.expectPublish("a register request is answered")
}

func (c *client) poll(rid, operation string) publish {
	c.t.Helper()
	c.send(publishPacket(0x30, pollTopic(rid, operation), 0, "")...)
	return c.expectPublish("a poll is answered")
}

func (c *client) puback(id uint16) {
	c.t.Helper()
	c.send(0x40, 2, byte(id>>8), byte(id))
}

// assign performs a whole registration and returns the final reply.
func (c *client) assign() publish {
	c.t.Helper()
	p := c.register("1")
	c.puback(p.id)
	operation := p.parse(c.t).OperationID
	for i := 2; ; i++ {
		p = c.poll(fmt.Sprint(i), operation)
		c.puback(p.id)
		if !strings.Contains(p.topic, "/202/") {
			return p
		}
	}
}

// violations returns the client's violations in the log.
func violations(s *simulator.Server) string {
	return strings.Join(simulator.Summarize(s.Log()).Violations, "; ")
}
