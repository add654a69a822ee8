package transport

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
)

// maxAnswer is the maximum size of the body of a response over HTTPS, in bytes. The list of the
// modules of a device, of which a hub allows a few dozen, has at most 64 KB.
const maxAnswer = 256 << 10

// Request is a request over HTTPS.
type Request struct {
	Method string
	Target string      // the path, percent-encoded, and the query
	Header http.Header // in addition to Host, Content-Length, User-Agent and Connection
	Body   []byte
}

// Answer is the response to a Request.
type Answer struct {
	Status int // from 200 to 999
	Header http.Header
	Body   []byte // at most 256 KB
}

// Do sends a request to port 443 of Host, on its own connection, and returns the response. It uses
// HTTP/1.1, follows no redirects and does not repeat the request. It connects like Dial; to perform
// only the TLS handshake, use Dial with the protocol HTTPS. Timeout applies once to the connection,
// and once to the request with its response.
//
// The error is an Errors value with one failure. If its stage is StageHTTP, Host may have
// executed the request.
func (d *Dialer) Do(ctx context.Context, certificate *tls.Certificate, r Request) (*Answer, error) {
	target, err := url.ParseRequestURI(r.Target)
	if err != nil {
		return nil, err
	}
	request := &http.Request{
		Method: r.Method, URL: target, Host: d.Host, Header: http.Header{"User-Agent": {"dpsd"}}, Close: true,
		Body: io.NopCloser(bytes.NewReader(r.Body)), ContentLength: int64(len(r.Body)),
	}
	for name, values := range r.Header {
		request.Header[name] = values
	}
	if len(r.Body) == 0 {
		request.Body = http.NoBody // a ContentLength of 0 means that it is unknown
	}
	https := *d
	https.Protocols = []Protocol{HTTPS}
	conn, err := https.Dial(ctx, certificate)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	timeout := cmp.Or(d.Timeout, DefaultTimeout)
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := exchange(limited, conn, request)
	switch {
	case err == nil:
		return answer, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case limited.Err() != nil:
		err = &TimeoutError{After: timeout, Err: err}
	}
	stage := StageHTTP
	// With TLS 1.3, the server checks the client certificate after the client has finished the
	// handshake, so its alert arrives in place of the response.
	if _, alert := RemoteAlert(err); alert {
		stage = StageTLS
	}
	return nil, Errors{{Protocol: HTTPS, Stage: stage, Address: conn.Address, Proxy: conn.Proxy, Remote: conn.raw.RemoteAddr(), Err: err}}
}

// exchange sends the request over stream and reads the response, until ctx ends.
func exchange(ctx context.Context, stream net.Conn, request *http.Request) (answer *Answer, err error) {
	err = interruptible(ctx, stream, func() error {
		writeErr := request.Write(stream)
		r := newHTTPReader(stream)
		response, err := r.response(request)
		if err != nil {
			// A server may reject the client certificate, or the request before it is complete, and
			// close the connection. The write then fails, but the response can be read.
			if _, alert := RemoteAlert(err); writeErr != nil && !alert {
				return writeErr
			}
			return err
		}
		defer func() { _ = response.Body.Close() }()
		r.limit.N = math.MaxInt64
		body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
		if err != nil {
			return fmt.Errorf("reading the answer with status %d: %w", response.StatusCode, err)
		}
		if len(body) > maxAnswer {
			return fmt.Errorf("the answer with status %d has more than %d bytes", response.StatusCode, maxAnswer)
		}
		answer = &Answer{Status: response.StatusCode, Header: response.Header, Body: body}
		return nil
	})
	return answer, err
}
