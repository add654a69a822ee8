package simulator

import (
	"crypto"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Credentials are what a device needs to prove its identity according to the enrollments. A
// device may have a key, a certificate, or both.
type Credentials struct {
	// Key is the symmetric key in base64, or "" for the reason in NoKey.
	Key   string
	NoKey error
	// Certificate is the device's certificate and PrivateKey its key, both PEM, or nil for the
	// reason in NoCertificate.
	Certificate, PrivateKey []byte
	NoCertificate           error
	// Hub is the host name of the hub that the device's enrollment assigns, and DeviceID the
	// device's ID there.
	Hub, DeviceID string
}

// Credentials creates the credentials of a device from the enrollment that they will be checked
// against. It returns an error if the device can have neither a key nor a certificate.
//
// A certificate requires the private key of an authority that the enrollment trusts: that of
// the default group, or NAME.key beside an authority's file NAME.pem.
func (s *Server) Credentials(registrationID string) (Credentials, error) {
	if !enroll.IsRegistrationID(registrationID) {
		return Credentials{}, fmt.Errorf("%q is not a registration ID", registrationID)
	}
	var c Credentials
	entries := *s.entries.Load()
	key, err := entries.DeviceKey(registrationID)
	c.Key, c.NoKey = base64.StdEncoding.EncodeToString(key), err
	c.Certificate, c.PrivateKey, c.NoCertificate = s.issueFor(registrationID, entries)
	c.Hub, c.DeviceID = entries.Assignment(registrationID)
	if c.NoKey != nil && c.NoCertificate != nil {
		return c, fmt.Errorf("the enrollments allow no credential for the device %q: %w; %w", registrationID, c.NoKey, c.NoCertificate)
	}
	return c, nil
}

// issueFor issues a device's certificate by the first authority whose private key is available.
func (s *Server) issueFor(registrationID string, entries enroll.Entries) (certificate, key []byte, err error) {
	authorities, err := entries.DeviceAuthorities(registrationID)
	if err != nil {
		return nil, nil, err
	}
	var missing []error
	for _, a := range authorities {
		issuer, err := s.issuerOf(a)
		if err != nil {
			missing = append(missing, err)
			continue
		}
		certificate, key, err := issuer.device(registrationID, s.now())
		if err != nil {
			return nil, nil, err
		}
		if a.Certificate.CheckSignatureFrom(a.Certificate) != nil { // an intermediate
			certificate = append(certificate, certificatePEM(a.Certificate.Raw)...)
		}
		return certificate, key, nil
	}
	return nil, nil, errors.Join(missing...)
}

// issuerOf finds the private key of an authority that an enrollment trusts.
func (s *Server) issuerOf(a enroll.Authority) (*authority, error) {
	if a.Certificate.Equal(s.material.device.certificate) {
		return s.material.device, nil
	}
	if a.File == "" {
		return nil, fmt.Errorf("the private key of the certificate authority %q is not known", a.Certificate.Subject.CommonName)
	}
	keyFile := strings.TrimSuffix(a.File, filepath.Ext(a.File)) + ".key"
	pair, err := tls.LoadX509KeyPair(a.File, keyFile)
	if err != nil {
		return nil, fmt.Errorf("the certificate authority %s has no usable private key: %w", a.File, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.Equal(a.Certificate) {
		return nil, fmt.Errorf("%s is not the private key of the certificate authority %q", keyFile, a.Certificate.Subject.CommonName)
	}
	return &authority{a.Certificate, signer}, nil
}
