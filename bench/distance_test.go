package main

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestDistant(t *testing.T) {
	const roundTrip = 600 * time.Millisecond
	// far runs f with both ends of a connection in virtual time that begins at zero.
	far := func(says string, test func(t *testing.T, device net.Conn, service *distant, since func() time.Duration)) {
		t.Run(says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				device, there := net.Pipe()
				service, start := newDistant(there, roundTrip), time.Now()
				test(t, device, service, func() time.Duration { return time.Since(start) })
				_ = device.Close()
				_ = service.Close()
			})
		})
	}
	at := func(t *testing.T, got, want time.Duration) {
		t.Helper()
		if got != want {
			t.Errorf("at %s, want %s", got, want)
		}
	}
	read := func(t *testing.T, from io.Reader, want string) {
		t.Helper()
		b := make([]byte, len(want))
		if _, err := io.ReadFull(from, b); err != nil || string(b) != want {
			t.Fatalf("%q, %v", b, err)
		}
	}
	far("the first byte takes TCP's round trip and half of one", func(t *testing.T, device net.Conn, service *distant, since func() time.Duration) {
		_, _ = device.Write([]byte("hello"))
		read(t, service, "hello")
		at(t, since(), roundTrip+roundTrip/2)
	})
	far("a question and its answer take one round trip more", func(t *testing.T, device net.Conn, service *distant, since func() time.Duration) {
		_, _ = device.Write([]byte("hello"))
		read(t, service, "hello")
		_, _ = service.Write([]byte("you"))
		read(t, device, "you")
		at(t, since(), 2*roundTrip)
		_, _ = device.Write([]byte("again"))
		read(t, service, "again")
		at(t, since(), 2*roundTrip+roundTrip/2)
	})
	far("data that is sent together arrives together", func(t *testing.T, device net.Conn, service *distant, since func() time.Duration) {
		for range 10 {
			_, _ = service.Write([]byte("x"))
		}
		read(t, device, "xxxxxxxxxx")
		at(t, since(), roundTrip/2)
	})
	far("data that was written before the end still arrives", func(t *testing.T, device net.Conn, service *distant, since func() time.Duration) {
		_, _ = service.Write([]byte("last"))
		go service.Close()
		read(t, device, "last")
		if _, err := device.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%v, want the end", err)
		}
		at(t, since(), roundTrip/2)
	})
}
