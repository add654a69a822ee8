package page

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mochi-mqtt/server/v2/packets"
)

// field is one decoded part of a packet.
type field struct{ Name, Value string }

// decoded is a packet in a form for people.
type decoded struct {
	Fields []field
	Body   string // of a PUBLISH: indented if it is JSON
}

// parse decodes the bytes of a packet, as far as they are complete.
func parse(raw []byte) (p packets.Packet, ok bool) {
	if len(raw) < 2 {
		return p, false
	}
	rest := bytes.NewReader(raw[1:])
	length, _, err := packets.DecodeLength(rest)
	if err != nil || length != rest.Len() || p.FixedHeader.Decode(raw[0]) != nil {
		return p, false
	}
	p.ProtocolVersion, p.FixedHeader.Remaining = 4, length
	body := raw[len(raw)-length:]
	switch p.FixedHeader.Type {
	case packets.Connect:
		err = p.ConnectDecode(body)
	case packets.Connack:
		err = p.ConnackDecode(body)
	case packets.Publish:
		err = p.PublishDecode(body)
	case packets.Puback:
		err = p.PubackDecode(body)
	case packets.Subscribe:
		err = p.SubscribeDecode(body)
	case packets.Suback:
		err = p.SubackDecode(body)
	case packets.Unsubscribe:
		err = p.UnsubscribeDecode(body)
	case packets.Unsuback:
		err = p.UnsubackDecode(body)
	}
	return p, err == nil
}

// decode decodes the bytes of a packet, or of a request or response over HTTPS.
func decode(packet string, raw []byte) (d decoded) {
	if packet == "REQUEST" || packet == "RESPONSE" {
		return decodeHTTP(raw)
	}
	p, ok := parse(raw)
	if !ok {
		return d
	}
	add := func(name, format string, args ...any) {
		d.Fields = append(d.Fields, field{name, fmt.Sprintf(format, args...)})
	}
	switch p.FixedHeader.Type {
	case packets.Connect:
		c := p.Connect
		add("Protocol", "%s level %d", c.ProtocolName, p.ProtocolVersion)
		add("Client ID", "%s", c.ClientIdentifier)
		add("Clean session", "%t", c.Clean)
		add("Keep alive", "%d s", c.Keepalive)
		d.userName(string(c.Username))
		d.password(string(c.Password), c.PasswordFlag)
	case packets.Connack:
		add("Return code", "%d (%s)", p.ReasonCode, connackMeaning(int(p.ReasonCode)))
		add("Session present", "%t", p.SessionPresent)
	case packets.Publish:
		d.topic(p.TopicName)
		add("QoS", "%d", p.FixedHeader.Qos)
		if p.FixedHeader.Qos > 0 {
			add("Packet ID", "%d", p.PacketID)
		}
		if p.FixedHeader.Dup {
			add("Duplicate", "yes")
		}
		d.Body = readable(p.Payload)
	case packets.Subscribe, packets.Unsubscribe:
		add("Packet ID", "%d", p.PacketID)
		for _, f := range p.Filters {
			add("Filter", "%s", f.Filter)
			if p.FixedHeader.Type == packets.Subscribe {
				add("Requested QoS", "%d", f.Qos)
			}
		}
	case packets.Suback:
		add("Packet ID", "%d", p.PacketID)
		for _, code := range p.ReasonCodes {
			if code == 0x80 {
				add("Result", "refused (128)")
			} else {
				add("Result", "granted QoS %d", code)
			}
		}
	case packets.Puback, packets.Unsuback:
		add("Packet ID", "%d", p.PacketID)
	}
	return d
}

// decodeHTTP splits a request or a response.
func decodeHTTP(raw []byte) (d decoded) {
	head, body, _ := strings.Cut(string(raw), "\r\n\r\n")
	first, lines, _ := strings.Cut(head, "\r\n")
	before, after, _ := strings.Cut(first, " ")
	name, value := "Status", after
	if !strings.HasPrefix(before, "HTTP/") {
		name, value = "Request", strings.TrimSuffix(first, " HTTP/1.1")
	}
	d.Fields = append(d.Fields, field{name, value})
	for line := range strings.SplitSeq(lines, "\r\n") {
		name, value, there := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !there:
		case strings.EqualFold(name, "Authorization"):
			d.token("Authorization", value)
		default:
			d.Fields = append(d.Fields, field{name, value})
		}
	}
	d.Body = readable([]byte(body))
	return d
}

// userName splits the user name of a CONNECT, of DPS or of a hub.
func (d *decoded) userName(name string) {
	add := func(name, value string) { d.Fields = append(d.Fields, field{name, value}) }
	add("User name", name)
	if parts := strings.SplitN(name, "/", 4); len(parts) == 4 && parts[1] == "registrations" {
		add("ID scope", parts[0])
		add("Registration ID", parts[2])
		d.parameters(parts[3])
	} else if parts := strings.SplitN(name, "/", 3); len(parts) == 3 {
		add("Hub", parts[0])
		add("Device ID", parts[1])
		d.parameters(strings.TrimPrefix(parts[2], "?"))
	}
}

// password describes the password of a CONNECT.
func (d *decoded) password(text string, there bool) {
	if !there || text == "" {
		d.Fields = append(d.Fields, field{"Password", "none"})
		return
	}
	d.token("Password", text)
}

// token splits a SAS token, from which withoutSecrets has removed the signature.
func (d *decoded) token(name, text string) {
	rest, isToken := strings.CutPrefix(text, tokenPrefix)
	if !isToken {
		d.Fields = append(d.Fields, field{name, fmt.Sprintf("%d bytes that are not a SAS token (not shown)", len(text))})
		return
	}
	d.Fields = append(d.Fields, field{name, "a SAS token"})
	for pair := range strings.SplitSeq(rest, "&") {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "sig":
			value = "not shown"
		case "se":
			if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
				value += " (" + time.Unix(seconds, 0).UTC().Format(time.RFC3339) + ")"
			}
		}
		d.Fields = append(d.Fields, field{"Token: " + name, value})
	}
}

// topic splits a topic of DPS.
func (d *decoded) topic(topic string) {
	add := func(name, value string) { d.Fields = append(d.Fields, field{name, value}) }
	add("Topic", topic)
	rest, isReply := strings.CutPrefix(topic, replyTopic)
	path, query, _ := strings.Cut(rest, "?")
	if isReply {
		add("Status", strings.TrimSuffix(path, "/"))
	}
	if strings.HasPrefix(topic, "$dps/") {
		d.parameters(query)
	}
}

// parameters splits a query, with the names that the protocol uses.
func (d *decoded) parameters(query string) {
	for pair := range strings.SplitSeq(query, "&") {
		name, value, there := strings.Cut(pair, "=")
		if !there {
			continue
		}
		if plain, err := url.PathUnescape(value); err == nil {
			value = plain
		}
		switch name {
		case "$rid", "rid":
			name = "Request ID"
		case "operationId":
			name = "Operation ID"
		case "retry-after":
			name, value = "Retry after", value+" s"
		case "api-version":
			name = "API version"
		case "ClientVersion", "DeviceClientType":
			name = "Client version"
		}
		d.Fields = append(d.Fields, field{name, value})
	}
}

// readable returns a body as text: JSON indented, and "" if it is not text.
func readable(body []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, body, "", "  ") == nil {
		return out.String()
	}
	if !utf8.Valid(body) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) || r == '\n' || r == '\t' {
			return r
		}
		return '�'
	}, string(body))
}

// dumpWidth is the number of bytes in a line of a dump, which must fit in a narrow window.
const dumpWidth = 8

// dump returns bytes in hexadecimal and as ASCII, with a line for each 8 bytes.
func dump(raw []byte) string {
	var out strings.Builder
	for at := 0; at < len(raw); at += dumpWidth {
		line := raw[at:min(at+dumpWidth, len(raw))]
		text := strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '.'
			}
			return r
		}, latin1(line))
		digits := strings.ToLower(hex.EncodeToString(line))
		pairs := make([]string, 0, dumpWidth)
		for i := 0; i < len(digits); i += 2 {
			pairs = append(pairs, digits[i:i+2])
		}
		fmt.Fprintf(&out, "%04x  %-23s  %s\n", at, strings.Join(pairs, " "), text)
	}
	return out.String()
}

// latin1 converts each byte to the rune with its number.
func latin1(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}
