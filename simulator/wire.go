package simulator

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// maxMessage is the service's limit on a message; a packet may be larger by its headers.
const (
	maxMessage = 96 << 10
	maxPacket  = maxMessage + 1<<10
)

// A violation is a client's breach of MQTT 3.1.1 or of the service's rules.
// The connection is closed [MQTT-4.8.0-1].
type violation struct {
	reason  string
	connack int // the CONNACK return code to send first, or 0
	// closeCode is the status of the close frame of a WebSocket, or 0 for 1008
	closeCode int
}

func (v *violation) Error() string { return v.reason }

func breach(format string, args ...any) error {
	return &violation{reason: fmt.Sprintf(format, args...)}
}

// inbound is one packet from the client.
type inbound struct {
	packet    packets.Packet
	size      int
	pipelined bool // it was in the buffer before the one ahead of it was looked at
	err       error
}

// packetName is the packet type as the standard writes it.
func packetName(t byte) string { return strings.ToUpper(packets.PacketNames[t]) }

// lengthReader lets at most four bytes of a remaining length through [MQTT-2.2.3].
type lengthReader struct {
	r    io.ByteReader
	read int
}

func (l *lengthReader) ReadByte() (byte, error) {
	if l.read == 4 {
		return 0, breach("the remaining length has more than four bytes")
	}
	l.read++
	return l.r.ReadByte()
}

// readPacket reads one packet and checks everything about it that needs no
// knowledge of the session.
func readPacket(r *bufio.Reader) *inbound {
	in := &inbound{pipelined: r.Buffered() > 0}
	first, err := r.ReadByte()
	if err != nil {
		in.err = err
		return in
	}
	p := packets.Packet{ProtocolVersion: 4}
	lengths := &lengthReader{r: r}
	remaining, _, err := packets.DecodeLength(lengths)
	if err != nil {
		in.err = middle(err)
		return in
	}
	in.size = 1 + lengths.read + remaining
	p.FixedHeader.Type = first >> 4
	in.packet = p
	if err := p.FixedHeader.Decode(first); err != nil {
		in.err = breach("%s: flags %#x: %v", packetName(first>>4), first&0x0f, err) // [MQTT-2.2.2-2]
		return in
	}
	p.FixedHeader.Remaining = remaining
	if remaining > maxPacket { // before a buffer is made
		in.err = breach("%s: a packet of %d bytes", packetName(p.FixedHeader.Type), remaining)
		return in
	}
	body := make([]byte, remaining)
	if _, err := io.ReadFull(r, body); err != nil {
		in.err = middle(err)
		return in
	}
	if err := decode(&p, body); err != nil {
		in.err = err
	}
	in.packet = p
	return in
}

// middle tells an end inside a packet from one between packets.
func middle(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func decode(p *packets.Packet, body []byte) error {
	name := packetName(p.FixedHeader.Type)
	var err error
	switch p.FixedHeader.Type {
	case packets.Connect:
		if err := checkConnectHead(body); err != nil {
			return err
		}
		err = p.ConnectDecode(body)
	case packets.Publish:
		err = p.PublishDecode(body)
	case packets.Puback:
		err = p.PubackDecode(body)
	case packets.Subscribe:
		err = p.SubscribeDecode(body)
	case packets.Unsubscribe:
		err = p.UnsubscribeDecode(body)
	case packets.Pingreq, packets.Disconnect:
		if len(body) > 0 {
			return breach("%s: it has a payload", name)
		}
		return nil
	default:
		return breach("%s: not a packet for this server", name)
	}
	var b []byte
	if err == nil {
		b, err = encode(*p)
	}
	if err != nil {
		return breach("%s: %v", name, err)
	}
	// What was understood, written again, must be what was received: so
	// reserved bits and bytes left over do not pass unseen.
	if !bytes.HasSuffix(b, body) || len(b) != headerSize(len(body))+len(body) {
		return breach("%s: reserved bits are set or bytes are left over", name)
	}
	return check(p)
}

func headerSize(remaining int) int {
	n := 2
	for remaining >= 128 {
		remaining >>= 7
		n++
	}
	return n
}

// checkConnectHead looks at name and level before the rest of a CONNECT,
// whose form depends on them.
func checkConnectHead(body []byte) error {
	if len(body) < 7 {
		return breach("CONNECT: it is cut")
	}
	level := byte(0)
	switch {
	case bytes.HasPrefix(body, []byte("\x00\x04MQTT")): // [MQTT-3.1.2-1]
		level = body[6]
	case bytes.HasPrefix(body, []byte("\x00\x06MQIsdp")): // MQTT 3.1
	default:
		return breach("CONNECT: the protocol name is not MQTT")
	}
	if level != 4 {
		return &violation{reason: "CONNECT: the protocol level is not 4", connack: 1} // [MQTT-3.1.2-2]
	}
	return nil
}

// check holds the rules on a packet's values.
func check(p *packets.Packet) error {
	switch p.FixedHeader.Type {
	case packets.Connect:
		c := p.Connect
		switch {
		case c.PasswordFlag && !c.UsernameFlag:
			return breach("CONNECT: a password without a user name [MQTT-3.1.2-22]")
		case c.WillFlag:
			return breach("CONNECT: the service takes no will")
		case c.WillQos != 0 || c.WillRetain:
			return breach("CONNECT: will QoS or retain without a will [MQTT-3.1.2-13] [MQTT-3.1.2-15]")
		case !utf8.Valid(c.Username) || bytes.IndexByte(c.Username, 0) >= 0:
			return breach("CONNECT: the user name is not UTF-8 [MQTT-1.5.3-1]")
		case c.ClientIdentifier == "" && !c.Clean:
			return &violation{reason: "CONNECT: no client identifier, and clean session 0 [MQTT-3.1.3-8]", connack: 2}
		}
	case packets.Publish:
		switch {
		case p.FixedHeader.Qos > 0 && p.PacketID == 0:
			return breach("PUBLISH: packet identifier 0 [MQTT-2.3.1-1]")
		case strings.ContainsAny(p.TopicName, "+#"):
			return breach("PUBLISH: a wildcard in the topic [MQTT-3.3.2-2]")
		case p.FixedHeader.Qos == 2:
			return breach("PUBLISH: the service does not take QoS 2")
		case p.FixedHeader.Retain:
			return breach("PUBLISH: the service retains nothing")
		case len(p.Payload) > maxMessage:
			return breach("PUBLISH: a message above 96 KB")
		}
	case packets.Puback:
		if p.PacketID == 0 {
			return breach("PUBACK: packet identifier 0 [MQTT-2.3.1-1]")
		}
	case packets.Subscribe, packets.Unsubscribe:
		name := packetName(p.FixedHeader.Type)
		if len(p.Filters) == 0 {
			return breach("%s: no filter [MQTT-3.8.3-3] [MQTT-3.10.3-2]", name)
		}
		for _, f := range p.Filters {
			if f.Filter != responseFilter {
				return breach("%s: the filter is not %s", name, responseFilter)
			}
		}
	}
	return nil
}

// encode writes a packet.
func encode(p packets.Packet) ([]byte, error) {
	p.ProtocolVersion = 4
	var b bytes.Buffer
	var err error
	switch p.FixedHeader.Type {
	case packets.Connect:
		err = p.ConnectEncode(&b)
	case packets.Connack:
		err = p.ConnackEncode(&b)
	case packets.Publish:
		err = p.PublishEncode(&b)
	case packets.Puback:
		err = p.PubackEncode(&b)
	case packets.Subscribe:
		err = p.SubscribeEncode(&b)
	case packets.Suback:
		err = p.SubackEncode(&b)
	case packets.Unsubscribe:
		err = p.UnsubscribeEncode(&b)
	case packets.Unsuback:
		err = p.UnsubackEncode(&b)
	case packets.Pingresp:
		err = p.PingrespEncode(&b)
	default:
		err = fmt.Errorf("the simulator sends no %s", packetName(p.FixedHeader.Type))
	}
	return b.Bytes(), err
}
