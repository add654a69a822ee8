package transport

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

// bundles returns the files in which distributions keep all their roots: Debian, Fedora,
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

// SystemRoots returns the path of the file with the system's roots, for programs that do not look for
// it: SSL_CERT_FILE, or the first bundle that contains a certificate. Without such a file, it
// returns "".
func SystemRoots() string {
	if path := os.Getenv("SSL_CERT_FILE"); path != "" {
		return path
	}
	return firstBundle(bundles())
}

// firstBundle returns the first bundle that contains a certificate, or "".
func firstBundle(bundles []string) string {
	for _, path := range bundles {
		found := false
		_ = eachCertificate(path, func([]byte) bool { found = true; return false })
		if found {
			return path
		}
	}
	return ""
}

// trust is a set of roots: the certificates of pool and those of the bundle.
type trust struct {
	pool   *x509.CertPool // nil for none
	bundle string         // PEM file, "" for none; only roots that a chain refers to are parsed
}

// systemTrust finds the system's roots in the first bundle that has one. crypto/x509 would
// also parse the directory next to it, which contains the same certificates again, and keep
// all of them in memory. Each handshake reads the bundle, so an update requires no restart.
// crypto/x509 handles SSL_CERT_FILE, SSL_CERT_DIR and systems without a bundle.
func systemTrust(bundles []string) (trust, error) {
	if os.Getenv("SSL_CERT_FILE") == "" && os.Getenv("SSL_CERT_DIR") == "" {
		if path := firstBundle(bundles); path != "" {
			return trust{bundle: path}, nil
		}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return trust{}, fmt.Errorf("reading the system's roots: %w", err)
	}
	return trust{pool: pool}, nil
}

// with returns the pool with the additional certificates. It is never nil, which
// crypto/x509 would interpret as the system's roots.
func (t trust) with(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	if t.pool != nil {
		pool = t.pool.Clone()
	}
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

// roots returns the pool and the selected certificates of the bundle. Parsing all 150 roots
// of a distribution takes 4 MB and 15 ms.
func (t trust) roots(wanted func(der []byte) bool) (*x509.CertPool, error) {
	if t.bundle == "" {
		return t.with(nil), nil
	}
	var found []*x509.Certificate
	err := eachCertificate(t.bundle, func(der []byte) bool {
		if wanted(der) {
			if root, err := x509.ParseCertificate(der); err == nil {
				found = append(found, root)
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("reading the system's roots: %w", err)
	}
	return t.with(found), nil
}

// eachCertificate calls with for each certificate that crypto/x509 would find in a PEM file
// of roots, while it returns true. It reads the file in blocks to reduce the peak memory.
func eachCertificate(path string, with func(der []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxCAFile)
	var text []byte
	for lines.Scan() {
		text = append(append(text, lines.Bytes()...), '\n')
		if !bytes.HasPrefix(lines.Bytes(), []byte("-----END ")) {
			continue
		}
		block, _ := pem.Decode(text)
		if block != nil && block.Type == "CERTIFICATE" && len(block.Headers) == 0 && !with(block.Bytes) {
			return nil
		}
		text = text[:0]
	}
	return lines.Err()
}
