package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/dpsd-project/dpsd/foreign"
)

// maxMessage bounds one WebSocket message. A message may hold several MQTT packets;
// this is nearly twice the largest packet dpsd takes. It is read in pieces.
const maxMessage = 2 << 20

// webSocketURL returns where the service offers MQTT over WebSocket.
func webSocketURL(host string, port int) string {
	if port != DefaultWebSocketPort {
		host = net.JoinHostPort(host, strconv.Itoa(port))
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "wss://" + host + "/$iothub/websocket"
}

// ErrNotBinary is matched when the server sends a WebSocket message that cannot be
// MQTT [MQTT-6.0.0-1]; the stream has ended then.
var ErrNotBinary = errors.New("a WebSocket message that is not binary")

// upgrade makes an MQTT WebSocket of stream, under ctx. The time is the server's, zero
// when it did not tell.
func upgrade(ctx context.Context, stream net.Conn, address string) (net.Conn, time.Time, error) {
	var ws *websocket.Conn
	var date time.Time
	once := &upgrader{stream: stream}
	err := interruptible(ctx, stream, func() error {
		// ctx ends the upgrade through the stream's deadline: given to Dial too, the
		// library would start a second watcher for it.
		//nolint:bodyclose // a successful upgrade has no body but the stream
		c, response, err := websocket.Dial(context.WithoutCancel(ctx), address, &websocket.DialOptions{
			HTTPClient:   &http.Client{Transport: once},
			HTTPHeader:   http.Header{"User-Agent": {"dpsd"}},
			Subprotocols: []string{"mqtt"}, // [MQTT-6.0.0-3]
			// MQTT packets of a few hundred bytes do not gain by compression.
			CompressionMode: websocket.CompressionDisabled,
		})
		if err != nil {
			// net/http says around it what was asked; the Error here says so better.
			if request := (*url.Error)(nil); errors.As(err, &request) {
				return request.Err
			}
			return err
		}
		if !strings.EqualFold(c.Subprotocol(), "mqtt") {
			_ = c.CloseNow()
			return &UpgradeError{
				Status: http.StatusSwitchingProtocols,
				Reason: "the server did not choose the subprotocol mqtt", // [MQTT-6.0.0-4]
			}
		}
		ws = c
		// RFC 9110 6.6.1: a server without a clock sends none.
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

// upgrader is the transport for exactly one request over a stream that is open
// already: no pool, no redirect, no second connection, no HTTP/2.
type upgrader struct {
	stream net.Conn
	frames *frames // what follows a 101
}

// RoundTrip sends the upgrade and returns the answer only if it is 101.
func (u *upgrader) RoundTrip(request *http.Request) (*http.Response, error) {
	writeErr := request.Write(u.stream)
	r := newHTTPReader(u.stream)
	response, err := r.response(request)
	if err != nil {
		// A server that refused the client certificate has sent its alert and hung up:
		// the write fails, and the reason waits to be read.
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
			Reason: "the server uses an extension that was not offered, " + foreign.Line(extensions, maxText), // RFC 6455 §4.1
		}
	}
	u.frames = &frames{Conn: r.rest()}
	response.Body = u.frames
	return response, nil
}

// webSocketConn is a stream of the binary messages of a WebSocket, in both
// directions. Deadlines are those of the TLS stream below: one that expires ends the
// stream with an error that says so, where the library's own NetConn would close it
// and report a cancelled context. Close does no closing handshake.
type webSocketConn struct {
	net.Conn // the TLS stream: addresses, deadlines

	ws      *websocket.Conn
	frames  *frames   // below ws
	message io.Reader // the message being read; nil between two
}

// Read reads on in the current message, or in the next. Messages are no boundary of
// MQTT packets [MQTT-6.0.0-2].
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
				// [MQTT-6.0.0-1]; not by the library's Close, which waits for an answer.
				_ = c.ws.CloseNow()
				return 0, ErrNotBinary
			}
			c.message = message
		}
		n, err := c.message.Read(p)
		switch {
		case errors.Is(err, io.EOF) && c.frames.ended != nil:
			err = io.ErrUnexpectedEOF // the library says the same at the end of a message and within it
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

// Close ends the stream at once.
func (c *webSocketConn) Close() error { return c.ws.CloseNow() }

// ended says why nothing more can be read. It returns io.EOF for a close frame that means
// no harm, MQTT having said all it had to say, and io.ErrUnexpectedEOF around one that
// complains. What breaks the protocol is a *FrameError, without what the library says
// around it; the library has no type of its own for what it refuses.
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
	for strings.HasPrefix(problem, "failed to ") { // at what, the library says around it
		_, inner, found := strings.Cut(problem, ": ")
		if !found {
			break
		}
		problem = inner
	}
	return &FrameError{Problem: problem}
}
