package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// maxAnswer limits a response or event that a client reads, in bytes.
const maxAnswer = 1 << 20

// busyPause is the pause between attempts to connect to a busy daemon.
const busyPause = 50 * time.Millisecond

// ErrNotRunning means that no daemon listens on the socket.
var ErrNotRunning = errors.New("dpsd is not running")

// errNoAnswer means that a daemon listens on the socket, but does not answer.
var errNoAnswer = errors.New("the service runs, but it does not answer")

// ErrForbidden means that the caller may not request a registration.
var ErrForbidden = errors.New("not permitted")

// ErrNotConfigured means that the daemon requests no certificates.
var ErrNotConfigured = errors.New("dpsd requests no certificates, because its configuration has no table [certificate]")

// Client is a client of the daemon on this machine. Every call opens a new connection.
type Client struct {
	Socket string // path
}

// Status returns the daemon's status. The error is ErrNotRunning, the error of ctx, or an
// error of the socket.
func (c Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "/v1/status", &s)
}

// Metrics returns the metrics as Prometheus text. Its errors are those of Status.
func (c Client) Metrics(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	body, err := c.open(ctx, http.MethodGet, "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return io.ReadAll(io.LimitReader(body, maxAnswer))
}

// Reprovision requests a registration. Its errors are those of Status, and ErrForbidden.
func (c Client) Reprovision(ctx context.Context) (r Reprovision, err error) {
	return r, c.ask(ctx, http.MethodPost, "/v1/reprovision", &r)
}

// RenewCertificate requests a registration with a certificate request, even if no certificate
// is due. Its errors are those of Reprovision and ErrNotConfigured.
func (c Client) RenewCertificate(ctx context.Context) (r Reprovision, err error) {
	return r, c.ask(ctx, http.MethodPost, "/v1/certificate/renew", &r)
}

// Follow calls with for the current status and for each new one. It returns the error of
// with, the error of ctx, or ErrNotRunning when the daemon ends.
func (c Client) Follow(ctx context.Context, with func(Status) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := c.open(ctx, http.MethodGet, "/v1/events")
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		var s Status
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return fmt.Errorf("%s: %w", c.Socket, err)
		}
		if err := with(s); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: it closed the connection", ErrNotRunning)
}

func (c Client) ask(ctx context.Context, method, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	body, err := c.open(ctx, method, path)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("%s: %w", c.Socket, err)
	}
	return nil
}

// busy reports whether the daemon closed the connection without a response, or its accept
// queue is full (EAGAIN, see connect(2)).
func busy(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// open sends a request and returns the body of a successful response.
func (c Client) open(ctx context.Context, method, path string) (io.ReadCloser, error) {
	transport := &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: patience,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
		},
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://dpsd"+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := transport.RoundTrip(request)
	// The daemon immediately closes a connection above its limit; other connections end
	// soon.
	for busy(err) && ctx.Err() == nil {
		select {
		case <-time.After(busyPause):
		case <-ctx.Done():
		}
		response, err = transport.RoundTrip(request)
	}
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case busy(err), os.IsTimeout(err):
		return nil, errNoAnswer
	case err != nil:
		return nil, err
	}
	if response.StatusCode/100 == 2 {
		return response.Body, nil
	}
	defer func() { _ = response.Body.Close() }()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&p); err != nil || p.Error == "" {
		p.Error = "the daemon replied " + response.Status
	}
	if p.Advice != "" {
		p.Error += "; " + p.Advice
	}
	switch response.StatusCode {
	case http.StatusForbidden:
		return nil, fmt.Errorf("%w: %s", ErrForbidden, p.Error)
	case http.StatusConflict:
		return nil, ErrNotConfigured
	}
	return nil, errors.New(p.Error)
}
