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
	"time"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// maxCAFile is larger than all roots of a distribution together, in bytes.
const maxCAFile = 4 << 20

// trust returns the roots for verifying a server: Roots or the system's roots, and the
// certificates of the file unless it is "".
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

// RootPool returns the roots for verifying the service's certificate: Roots or the system's
// roots, and the certificates of CAFile.
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

// readCertificates reads every certificate of a PEM file; path may be "". An unreadable
// certificate is an error, because it would later appear only as a failed handshake.
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

// verifier verifies the certificate of a server like crypto/tls, with the whole
// verification of crypto/x509. Only the roots are selected by the chain that the server
// presents. A verifier never accepts a certificate that crypto/x509 does not verify.
type verifier struct {
	trust  trust
	host   string
	now    func() time.Time      // nil for time.Now
	chains [][]*x509.Certificate // set after verification
	asked  bool                  // the server requested a certificate and received none
	shown  bool                  // the server requested the device certificate and received it
}

// refused returns err as an error that a verified server caused.
func (v *verifier) refused(err error) error {
	return &RefusedError{Issuer: v.chains[0][0].Issuer, Host: v.host, Certificate: v.shown, Missing: v.asked, Err: err}
}

var errNoCertificate = errors.New("the server presents no certificate")

// verify is tls.Config.VerifyConnection: every handshake, including a resumed one, calls it
// before anything is sent over the connection.
func (v *verifier) verify(state tls.ConnectionState) error {
	presented := state.PeerCertificates
	if len(presented) == 0 {
		return errNoCertificate
	}
	// A chain ends with a root that has the name of an issuer, or with a certificate that
	// is a root itself. Other certificates that contain such a name are selected too, but
	// change nothing.
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
	if v.now != nil {
		options.CurrentTime = v.now()
	}
	chains, err := presented[0].Verify(options)
	if err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: presented, Err: err}
	}
	v.chains = chains
	return nil
}

// client is the client side of a TLS connection.
type client struct {
	host        string // sent as server name and verified
	trust       trust
	certificate *tls.Certificate // nil for none
	sessions    *sessions        // nil for no resumption
	now         func() time.Time // nil for time.Now
}

// config returns the configuration for one connection, whose server v verifies.
func (c client) config(v *verifier) *tls.Config {
	config := &tls.Config{
		ServerName: c.host,
		// VerifyConnection verifies the certificate. crypto/tls does not, because it would
		// need all roots in parsed form.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection always verifies
		VerifyConnection:   v.verify,
		Time:               c.now,
		// DPS accepts nothing older. There is no maximum, except for keys that support only
		// PKCS #1; see below.
		MinVersion: tls.VersionTLS12,
		// These are for TLS 1.2; those of 1.3 are always enabled. Go's default adds four
		// with CBC and SHA-1, which are weaker, and two with ChaCha20, which Azure does not
		// support: twelve bytes in each first flight.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		},
		// Go's default adds a post-quantum key share of 1.2 KB to every first flight. The
		// service supports only TLS 1.2, which cannot use it. The flight would grow from
		// one packet to two, on metered connections and through middleboxes that are known
		// to drop such a ClientHello, without a benefit. Decrypting recorded traffic later
		// is not worthwhile either, since tokens expire after an hour.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	if c.sessions != nil {
		config.ClientSessionCache = c.sessions
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		v.asked = true
		return new(tls.Certificate), nil // no certificate, which most servers accept
	}
	if c.certificate != nil {
		if !signs13(c.certificate) {
			config.MaxVersion = tls.VersionTLS12 // otherwise, the server could select TLS 1.3
		}
		// If the certificate were in Certificates, crypto/tls would silently send none if
		// its issuer is not in the server's list of authorities. It is always sent, so that
		// the service can report why it rejects the certificate.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// crypto/tls calls this only after the server has proved possession of the
			// verified certificate's key.
			v.shown = true
			return c.certificate, nil
		}
	}
	return config
}

// signs13 reports whether the key of a certificate can sign in TLS 1.3, which does not allow
// PKCS #1 v1.5 signatures, and allows only one hash function for each curve (RFC 8446 §4.2.3).
func signs13(c *tls.Certificate) bool {
	request := tls.CertificateRequestInfo{Version: tls.VersionTLS13, SignatureSchemes: []tls.SignatureScheme{
		tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512, tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512,
	}}
	return request.SupportsCertificate(c) == nil
}

// handshake performs the TLS handshake on raw until ctx ends.
func (c client) handshake(ctx context.Context, raw net.Conn) (*secured, error) {
	v := &verifier{trust: c.trust, host: c.host, now: c.now}
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
		// Anyone on the path can send these seven bytes.
		return nil, fmt.Errorf("the peer ended the handshake before its certificate was verified: %w", err)
	}
	return nil, err
}

// secured is a TLS stream to a verified server.
type secured struct {
	*tls.Conn
	server *verifier
}

// Read returns an alert as an error of the server: with TLS 1.3, the server checks the
// device certificate after the client has finished the handshake, so its alert arrives
// here. Read treats a record that crypto/tls rejects as the end of the stream, since anyone
// on the path can send one.
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

// firstBytes keeps the first bytes of the peer's reply; crypto/tls keeps only five.
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

// stop returns the kept bytes and keeps no more.
func (f *firstBytes) stop() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.kept
	f.stopped, f.kept = true, nil
	return kept
}
