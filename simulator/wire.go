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

// maxMessage is the limit of DPS for a message. A packet may be larger because of its headers,
// and because a hub has a higher limit.
const (
	maxMessage = 96 << 10
	maxPacket  = 257 << 10
)

// violation is a client's violation of MQTT 3.1.1. It closes the connection [MQTT-4.8.0-1].
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

// inbound is a packet from the client.
type inbound struct {
	packet packets.Packet
	size   int
	raw    []byte // as far as it was read
	err    error
}

// packetName returns the packet type as the standard writes it.
func packetName(t byte) string { return strings.ToUpper(packets.PacketNames[t]) }

// lengthReader accepts at most four bytes of a remaining length [MQTT-2.2.3].
type lengthReader struct {
	r    io.ByteReader
	read []byte // the fixed header so far
}

func (l *lengthReader) ReadByte() (byte, error) {
	if len(l.read) == 5 {
		return 0, breach("the remaining length has more than four bytes")
	}
	b, err := l.r.ReadByte()
	if err == nil {
		l.read = append(l.read, b)
	}
	return b, err
}

// readPacket reads one packet and checks everything that does not depend on the state of the
// session.
func readPacket(r *bufio.Reader) *inbound {
	in := &inbound{}
	in.err = in.read(r)
	return in
}

func (in *inbound) read(r *bufio.Reader) error {
	first, err := r.ReadByte()
	if err != nil {
		return err
	}
	lengths := &lengthReader{r: r, read: append(make([]byte, 0, 5), first)}
	remaining, _, err := packets.DecodeLength(lengths)
	in.raw = lengths.read
	if err != nil {
		return middle(err)
	}
	head := len(in.raw)
	in.size = head + remaining
	p := &in.packet
	p.ProtocolVersion, p.FixedHeader.Type = 4, first>>4
	if err := p.FixedHeader.Decode(first); err != nil {
		return breach("%s: flags %#x: %v", packetName(first>>4), first&0x0f, err) // [MQTT-2.2.2-2]
	}
	p.FixedHeader.Remaining = remaining
	if remaining > maxPacket { // before a buffer is allocated
		return breach("%s: the packet is too large: %d bytes", packetName(p.FixedHeader.Type), remaining)
	}
	in.raw = append(make([]byte, 0, in.size), in.raw...)[:in.size]
	body := in.raw[head:]
	if n, err := io.ReadFull(r, body); err != nil {
		in.raw = in.raw[:head+n]
		return middle(err)
	}
	return decode(p, body)
}

// middle distinguishes an end inside a packet from an end between packets.
func middle(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// codecs reads and writes the part after the fixed header, by packet type. The simulator
// receives only packets that it can decode. It also encodes these, to compare the bytes.
var codecs = map[byte]struct {
	decode func(*packets.Packet, []byte) error
	encode func(*packets.Packet, *bytes.Buffer) error
}{
	packets.Connect:     {(*packets.Packet).ConnectDecode, (*packets.Packet).ConnectEncode},
	packets.Connack:     {nil, (*packets.Packet).ConnackEncode},
	packets.Publish:     {(*packets.Packet).PublishDecode, (*packets.Packet).PublishEncode},
	packets.Puback:      {(*packets.Packet).PubackDecode, (*packets.Packet).PubackEncode},
	packets.Subscribe:   {(*packets.Packet).SubscribeDecode, (*packets.Packet).SubscribeEncode},
	packets.Suback:      {nil, (*packets.Packet).SubackEncode},
	packets.Unsubscribe: {(*packets.Packet).UnsubscribeDecode, (*packets.Packet).UnsubscribeEncode},
	packets.Unsuback:    {nil, (*packets.Packet).UnsubackEncode},
	packets.Pingresp:    {nil, (*packets.Packet).PingrespEncode},
}

func decode(p *packets.Packet, body []byte) error {
	kind := p.FixedHeader.Type
	name, codec := packetName(kind), codecs[kind]
	switch {
	case kind == packets.Pingreq || kind == packets.Disconnect:
		if len(body) > 0 {
			return breach("%s: it must not have a payload", name)
		}
		return nil
	case codec.decode == nil:
		return breach("%s: the server does not accept this packet type", name)
	case kind == packets.Connect:
		if err := checkConnectHead(body); err != nil {
			return err
		}
	}
	err := codec.decode(p, body)
	var b []byte
	if err == nil {
		b, err = encode(*p)
	}
	if err != nil {
		return breach("%s: %v", name, err)
	}
	// The encoding of the decoded packet must equal the received bytes. This detects
	// reserved bits and surplus bytes.
	if length, _, _ := packets.DecodeLength(bytes.NewReader(b[1:])); length != len(body) || !bytes.HasSuffix(b, body) {
		return breach("%s: reserved bits are set, or there are trailing bytes", name)
	}
	return check(p)
}

// checkConnectHead checks the name and the level before the rest of a CONNECT, whose
// format depends on them.
func checkConnectHead(body []byte) error {
	if len(body) < 7 {
		return breach("CONNECT: truncated")
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

// check checks the rules for the values of a packet.
func check(p *packets.Packet) error {
	switch p.FixedHeader.Type {
	case packets.Connect:
		c := p.Connect
		switch {
		case c.PasswordFlag && !c.UsernameFlag:
			return breach("CONNECT: a password without a user name [MQTT-3.1.2-22]")
		case !c.WillFlag && (c.WillQos != 0 || c.WillRetain):
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
			return breach("PUBLISH: the service does not accept QoS 2")
		}
	case packets.Puback:
		if p.PacketID == 0 {
			return breach("PUBACK: packet identifier 0 [MQTT-2.3.1-1]")
		}
	case packets.Subscribe, packets.Unsubscribe:
		if len(p.Filters) == 0 {
			return breach("%s: no filter [MQTT-3.8.3-3] [MQTT-3.10.3-2]", packetName(p.FixedHeader.Type))
		}
	}
	return nil
}

// encode encodes a packet.
func encode(p packets.Packet) ([]byte, error) {
	p.ProtocolVersion = 4
	var b bytes.Buffer
	err := codecs[p.FixedHeader.Type].encode(&p, &b)
	return b.Bytes(), err
}
