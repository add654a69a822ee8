// Package pair creates issued certificates for tests, in the files that dpsd publishes.
package pair

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
)

// Certificate describes an issued certificate and its chain of three: the gateway's, the
// issuing CA's and the root.
type Certificate struct {
	RegistrationID string              // "": gw-1
	KeyType        certificate.KeyType // "": ec-p384
	NotBefore      time.Time           // of the gateway's certificate
	NotAfter       time.Time
	// IssuerNotAfter is when the certificate of the issuing CA expires; zero: 10 years after
	// NotBefore.
	IssuerNotAfter time.Time
	// TPMKey is the TSS2 file of the key; nil: a key is created.
	TPMKey []byte
}

// Pair is an issued certificate and its key as files.
type Pair struct {
	Key, Chain []byte // PEM
	Metadata   store.Pair
}

// Issue creates a key and issues a certificate for it.
func Issue(c Certificate) (Pair, error) {
	id, keyType := cmp.Or(c.RegistrationID, "gw-1"), cmp.Or(c.KeyType, certificate.P384)
	key, public, keyStore, err := c.key(keyType)
	if err != nil {
		return Pair{}, err
	}
	years := c.NotBefore.AddDate(10, 0, 0)
	issuerEnd := c.IssuerNotAfter
	if issuerEnd.IsZero() {
		issuerEnd = years
	}
	root, err := newAuthority(nil, "Test root", c.NotBefore, years)
	if err != nil {
		return Pair{}, err
	}
	issuer, err := newAuthority(root, "Test issuing CA", c.NotBefore, issuerEnd)
	if err != nil {
		return Pair{}, err
	}
	leaf, err := issuer.sign(&x509.Certificate{
		SerialNumber: big.NewInt(0x1f2e3d4c), Subject: pkix.Name{CommonName: id}, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, public)
	if err != nil {
		return Pair{}, err
	}
	chain := certificate.Chain{leaf, issuer.certificate, root.certificate}
	p := Pair{Key: key, Chain: chain.PEM()}
	p.Metadata = store.Pair{
		Schema: 1, RegistrationID: id, DeviceID: id, AssignedHub: "dpsd-sim.azure-devices.net", KeyType: string(keyType), KeyStore: keyStore,
		Serial: chain.Serial(), SHA256: chain.Fingerprint(), Issuer: chain.Issuer(), IssuedAt: c.NotBefore.UTC().Truncate(time.Second),
		ChainSHA256: Digest(p.Chain), KeySHA256: Digest(p.Key),
	}
	p.Metadata.NotBefore, p.Metadata.NotAfter, p.Metadata.ExpiresFirst = chain.Validity()
	return p, nil
}

// key returns the file of the key, its public key, and its store.
func (c Certificate) key(t certificate.KeyType) (text []byte, public crypto.PublicKey, keyStore string, err error) {
	if c.TPMKey != nil {
		f, err := tpm.Parse(c.TPMKey)
		if err != nil {
			return nil, nil, "", err
		}
		return c.TPMKey, f.Public(), string(certificate.InTPM), nil
	}
	if text, err = certificate.NewKey(t); err != nil {
		return nil, nil, "", err
	}
	key, err := certificate.ParseKey(text)
	if err != nil {
		return nil, nil, "", err
	}
	return text, key.Public(), "", nil
}

// Publish writes the pair to a state directory as certificate/number, and publishes it as
// certificate/current. It returns the member of the record.
func (p Pair) Publish(directory string, number int) (*store.Certificate, error) {
	name := strconv.Itoa(number)
	certificates := filepath.Join(directory, "certificate")
	in := filepath.Join(certificates, name)
	text, err := json.MarshalIndent(p.Metadata, "", "  ")
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"key.pem": p.Key, "chain.pem": p.Chain, "certificate.json": append(text, '\n')}
	err = errors.Join(os.MkdirAll(directory, 0o755), os.MkdirAll(in, 0o750), os.Chmod(certificates, 0o750|fs.ModeSetgid), os.Chmod(in, 0o750)) //nolint:gosec // the modes of dpsd
	for file, data := range files {
		path := filepath.Join(in, file)
		err = errors.Join(err, os.WriteFile(path, data, 0o640), os.Chmod(path, 0o640)) //nolint:gosec // likewise
	}
	current := filepath.Join(certificates, "current")
	_ = os.Remove(current)
	return &store.Certificate{
		CertificateFile: filepath.Join(in, "chain.pem"), PrivateKeyFile: filepath.Join(in, "key.pem"),
		NotBefore: p.Metadata.NotBefore, NotAfter: p.Metadata.NotAfter, Serial: p.Metadata.Serial, SHA256: p.Metadata.SHA256, Issuer: p.Metadata.Issuer,
	}, errors.Join(err, os.Symlink(name, current))
}

// Record publishes a record with the certificate in a state directory.
func Record(directory string, record store.Record, c *store.Certificate) error {
	// Without the group, the store would close the pair to it.
	group, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		return err
	}
	s, err := store.Open(store.Options{Directory: directory, CertificateGroup: group.Name}, time.Now())
	if err != nil {
		return err
	}
	record.Certificate = c
	_, err = s.Save(record, time.Now())
	return errors.Join(err, s.Close())
}

// PublishWithRecord issues a certificate and publishes it as certificate/1 together with a
// record.
func PublishWithRecord(directory string, c Certificate) (Pair, error) {
	p, err := Issue(c)
	if err != nil {
		return Pair{}, err
	}
	published, err := p.Publish(directory, 1)
	if err != nil {
		return Pair{}, err
	}
	m := p.Metadata
	err = Record(directory, store.Record{
		AssignedHub: m.AssignedHub, DeviceID: m.DeviceID, RegistrationID: m.RegistrationID, IDScope: "0ne00000000", Endpoint: "localhost",
	}, published)
	return p, err
}

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// newAuthority returns a CA whose certificate the parent signs, or a root without one.
func newAuthority(parent *authority, name string, notBefore, notAfter time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{key: key}
	if parent == nil {
		parent = &authority{certificate: template, key: key}
	}
	a.certificate, err = parent.sign(template, key.Public())
	return a, err
}

func (a *authority) sign(template *x509.Certificate, public crypto.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Digest returns a SHA-256 in hexadecimal digits.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// DER returns the key of a PEM file.
func (p Pair) DER() []byte {
	block, _ := pem.Decode(p.Key)
	return block.Bytes
}
