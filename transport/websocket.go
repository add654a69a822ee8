package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/dpsd-project/dpsd/foreign"
)

// maxMessage limits a WebSocket message, in bytes. A message may contain several MQTT
// packets; the limit is nearly twice the largest packet that dpsd accepts. Messages are
// read in pieces.
const maxMessage = 2 << 20

// webSocketURL returns the URL of MQTT over WebSocket at host:port, without the default port.
func webSocketURL(address string) string {
	return "wss://" + strings.TrimSuffix(address, ":443") + "/$iothub/websocket"
}

// ErrNotBinary is matched if the server sends a WebSocket message that cannot be MQTT
// [MQTT-6.0.0-1]. The message ends the stream.
var ErrNotBinary = errors.New("the server sent a WebSocket message that is not binary")

// upgrade upgrades stream to an MQTT WebSocket until ctx ends. The time is the server's
// Date header, or zero without one.
func upgrade(ctx context.Context, stream net.Conn, address string) (net.Conn, time.Time, error) {
	var ws *websocket.Conn
	var date time.Time
	once := &upgrader{stream: stream}
	err := interruptible(ctx, stream, func() error {
		// ctx ends the upgrade through the stream's deadline. If it were passed to Dial
		// too, the library would start a second goroutine for it.
		//nolint:bodyclose // the body of a successful upgrade is the stream
		c, response, err := websocket.Dial(context.WithoutCancel(ctx), address, &websocket.DialOptions{
			HTTPClient:   &http.Client{Transport: once},
			HTTPHeader:   http.Header{"User-Agent": {"dpsd"}},
			Subprotocols: []string{"mqtt"}, // [MQTT-6.0.0-3]
			// Compression does not pay off for MQTT packets of a few hundred bytes.
			CompressionMode: websocket.CompressionDisabled,
		})
		if err != nil {
			// net/http adds the request to the error, which Error already describes.
			if request := (*url.Error)(nil); errors.As(err, &request) {
				return request.Err
			}
			return err
		}
		if !strings.EqualFold(c.Subprotocol(), "mqtt") {
			_ = c.CloseNow()
			return &UpgradeError{
				Status: http.StatusSwitchingProtocols,
				Reason: "the server did not select the subprotocol mqtt", // [MQTT-6.0.0-4]
			}
		}
		ws = c
		// A server without a clock sends no Date header (RFC 9110 6.6.1).
		if said, err := http.ParseTime(response.Header.Get("Date")); err == nil {
			date = said
		}
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	ws.SetReadLimit(maxMessage)
	return &webSocketConn{Conn: stream, ws: ws, frames: once.frames}, date, nil
}

// upgrader is an http.RoundTripper for exactly one request over an open stream: it has no
// pool, no redirection, no second connection and no HTTP/2.
type upgrader struct {
	stream net.Conn
	frames *frames // the stream after a 101
}

// RoundTrip sends the upgrade and returns the response only if it is 101.
func (u *upgrader) RoundTrip(request *http.Request) (*http.Response, error) {
	writeErr := request.Write(u.stream)
	r := newHTTPReader(u.stream)
	response, err := r.response(request)
	if err != nil {
		// A server that rejected the client certificate has sent its alert and closed the
		// connection: the write fails, and the alert can be read.
		if _, ok := RemoteAlert(err); writeErr != nil && !ok {
			return nil, writeErr
		}
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		return nil, &UpgradeError{
			Status:      response.StatusCode,
			Location:    response.Header.Get("Location"),
			ContentType: response.Header.Get("Content-Type"),
		}
	}
	extensions := strings.Join(response.Header.Values("Sec-WebSocket-Extensions"), ", ")
	if strings.Trim(extensions, ", \t") != "" {
		return nil, &UpgradeError{
			Status: response.StatusCode,
			Reason: "the server uses an extension that was not offered: " + foreign.Line(extensions, maxText), // RFC 6455 §4.1
		}
	}
	u.frames = &frames{Conn: r.rest()}
	response.Body = u.frames
	return response, nil
}

// webSocketConn is a stream of the binary messages of a WebSocket, in both directions. It
// uses the deadlines of the TLS stream: an expired deadline ends the stream with a time-out
// error, whereas the library's NetConn would close it and report a cancelled context. Close
// does not perform the closing handshake.
type webSocketConn struct {
	net.Conn // the TLS stream, for addresses and deadlines

	ws      *websocket.Conn
	frames  *frames   // below ws
	message io.Reader // the current message; nil between messages
}

// Read reads from the current message or the next. Messages need not align with MQTT
// packets [MQTT-6.0.0-2].
func (c *webSocketConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.message == nil {
			kind, message, err := c.ws.Reader(context.Background())
			if err != nil {
				return 0, c.ended(err)
			}
			if kind != websocket.MessageBinary {
				// [MQTT-6.0.0-1]. The library's Close would wait for a reply.
				_ = c.ws.CloseNow()
				return 0, ErrNotBinary
			}
			c.message = message
		}
		n, err := c.message.Read(p)
		switch {
		case errors.Is(err, io.EOF) && c.frames.ended != nil:
			err = io.ErrUnexpectedEOF // the library returns the same error at the end of a message and within it
		case errors.Is(err, io.EOF):
			c.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, c.ended(err)
		}
	}
}

// Write sends p as one binary message.
func (c *webSocketConn) Write(p []byte) (int, error) {
	if err := c.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends the stream immediately.
func (c *webSocketConn) Close() error { return c.ws.CloseNow() }

// ended returns the reason for the end of the stream: io.EOF for a normal close frame, an
// error that wraps io.ErrUnexpectedEOF for a close frame with an error code, and a
// *FrameError for a violation of the protocol. The FrameError omits the library's text
// around the violation; the library has no error type for it.
func (c *webSocketConn) ended(err error) error {
	switch websocket.CloseStatus(err) {
	case -1: // no close frame
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return io.EOF
	default:
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	var broken *FrameError
	var network net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &broken):
		return broken
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe), errors.Is(err, net.ErrClosed),
		errors.As(err, &network), c.frames.ended != nil && errors.Is(err, c.frames.ended):
		return err
	}
	problem := err.Error()
	for strings.HasPrefix(problem, "failed to ") { // the library adds the operation
		_, inner, found := strings.Cut(problem, ": ")
		if !found {
			break
		}
		problem = inner
	}
	return &FrameError{Problem: problem}
}
