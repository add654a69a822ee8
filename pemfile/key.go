package pemfile

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/dpsd-project/dpsd/input"
)

var (
	// ErrNotPrivateKey means that a file does not contain a private key in PEM.
	ErrNotPrivateKey = errors.New("not a PEM private key (PKCS#8, SEC 1 or PKCS#1)")
	// ErrPassphrase means that a private key is protected by a passphrase. A service has no
	// terminal on which to enter it.
	ErrPassphrase = errors.New("the private key is protected by a passphrase")
	// ErrUnsupportedKey means that the service does not accept a key of this kind.
	ErrUnsupportedKey = errors.New("unsupported kind of key")
)

// PrivateKey returns the private key of a PEM file: RSA, or EC on a curve that crypto/x509
// supports. It ignores certificates and parameters; a second private key is an error. The
// error is a *input.Mistake that wraps one of the errors of this package.
func PrivateKey(text []byte) (crypto.Signer, error) {
	blocks, err := Blocks(text)
	if err != nil {
		return nil, kind(err, ErrNotPrivateKey)
	}
	var key *Block
	defer func() {
		for _, b := range blocks {
			clear(b.Bytes)
		}
	}()
	for i, b := range blocks {
		if !isPrivateKey(b.Type) {
			continue
		}
		if key != nil {
			return nil, &input.Mistake{
				What: fmt.Sprintf("line %d: a second private key; the first one begins on line %d", b.Line, key.Line),
				Then: "keep the one that belongs to the certificate", Err: ErrNotPrivateKey,
			}
		}
		key = &blocks[i]
	}
	if key == nil {
		if len(blocks) > 0 {
			return nil, noKey(blocks[0])
		}
		return nil, kind(found(text).asPrivateKey(), ErrNotPrivateKey)
	}
	switch {
	case key.Type == "ENCRYPTED PRIVATE KEY", key.Encrypted:
		return nil, &input.Mistake{What: ErrPassphrase.Error(), Command: toPKCS8, Err: ErrPassphrase}
	case key.Type == "TSS2 PRIVATE KEY":
		return nil, &input.Mistake{What: "a TPM key, which only its TPM can use", Err: ErrUnsupportedKey}
	case key.Type == "OPENSSH PRIVATE KEY" && bytes.Contains(key.Bytes, []byte("ssh-ed25519")):
		return nil, Unsupported("an Ed25519 private key in OpenSSH format, which the service does not accept")
	case key.Type == "OPENSSH PRIVATE KEY":
		return nil, &input.Mistake{What: "a private key in OpenSSH format", Command: "cp -p FILE FILE.orig && chmod 600 FILE && ssh-keygen -p -N '' -m PKCS8 -f FILE && chmod --reference=FILE.orig FILE", Err: ErrNotPrivateKey}
	}
	switch k := parse(key.Bytes).(type) {
	case *rsa.PrivateKey:
		return k, nil
	case *ecdsa.PrivateKey:
		return k, nil
	}
	return nil, unusable(key.Bytes, key.Line)
}

// parse tries the three encodings regardless of the label, like tls.X509KeyPair. It
// returns nil if all fail.
func parse(der []byte) any {
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return k
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k
	}
	return nil
}

const (
	toPKCS8 = "cp -p FILE FILE.orig && openssl pkey -in FILE.orig -out FILE"
	newKey  = "cp -p FILE FILE.orig && openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE"
	// newCertificate follows newKey.
	newCertificate = "have a certificate issued for the new key"
)

// Unsupported returns the error for a private key that the service does not accept.
func Unsupported(what string) error {
	return &input.Mistake{What: what, Command: newKey, Then: newCertificate, Err: ErrUnsupportedKey}
}

// unusable explains a private key that is neither RSA nor EC or cannot be parsed.
func unusable(der []byte, line int) error {
	if what := unsupported(der); what != "" {
		return Unsupported(what)
	}
	if curveIn(der) == explicit {
		return &input.Mistake{
			What:    "a private key whose curve P-256, P-384 or P-521 is given by its parameters, not by its name",
			Command: "cp -p FILE FILE.orig && openssl pkey -in FILE.orig -ec_param_enc named_curve -out FILE", Err: ErrUnsupportedKey,
		}
	}
	switch what := kindOf(der); what {
	case unknown, privateKey:
		return &input.Mistake{What: fmt.Sprintf("line %d: the private key cannot be read: it is damaged or of an unknown kind", line), Err: ErrNotPrivateKey}
	case encryptedKey:
		return &input.Mistake{
			What:    fmt.Sprintf("line %d: %v, but the label does not say so", line, ErrPassphrase),
			Command: "cp -p FILE FILE.orig && sed 's/ [A-Z ]*PRIVATE KEY-/ ENCRYPTED PRIVATE KEY-/' FILE.orig >FILE", Err: ErrPassphrase,
		}
	default:
		return &input.Mistake{What: fmt.Sprintf("line %d: the block is labelled as a private key, but it contains %s", line, names[what]), Command: findPrivateKey, Then: "use that file", Err: ErrNotPrivateKey}
	}
}

// noKey explains a PEM file without a private key. b is its first block.
func noKey(b Block) error {
	what := fmt.Sprintf("a block %q", shown(b.Type))
	if kind, known := labels[b.Type]; known {
		what = names[kind]
	}
	return &input.Mistake{What: "the file contains " + what + " but no private key", Command: findPrivateKey, Then: "set private_key to that file", Err: ErrNotPrivateKey}
}
