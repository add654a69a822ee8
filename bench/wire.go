package main

import (
	"net"
	"sync"
	"time"
)

// wire is a connection as the simulator meets it, below TLS.
type wire struct {
	net.Conn

	mu    sync.Mutex
	first time.Time // when the first byte came
}

// wires are connections, in the order in which they came.
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
