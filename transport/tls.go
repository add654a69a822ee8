package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// maxCAFile is more than the whole of a distribution's roots.
const maxCAFile = 4 << 20

// trust returns what a server is verified against: Roots, or the system's, and the
// certificates of the file, "" for none.
func (d *Dialer) trust(file string) (trust, error) {
	added, err := readCertificates(file)
	if err != nil {
		return trust{}, err
	}
	t := trust{pool: d.Roots}
	if d.Roots == nil {
		if t, err = systemTrust(bundles()); err != nil {
			return trust{}, err
		}
	}
	t.pool = t.with(added)
	return t, nil
}

// RootPool returns what the service's certificate is verified against: Roots, or the
// system's, and the certificates of CAFile.
func (d *Dialer) RootPool() (*x509.CertPool, error) {
	t, err := d.trust(d.CAFile)
	if err != nil {
		return nil, err
	}
	return t.roots(func([]byte) bool { return true })
}

// FileErrors returns the errors that Dial would return because the roots, CAFile or
// ProxyCAFile cannot be read.
func (d *Dialer) FileErrors() (met []error) {
	for _, file := range []string{d.CAFile, d.ProxyCAFile} {
		if _, err := d.trust(file); err != nil {
			met = append(met, err)
		}
	}
	return met
}

// readCertificates reads every certificate of a PEM file, "" for none. A certificate that
// cannot be read is an error here, because later it would only be a handshake that fails.
func readCertificates(path string) ([]*x509.Certificate, error) {
	if path == "" {
		return nil, nil
	}
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

// verifier verifies the certificate of a server as crypto/tls does it, with the whole
// verification of crypto/x509; only the roots are chosen by what the server presents. No
// verifier accepts a certificate that does not verify.
type verifier struct {
	trust  trust
	host   string
	chains [][]*x509.Certificate // set once verified
	asked  bool                  // the server has asked for a certificate, and was shown none
	shown  bool                  // the server asked for the device certificate and received it
}

// refused is an error that a verified server is the cause of.
func (v *verifier) refused(err error) error {
	return &RefusedError{Issuer: v.chains[0][0].Issuer, Host: v.host, Certificate: v.shown, Missing: v.asked, Err: err}
}

var errNoCertificate = errors.New("the server presents no certificate")

// verify is tls.Config.VerifyConnection: every handshake calls it, a resumed one too,
// before anything is sent over the connection.
func (v *verifier) verify(state tls.ConnectionState) error {
	presented := state.PeerCertificates
	if len(presented) == 0 {
		return errNoCertificate
	}
	// A chain ends in a root with the name of an issuer, or in a certificate that is a root
	// itself. What merely contains such a name is trusted as well, and changes nothing.
	roots, err := v.trust.roots(func(der []byte) bool {
		return slices.ContainsFunc(presented, func(c *x509.Certificate) bool {
			return bytes.Contains(der, c.RawIssuer) || bytes.Contains(der, c.RawSubject)
		})
	})
	if err != nil {
		return err
	}
	options := x509.VerifyOptions{DNSName: v.host, Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range presented[1:] {
		options.Intermediates.AddCert(c)
	}
	chains, err := presented[0].Verify(options)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: presented, Err: err}
	}
	v.chains = chains
	return nil
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
