package simulator

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// The limits of the part before MQTT.
const (
	maxRequest = 16 << 10
	maxFrame   = 1 << 20
)

// documentedPath is the path of the service's WebSocket. Microsoft's SDKs for Java and .NET
// use none, and Paho's libraries use /mqtt by default.
const documentedPath = "/$iothub/websocket"

// webSocketPaths are the paths of a service that is not strict.
var webSocketPaths = []string{documentedPath, "/", "/mqtt", ""} // "": wss://host

// hasWebSocketPath reports whether there is a WebSocket at the path of a request.
func hasWebSocketPath(req *http.Request, strict bool) bool {
	if strict {
		return req.URL.Path == documentedPath
	}
	return slices.Contains(webSocketPaths, req.URL.Path)
}

// isWebSocket reports whether a request, valid or not, asks for a WebSocket.
func isWebSocket(req *http.Request) bool {
	return req.Header.Get("Upgrade") != "" || req.Header.Get("Sec-WebSocket-Key") != "" || req.Header.Get("Sec-WebSocket-Version") != ""
}

// upgrade answers the HTTP request that starts a WebSocket. It returns nil if it refuses the
// request, or if the connection is not for a WebSocket and has been served.
func (c *connection) upgrade(script *scenario.Script) *webSocket {
	_ = c.raw.SetDeadline(time.Now().Add(connectTimeout))
	limited := &io.LimitedReader{R: c.tls, N: maxRequest}
	var read bytes.Buffer
	in := bufio.NewReader(io.TeeReader(limited, &read))
	req, err := http.ReadRequest(in)
	if err != nil {
		c.reason = "HTTP: " + err.Error()
		switch {
		case c.server.ended():
		case read.Len() == 0 && errors.Is(err, io.EOF):
			c.refuse(Entry{}, "nothing", explainSilence())
		case read.Len() == 0:
			c.refuse(Entry{}, "the connection was closed", enroll.Explanation{Reason: "the client sent no HTTP request (" + err.Error() + ")"})
		default:
			c.refuse(Entry{}, "the connection was closed", enroll.Explanation{Reason: "the request is not HTTP (" + err.Error() + ")"})
		}
		c.linger(nil)
		return nil
	}
	_ = c.raw.SetDeadline(time.Time{})
	if !isWebSocket(req) {
		c.serveHTTPS(read.Bytes())
		return nil
	}
	// From here on, nothing is recorded or limited.
	rest, _ := in.Peek(in.Buffered())
	in = bufio.NewReader(io.MultiReader(bytes.NewReader(rest), c.tls))
	c.note(Entry{Packet: "UPGRADE", Direction: "", Detail: req.Method + " " + req.URL.Path + " " + strings.Join(req.Header.Values("Sec-WebSocket-Protocol"), ",")})

	rule := script.Match(scenario.Event{On: OnUpgrade, Protocol: c.protocol, Resumed: c.tls.ConnectionState().DidResume})
	if !pause(rule.Delay, c.server.done) || c.instead(rule, c.tls) {
		return nil
	}
	respond := func(status int, header http.Header, text string) {
		r := http.Response{
			StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: header, Close: true,
			ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text)),
		}
		_ = r.Write(c.tls)
		c.reason = fmt.Sprintf("HTTP %d", status)
	}
	violate := func(violation, text string) {
		c.note(Entry{Packet: "VIOLATION", Violation: "WebSocket: " + violation})
		c.refuse(Entry{}, "HTTP 400", explainUpgrade(violation, req, script.Settings))
		respond(http.StatusBadRequest, nil, text+"\n")
		c.linger(nil)
	}
	if rule.Status != 0 || rule.Location != "" || rule.Body != nil {
		text := *cmp.Or(rule.Body, new(""))
		otherwise, header := http.StatusOK, http.Header{}
		if rule.Location != "" {
			otherwise = http.StatusFound
			header.Set("Location", rule.Location)
		}
		respond(cmp.Or(rule.Status, otherwise), header, text)
		c.refuse(Entry{}, c.reason, scripted)
		c.linger(nil)
		return nil
	}
	if !hasWebSocketPath(req, script.Settings.StrictPaths) {
		violate("the service does not have this path", "no such path")
		return nil
	}
	if !req.ProtoAtLeast(1, 1) || req.Host == "" {
		violate("the request is not HTTP/1.1 with a Host header (RFC 6455 4.2.1)", "HTTP/1.1 and a Host header are required")
		return nil
	}
	upgrader := websocket.Upgrader{
		Subprotocols: []string{"mqtt", "MQTT"}, // the C SDK uses capitals
		CheckOrigin:  func(*http.Request) bool { return true },
		Error: func(_ http.ResponseWriter, _ *http.Request, status int, _ error) {
			respond(status, http.Header{
				"Content-Type": {"text/plain; charset=utf-8"}, "Sec-Websocket-Version": {"13"}, "X-Content-Type-Options": {"nosniff"},
			}, http.StatusText(status)+"\n")
		},
	}
	offered := slices.ContainsFunc(websocket.Subprotocols(req), func(p string) bool { return strings.EqualFold(p, "mqtt") })
	if websocket.IsWebSocketUpgrade(req) && !offered {
		violate("the subprotocol mqtt is not offered [MQTT-6.0.0-3]", "the subprotocol mqtt is required")
		return nil
	}
	header := http.Header{}
	if rule.Subprotocol != "" {
		upgrader.Subprotocols = nil
		if rule.Subprotocol != "none" {
			header["Sec-Websocket-Protocol"] = []string{rule.Subprotocol}
		}
	}
	if rule.Extension != "" {
		header["sec-websocket-extensions"] = []string{rule.Extension} // the upgrader ignores this spelling
	}
	conn, err := upgrader.Upgrade(hijacker{conn: c.tls, in: in}, req, header)
	if err != nil {
		c.note(Entry{Packet: "VIOLATION", Violation: err.Error()})
		c.refuse(Entry{}, c.reason, enroll.Explanation{Reason: strings.TrimPrefix(err.Error(), "websocket: ")})
		c.linger(nil)
		return nil
	}
	conn.SetReadLimit(maxFrame)
	return &webSocket{conn: conn, raw: c.tls}
}

// explainUpgrade explains a violation of a request that starts a WebSocket.
func explainUpgrade(violation string, req *http.Request, set Settings) enroll.Explanation {
	e := enroll.Explanation{Reason: violation, Expected: "the header Sec-WebSocket-Protocol: mqtt"}
	switch offered := websocket.Subprotocols(req); {
	case !hasWebSocketPath(req, set.StrictPaths):
		e.Expected, e.Given = strings.Join(webSocketPaths[:3], ", "), enroll.Quote(req.URL.Path)
		if set.StrictPaths {
			e.Expected = documentedPath
		}
	case !req.ProtoAtLeast(1, 1) || req.Host == "":
		e.Expected = ""
	case len(offered) > 0:
		e.Given = enroll.Quote(strings.Join(offered, ", "))
	}
	return e
}

// hijacker lets the upgrader, which expects net/http, work on a bare connection.
type hijacker struct {
	http.ResponseWriter // never used
	conn                net.Conn
	in                  *bufio.Reader
}

// Hijack hands over the connection.
func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(h.in, bufio.NewWriter(h.conn)), nil
}

// webSocket is the byte stream in the binary messages of a WebSocket: a packet may span
// messages, and a message may hold several packets [MQTT-6.0.0-2].
type webSocket struct {
	conn    *websocket.Conn
	message io.Reader
	raw     io.Writer // below conn
	frames  string    // see Rule.Frames
}

func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.message == nil {
			kind, r, err := w.conn.NextReader()
			if err != nil {
				return 0, webSocketError(err)
			}
			if kind != websocket.BinaryMessage {
				return 0, &violation{reason: "WebSocket: a text message [MQTT-6.0.0-1]", closeCode: websocket.CloseUnsupportedData}
			}
			w.message = r
		}
		n, err := w.message.Read(p)
		if errors.Is(err, io.EOF) {
			w.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, webSocketError(err)
		}
	}
}

// textCloseCode is the error for the close frame of Paho's library for Java, which Microsoft's SDK
// for Java uses: the frame contains the text 1000 instead of the number.
const textCloseCode = "websocket: bad close code 12592"

// webSocketError turns the end of a WebSocket into an end of file, and a violation of RFC
// 6455 into a violation.
func webSocketError(err error) error {
	if err != nil && err.Error() == textCloseCode {
		return io.EOF
	}
	var closed *websocket.CloseError
	var network net.Error
	switch {
	case err == nil, errors.As(err, &network):
		return err
	case errors.As(err, &closed):
		return io.EOF
	case errors.Is(err, websocket.ErrReadLimit) || strings.HasPrefix(err.Error(), "websocket: "):
		return breach("%v", err)
	}
	return err
}

// The first byte of a frame, see RFC 6455 5.2.
const (
	frameContinuation = 0x00
	frameBinary       = 0x02
	frameClose        = 0x08
	framePing         = 0x09
	frameFinal        = 0x80
)

// brokenFrames maps the names in a rule to answers that RFC 6455 forbids.
var brokenFrames = map[string]func(p []byte) []byte{
	"masked":   maskedFrame,
	"rsv1":     func(p []byte) []byte { return rawFrame(frameFinal|frameBinary|0x40, p) },
	"rsv2":     func(p []byte) []byte { return rawFrame(frameFinal|frameBinary|0x20, p) },
	"rsv3":     func(p []byte) []byte { return rawFrame(frameFinal|frameBinary|0x10, p) },
	"reserved": func(p []byte) []byte { return rawFrame(frameFinal|3, p) },
	"reserved-control": func(p []byte) []byte {
		return append(rawFrame(frameFinal|11, nil), rawFrame(frameFinal|frameBinary, p)...)
	},
	"orphan": func(p []byte) []byte { return rawFrame(frameFinal|frameContinuation, p) },
	"interrupted": func(p []byte) []byte {
		return append(rawFrame(frameBinary, p[:1]), rawFrame(frameFinal|frameBinary, p[1:])...)
	},
	"negative": func(p []byte) []byte {
		return append([]byte{frameFinal | frameBinary, 127, 0x80, 0, 0, 0, 0, 0, 0, 1}, p...)
	},
	"long-control": func(p []byte) []byte {
		return append(rawFrame(frameFinal|framePing, make([]byte, 126)), rawFrame(frameFinal|frameBinary, p)...)
	},
	"fragmented-control": func(p []byte) []byte { return append(rawFrame(framePing, nil), rawFrame(frameFinal|frameBinary, p)...) },
	"bad-close":          func([]byte) []byte { return rawFrame(frameFinal|frameClose, []byte{3}) },
}

// rawFrame returns a server frame with the given first byte.
func rawFrame(first byte, payload []byte) []byte {
	if len(payload) > 125 {
		return append([]byte{first, 126, byte(len(payload) >> 8), byte(len(payload))}, payload...)
	}
	return append([]byte{first, byte(len(payload))}, payload...)
}

// maskedFrame uses a masking key of zeros, which does not change the payload.
func maskedFrame(payload []byte) []byte {
	b := rawFrame(frameFinal|frameBinary, payload)
	header := len(b) - len(payload)
	b[1] |= 0x80
	return slices.Insert(b, header, 0, 0, 0, 0)
}

// Write sends one binary message, or what the rule specifies instead. The message writer
// joins header and payload in one write; WriteMessage does not.
func (w *webSocket) Write(p []byte) (int, error) {
	_ = w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // without it, the library would clear the connection's deadline
	kind := websocket.BinaryMessage
	switch w.frames {
	case "split", "fragments":
		for i := range p {
			first := byte(frameFinal | frameBinary)
			if w.frames == "fragments" {
				first = frameContinuation
				if i == 0 {
					first |= frameBinary
				}
				if i == len(p)-1 {
					first |= frameFinal
				}
			}
			if _, err := w.raw.Write([]byte{first, 1, p[i]}); err != nil {
				return i, err
			}
		}
		return len(p), nil
	case "ping":
		if _, err := w.raw.Write([]byte{frameFinal | framePing, 4, 'p', 'i', 'n', 'g'}); err != nil {
			return 0, err
		}
	case "text":
		kind = websocket.TextMessage
	}
	if broken := brokenFrames[w.frames]; broken != nil {
		_, err := w.raw.Write(broken(p))
		return len(p), err
	}
	out, err := w.conn.NextWriter(kind)
	if err != nil {
		return 0, err
	}
	n, err := out.Write(p)
	return n, errors.Join(err, out.Close())
}
