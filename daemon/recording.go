package daemon

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
)

// recording is what the flight recorder keeps of the running attempt.
type recording struct {
	began, entered time.Time
	trigger        string
	steps          []store.Step
	stage          fault.Stage
	sent, received atomic.Int64
}

// enter ends the previous step and begins another.
func (r *recording) enter(stage fault.Stage, now time.Time) {
	r.leave(now)
	r.stage, r.entered = stage, now
}

func (r *recording) leave(now time.Time) {
	if r.stage == "" {
		return
	}
	took := now.Sub(r.entered).Milliseconds()
	// Polls and the waits between them are one step.
	if n := len(r.steps); n > 0 && r.steps[n-1].Stage == string(r.stage) {
		r.steps[n-1].Milliseconds += took
		return
	}
	r.steps = append(r.steps, store.Step{Stage: string(r.stage), Milliseconds: took})
}

// counting makes dial count the bytes of its connections.
func (r *recording) counting(dial dialFunc) dialFunc {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &countingConn{c, r}, nil
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

type countingConn struct {
	net.Conn
	r *recording
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.r.received.Add(int64(n))
	return n, err
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.r.sent.Add(int64(n))
	return n, err
}
