package attest

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/tpm"
)

// This file is about keys outside of this process, which a TPM or a signer holds.

// HardwareError means that a TPM or a signer cannot use a key. An error about the content of a
// file is not a HardwareError.
type HardwareError struct {
	// Path is the device of the TPM, or the socket of the signer.
	Path string
	// Err is a *tpm.Error or a *signer.Error.
	Err error
}

// Error returns the cause without the path of the signer, which a SecretError contains.
func (e *HardwareError) Error() string {
	if of, is := errors.AsType[*signer.Error](e.Err); is {
		return of.Err.Error()
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *HardwareError) Unwrap() error { return e.Err }

// Lost reports whether this TPM will never be able to use the key.
func (e *HardwareError) Lost() bool {
	of, is := errors.AsType[*tpm.Error](e.Err)
	return is && of.Kind == tpm.Unusable
}

// Barred reports whether dpsd may not use the socket of the signer as it is. A change of the socket
// can end this: systemd.socket(5) gives it to its group a moment after it has created it.
func (e *HardwareError) Barred() bool {
	of, is := errors.AsType[*signer.Error](e.Err)
	return is && (of.Kind == signer.Forbidden || of.Kind == signer.Untrusted)
}

// Remedy returns the advice for an error if that of its fault is not specific enough, or "".
func (e *HardwareError) Remedy() string {
	of, is := errors.AsType[*tpm.Error](e.Err)
	switch {
	case !is:
		return ""
	case of.Kind == tpm.Unavailable && errors.Is(of, fs.ErrPermission):
		return "Give dpsd access to the TPM. For dpsd.service: " + DropIn
	case of.Kind == tpm.Unsupported:
		return "Use a key of a type that this TPM supports: dpsd tpm status lists them."
	case of.Kind == tpm.Protected, of.Kind == tpm.Policy:
		return "Create a key without a password and without a policy: dpsd tpm create-key. If the owner of the TPM has a password, have its administrator create a persistent parent."
	}
	return ""
}

// DropIn is the command that gives dpsd.service access to the TPM.
const DropIn = "install -D -m 0644 /usr/share/doc/dpsd/examples/tpm.conf /etc/systemd/system/dpsd.service.d/tpm.conf && systemctl daemon-reload && systemctl restart --no-block dpsd"

// HardwareKey is a private key that a TPM or a signer holds. The caller must always close it.
// After a failed signature, it returns the same error without another request; otherwise, the
// attempt with each further protocol would wait for the TPM or the signer again.
type HardwareKey struct {
	key interface {
		crypto.Signer
		io.Closer
		SupportedSchemes() []tls.SignatureScheme
	}
	// fail adds the reference and the path to an error.
	fail func(error) error

	mu  sync.Mutex
	err error
}

// Public returns the public key.
func (k *HardwareKey) Public() crypto.PublicKey { return k.key.Public() }

// Sign implements crypto.Signer.
func (k *HardwareKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return nil, k.err
	}
	signature, err := k.key.Sign(random, digest, opts)
	if err != nil {
		k.err = k.fail(err)
	}
	return signature, k.err
}

// Close removes the key from the TPM, or closes the connection to the signer.
func (k *HardwareKey) Close() error { return k.key.Close() }

// failed returns the error of the failed signature, or nil.
func (k *HardwareKey) failed() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// notLoaded is a key of which only the public key is known, because FilesOnly is set.
type notLoaded struct{ public crypto.PublicKey }

func (k notLoaded) Public() crypto.PublicKey { return k.public }

func (notLoaded) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the key is not loaded")
}

// Device returns the path of the TPM.
func (s Secrets) Device() string { return cmp.Or(s.device().Path, tpm.Path) }

func (s Secrets) device() *tpm.Device {
	if s.TPM == nil {
		return &tpm.Device{}
	}
	return s.TPM
}

// tpmError adds the device to an error of the TPM.
func (s Secrets) tpmError(err error) error { return &HardwareError{s.Device(), err} }

func (s Secrets) waiting(what string) {
	if s.Waiting != nil {
		s.Waiting(what)
	}
}

// LoadKey loads the private key in the text of a TSS2 file into the TPM. The error is a
// *HardwareError, or a *tpm.Error about the text.
func (s Secrets) LoadKey(ctx context.Context, text []byte) (*HardwareKey, error) {
	f, err := tpm.Parse(text)
	if err != nil {
		return nil, err
	}
	key, err := s.load(ctx, f)
	if err != nil {
		return nil, err
	}
	return &HardwareKey{key: key, fail: s.tpmError}, nil
}

// CreateKey creates a private key in the TPM, and returns the text of its TSS2 file. The error
// is a *HardwareError.
func (s Secrets) CreateKey(ctx context.Context, a tpm.Algorithm) ([]byte, error) {
	s.waiting("the TPM")
	device := s.device()
	parent, err := device.Parent(ctx)
	if err != nil {
		return nil, s.tpmError(err)
	}
	text, err := device.Create(ctx, a, parent)
	if err != nil {
		return nil, s.tpmError(err)
	}
	return text, nil
}

// TestKey tests the key in the text of a TSS2 file. The error is that of LoadKey.
func (s Secrets) TestKey(ctx context.Context, text []byte) (tpm.Result, error) {
	f, err := tpm.Parse(text)
	if err != nil {
		return tpm.Result{}, err
	}
	result, err := s.device().Test(ctx, f)
	if err != nil {
		err = s.tpmError(err)
	}
	return result, err
}

// parseTPM reads a TSS2 file that the configuration names.
func parseTPM(text []byte) (*tpm.File, error) {
	f, err := tpm.Parse(text)
	if of, is := errors.AsType[*tpm.Error](err); is {
		then := "Create a key that dpsd can use: run dpsd tpm create-key or, for a symmetric key, dpsd tpm seal."
		if of.Kind == tpm.Damaged {
			then = "Restore the file from a backup, or create a new key: run dpsd tpm create-key --replace or, for a symmetric key, dpsd tpm seal --replace."
		}
		return nil, &input.Mistake{What: err.Error(), Err: err, Then: then}
	}
	return f, err
}

func (s Secrets) load(ctx context.Context, f *tpm.File) (*tpm.Key, error) {
	s.waiting("the TPM")
	key, err := s.device().Load(ctx, f)
	if err != nil {
		return nil, s.tpmError(err)
	}
	return key, nil
}

// tpmKey loads the private key in the text of a TSS2 file, or only reads its public key if
// FilesOnly is set.
func (s Secrets) tpmKey(ctx context.Context, r Reference, text []byte) (crypto.Signer, error) {
	f, err := parseTPM(text)
	switch {
	case err != nil:
		return nil, err
	case f.Public() == nil:
		return nil, &input.Mistake{What: "the TPM key in the file is a symmetric key, not a private key", Err: ErrTPMKey,
			Then: `set type = "symmetric-key" and key in this [[credential]]`}
	case s.FilesOnly:
		return notLoaded{f.Public()}, nil
	}
	key, err := s.load(ctx, f)
	if err != nil {
		return nil, err
	}
	return &HardwareKey{key: key, fail: func(err error) error { return s.unusable(r, privateKey, s.tpmError(err)) }}, nil
}

// signerKey connects to the signer of a reference. With FilesOnly, it does not connect, and
// assumes that the signer has the private key of the leaf.
func (s Secrets) signerKey(ctx context.Context, r Reference, leaf crypto.PublicKey) (crypto.Signer, error) {
	if s.FilesOnly {
		return notLoaded{leaf}, nil
	}
	fail := func(err error) error { return &SecretError{Reference: r, Err: &HardwareError{r.Signer, err}} }
	s.waiting("the signer " + r.Signer)
	key, err := signer.Dial(ctx, r.Signer)
	if err != nil {
		return nil, fail(err)
	}
	return &HardwareKey{key: key, fail: fail}, nil
}

// authenticate returns the HMAC-SHA256 of data under the symmetric key in text, which is base64
// or a TSS2 file.
func (s Secrets) authenticate(ctx context.Context, text, data []byte) ([]byte, error) {
	if tpm.Is(text) {
		return s.authenticateTPM(ctx, text, data)
	}
	key, err := DecodeKey(text)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return sas.MAC(key, data), nil
}

// authenticateTPM does what authenticate does, for the text of a TSS2 file. With FilesOnly, it returns nil.
func (s Secrets) authenticateTPM(ctx context.Context, text, data []byte) (mac []byte, err error) {
	f, err := parseTPM(text)
	switch {
	case err != nil:
		return nil, err
	case f.Algorithm != tpm.HMAC:
		return nil, &input.Mistake{What: fmt.Sprintf("the TPM key in the file has the type %s, but a symmetric key has the type %s", f.Algorithm, tpm.HMAC), Err: ErrTPMKey, Then: asX509}
	case s.FilesOnly:
		return nil, nil
	}
	key, err := s.load(ctx, f)
	if err != nil {
		return nil, err
	}
	defer func() { _ = key.Close() }() // if Close fails, the HMAC is valid nevertheless
	if mac, err = key.HMAC(data); err != nil {
		return nil, s.tpmError(err)
	}
	return mac, nil
}
