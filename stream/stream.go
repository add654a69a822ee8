// Package stream sends endless HTTP responses, such as a line for each event.
package stream

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Respond sends a response whose body is written by send, until send returns. The client has patience
// to read each part. The context of send ends when ctx ends, when the client closes the connection,
// or when the client sends anything after the request. Respond then closes the connection.
//
// Respond hijacks the connection, because package net/http does not notice that a client closes the
// connection after it has sent more than the request.
func Respond(ctx context.Context, w http.ResponseWriter, contentType string, patience time.Duration, send func(ctx context.Context, write func([]byte) error)) {
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot carry a stream", http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel()
		_, _ = buffered.ReadByte()
	}()
	closing := context.AfterFunc(ctx, func() { _ = c.Close() }) // also ends a write
	defer func() {
		closing()
		cancel()
		_ = c.Close()
		<-gone
	}()
	write := func(part []byte) error {
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		_, err := c.Write(part)
		return err
	}
	header := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n", contentType)
	if write([]byte(header)) == nil {
		send(ctx, write)
	}
}
