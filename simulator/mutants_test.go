package simulator_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A test that never fails proves nothing. Therefore every conformance case names a fault
// with which it was seen to fail: a removed check or a wrong answer in the simulator, or in
// a library to which the simulator leaves the check.
//
//	go test ./simulator -run TestEveryCaseFailsWithItsFault -mutants -timeout 30m
//
// builds the tests with each fault and verifies again that its cases fail.

var withMutants = flag.Bool("mutants", false, "build the server with each fault, and see that the cases fail which name it")

// An edit replaces a text that occurs once in a file. "mqtt/" is the folder of
// mochi-mqtt's packets, "websocket/" the folder of gorilla's WebSocket.
type edit struct{ file, old, new string }

var mutants = map[string][]edit{
	"any text is UTF-8":      {{"mqtt/codec.go", "return utf8.Valid(b) && bytes.IndexByte(b, 0x00) == -1", "return utf8.Valid(b) || len(b) >= 0"}},
	"any user name is UTF-8": {{"wire.go", "case !utf8.Valid(c.Username) || bytes.IndexByte(c.Username, 0) >= 0:", "case !utf8.Valid(c.Username) && len(c.Username) < 0:"}},
	"U+FEFF is stripped from a $rid": {{"provisioning.go", "out = append(out, d.reply(rule, r, cmp.Or(rule.RequestID, req.requestID)))",
		`out = append(out, d.reply(rule, r, strings.TrimPrefix(req.requestID, "\ufeff")))`}},
	"U+FEFF is stripped from the user name": {{"names.go", `parts := strings.Split(text, "/")`, `parts := strings.Split(strings.TrimPrefix(text, "\ufeff"), "/")`}},

	"reserved flags pass":                  {{"mqtt/fixedheader.go", "default:\n\t\tif (hb>>0)&0x01 != 0 ||", "default:\n\t\tif false && (hb>>0)&0x01 != 0 ||"}, {"mqtt/fixedheader.go", "(hb>>1)&0x01 != 0 ||\n", "false &&\n"}, {"mqtt/fixedheader.go", "(hb>>2)&0x01 != 0 ||\n", "false &&\n"}, {"mqtt/fixedheader.go", "(hb>>3)&0x01 != 0 { // [MQTT-3.8.3-5]", "false { // [MQTT-3.8.3-5]"}},
	"flags of SUBSCRIBE pass":              {{"mqtt/fixedheader.go", "if (hb>>0)&0x01 != 0 || (hb>>1)&0x01 != 1 || (hb>>2)&0x01 != 0 || (hb>>3)&0x01 != 0 {", "if false {"}},
	"a remaining length has no end":        {{"wire.go", "if len(l.read) == 5 {", "if len(l.read) == 500 {"}},
	"a longer form of a length is refused": {{"wire.go", "if remaining > maxPacket {", "if remaining > maxPacket || head > 2 && remaining < 128 {"}},
	"a packet of any size is awaited":      {{"wire.go", "if remaining > maxPacket {", "if remaining > 1<<30 {"}},
	"any packet type passes":               {{"wire.go", "\t\treturn breach(\"%s: the server does not accept this packet type\", name)", "\t\treturn nil"}},
	"a packet comes in one piece":          {{"wire.go", "if n, err := io.ReadFull(r, body); err != nil {", "if n, err := r.Read(body); err != nil {"}},
	"data after a packet is lost":          {{"session.go", "in := readPacket(r)", "in := readPacket(bufio.NewReader(struct{ io.Reader }{r}))"}},
	"an end is an end":                     {{"wire.go", "return io.ErrUnexpectedEOF", "return io.EOF"}},

	"PUBLISH may have packet identifier 0":     {{"wire.go", "case p.FixedHeader.Qos > 0 && p.PacketID == 0:", "case false:"}, {"mqtt/packets.go", "if pk.PacketID == 0 {\n\t\t\treturn ErrProtocolViolationNoPacketID", "if false {\n\t\t\treturn ErrProtocolViolationNoPacketID"}},
	"SUBSCRIBE may have packet identifier 0":   {{"mqtt/packets.go", "func (pk *Packet) SubscribeEncode(buf *bytes.Buffer) error {\n\tif pk.PacketID == 0 {", "func (pk *Packet) SubscribeEncode(buf *bytes.Buffer) error {\n\tif false {"}},
	"UNSUBSCRIBE may have packet identifier 0": {{"mqtt/packets.go", "func (pk *Packet) UnsubscribeEncode(buf *bytes.Buffer) error {\n\tif pk.PacketID == 0 {", "func (pk *Packet) UnsubscribeEncode(buf *bytes.Buffer) error {\n\tif false {"}},
	"PUBACK may have packet identifier 0":      {{"wire.go", "if p.PacketID == 0 {", "if false {"}},
	"a packet identifier may be used twice":    {{"session.go", "if s.unanswered[p.PacketID] && !again {", "if false && !again {"}},
	"a packet identifier is never free again":  {{"session.go", "delete(s.unanswered, p.PacketID)", "_ = p"}},
	"every reply has packet identifier 2":      {{"session.go", "for s.unacked[out.PacketID] > 0 {", "for false {"}},
	"a reply's number is never free again":     {{"session.go", "if s.unacked[p.PacketID]--; s.unacked[p.PacketID] == 0 {", "if s.unacked[p.PacketID] == 0 {"}},
	"a packet identifier is read at QoS 0":     {{"mqtt/packets.go", "// [MQTT-3.3.2-1]\n\tif err != nil {\n\t\treturn fmt.Errorf(\"%s: %w\", err, ErrMalformedTopic)\n\t}\n\n\tif pk.FixedHeader.Qos > 0 {", "\n\tif err != nil {\n\t\treturn err\n\t}\n\n\tif true {"}},

	"the first packet may be any":                      {{"session.go", "case first && kind != packets.Connect:", "case false:"}},
	"CONNECT may come again":                           {{"session.go", "case !first && kind == packets.Connect:", "case false:"}},
	"any protocol name will do":                        {{"wire.go", "\tdefault:\n\t\treturn breach(\"CONNECT: the protocol name is not MQTT\")", "\tdefault:\n\t\tlevel = body[6]"}},
	"any protocol level will do":                       {{"wire.go", "if level != 4 {", "if level == 99 {"}},
	"bytes need not be those that were understood":     {{"wire.go", "length != len(body) || !bytes.HasSuffix(b, body)", "length < 0"}},
	"a session begins subscribed":                      {{"provisioning.go", "&provisioning{s: s,", "&provisioning{s: s, subscribed: true,"}},
	"will QoS and retain need no will":                 {{"wire.go", "case !c.WillFlag && (c.WillQos != 0 || c.WillRetain):", "case false:"}},
	"a will is taken":                                  {{"provisioning.go", "if p.Connect.WillFlag {", "if false {"}},
	"a user name may be missing":                       {{"mqtt/packets.go", "return ErrProtocolViolationFlagNoUsername // [MQTT-3.1.2-17]", "return nil"}},
	"a password may be missing":                        {{"mqtt/packets.go", "return ErrMalformedPassword", "return nil"}},
	"a password needs no user name":                    {{"wire.go", "case c.PasswordFlag && !c.UsernameFlag:", "case false:"}},
	"silence lasts for ever":                           {{"session.go", "case s.connected && s.keepAlive > 0:", "case false:"}},
	"a client is given up after one interval":          {{"session.go", "s.keepAlive * 3 / 2", "s.keepAlive"}},
	"only a ping counts":                               {{"session.go", "s.lastPacket = time.Now()\n\t\ts.receive(in)", "if in.packet.FixedHeader.Type == packets.Pingreq {\n\t\t\ts.lastPacket = time.Now()\n\t\t}\n\t\ts.receive(in)"}},
	"a byte counts":                                    {{"session.go", "if limit := s.silence(); !limit.IsZero() && !now.Before(limit) {", "if limit := s.silence(); !limit.IsZero() && !now.Before(limit.Add(s.c.raw.lastRead())) {"}, {"stream.go", "func (r *rawConn) closed() bool", "func (r *rawConn) lastRead() time.Duration { return time.Duration(r.up.Load()) * time.Second }\n\nfunc (r *rawConn) closed() bool"}},
	"keep-alive 0 is an interval":                      {{"session.go", "case s.connected && s.keepAlive > 0:", "case s.connected:"}},
	"an interval has 15 bits":                          {{"session.go", "time.Duration(p.Connect.Keepalive) * time.Second", "time.Duration(p.Connect.Keepalive&0x7fff) * time.Second"}},
	"CONNECT may take its time":                        {{"simulator.go", "const connectTimeout = 60 * time.Second", "const connectTimeout = 600 * time.Second"}},
	"a registration ID has 22 characters at most":      {{"enroll/names.go", "{0,126}", "{0,20}"}},
	"a registration ID has two characters at least":    {{"enroll/names.go", "[-A-Za-z0-9])?$`", "[-A-Za-z0-9])$`"}},
	"a registration ID has no colon":                   {{"enroll/names.go", "[-._:A-Za-z0-9]", "[-._A-Za-z0-9]"}},
	"no client identifier needs no clean session":      {{"wire.go", `case c.ClientIdentifier == "" && !c.Clean:`, "case false:"}},
	"the client identifier may be any":                 {{"simulator.go", "case clientID != u.registrationID:", "case false:"}},
	"a user name may have more parts":                  {{"names.go", `if len(parts) != 4 || parts[1] != "registrations" {`, `if len(parts) < 4 || parts[1] != "registrations" {`}},
	"a cut CONNECT gets CONNACK 2":                     {{"wire.go", `return breach("CONNECT: truncated")`, `return &violation{reason: "CONNECT: truncated", connack: 2}`}},
	"no connection is taken over":                      {{"simulator.go", "close(other.taken)", "_ = other"}},
	"the end of an old connection removes the new one": {{"simulator.go", "s.sessions[key] == mine {\n\t\tdelete", "s.sessions[key] != nil {\n\t\tdelete"}},
	"a refused client takes over":                      {{"session.go", "\tif code == 0 {\n\t\ts.connected = true", "\ts.c.server.take(s.app.key(), s)\n\tif code == 0 {\n\t\ts.connected = true"}},
	"every CONNACK is 5":                               {{"session.go", "ReasonCode:     byte(code),", "ReasonCode:     byte(max(code, 5)),"}},
	"a refused client stays":                           {{"session.go", `s.end(fmt.Sprintf("CONNACK %d", code))`, "s.connected = true"}},
	"a client must wait for the CONNACK":               {{"session.go", "len(s.early) > maxEarly {", "len(s.early) > 0 {"}},
	"any number of packets may wait":                   {{"session.go", "len(s.early) > maxEarly {", "len(s.early) > 1000 {"}},
	"a packet precedes the CONNACK":                    {{"session.go", "\tfor !s.over {\n\t\ts.step()", "\ts.send(&Rule{}, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})\n\tfor !s.over {\n\t\ts.step()"}},
	"a session is always present":                      {{"session.go", "SessionPresent: rule.SessionPresent,", "SessionPresent: true,"}},
	"DUP may be set at QoS 0":                          {{"mqtt/fixedheader.go", "if fh.Qos == 0 && fh.Dup {", "if false {"}},
	"every reply has the DUP flag":                     {{"session.go", "packets.FixedHeader{Type: packets.Publish, Qos: qos}", "packets.FixedHeader{Type: packets.Publish, Qos: qos, Dup: qos > 0}"}},
	"every reply has the RETAIN flag":                  {{"session.go", "packets.FixedHeader{Type: packets.Publish, Qos: qos}", "packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: true}"}},
	"QoS 3 passes":                                     {{"mqtt/fixedheader.go", "if (hb>>1)&0x01 > 0 && (hb>>1)&0x02 > 0 {", "if false {"}},
	"a reply comes with the SUBACK":                    {{"provisioning.go", "if !rule.BeforeSuback {", "if false {"}},
	"QoS 2 passes":                                     {{"wire.go", "case p.FixedHeader.Qos == 2:", "case false:"}},
	"RETAIN passes":                                    {{"provisioning.go", "case p.FixedHeader.Retain:", "case false:"}},
	"a text may be longer than its packet":             {{"mqtt/codec.go", "if next+int(length) > len(buf) {\n\t\treturn make([]byte, 0), 0, ErrMalformedOffsetBytesOutOfRange", "if next+int(length) > len(buf) {\n\t\treturn buf[next:], len(buf), nil"}},
	"a topic may have a wildcard":                      {{"wire.go", `case strings.ContainsAny(p.TopicName, "+#"):`, "case false:"}},
	"a reply has another topic":                        {{"provisioning.go", `"$dps/registrations/res/%d/?$rid=%s"`, `"$dps/registrations/reply/%d/?$rid=%s"`}},
	"no PUBACK is sent":                                {{"session.go", "if p.FixedHeader.Qos == 1 && !acked && !rule.NoPuback {", "if false {"}},
	"every PUBLISH gets a PUBACK":                      {{"session.go", "if p.FixedHeader.Qos == 1 && !acked && !rule.NoPuback {", "if !acked {"}},
	"every PUBACK is for 1":                            {{"session.go", "packets.FixedHeader{Type: packets.Puback}, PacketID: p.PacketID}", "packets.FixedHeader{Type: packets.Puback}, PacketID: 1}"}},
	"the reply goes ahead of the PUBACK":               {{"session.go", "s.send(rule, append(acknowledgement, answer()...)...)", "s.send(rule, append(answer(), acknowledgement...)...)"}},
	"events of the same time come in reverse order":    {{"session.go", "return -1 // after", "return 1 // after"}},
	"a PUBLISH with DUP is passed over":                {{"session.go", "if s.unanswered[p.PacketID] && !again {", "if again {\n\t\t\treturn\n\t\t}\n\t\tif s.unanswered[p.PacketID] && !again {"}},
	"every reply has QoS 1":                            {{"provisioning.go", "d.subscribed, d.granted = true, code", "d.subscribed, d.granted = true, 1"}},
	"every reply has QoS 0":                            {{"provisioning.go", "d.subscribed, d.granted = true, code", "d.subscribed, d.granted = true, 0"}},
	"a body is needed":                                 {{"body.go", "if len(bytes.TrimSpace(body)) == 0 {", "if false {"}},
	"a message has 95 KB at most":                      {{"wire.go", "maxMessage = 96 << 10", "maxMessage = 95 << 10"}},
	"a message has 97 KB at most":                      {{"wire.go", "maxMessage = 96 << 10", "maxMessage = 97 << 10"}},
	"any topic is a request":                           {{"names.go", `return r, errors.New("the topic is unknown to the service")`, `return request{requestID: "1"}, nil`}},
	"a request needs no $rid":                          {{"names.go", `if !seen["$rid"] && !seen["rid"] {`, "if false {"}},
	"a parameter may be repeated":                      {{"names.go", `if !ok || value == "" || seen[key] {`, `if !ok || value == "" {`}},
	"a poll needs no operationId":                      {{"names.go", `if r.poll && r.operationID == "" {`, "if false {"}},
	"PUBLISH needs no subscription":                    {{"provisioning.go", "case !d.subscribed:", "case false:"}},
	"PUBLISH must wait for the SUBACK":                 {{"session.go", "case s.waiting:", "case s.waiting && kind == packets.Publish:\n\t\ts.violate(\"PUBLISH\")\n\tcase s.waiting:"}},
	"a PUBACK must be for something":                   {{"session.go", "return // it acknowledges nothing", "s.violate(\"PUBACK\")\n\t\t\treturn"}},
	"a packet identifier may be cut":                   {{"mqtt/packets.go", "func (pk *Packet) decodePubAckRelRecComp(buf []byte) error {\n\tvar offset int\n\tvar err error\n\tpk.PacketID, offset, err = decodeUint16(buf, offset)\n\tif err != nil {", "func (pk *Packet) decodePubAckRelRecComp(buf []byte) error {\n\tvar offset int\n\tvar err error\n\tpk.PacketID, offset, err = decodeUint16(buf, offset)\n\tif false {"}},
	"a PUBACK is not missed":                           {{"session.go", "if len(s.unacked) > 0 {", "if false {"}},
	"a reply is sent twice":                            {{"session.go", "s.send(rule, append(acknowledgement, answer()...)...)\n", "out := append(acknowledgement, answer()...)\n\t\ts.send(rule, out...)\n\t\ts.after(time.Minute, func() { s.send(rule, out...) })\n"}},
	"there may be no filter":                           {{"wire.go", "if len(p.Filters) == 0 {", "if false {"}},
	"any QoS may be asked for":                         {{"mqtt/packets.go", "if sub.Qos > 2 {", "if false {"}},
	"the QoS byte may be cut":                          {{"mqtt/packets.go", "if err != nil {\n\t\t\t\treturn ErrMalformedQos", "if false {\n\t\t\t\treturn ErrMalformedQos"}},
	"any filter is granted":                            {{"provisioning.go", "if f.Filter != responseFilter {", "if f.Filter == \"nothing\" {"}},
	"no SUBACK is sent":                                {{"session.go", "out = append(out, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: p.PacketID, ReasonCodes: codes})", "_ = codes"}},
	"every SUBACK is for 1":                            {{"session.go", "Type: packets.Suback}, PacketID: p.PacketID,", "Type: packets.Suback}, PacketID: 1,"}},
	"the highest QoS ever granted stays":               {{"provisioning.go", "d.subscribed, d.granted = true, code", "d.subscribed, d.granted = true, max(d.granted, code)"}},
	"a SUBACK has one return code":                     {{"session.go", "PacketID: p.PacketID, ReasonCodes: codes}", "PacketID: p.PacketID, ReasonCodes: codes[:1]}"}},
	"QoS 1 is always granted":                          {{"session.go", "codes[i] = min(f.Qos, 1)", "codes[i] = max(f.Qos, 1)"}},
	"QoS 2 is granted":                                 {{"session.go", "codes[i] = min(f.Qos, 1)", "codes[i] = f.Qos"}},
	"UNSUBSCRIBE changes nothing":                      {{"provisioning.go", "{ d.subscribed = false }", "{ _ = d }"}},
	"every UNSUBACK is for 1":                          {{"session.go", "Type: packets.Unsuback}, PacketID: p.PacketID}", "Type: packets.Unsuback}, PacketID: 1}"}},
	"UNSUBSCRIBE needs a subscription":                 {{"provisioning.go", "{ d.subscribed = false }", "{\n\tif !d.subscribed {\n\t\td.s.violate(\"UNSUBSCRIBE\")\n\t}\n\td.subscribed = false\n}"}},
	"every filter gets an UNSUBACK":                    {{"session.go", "case packets.Unsubscribe:\n", "case packets.Unsubscribe:\n\t\tfor range p.Filters[1:] {\n\t\t\ts.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, PacketID: p.PacketID})\n\t\t}\n"}},
	"no PINGRESP is sent":                              {{"session.go", "s.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})", "_ = rule"}},
	"an empty packet may have a payload":               {{"wire.go", "if len(body) > 0 {", "if false {"}},
	"DISCONNECT changes nothing":                       {{"session.go", `s.end("the client disconnected")`, "_ = s"}},

	"any method upgrades":                         {{"websocket/server.go", "if r.Method != http.MethodGet {", "if false {"}},
	"HTTP/1.0 and no Host will do":                {{"websocket.go", `if !req.ProtoAtLeast(1, 1) || req.Host == "" {`, "if false {"}},
	"Upgrade is not looked at":                    {{"websocket/server.go", `if !tokenListContainsValue(r.Header, "Upgrade", "websocket") {`, "if false {"}, {"websocket.go", "websocket.IsWebSocketUpgrade(req) && !offered", "!offered"}},
	"Connection is not looked at":                 {{"websocket/server.go", `if !tokenListContainsValue(r.Header, "Connection", "upgrade") {`, "if false {"}},
	"Connection is one word":                      {{"websocket/server.go", `if !tokenListContainsValue(r.Header, "Connection", "upgrade") {`, `if r.Header.Get("Connection") != "Upgrade" {`}},
	"any key will do":                             {{"websocket/server.go", "if !isValidChallengeKey(challengeKey) {", "if false {"}},
	"any version will do":                         {{"websocket/server.go", `if !tokenListContainsValue(r.Header, "Sec-Websocket-Version", "13") {`, "if false {"}},
	"the answer to the key is another":            {{"websocket/server.go", "p = append(p, computeAcceptKey(challengeKey)...)", "p = append(p, computeAcceptKey(challengeKey[1:])...)"}},
	"compression is agreed to":                    {{"websocket.go", "upgrader := websocket.Upgrader{", "upgrader := websocket.Upgrader{\n\t\tEnableCompression: true,"}},
	"any path upgrades":                           {{"websocket.go", "return slices.Contains(webSocketPaths, req.URL.Path)", "return true"}},
	"only the documented path upgrades":           {{"websocket.go", "return slices.Contains(webSocketPaths, req.URL.Path)", "return req.URL.Path == documentedPath"}},
	"any subprotocol will do":                     {{"websocket.go", "if websocket.IsWebSocketUpgrade(req) && !offered {", "if false && !offered {"}},
	"no subprotocol is agreed to":                 {{"websocket.go", `Subprotocols: []string{"mqtt", "MQTT"},`, "Subprotocols: []string{},"}},
	"the subprotocol is written in small letters": {{"websocket/server.go", "return clientProtocol\n", "return \"mqtt\"\n"}},
	"a text frame will do":                        {{"websocket.go", "if kind != websocket.BinaryMessage {", "if false {"}, {"websocket.go", "kind, r, err := w.conn.NextReader()", "_, r, err := w.conn.NextReader()"}},
	"a packet is in one frame":                    {{"websocket.go", "\t\t\tw.message, err = nil, nil\n\t\t}", "\t\t\tw.message, err = nil, nil\n\t\t\tif n == 0 {\n\t\t\t\treturn 0, io.EOF\n\t\t\t}\n\t\t}"}},
	"a frame need not be masked":                  {{"websocket/conn.go", "if mask != c.isServer {", "if false {"}},
	"the masking key is not applied":              {{"websocket/conn.go", "c.readMaskPos = maskBytes(c.readMaskKey, c.readMaskPos, b[:n])", "_ = c.readMaskKey"}},
	"reserved bits of a frame pass":               {{"websocket/conn.go", `errors = append(errors, "RSV1 set")`, "_ = rsv1"}, {"websocket/conn.go", `errors = append(errors, "RSV2 set")`, "_ = rsv2"}, {"websocket/conn.go", `errors = append(errors, "RSV3 set")`, "_ = rsv3"}},
	"any opcode passes":                           {{"websocket/conn.go", `errors = append(errors, "bad opcode "+strconv.Itoa(frameType))`, "_ = strconv.Itoa"}},
	"a length has 7 bits":                         {{"websocket/conn.go", "\tcase 126:\n\t\tp, err := c.read(2)", "\tcase 1126:\n\t\tp, err := c.read(2)"}},
	"a length may be negative":                    {{"websocket/conn.go", "setReadRemaining(int64(binary.BigEndian.Uint64(p)))", "setReadRemaining(int64(binary.BigEndian.Uint64(p) & 0xff))"}},
	"a frame may have any size":                   {{"websocket.go", "conn.SetReadLimit(maxFrame)", "_ = maxFrame"}},
	"a fragment is not known":                     {{"websocket/conn.go", "\tcase continuationFrame:\n\t\tif c.readFinal {", "\tcase continuationFrame:\n\t\tif true {"}},
	"a ping gets no pong":                         {{"websocket/conn.go", "err := c.WriteControl(PongMessage, []byte(message), time.Now().Add(writeWait))", "var err error"}},
	"a fragment may continue nothing":             {{"websocket/conn.go", "\tcase continuationFrame:\n\t\tif c.readFinal {", "\tcase continuationFrame:\n\t\tif false {"}},
	"messages may be interleaved":                 {{"websocket/conn.go", "if !c.readFinal {\n\t\t\terrors", "if false {\n\t\t\terrors"}},
	"a control frame may be fragmented":           {{"websocket/conn.go", "if !final {\n\t\t\terrors", "if false {\n\t\t\terrors"}},
	"a control frame may be long":                 {{"websocket/conn.go", "if c.readRemaining > maxControlFramePayloadSize {", "if false {"}},
	"a close frame is answered with 1001":         {{"websocket/conn.go", "message := FormatCloseMessage(code, \"\")", "message := FormatCloseMessage(CloseGoingAway, \"\")"}},
	"any status may be sent":                      {{"websocket/conn.go", "if !isValidReceivedCloseCode(closeCode) {", "if false {"}},
	"any reason may be sent":                      {{"websocket/conn.go", "if !utf8.ValidString(closeText) {", "if false && !utf8.ValidString(closeText) {"}},
	"a close frame changes nothing":               {{"websocket/conn.go", "if err := c.handleClose(closeCode, closeText); err != nil {\n\t\t\treturn noFrame, err\n\t\t}\n\t\treturn noFrame, &CloseError{Code: closeCode, Text: closeText}", "_ = closeText\n\t\treturn frameType, nil"}},
	"a pong is an answer to a ping":               {{"websocket/conn.go", "\tcase PongMessage:\n\t\tif err := c.handlePong(string(payload)); err != nil {", "\tcase PongMessage:\n\t\tif err := c.handlePing(string(payload)); err != nil {"}},
	"a message has bytes":                         {{"websocket.go", "if n > 0 || err != nil {", "if n == 0 && err == nil {\n\t\t\treturn 0, breach(\"WebSocket: an empty message\")\n\t\t}\n\t\tif n > 0 || err != nil {"}},
	"every close frame says 1000":                 {{"session.go", "s.closeCode = websocket.ClosePolicyViolation", "s.closeCode = 0"}},
}

// libraries are the packages whose files an edit can name.
var libraries = map[string]string{
	"mqtt":      "github.com/mochi-mqtt/server/v2/packets",
	"websocket": "github.com/gorilla/websocket",
}

// source reads the file that an edit names, and returns its path.
func (e edit) source(t *testing.T) (path, text string) {
	t.Helper()
	path, err := filepath.Abs(e.file)
	for library, pkg := range libraries {
		if name, ok := strings.CutPrefix(e.file, library+"/"); ok {
			path, err = filepath.Join(folder(t, pkg), name), nil
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, string(b)
}

var folders = map[string]string{}

func folder(t *testing.T, pkg string) string {
	t.Helper()
	if folders[pkg] == "" {
		out, err := exec.Command("go", "list", "-f", "{{.Dir}}", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		folders[pkg] = strings.TrimSpace(string(out))
	}
	return folders[pkg]
}

func TestEveryCaseWasSeenToFail(t *testing.T) {
	used := map[string]bool{}
	for _, c := range conformances() {
		if _, there := mutants[c.seen]; !there {
			t.Errorf("%q names no fault with which it was seen to fail: %q", c.name, c.seen)
		}
		used[c.seen] = true
	}
	for name, edits := range mutants {
		if !used[name] {
			t.Errorf("no case names the fault %q", name)
		}
		for _, e := range edits {
			if _, text := e.source(t); strings.Count(text, e.old) != 1 {
				t.Errorf("%q: %q occurs %d times in %s", name, e.old, strings.Count(text, e.old), e.file)
			}
		}
	}
}

func TestEveryCaseFailsWithItsFault(t *testing.T) {
	if !*withMutants {
		t.Skip("it takes minutes: say -mutants")
	}
	for _, name := range slices.Sorted(maps.Keys(mutants)) {
		t.Run(name, func(t *testing.T) {
			binary := build(t, mutants[name])
			for i, c := range conformances() {
				if c.seen != name {
					continue
				}
				cmd := exec.Command(binary, "-test.run", "^TestConformanceCase$", "-case", strconv.Itoa(i), "-test.timeout", "60s")
				out, err := cmd.CombinedOutput()
				if err == nil {
					t.Errorf("%s: %s: does not fail with this fault", c.clause, c.name)
				} else if !strings.Contains(string(out), "FAIL") && !strings.Contains(string(out), "panic") {
					t.Errorf("%s: %v\n%s", c.name, err, out)
				}
			}
		})
	}
}

// build builds the tests with the edits: with an overlay for the simulator's files, and with
// a copy of the module for the files of a library.
func build(t *testing.T, edits []edit) (binary string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	command := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	args := []string{"test", "-vet=off", "-c", "-o", filepath.Join(dir, "simulator.test")}
	copies := map[string]string{} // of modules, by import path
	changed := map[string]string{}
	for _, e := range edits {
		path, text := e.source(t)
		if before, there := changed[path]; there {
			text = before
		}
		changed[path] = strings.Replace(text, e.old, e.new, 1)
		library, name, _ := strings.Cut(e.file, "/")
		pkg, there := libraries[library]
		if name == "" || !there {
			overlay.Replace[path] = write(e.file, []byte(changed[path]))
			continue
		}
		module := command("go", "list", "-f", "{{.Module.Path}}", pkg)
		if copies[module] == "" {
			copies[module] = filepath.Join(dir, library)
			if err := os.CopyFS(copies[module], os.DirFS(command("go", "list", "-f", "{{.Module.Dir}}", pkg))); err != nil {
				t.Fatal(err)
			}
		}
		target := filepath.Join(copies[module], strings.TrimPrefix(pkg, module), name)
		if err := errors.Join(os.Chmod(target, 0o600), os.WriteFile(target, []byte(changed[path]), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if len(copies) > 0 {
		root := filepath.Dir(command("go", "env", "GOMOD"))
		for _, name := range []string{"go.mod", "go.sum"} {
			text, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			for module, place := range copies {
				if name == "go.mod" {
					text = fmt.Appendf(text, "\nreplace %s => %s\n", module, place)
				}
			}
			write(name, text)
		}
		args = append(args, "-modfile", filepath.Join(dir, "go.mod"))
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	command("go", append(args, "-overlay", write("overlay.json", text), ".")...)
	return filepath.Join(dir, "simulator.test")
}

var oneCase = flag.Int("case", -1, "the number of the one conformance case to run")

// TestConformanceCase runs one case in its own process.
func TestConformanceCase(t *testing.T) {
	if *oneCase < 0 {
		t.Skip("it is run by TestEveryCaseFailsWithItsFault")
	}
	bubble(t, "case", conformances()[*oneCase].run)
}
