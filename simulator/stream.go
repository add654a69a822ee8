package simulator

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// errScenario ends a stream because of a rule.
var errScenario = errors.New("scenario: the stream ends here")

// maxFirst is how many of the client's first bytes are kept to recognize its protocol.
const maxFirst = 4

// rawConn is the byte stream below TLS. It counts the bytes, and a rule of OnAccept can
// delay them, send them one by one, or end or stall the stream at a certain byte.
type rawConn struct {
	net.Conn
	up, down     atomic.Int64
	first        []byte      // the first bytes of the client
	rule         *Rule       // nil for none; set before the first byte
	note         func(Entry) // of the connection
	readStalled  atomic.Bool // stalled: data from the client is no longer read
	writeStalled atomic.Bool // stalled: nothing more is sent
	gone         chan struct{}
	close        sync.Once
}

// Close closes the connection, and ends all waiting.
func (r *rawConn) Close() error {
	r.close.Do(func() { close(r.gone) })
	return r.Conn.Close()
}

func (r *rawConn) closed() bool { return isClosed(r.gone) }

// delaysHandshake reports whether the rule delays the handshake, or prevents its end.
func (r *rawConn) delaysHandshake() bool {
	f := r.rule
	return f != nil && (f.AfterUp > 0 || f.AfterDown > 0 || f.DelayUp > 0 || f.DelayDown > 0 || f.Pace > 0)
}

// Read reads from the client.
func (r *rawConn) Read(p []byte) (int, error) {
	if f := r.rule; f != nil && f.AfterUp > 0 {
		left := f.AfterUp - int(r.up.Load())
		if r.closed() {
			return 0, net.ErrClosed
		}
		if left <= 0 {
			return 0, r.atUp()
		}
		p = p[:min(len(p), left)]
	}
	n, err := r.Conn.Read(p)
	r.up.Add(int64(n))
	if room := maxFirst - len(r.first); room > 0 {
		r.first = append(r.first, p[:min(room, n)]...)
	}
	if r.rule != nil && n > 0 && !pause(r.rule.DelayUp, r.gone) {
		return 0, net.ErrClosed
	}
	return n, err
}

// atUp applies the rule after the specified number of bytes from the client.
func (r *rawConn) atUp() error {
	if !r.rule.Silent {
		return r.finish()
	}
	if !r.readStalled.Swap(true) {
		r.note(Entry{Packet: "STALL", Direction: "up", Size: int(r.up.Load())})
	}
	_ = r.SetReadDeadline(time.Time{})
	for b := make([]byte, 4096); ; { // until the client disconnects
		if _, err := r.Conn.Read(b); err != nil {
			return err
		}
	}
}

// finish ends the stream as the rule specifies.
func (r *rawConn) finish() error {
	if g := r.rule.GarbageBytes(); len(g) > 0 {
		n, _ := r.Conn.Write(g)
		r.down.Add(int64(n))
		r.note(Entry{Packet: "GARBAGE", Size: n, Raw: g[:n]})
	}
	if r.rule.Reset {
		r.reset()
	} else {
		_ = r.Close()
	}
	return errScenario
}

// Write writes to the client.
func (r *rawConn) Write(p []byte) (int, error) {
	f := r.rule
	if f == nil {
		return r.put(p)
	}
	if r.writeStalled.Load() {
		return len(p), nil // reported as sent, as a kernel does
	}
	if !pause(f.DelayDown, r.gone) || r.closed() {
		return 0, net.ErrClosed
	}
	now, limited := p, false
	if left := f.AfterDown - int(r.down.Load()); f.AfterDown > 0 && left <= len(p) {
		now, limited = p[:left], true
	}
	n, err := r.trickle(f, now, r.put)
	if err != nil || !limited {
		return n, err
	}
	if !f.Silent {
		return n, r.finish()
	}
	r.writeStalled.Store(true)
	r.note(Entry{Packet: "STALL", Direction: "down", Size: int(r.down.Load())})
	return len(p), nil
}

func (r *rawConn) put(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	if errors.Is(err, io.ErrClosedPipe) && !r.closed() {
		// A kernel accepts data that the peer will never read; net.Pipe does not.
		n, err = len(p), nil
	}
	r.down.Add(int64(n))
	return n, err
}

// trickle writes p, byte by byte if the rule specifies it.
func (r *rawConn) trickle(rule *Rule, p []byte, write func([]byte) (int, error)) (n int, err error) {
	if !rule.ByteByByte || len(p) == 0 {
		return write(p)
	}
	for piece := range slices.Chunk(p, 1) {
		if rule.Pace > 0 {
			if !pause(rule.Pace, r.gone) {
				return n, net.ErrClosed
			}
			_ = r.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		written, err := write(piece)
		if n += written; err != nil {
			return n, err
		}
	}
	return n, nil
}

// reset drops the connection so that the peer sees an RST, if the connection supports it.
func (r *rawConn) reset() {
	if t, ok := r.Conn.(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = r.Close()
}

// closeWrite sends a FIN, if the connection supports it.
func (r *rawConn) closeWrite() {
	if t, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
}

// alertRecord returns a fatal alert for a stream that is not yet encrypted.
func alertRecord(name string) []byte { return []byte{21, 3, 3, 0, 2, 2, scenario.Alerts[name]} }
