package transport

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"time"
)

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

// trust is what a server's certificate is verified against: the certificates of pool,
// and those of the bundle.
type trust struct {
	pool   *x509.CertPool // nil: none
	bundle string         // PEM file, "" for none; parsed only as far as a chain asks for it
}

// systemTrust reads the system's roots from the first of the bundles that is there.
// crypto/x509 would parse the directory beside it as well, which holds the same
// certificates once more, and keep all of them for as long as the process lives. Read at
// each Dial, an updated bundle needs no restart. What SSL_CERT_FILE and SSL_CERT_DIR
// name, and a system without a bundle, is left to crypto/x509.
func systemTrust(bundles []string) (trust, error) {
	if os.Getenv("SSL_CERT_FILE") == "" && os.Getenv("SSL_CERT_DIR") == "" {
		for _, path := range bundles {
			found := false
			err := eachCertificate(path, func([]byte) bool { found = true; return false })
			if err == nil && found {
				return trust{bundle: path}, nil
			}
		}
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return trust{}, fmt.Errorf("the system's roots: %w", err)
	}
	return trust{pool: pool}, nil
}

// RootPool returns what the service's certificate is verified against: Roots, or the
// system's, and the certificates of CAFile.
func (d *Dialer) RootPool() (*x509.CertPool, error) {
	t, err := d.trust(d.CAFile)
	if err != nil {
		return nil, err
	}
	return t.all()
}

// trust returns what a certificate is verified against: the roots and those of the
// file, if there is one.
func (d *Dialer) trust(file string) (trust, error) {
	var certificates []*x509.Certificate
	if file != "" {
		var err error
		if certificates, err = readCertificates(file); err != nil {
			return trust{}, err
		}
	}
	t := trust{pool: d.Roots}
	if d.Roots == nil {
		var err error
		if t, err = systemTrust(bundles()); err != nil {
			return trust{}, err
		}
	}
	return t.with(certificates), nil
}

// with returns t and these.
func (t trust) with(certificates []*x509.Certificate) trust {
	if len(certificates) == 0 {
		return t
	}
	pool := x509.NewCertPool()
	if t.pool != nil {
		pool = t.pool.Clone()
	}
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return trust{pool: pool, bundle: t.bundle}
}

// all parses everything.
func (t trust) all() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if t.pool != nil {
		pool = t.pool.Clone()
	}
	if t.bundle == "" {
		return pool, nil
	}
	text, err := os.ReadFile(t.bundle)
	if err != nil {
		return nil, fmt.Errorf("the system's roots: %w", err)
	}
	pool.AppendCertsFromPEM(text)
	return pool, nil
}

// roots is what of t can matter to a chain: a root is looked for by the issuer of a
// certificate, and a certificate that is a root itself by its own name. To parse all of
// a distribution's 150 would cost 4 MB and 15 ms.
func (t trust) roots(chain []*x509.Certificate) (*x509.CertPool, error) {
	if t.bundle == "" {
		return t.pool, nil
	}
	var named []*x509.Certificate
	err := eachCertificate(t.bundle, func(der []byte) bool {
		for _, c := range chain {
			// Most are ruled out before anything is parsed.
			if !bytes.Contains(der, c.RawIssuer) && !bytes.Contains(der, c.RawSubject) {
				continue
			}
			if subject := rawSubject(der); !bytes.Equal(subject, c.RawIssuer) && !bytes.Equal(subject, c.RawSubject) {
				continue
			}
			if root, err := x509.ParseCertificate(bytes.Clone(der)); err == nil { // it keeps what it is given
				named = append(named, root)
			}
			break
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("the system's roots: %w", err)
	}
	return trust{pool: t.pool}.with(named).pool, nil
}

// The lines around a certificate, RFC 7468 §5.1.
var (
	beginCertificate = []byte("-----BEGIN CERTIFICATE-----")
	endCertificate   = []byte("-----END CERTIFICATE-----")
)

// eachCertificate calls with for the certificates of a PEM file, as long as it returns
// true. What it is given is overwritten by the next one: a bundle read as a whole, and
// decoded as encoding/pem does it, would take half a megabyte that the peak is higher by.
func eachCertificate(path string, with func(der []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	blocks := bufio.NewScanner(f)
	blocks.Buffer(make([]byte, 0, 16<<10), maxCAFile)
	blocks.Split(nextCertificate)
	var der []byte
	for blocks.Scan() {
		// Line ends are skipped by the decoder; what is no base64, headers too, is no
		// certificate that counts.
		if der, err = base64.StdEncoding.AppendDecode(der[:0], blocks.Bytes()); err == nil && !with(der) {
			return nil
		}
	}
	return blocks.Err()
}

// nextCertificate is a bufio.SplitFunc for what stands between those lines.
func nextCertificate(data []byte, atEOF bool) (advance int, token []byte, err error) {
	begin := bytes.Index(data, beginCertificate)
	switch {
	case begin < 0 && atEOF:
		return len(data), nil, nil
	case begin < 0: // the line may begin in what is there
		return max(0, len(data)-len(beginCertificate)+1), nil, nil
	}
	body := data[begin+len(beginCertificate):]
	end := bytes.Index(body, endCertificate)
	switch {
	case end < 0 && atEOF:
		return len(data), nil, nil
	case end < 0:
		return begin, nil, nil
	}
	return len(data) - len(body) + end + len(endCertificate), body[:end:end], nil
}

// rawSubject returns the subject's name of a certificate as it is encoded, nil for what
// is no certificate (RFC 5280 §4.1).
func rawSubject(der []byte) []byte {
	var certificate struct {
		TBS struct {
			Version                                                asn1.RawValue `asn1:"optional,explicit,tag:0"`
			SerialNumber, Signature, Issuer, Validity, SubjectName asn1.RawValue
		}
	}
	if _, err := asn1.Unmarshal(der, &certificate); err != nil {
		return nil
	}
	return certificate.TBS.SubjectName.FullBytes
}

// verifier verifies the certificate of a server, with the verification of crypto/x509
// in full, as crypto/tls does it, but for the roots, which are chosen by what the server
// presents. There is no way to make one that accepts what does not verify.
type verifier struct {
	trust  trust
	host   string
	chains [][]*x509.Certificate // once verified
	asked  bool                  // the server has asked for a certificate, and was shown none
	shown  bool                  // the server has asked for the device certificate, and was shown it
}

// refused is an error that a verified server is the cause of.
func (v *verifier) refused(err error) error {
	return &RefusedError{Issuer: v.chains[0][0].Issuer, Host: v.host, Certificate: v.shown, Missing: v.asked, Err: err}
}

var errNoCertificate = errors.New("the server presents no certificate")

// verify is tls.Config.VerifyConnection: it is called in every handshake, resumed ones
// too, before anything is sent through the connection.
func (v *verifier) verify(state tls.ConnectionState) error {
	presented := state.PeerCertificates
	if len(presented) == 0 {
		return errNoCertificate
	}
	roots, err := v.trust.roots(presented)
	if err != nil {
		return err
	}
	options := x509.VerifyOptions{
		DNSName: v.host, CurrentTime: time.Now(),
		Roots: roots, Intermediates: x509.NewCertPool(),
	}
	if options.Roots == nil {
		options.Roots = x509.NewCertPool() // nil would be the system's
	}
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

// FileErrors returns why the roots, with CAFile or with ProxyCAFile, cannot be read, in the
// words of Dial; none when they can.
func (d *Dialer) FileErrors() (met []error) {
	for _, file := range []string{d.CAFile, d.ProxyCAFile} {
		if _, err := d.trust(file); err != nil {
			met = append(met, err)
		}
	}
	return met
}
