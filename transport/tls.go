package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// maxCAFile is more than the whole of a distribution's roots.
const maxCAFile = 4 << 20

// ErrNoCertificates is matched when a CA file holds no certificate.
var ErrNoCertificates = errors.New("no certificate in it")

// bundles are where distributions keep all their roots in one file: Debian, Fedora,
// openSUSE, OpenELEC, RHEL, Alpine.
func bundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem",
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"/etc/ssl/cert.pem",
	}
}

// systemRoots reads the system's roots from the first of the bundles that is there.
// crypto/x509 would parse the directory beside it as well, which holds the same
// certificates once more, and keep all of them for as long as the process lives: on
// Debian twice the time and 3 MB. Read at each Dial, an updated bundle needs no restart.
// What SSL_CERT_FILE and SSL_CERT_DIR name, and a system without a bundle, is left to
// crypto/x509.
func systemRoots(bundles []string) (*x509.CertPool, error) {
	if os.Getenv("SSL_CERT_FILE") == "" && os.Getenv("SSL_CERT_DIR") == "" {
		for _, path := range bundles {
			text, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			if pool := x509.NewCertPool(); pool.AppendCertsFromPEM(text) {
				return pool, nil
			}
		}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's roots: %w", err)
	}
	return pool, nil
}

// RootPool returns what the service's certificate is verified against: Roots, or the
// system's, and the certificates of CAFile.
func (d *Dialer) RootPool() (*x509.CertPool, error) { return d.roots(d.CAFile) }

// roots returns what a certificate is verified against: the roots and those of the
// file, if there is one.
func (d *Dialer) roots(file string) (*x509.CertPool, error) {
	if file == "" {
		if d.Roots != nil {
			return d.Roots, nil
		}
		return systemRoots(bundles())
	}
	certificates, err := readCertificates(file)
	if err != nil {
		return nil, err
	}
	var pool *x509.CertPool
	if d.Roots != nil {
		pool = d.Roots.Clone()
	} else if pool, err = systemRoots(bundles()); err != nil {
		return nil, err
	}
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool, nil
}

// readCertificates reads every certificate of a PEM file. One that cannot be read is
// an error, not a gap to be found out by a failing handshake.
func readCertificates(path string) ([]*x509.Certificate, error) {
	// Asked first: opening a FIFO would wait for a writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCAFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxCAFile {
		return nil, &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes", maxCAFile)}
	}
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("certificate %d: %w", len(certificates)+1, err)}
		}
		certificates = append(certificates, c)
	}
	if len(certificates) == 0 {
		return nil, &os.PathError{Op: "read", Path: path, Err: ErrNoCertificates}
	}
	return certificates, nil
}

func tlsConfig(host string, roots *x509.CertPool, certificate *tls.Certificate) *tls.Config {
	c := &tls.Config{
		ServerName: host,
		RootCAs:    roots,
		// DPS refuses anything older. The maximum is left open.
		MinVersion: tls.VersionTLS12,
		// Go's default adds a post-quantum key share of 1.2 KB to every first flight.
		// The service speaks TLS 1.2 only, which cannot use it: the flight would grow
		// from one packet to two, on metered lines and through middleboxes that have
		// been seen to drop such a ClientHello, for nothing. Nothing recorded today is
		// worth decrypting later either: tokens live an hour.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	if certificate != nil {
		// Given in Certificates, crypto/tls would silently send nothing when the
		// server's list of authorities does not name this one's issuer. Sent always, the
		// service can say why it refuses.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return certificate, nil
		}
	}
	return c
}

// handshake makes raw a TLS stream, under ctx.
func handshake(ctx context.Context, raw net.Conn, config *tls.Config) (*tls.Conn, error) {
	first := &firstBytes{Conn: raw}
	c := tls.Client(first, config)
	err := c.HandshakeContext(ctx)
	kept := first.stop()
	if err == nil {
		return c, nil
	}
	if header := (tls.RecordHeaderError{}); errors.As(err, &header) {
		return nil, &NotTLSError{First: kept, Err: err}
	}
	if verify := (*tls.CertificateVerificationError)(nil); errors.As(err, &verify) && len(verify.UnverifiedCertificates) > 0 {
		return nil, &CertificateError{Certificate: verify.UnverifiedCertificates[0], Host: config.ServerName, Err: err}
	}
	if chains := c.ConnectionState().VerifiedChains; len(chains) > 0 {
		return nil, &RefusedError{Issuer: chains[0][0].Issuer, Host: config.ServerName, Err: err}
	}
	return nil, err
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
