package main

import (
	"net"
	"sync"
	"time"
)

// wire is a connection at the simulator, below TLS.
type wire struct {
	net.Conn

	mu    sync.Mutex
	first time.Time // when the first byte arrived
}

// wires holds connections in the order of their arrival.
type wires struct {
	mu  sync.Mutex
	all []*wire
}

func (w *wires) add(one *wire) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > 0 && w.first.IsZero() {
		w.first = time.Now()
	}
	return n, err
}

func (w *wire) firstByte() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first
}
