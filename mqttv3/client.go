package mqttv3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/log"
)

// queueLength is the number of messages that may be unread. The service sends one for each
// request, so a full queue means that the peer is defective.
const queueLength = 16

const (
	defaultMaxPacket = 256 << 10
	defaultTimeout   = 60 * time.Second
	closeTimeout     = 5 * time.Second // limits Close
)

// Options are the parameters of a connection.
type Options struct {
	// ClientID is the client identifier. If it is empty, the server chooses one.
	ClientID string
	// UserName and Password authenticate the client; empty ones are not sent. A password
	// requires a user name [MQTT-3.1.2-22].
	UserName, Password string
	// KeepAlive is how long the connection may be idle before a PINGREQ: whole seconds up
	// to 65,535; 0 disables PINGREQ.
	KeepAlive time.Duration
	// Timeout limits each exchange and each write; 0 means 60 s.
	Timeout time.Duration
	// MaxPacket limits the size of a packet in either direction, in bytes; 0 means 256 KiB.
	MaxPacket int
}

// String returns the options without the password.
func (o Options) String() string {
	return fmt.Sprintf("client identifier %q, user name %q, password set: %t, keep alive %v, time-out %v",
		o.ClientID, o.UserName, o.Password != "", o.KeepAlive, o.Timeout)
}

// GoString omits the password from %#v as well.
func (o Options) GoString() string { return "mqttv3.Options{" + o.String() + "}" }

// Message is a message from the server.
type Message struct {
	Topic   string
	Payload []byte
	QoS     byte // 0 or 1
	Dup     bool // the server may have sent it before
}

// Client is a connection on which CONNECT was accepted. Its methods may be called from
// several goroutines. When the connection is lost, every call returns immediately. A Client
// must be closed even if its connection is lost.
type Client struct {
	conn     *Conn
	paho     *paho.Client
	timeout  time.Duration
	messages chan Message

	closeOnce sync.Once
	closeErr  error
}

// Connect sends CONNECT over conn and waits for CONNACK. It takes ownership of conn and
// closes it on failure. Errors: *ConnackError, *NotMQTTError, *ProtocolError,
// *TimeoutError, ErrInvalid, the cause of ctx, or an error of conn.
func Connect(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	if err := o.check(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	o.Timeout, o.MaxPacket = cmp.Or(o.Timeout, defaultTimeout), cmp.Or(o.MaxPacket, defaultMaxPacket)
	c := &Client{
		conn:     NewConn(conn, o.MaxPacket, o.Timeout),
		timeout:  o.Timeout,
		messages: make(chan Message, queueLength),
	}
	c.paho = paho.NewClient(paho.ClientConfig{
		Conn:              c.conn,
		PingHandler:       &pinger{conn: c.conn, timeout: o.Timeout, pong: make(chan struct{}, 1)},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){c.deliver},
		PacketTimeout:     2 * o.Timeout, // longer than the context's, whose error has the cause
	})

	// paho checks the context only after it has written CONNECT. Closing the connection
	// always ends the call.
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, &TimeoutError{Exchange: "CONNACK"})
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.fail(context.Cause(ctx)) })
	result := make(chan error, 1)
	go func() {
		_, err := c.paho.Connect(context.WithoutCancel(ctx), o.connect())
		result <- err
	}()
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		// A connection may take some time to notice that it was closed: TLS tries for
		// seconds to write close_notify into a full buffer.
		select {
		case err = <-result:
		case <-time.After(finalRead / 2):
			err = context.Cause(ctx)
		}
	}
	if inTime := stop(); err == nil && inTime {
		return c, nil
	}
	err = cmp.Or(err, context.Cause(ctx))
	if code := c.conn.returnCode(); code != 0 {
		err = &ConnackError{ReturnCode: code}
	}
	if cause := c.conn.fail(err); !errors.Is(cause, ErrClosed) {
		err = cause // paho reports the closing, not its cause
	}
	return nil, err
}

func (o Options) check() error {
	if o.KeepAlive < 0 || o.KeepAlive > math.MaxUint16*time.Second || o.KeepAlive%time.Second != 0 {
		return fmt.Errorf("keep alive of %v: %w", o.KeepAlive, ErrInvalid)
	}
	p := packet{
		kind: kindConnect, clientID: []byte(o.ClientID),
		hasUserName: o.UserName != "", userName: []byte(o.UserName),
		hasPassword: o.Password != "", password: []byte(o.Password),
	}
	return invalid(p.check())
}

func (o Options) connect() *paho.Connect {
	// Neither property is sent. The first makes paho keep its pending calls when the
	// connection is lost, and the second prevents it from allocating buffers for 65,535
	// messages.
	sessionExpiry, receiveMaximum := uint32(1), uint16(queueLength)
	return &paho.Connect{
		ClientID:     o.ClientID,
		Username:     o.UserName,
		UsernameFlag: o.UserName != "",
		Password:     []byte(o.Password),
		PasswordFlag: o.Password != "", // [MQTT-3.1.2-20]
		KeepAlive:    uint16(o.KeepAlive / time.Second),
		CleanStart:   true,
		Properties: &paho.ConnectProperties{
			SessionExpiryInterval: &sessionExpiry,
			ReceiveMaximum:        &receiveMaximum,
			RequestProblemInfo:    true, // the default, which paho does not write
		},
	}
}

// invalid converts a violation of the codec's rules by an argument to ErrInvalid.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// deliver is called by paho for each message. It must not block: paho acknowledges the
// message, and can disconnect, only after it returns.
func (c *Client) deliver(r paho.PublishReceived) (bool, error) {
	p := r.Packet
	select {
	case c.messages <- Message{Topic: p.Topic, Payload: p.Payload, QoS: p.QoS, Dup: p.Duplicate()}:
	default:
		_ = c.conn.fail(kindPublish.malformed("more than %d unread messages", queueLength))
	}
	return true, nil
}

// Subscribe asks for the messages that match filter, at QoS 0 or 1, and waits for
// the SUBACK. The server may grant less. A refusal is a *SubackError.
func (c *Client) Subscribe(ctx context.Context, filter string, qos byte) error {
	p := packet{kind: kindSubscribe, id: 1, filter: []byte(filter), qos: qos}
	if err := c.sendable(&p); err != nil {
		return err
	}
	return c.call(ctx, "SUBACK", func(ctx context.Context) error {
		ack, err := c.paho.Subscribe(ctx, &paho.Subscribe{
			Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}},
		})
		if ack != nil && err != nil {
			return &SubackError{Filter: filter}
		}
		return err
	})
}

// Publish sends a message and returns after writing it. It does not wait for the PUBACK of
// QoS 1: the service replies with a separate message, which is valid with or without a
// PUBACK before it.
func (c *Client) Publish(ctx context.Context, topic string, payload []byte, qos byte) error {
	p := packet{kind: kindPublish, topic: []byte(topic), payload: payload, qos: qos, id: uint16(qos)}
	if err := c.sendable(&p); err != nil {
		return err
	}
	return c.call(ctx, "PUBLISH", func(ctx context.Context) error {
		_, err := c.paho.PublishWithOptions(ctx, &paho.Publish{Topic: topic, Payload: payload, QoS: qos},
			paho.PublishOptions{Method: paho.PublishMethod_AsyncSend})
		return err
	})
}

// sendable checks whether a packet can be sent before it is passed to paho: paho does not
// check topics, truncates long strings, and waits for the acknowledgement of a packet that
// was never written.
func (c *Client) sendable(p *packet) error {
	wire, err := p.append(nil)
	if err != nil {
		return invalid(err)
	}
	if len(wire) > c.conn.maxPacket {
		return fmt.Errorf("%s of %d bytes: %w", p.kind, len(wire), ErrPacketTooLarge)
	}
	return nil
}

// call runs one exchange of paho. It returns as soon as ctx or the connection ends,
// whatever paho is waiting for. The goroutine that it leaves ends with the connection at
// the latest.
func (c *Client) call(ctx context.Context, exchange string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, &TimeoutError{Exchange: exchange})
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- f(ctx) }()
	var err error
	ended := false
	select {
	case err = <-result:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.paho.Done():
		ended = true
		// paho has released every call that it knew of, and an acknowledgement read before
		// the end is still valid. paho may have missed a call that began at the same
		// moment.
		defer time.AfterFunc(time.Second, cancel).Stop()
		err = <-result
	}
	var refused *SubackError
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case ended || c.conn.Err() != nil:
		return cmp.Or(closed(c.conn.Err()), ErrClosed)
	}
	return cmp.Or(context.Cause(ctx), err)
}

// Receive waits for the next message. It still returns messages that were received and
// acknowledged before the connection was lost.
func (c *Client) Receive(ctx context.Context) (Message, error) {
	select {
	case m := <-c.messages:
		return m, nil
	case <-ctx.Done():
		return Message{}, context.Cause(ctx)
	case <-c.paho.Done(): // paho delivers no more messages
	}
	select {
	case m := <-c.messages:
		return m, nil
	default:
		return Message{}, cmp.Or(closed(c.conn.Err()), ErrClosed)
	}
}

func closed(cause error) error {
	if cause == nil || errors.Is(cause, ErrClosed) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrClosed, cause)
}

// Close acknowledges the received messages, sends DISCONNECT and closes the connection. It
// takes at most 5 s and ends earlier if ctx does. It returns an error if DISCONNECT could
// not be sent; if the connection is already lost, it sends none. A second call does
// nothing.
func (c *Client) Close(ctx context.Context) error {
	c.closeOnce.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		// Closing the connection ends every call below that waits for the peer.
		defer context.AfterFunc(ctx, func() { _ = c.conn.fail(ErrClosed) })()
		c.conn.flush(ctx)
		lost := c.conn.Err() != nil
		_ = c.conn.end(ErrClosed) // from here on, paho reports the effects of Close
		err := c.paho.Disconnect(&paho.Disconnect{})
		if err != nil && !lost {
			c.closeErr = fmt.Errorf("DISCONNECT not sent: %w", err)
		}
	})
	return c.closeErr
}

// pinger keeps the connection alive: it sends a PINGREQ after the connection was idle in
// one direction for one keep-alive interval. paho's pinger starts with a PINGREQ and waits
// a whole interval for the PINGRESP.
type pinger struct {
	conn    *Conn
	timeout time.Duration // for the PINGRESP
	pong    chan struct{}

	mu             sync.Mutex
	sent, received time.Time
}

// Run returns when ctx ends or a PINGRESP is missing.
func (p *pinger) Run(ctx context.Context, _ net.Conn, keepAlive uint16) error {
	if keepAlive == 0 {
		return nil
	}
	p.PacketSent()
	p.PacketReceived()
	due := time.NewTimer(p.due(keepAlive))
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
		}
		if wait := p.due(keepAlive); wait > 0 {
			due.Reset(wait)
			continue
		}
		if err := p.ping(ctx); err != nil {
			return p.conn.fail(err)
		}
		due.Reset(p.due(keepAlive))
	}
}

func (p *pinger) ping(ctx context.Context) error {
	select {
	case <-p.pong: // an unsolicited one
	default:
	}
	p.conn.Lock()
	_, err := p.conn.Write([]byte{byte(kindPingreq) << 4, 0})
	p.conn.Unlock()
	if err != nil {
		return err
	}
	p.PacketSent()
	late := time.NewTimer(p.timeout)
	defer late.Stop()
	select {
	case <-p.pong:
	case <-ctx.Done():
	case <-late.C:
		return &TimeoutError{Exchange: "PINGRESP"}
	}
	return nil
}

// due returns how long the connection may remain idle from now on.
func (p *pinger) due(keepAlive uint16) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	oldest := p.sent
	if p.received.Before(oldest) {
		oldest = p.received
	}
	return time.Until(oldest.Add(time.Duration(keepAlive) * time.Second))
}

// PacketSent is called by paho.
func (p *pinger) PacketSent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = time.Now()
}

// PacketReceived is called by paho.
func (p *pinger) PacketReceived() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.received = time.Now()
}

// PingResp is called by paho.
func (p *pinger) PingResp() {
	select {
	case p.pong <- struct{}{}:
	default:
	}
}

// SetDebug is called by paho. It ignores the logger, since packets contain secrets.
func (p *pinger) SetDebug(log.Logger) {}
