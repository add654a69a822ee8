package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// Certificate describes the issued certificate in a Record.
type Certificate struct {
	// CertificateFile is the absolute path of the chain in PEM: the gateway's certificate
	// first. PrivateKeyFile is the absolute path of its key in PEM: PKCS #8, or TSS2 if the
	// key is in the TPM. Both are in one directory, which never changes. It exists until the
	// certificate has expired, or until dpsd has published four later ones.
	CertificateFile string `json:"certificateFile"`
	PrivateKeyFile  string `json:"privateKeyFile"`

	NotBefore time.Time `json:"notBefore"` // of the whole chain: the latest NotBefore
	NotAfter  time.Time `json:"notAfter"`  // of the whole chain: the earliest NotAfter
	Serial    string    `json:"serial"`    // hexadecimal digits
	SHA256    string    `json:"sha256"`    // of the certificate in DER, hexadecimal digits
	Issuer    string    `json:"issuer"`    // distinguished name, RFC 4514
}

// Read returns the chain and the key in PEM, for example for tls.X509KeyPair. They belong
// together, because their directory never changes. Two files that are read through
// certificate/current may not belong together, because a renewal may replace the link in
// between.
//
// dpsd may have removed the pair since the record was read: if the error is fs.ErrNotExist,
// read the record again.
func (c Certificate) Read() (chain, key []byte, err error) {
	directory, err := openRoot(filepath.Dir(c.CertificateFile))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = directory.Close() }()
	if chain, err = readWithin(directory, filepath.Base(c.CertificateFile)); err != nil {
		return nil, nil, err
	}
	key, err = readWithin(directory, filepath.Base(c.PrivateKeyFile))
	return chain, key, err
}

// sameCertificate reports whether two records have the same issued certificate.
func sameCertificate(a, b *Certificate) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	sameTimes := x.NotBefore.Equal(y.NotBefore) && x.NotAfter.Equal(y.NotAfter)
	x.NotBefore, x.NotAfter, y.NotBefore, y.NotAfter = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return sameTimes && x == y
}

// pairSchema is the version of the format of certificate.json.
const pairSchema = 1

// maxIssuer limits the published name of an issuer, in bytes.
const maxIssuer = 1024

// Pair describes an issued certificate and its key: certificate/N/certificate.json. The
// file beside a pending key has the members of the request.
type Pair struct {
	Schema int `json:"schema"` // set by SavePair
	Number int `json:"-"`      // N

	RegistrationID string `json:"registrationId"`
	DeviceID       string `json:"deviceId,omitempty"`
	AssignedHub    string `json:"assignedHub,omitempty"`
	KeyType        string `json:"keyType"`            // "ec-p256", "ec-p384" or "rsa-2048"
	KeyStore       string `json:"keyStore,omitempty"` // "tpm" if key.pem is a TSS2 file; "" otherwise

	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	// ExpiresFirst is the position in the chain of the certificate that expires at
	// NotAfter; 0 is the gateway's own.
	ExpiresFirst int       `json:"expiresFirst,omitempty"`
	Serial       string    `json:"serial,omitempty"`
	SHA256       string    `json:"sha256,omitempty"`
	Issuer       string    `json:"issuer,omitempty"`
	IssuedAt     time.Time `json:"issuedAt,omitzero"` // wall clock when it was received; set by SavePair

	ChainSHA256 string `json:"chainSha256,omitempty"` // of chain.pem; set by SavePair
	KeySHA256   string `json:"keySha256"`             // of key.pem; set by SavePair
}

// PendingKey is a key for which a certificate has been, or will be, requested.
type PendingKey struct {
	RegistrationID string
	KeyType        string
	KeyStore       string // as in a Pair
	PEM            []byte
}

// PairError means that a file of an issued certificate, or of a pending key, exists but
// cannot be read. dpsd never overwrites such a file.
type PairError struct {
	Path string
	Err  error
}

func (e *PairError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PairError) Unwrap() error { return e.Err }

// currentPair is the published pair as the store knows it.
type currentPair struct {
	Pair
	found bool
	err   error
}

// Pair returns the pair that is published as certificate/current, as it was when the store
// last read or wrote it. found is false if there is none, or if it is damaged, which is a
// Notice. The error is a *PairError.
func (s *Store) Pair() (pair Pair, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pair.Pair, s.pair.found, s.pair.err
}

// PairKey reads the private key of the published pair. The error is a *PairError, or another
// error if there is no such key.
func (s *Store) PairKey() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.state.certificates()
	if err != nil {
		return nil, err
	}
	defer c.close()
	_, key, err := c.look(pairPath(s.pair.Number))
	return key, err
}

// CheckPair reads the files of the published pair and of the pending key again. It changes
// nothing on the disk, see Repair. The error is that of Pair or PendingKey.
func (s *Store) CheckPair() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.findPair(time.Time{}, false)
	if s.pair.err != nil {
		return s.pair.err
	}
	_, _, err := s.pending()
	return err
}

// PendingKey returns the key of the last request that has no certificate yet. found is false
// if there is none, or if it is damaged, which is a Notice. The error is a *PairError.
func (s *Store) PendingKey() (key PendingKey, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pending()
}

func (s *Store) pending() (PendingKey, bool, error) {
	c, err := s.state.certificates()
	if err != nil {
		return PendingKey{}, false, s.unusable(err)
	}
	defer c.close()
	p, key, err := c.look(pendingPath)
	if err != nil {
		return PendingKey{}, false, s.unusable(err)
	}
	return PendingKey{RegistrationID: p.RegistrationID, KeyType: p.KeyType, KeyStore: p.KeyStore, PEM: key}, true, nil
}

// unusable returns the *PairError in err, or nil. It records damage as a notice.
func (s *Store) unusable(err error) error {
	var damage *pairDamage
	if errors.As(err, &damage) {
		s.noticeOnce(PairDamaged, damage.path, damage.reason)
	}
	if unreadable := (*PairError)(nil); errors.As(err, &unreadable) {
		return unreadable
	}
	return nil
}

// SavePendingKey stores a key durably, with mode 0600, before it is used in a request. It
// replaces a pending key, which remains until the new one is complete. The error is a
// *WriteError, or a *PairError if there is a pending key that cannot be read.
func (s *Store) SavePendingKey(key PendingKey) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.savePendingKey(key)
	if err == nil {
		return nil
	}
	if unreadable := (*PairError)(nil); errors.As(err, &unreadable) {
		return unreadable
	}
	return writeError(s.state.path(pendingPath), err)
}

func (s *Store) savePendingKey(key PendingKey) error {
	c, err := s.createCertificates()
	if err != nil {
		return err
	}
	defer c.close()
	_, _, old := c.look(pendingPath)
	if unreadable := (*PairError)(nil); errors.As(old, &unreadable) {
		return unreadable
	}
	if err := c.removeAll(newPendingPath); err != nil {
		return err
	}
	if err := c.mkdir(newPendingPath); err != nil {
		return err
	}
	if err := c.writePair(newPendingPath, Pair{RegistrationID: key.RegistrationID, KeyType: key.KeyType, KeyStore: key.KeyStore, KeySHA256: digest(key.PEM)}); err != nil {
		return err
	}
	if err := c.write(join(newPendingPath, keyName), key.PEM); err != nil {
		return err
	}
	if err := c.sync(newPendingPath); err != nil {
		return err
	}
	return c.adoptPending()
}

// SavePair adds the chain to the pending key and publishes both as certificate/N and
// certificate/current. The following Save publishes the record with them. It removes
// earlier pairs that are damaged or have expired by now, and keeps three others. If it fails, it can be repeated with
// the same chain, unless the error wraps ErrKeyLost. The error is a *WriteError.
func (s *Store) SavePair(pair Pair, chain []byte, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.savePair(pair, chain, now); err != nil {
		if unreadable := (*PairError)(nil); errors.As(err, &unreadable) {
			err = &fileError{unreadable.Path, unreadable.Err}
		}
		return writeError(s.state.path(certificatePath), err)
	}
	return nil
}

func (s *Store) savePair(pair Pair, chain []byte, now time.Time) error {
	c, err := s.createCertificates()
	if err != nil {
		return err
	}
	defer c.close()
	pair.ChainSHA256 = digest(chain)
	saved, found := c.latest(pair.ChainSHA256)
	if !found {
		if saved, err = s.completePair(c, pair, chain, now); err != nil {
			return err
		}
	}
	if err := c.publish(saved.Number); err != nil {
		return err
	}
	s.pair = currentPair{Pair: saved, found: true}
	s.tidy(c, now, true)
	return nil
}

// completePair adds the chain to the pending key and makes both the pair with the next
// number.
func (s *Store) completePair(c *certificates, pair Pair, chain []byte, now time.Time) (Pair, error) {
	_, key, err := c.look(pendingPath)
	if errors.As(err, new(*pairDamage)) || errors.Is(err, fs.ErrNotExist) {
		return Pair{}, &fileError{s.state.path(join(pendingPath, keyName)), ErrKeyLost}
	}
	if err != nil {
		return Pair{}, err
	}
	pair.KeySHA256 = digest(key)
	pair.NotBefore, pair.NotAfter, pair.IssuedAt = wholeSeconds(pair.NotBefore), wholeSeconds(pair.NotAfter), wholeSeconds(now)
	pair.Issuer = displayed(pair.Issuer)
	if err := c.write(join(pendingPath, chainName), chain); err != nil {
		return Pair{}, err
	}
	if err := c.writePair(pendingPath, pair); err != nil {
		return Pair{}, err
	}
	if err := s.share(c, pendingPath); err != nil {
		return Pair{}, err
	}
	if err := c.sync(pendingPath); err != nil {
		return Pair{}, err
	}
	pair.Schema, pair.Number = pairSchema, s.nextNumber(c)
	if err := c.rename(pendingPath, pairPath(pair.Number)); err != nil {
		return Pair{}, err
	}
	return pair, c.sync(certificatePath)
}

// nextNumber returns a number that no pair has had since the last Forget, so that the path
// of a pair never names another one.
func (s *Store) nextNumber(c *certificates) int {
	last := max(c.current(), s.pair.Number)
	if s.published && s.current.Certificate != nil {
		last = max(last, pairNumber(filepath.Base(filepath.Dir(s.current.Certificate.CertificateFile))))
	}
	numbers, _ := c.numbers()
	for _, n := range numbers {
		last = max(last, n)
	}
	return last + 1
}

// certificate returns the member of the record that describes the published pair. While the
// pair cannot be read, the member keeps its old value.
func (s *Store) certificate(old *Certificate) *Certificate {
	switch {
	case s.pair.err != nil:
		return old
	case !s.pair.found:
		return nil
	}
	directory := s.state.path(pairPath(s.pair.Number))
	if absolute, err := filepath.Abs(directory); err == nil {
		directory = absolute
	}
	return &Certificate{
		CertificateFile: filepath.Join(directory, chainName),
		PrivateKeyFile:  filepath.Join(directory, keyName),
		NotBefore:       s.pair.NotBefore,
		NotAfter:        s.pair.NotAfter,
		Serial:          s.pair.Serial,
		SHA256:          s.pair.SHA256,
		Issuer:          s.pair.Issuer,
	}
}

// digest returns the SHA-256 of data in hexadecimal digits.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// displayed returns a name that is safe to display, with at most maxIssuer bytes.
func displayed(name string) string {
	name = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(name, string(unicode.ReplacementChar)))
	if len(name) > maxIssuer {
		name = strings.ToValidUTF8(name[:maxIssuer], "")
	}
	return name
}

// pairNumber returns the number in the name of a pair's directory, or 0 for another name.
func pairNumber(name string) int {
	n, err := strconv.Atoi(name)
	if err != nil || n < 1 || n > maxPairs || strconv.Itoa(n) != name {
		return 0
	}
	return n
}

// pairError returns the *PairError for a file that cannot be read.
func pairError(path string, err error) *PairError {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return &PairError{path, err}
}

// notKind returns why something is not what it should be.
func notKind(mode fs.FileMode, want string) error {
	is := "a directory"
	switch {
	case mode&fs.ModeSymlink != 0:
		is = "a link"
	case !mode.IsDir():
		is = kind(mode)
	}
	return errors.New("it is " + is + ", not " + want)
}
