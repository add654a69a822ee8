// Package signer signs with a private key that another process, the signer, holds. It connects
// to the signer's Unix socket. docs/signer.md describes the protocol.
//
// [Server] is for programs that hold keys. dpsd does not link it.
package signer

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Timeout is how long a signer may take to answer a request.
const Timeout = 30 * time.Second

// Key is the private key that a signer provides on one socket. It implements [crypto.Signer].
// Dial returns it, and the caller must call Close. Key sends one request at a time. After a
// failure, it closes the connection, so that it cannot mistake a late answer for the answer to
// the next request, and returns the same error for every later request. All errors are *Error.
type Key struct {
	path    string
	conn    net.Conn
	public  crypto.PublicKey
	schemes []Scheme
	stop    func() bool

	mu   sync.Mutex // one request at a time
	read *bufio.Reader
	err  error // the reason why the connection is closed

	last atomic.Pointer[Error]
}

// Dial connects to the socket at path, and asks the signer for its public key and schemes. It
// accepts an ECDSA key on P-256, P-384 or P-521, and an RSA key of 2048 to 8192 bits. When ctx
// is done, Dial and a pending Sign return immediately, and the key can no longer be used.
//
// The caller must check that the public key is the expected one, for example that of a
// certificate.
func Dial(ctx context.Context, path string) (*Key, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &Error{dialKind(err), path, connectError(path, err)}
	}
	if err := trust(conn.(*net.UnixConn), path); err != nil {
		_ = conn.Close()
		return nil, &Error{Untrusted, path, err}
	}
	return open(ctx, conn, path)
}

// open is Dial with a connection.
func open(ctx context.Context, conn net.Conn, path string) (*Key, error) {
	k := &Key{path: path, conn: conn, read: bufio.NewReaderSize(conn, maxLine)}
	k.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := k.describe(); err != nil {
		_ = k.Close()
		return nil, err
	}
	return k, nil
}

// describe asks for the public key and the schemes.
func (k *Key) describe() error {
	reply, err := k.ask(request{Request: requestPublicKey})
	if err != nil {
		return err
	}
	if k.public, err = x509.ParsePKIXPublicKey(reply.PublicKey); err != nil {
		return k.fail(Malformed, fmt.Errorf("the public key is not a DER SubjectPublicKeyInfo: %w", err))
	}
	if err := usable(k.public); err != nil {
		return k.fail(Unsupported, err)
	}
	if reply, err = k.ask(request{Request: requestSchemes}); err != nil {
		return err
	}
	for _, s := range reply.Schemes {
		if s.signs(k.public) && !slices.Contains(k.schemes, s) {
			k.schemes = append(k.schemes, s)
		}
	}
	if len(k.schemes) == 0 {
		return k.fail(Unsupported, errors.New("the signer offers no known scheme for its key"))
	}
	return nil
}

// Public returns the public key that the signer has sent.
func (k *Key) Public() crypto.PublicKey { return k.public }

// SupportedSchemes lists the schemes that the signer offers, for
// [tls.Certificate.SupportedSignatureAlgorithms].
func (k *Key) SupportedSchemes() []tls.SignatureScheme {
	all := make([]tls.SignatureScheme, len(k.schemes))
	for i, s := range k.schemes {
		all[i] = schemes[s].tls
	}
	return all
}

// Sign asks the signer to sign a digest, and verifies the signature with the public key. With
// [rsa.PSSOptions], the salt must be as long as the digest. The random source is not used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := k.sign(digest, opts)
	if failed := (*Error)(nil); errors.As(err, &failed) {
		k.last.Store(failed)
	}
	return signature, err
}

// Err returns the error of the last call of Sign that failed, or nil. The error of a TLS handshake
// contains only the text of this error.
func (k *Key) Err() error {
	if err := k.last.Load(); err != nil {
		return err
	}
	return nil
}

// sign is Sign; its errors are *Error.
func (k *Key) sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s, err := schemeFor(k.public, opts)
	if err == nil && !slices.Contains(k.schemes, s) {
		err = fmt.Errorf("the signer does not offer %s", s)
	}
	if err == nil && len(digest) != schemes[s].hash.Size() {
		err = fmt.Errorf("a digest for %s has %d bytes, not %d", s, schemes[s].hash.Size(), len(digest))
	}
	if err != nil { // no request was sent, so the key is still usable
		return nil, &Error{Unsupported, k.path, err}
	}
	reply, err := k.ask(request{Request: requestSign, Scheme: s, Digest: digest})
	if err != nil {
		return nil, err
	}
	if err := s.verify(k.public, digest, reply.Signature); err != nil {
		return nil, k.fail(Malformed, fmt.Errorf("the %s signature is not valid for the public key of the signer: %w", s, err))
	}
	return reply.Signature, nil
}

// Close closes the connection. It may be called during Sign, which then returns immediately,
// and more than once.
func (k *Key) Close() error {
	k.stop()
	if err := k.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return &Error{Ended, k.path, err}
	}
	return nil
}

// ask sends a request and returns the answer. If the signer answers with an error, ask returns
// this error.
func (k *Key) ask(r request) (answer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return answer{}, k.err
	}
	reply, err := k.exchange(r)
	if err != nil {
		return answer{}, k.failed(err)
	}
	return reply, nil
}

// exchange is ask for a key that has not failed. Its errors are *Error.
func (k *Key) exchange(r request) (answer, error) {
	r.Version = Version
	line, err := json.Marshal(r)
	if err != nil {
		return answer{}, &Error{Malformed, k.path, err}
	}
	if err := k.conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return answer{}, connectionError(k.path, net.ErrClosed)
	}
	if _, err := k.conn.Write(append(line, '\n')); err != nil {
		return answer{}, connectionError(k.path, err)
	}
	line, err = k.read.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return answer{}, &Error{Malformed, k.path, fmt.Errorf("the answer is longer than %d bytes", maxLine)}
	}
	if err != nil {
		return answer{}, connectionError(k.path, err)
	}
	if k.read.Buffered() != 0 {
		return answer{}, &Error{Malformed, k.path, errors.New("the signer sent more than one answer to a request")}
	}
	reply, err := parseAnswer(line, r.Request)
	if failure := (*Failure)(nil); errors.As(err, &failure) {
		return answer{}, &Error{failure.kind(), k.path, err}
	}
	if err != nil {
		return answer{}, &Error{Malformed, k.path, err}
	}
	return reply, nil
}

// fail is failed for a caller that does not hold the lock.
func (k *Key) fail(kind Kind, err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed(&Error{kind, k.path, err})
}

// failed closes the connection and keeps the error for later requests.
func (k *Key) failed(err error) error {
	_ = k.conn.Close()
	k.err = err
	return err
}

// connectionError describes an error of the connection.
func connectionError(path string, err error) *Error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Error{Slow, path, fmt.Errorf("no answer within %v", Timeout)}
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		err = errors.New("the signer closed the connection without an answer")
	case errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		err = errors.New("the connection is closed")
	}
	return &Error{Ended, path, err}
}

// dialKind returns the kind of an error of connect(2).
func dialKind(err error) Kind {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Forbidden
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Slow // the queue of connections is full: the signer does not accept any
	case errors.Is(err, context.Canceled):
		return Ended
	}
	return Absent
}

// connectError returns the cause of a failed connect(2), without the path, which Error adds.
func connectError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("the socket does not exist")
	case errors.Is(err, syscall.ECONNREFUSED):
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
			return errors.New("it is not a socket")
		}
		return errors.New("no process is listening on the socket")
	case errors.Is(err, syscall.EAGAIN):
		return errors.New("the signer does not accept connections")
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err
	}
	return err
}
