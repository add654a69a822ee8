package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// stepLimit ends a device that gets no answer.
const stepLimit = 60 * time.Second

// MQTT packet types with their flags, MQTT 3.1.1 2.2.
const (
	connect     = 0x10
	connack     = 0x20
	publish     = 0x32 // QoS 1
	puback      = 0x40
	subscribe   = 0x82
	suback      = 0x90
	disconnect  = 0xe0
	packetIDLen = 2
)

// device is one connection, like that of a real device.
type device struct {
	id   string
	conn *tls.Conn
	in   *[]byte // received data
	from int     // start of the unread part
	to   int
}

// buffers lends buffers to connections. A device holds one only while it reads.
var buffers = sync.Pool{New: func() any { b := make([]byte, 2048); return &b }}

// dial connects a device up to the SUBACK.
func (s *service) dial(n int) (*device, error) {
	d := &device{id: fmt.Sprintf("load-%07d", n)}
	// Each loopback address has its own 28,000 ports, so that ports in TIME_WAIT do not
	// limit the rate.
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+n%200))}
	tcp, err := net.DialTCP("tcp", from, s.address)
	if err != nil {
		return nil, err
	}
	d.conn = tls.Client(tcp, s.tls)
	_ = d.conn.SetDeadline(time.Now().Add(stepLimit))
	if err := d.conn.Handshake(); err != nil {
		_ = tcp.Close()
		return nil, err
	}
	if err := d.begin(s); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// begin sends CONNECT and SUBSCRIBE, and checks the answers.
func (d *device) begin(s *service) error {
	resource := s.scope + "/registrations/" + d.id
	body := []byte("\x00\x04MQTT\x04\xc2\x00\x00") // clean session, user name, password; no keep-alive
	body = text(body, d.id)
	body = text(body, resource+"/api-version=2019-03-31")
	body = text(body, d.token(s.key, resource))
	if err := d.write(packet(connect, body)); err != nil {
		return err
	}
	if err := d.expect(connack, []byte{0, 0}); err != nil {
		return err
	}
	body = append(text([]byte{0, 1}, "$dps/registrations/res/#"), 1)
	if err := d.write(packet(subscribe, body)); err != nil {
		return err
	}
	return d.expect(suback, []byte{0, 1, 1})
}

// token returns a SAS token with the key that is derived from the group key.
func (d *device) token(groupKey []byte, resource string) string {
	sign := func(key []byte, text string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	escaped := url.QueryEscape(resource)
	expiry := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	signature := sign(sign(groupKey, d.id), escaped+"\n"+expiry)
	return "SharedAccessSignature sr=" + escaped + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(signature)) + "&se=" + expiry + "&skn=registration"
}

// register performs a whole registration with the requested delays.
func (d *device) register() error {
	topic := "$dps/registrations/PUT/iotdps-register/?$rid=1"
	body := `{"registrationId":"` + d.id + `"}`
	for request := 2; ; request++ {
		status, after, reply, err := d.ask(request, topic, body)
		if err != nil {
			return err
		}
		switch status {
		case 202:
			operation, err := member(reply, "operationId")
			if err != nil {
				return err
			}
			topic, body = fmt.Sprintf("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=%d&operationId=%s", request, operation), " "
		case 200:
			if got, err := member(reply, "status"); err != nil || got != "assigned" {
				return fmt.Errorf("not assigned: %s", reply)
			}
			if hub, err := member(reply, "assignedHub"); err != nil || hub == "" {
				return fmt.Errorf("assigned without a hub: %s", reply)
			}
			return d.disconnect()
		default:
			return fmt.Errorf("status %d: %s", status, reply)
		}
		d.rest()
		time.Sleep(after)
	}
}

// disconnect sends DISCONNECT and waits until the server closes the connection [MQTT-3.14.4-2].
func (d *device) disconnect() error {
	if err := d.write(packet(disconnect, nil)); err != nil {
		return err
	}
	kind, _, err := d.read()
	if err == nil {
		return fmt.Errorf("%#x after DISCONNECT", kind)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// ask publishes a request, reads PUBACK and reply, and acknowledges the reply.
func (d *device) ask(packetID int, topic, body string) (status int, after time.Duration, reply []byte, err error) {
	_ = d.conn.SetDeadline(time.Now().Add(stepLimit))
	id := binary.BigEndian.AppendUint16(nil, uint16(packetID))
	if err := d.write(packet(publish, append(append(text(nil, topic), id...), body...))); err != nil {
		return 0, 0, nil, err
	}
	if err := d.expect(puback, id); err != nil {
		return 0, 0, nil, err
	}
	kind, p, err := d.read()
	if err != nil {
		return 0, 0, nil, err
	}
	if kind != publish || len(p) < 2 {
		return 0, 0, nil, fmt.Errorf("%#x instead of the reply", kind)
	}
	n := int(binary.BigEndian.Uint16(p))
	if len(p) < 2+n+packetIDLen {
		return 0, 0, nil, errors.New("the reply is truncated")
	}
	var rid int
	got := string(p[2 : 2+n])
	if _, err := fmt.Sscanf(got, "$dps/registrations/res/%d/?$rid=%d", &status, &rid); err != nil || rid != packetID-1 {
		return 0, 0, nil, fmt.Errorf("the topic is %s", got)
	}
	if _, seconds, there := bytes.Cut(p[2:2+n], []byte("&retry-after=")); there {
		s, err := strconv.Atoi(string(seconds))
		if err != nil {
			return 0, 0, nil, err
		}
		after = time.Duration(s) * time.Second
	}
	if err := d.write(packet(puback, p[2+n:2+n+packetIDLen])); err != nil {
		return 0, 0, nil, err
	}
	return status, after, p[2+n+packetIDLen:], nil
}

// member returns a text in a JSON object without escapes.
func member(object []byte, name string) (string, error) {
	_, rest, found := bytes.Cut(object, []byte(`"`+name+`":"`))
	value, _, ended := bytes.Cut(rest, []byte(`"`))
	if !found || !ended {
		return "", fmt.Errorf("no %s in %s", name, object)
	}
	return string(value), nil
}

// text appends a length and a text [MQTT-1.5.3].
func text(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// packet returns a packet with a body of less than 16 KB.
func packet(kind byte, body []byte) []byte {
	b := append(make([]byte, 0, 3+len(body)), kind)
	if n := len(body); n < 128 {
		b = append(b, byte(n))
	} else {
		b = append(b, byte(n&127|128), byte(n>>7))
	}
	return append(b, body...)
}

func (d *device) write(p []byte) error {
	_, err := d.conn.Write(p)
	return err
}

func (d *device) expect(kind byte, body []byte) error {
	got, p, err := d.read()
	if err != nil {
		return err
	}
	if got != kind || !bytes.Equal(p, body) {
		return fmt.Errorf("%#x %x instead of %#x %x", got, p, kind, body)
	}
	return nil
}

// read returns the next packet. Its body is valid until the next call.
func (d *device) read() (kind byte, body []byte, err error) {
	if d.in == nil {
		d.in = buffers.Get().(*[]byte)
	}
	for {
		if p := (*d.in)[d.from:d.to]; len(p) >= 2 {
			n, head := int(p[1]), 2
			whole := n < 128
			if !whole && len(p) > 2 {
				if p[2] >= 128 {
					return 0, nil, errors.New("a packet of 16 KB or more")
				}
				n, head, whole = n&127|int(p[2])<<7, 3, true
			}
			if whole && len(p) >= head+n {
				d.from += head + n
				return p[0], p[head : head+n], nil
			}
		}
		if d.from > 0 {
			d.to = copy(*d.in, (*d.in)[d.from:d.to])
			d.from = 0
		}
		if d.to == len(*d.in) {
			return 0, nil, errors.New("a packet larger than the buffer")
		}
		n, err := d.conn.Read((*d.in)[d.to:])
		d.to += n
		if err != nil && n == 0 {
			return 0, nil, err
		}
	}
}

// rest returns the buffer to the pool.
func (d *device) rest() {
	if d.in != nil && d.from == d.to {
		buffers.Put(d.in)
		d.in, d.from, d.to = nil, 0, 0
	}
}

// close closes the connection.
func (d *device) close() {
	d.from = d.to
	d.rest()
	_ = d.conn.Close()
}
