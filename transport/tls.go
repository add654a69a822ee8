package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// maxCAFile is more than the whole of a distribution's roots.
const maxCAFile = 4 << 20

// ErrNoCertificates is matched when a CA file holds no certificate, or something else
// beside them.
var ErrNoCertificates = pemfile.ErrNotCertificate

// readCertificates reads every certificate of a PEM file. One that cannot be read is
// an error, not a gap to be found out by a failing handshake.
func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := input.Read(path, maxCAFile)
	var certificates []*x509.Certificate
	if err == nil {
		certificates, err = pemfile.Certificates(text)
	}
	if err == nil || errors.As(err, new(*os.PathError)) {
		return certificates, err
	}
	return nil, &os.PathError{Op: "read", Path: path, Err: input.About(path, err)}
}

// client is this end of a TLS connection.
type client struct {
	host        string // sent as server name, and verified
	trust       trust
	certificate *tls.Certificate // nil: none is shown
	sessions    *sessions        // nil: none is resumed
}

// config is for one connection, whose server v verifies.
func (c client) config(v *verifier) *tls.Config {
	config := &tls.Config{
		ServerName: c.host,
		// Not the verification is skipped, but its being done by crypto/tls, which would
		// want every root parsed beforehand.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies, always
		VerifyConnection:   v.verify,
		// DPS refuses anything older. The maximum is left open.
		MinVersion: tls.VersionTLS12,
		// Of TLS 1.2; those of 1.3 are always there. Go's default adds four with CBC and
		// SHA-1, which are weaker, and two with ChaCha20, which Azure has none of: twelve
		// bytes in each first flight.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
		// Go's default adds a post-quantum key share of 1.2 KB to every first flight.
		// The service speaks TLS 1.2 only, which cannot use it: the flight would grow
		// from one packet to two, on metered lines and through middleboxes that have
		// been seen to drop such a ClientHello, for nothing. Nothing recorded today is
		// worth decrypting later either: tokens live an hour.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	if c.sessions != nil {
		config.ClientSessionCache = c.sessions
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		v.asked = true
		return new(tls.Certificate), nil // none, which most servers accept
	}
	if c.certificate != nil {
		// Given in Certificates, crypto/tls would silently send nothing when the
		// server's list of authorities does not name this one's issuer. Sent always, the
		// service can say why it refuses.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// crypto/tls asks for it only after the server has proved with its key that the
			// verified certificate is its own.
			v.shown = true
			return c.certificate, nil
		}
	}
	return config
}

// handshake makes raw a TLS stream, under ctx.
func (c client) handshake(ctx context.Context, raw net.Conn) (*secured, error) {
	v := &verifier{trust: c.trust, host: c.host}
	first := &firstBytes{Conn: raw}
	secure := tls.Client(first, c.config(v))
	err := secure.HandshakeContext(ctx)
	kept := first.stop()
	if err == nil {
		return &secured{Conn: secure, server: v}, nil
	}
	if header := (tls.RecordHeaderError{}); errors.As(err, &header) {
		return nil, &NotTLSError{First: kept, Err: err}
	}
	if verify := (*tls.CertificateVerificationError)(nil); errors.As(err, &verify) {
		return nil, &CertificateError{Certificate: verify.UnverifiedCertificates[0], Host: c.host, Err: err}
	}
	if len(v.chains) > 0 {
		return nil, v.refused(err)
	}
	if _, alert := RemoteAlert(err); alert {
		// Seven bytes that anybody on the way can send.
		return nil, fmt.Errorf("the peer ended the handshake before its certificate was verified: %w", err)
	}
	return nil, err
}

// secured is the TLS stream to a verified server.
type secured struct {
	*tls.Conn
	server *verifier
}

// Read names an alert as the server's: under TLS 1.3 the server judges the device
// certificate after the client's handshake is over, and its alert arrives here. A record
// that crypto/tls does not accept is an end of the stream: anybody on the way can send one.
func (s *secured) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if _, alert := RemoteAlert(err); alert {
		return n, s.server.refused(err)
	}
	if record := (tls.RecordHeaderError{}); errors.As(err, &record) {
		err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return n, err
}

// firstBytes remembers how the peer's answer begins: crypto/tls keeps five bytes.
type firstBytes struct {
	net.Conn

	mu      sync.Mutex
	stopped bool
	kept    []byte
}

func (f *firstBytes) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if room := 256 - len(f.kept); !f.stopped && room > 0 {
		f.kept = append(f.kept, p[:min(n, room)]...)
	}
	return n, err
}

// stop returns what was kept and keeps no more.
func (f *firstBytes) stop() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.kept
	f.stopped, f.kept = true, nil
	return kept
}
