package tpm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// maxInput is the size of the input buffer that every TPM has (TPM_PT_INPUT_BUFFER).
const maxInput = 1024

// Key is a key that is loaded in a TPM. Unless its algorithm is HMAC, it implements crypto.Signer.
// The caller must always close it.
type Key struct {
	device *Device
	worker *worker
	ctx    context.Context
	file   *File
	loaded loaded
	name   tpm2.TPM2BName

	schemes []tls.SignatureScheme

	mu     sync.Mutex
	closed bool
}

// Load loads the key of a file. For an RSA key, the first Load also determines whether the TPM
// creates signatures that TLS 1.3 accepts. ctx also limits later operations of the key, so it
// should be the context of the attempt that uses the key.
func (d *Device) Load(ctx context.Context, f *File) (*Key, error) {
	k, err := d.load(ctx, f)
	return k, explain("load the key", err)
}

func (d *Device) load(ctx context.Context, f *File) (*Key, error) {
	switch {
	case f.Policy: // even if the file does not state whether there is a password
		return nil, fail(Policy, "the key has a policy, which the TPM would have to check before each use; dpsd uses only keys without a policy")
	case f.Protected:
		return nil, fail(Protected, "it has a password, or the file does not state that it has none; dpsd uses only keys without a password")
	case d.refused(f.id()):
		return nil, fail(Protected, "it has a password, as the TPM has already reported; dpsd does not try again until it is restarted, because wrong passwords can lock the TPM")
	}
	limited, cancel := d.limit(ctx)
	defer cancel()
	w, err := d.acquire(limited)
	if err != nil {
		return nil, err
	}
	k := &Key{device: d, worker: w, ctx: ctx, file: f}
	err = w.do(job{
		ctx:  limited,
		run:  k.load,
		undo: func(l *link) { l.flush(k.loaded.handle) },
	})
	if err != nil {
		d.release(w)
		return nil, err
	}
	return k, nil
}

// load loads the key and determines its schemes.
func (k *Key) load(l *link) error {
	s := session{l, k.device}
	object, err := s.load(k.file)
	if err != nil {
		return err
	}
	usable := false
	defer func() {
		if !usable { // even if go-tpm panics
			l.flush(object.Handle)
		}
	}()
	k.loaded, k.name = loaded{l, object.Handle}, object.Name
	hashes, err := s.hashes()
	if err == nil && k.file.public.canPSS() {
		err = s.tryPSS(object, k.file)
	}
	k.schemes = k.file.public.schemes(hashes, k.device.pss() == pssWorks)
	if err == nil && k.file.Algorithm != HMAC && len(k.schemes) == 0 {
		err = fail(Unsupported, "the TPM does not support any TLS signature scheme for a key of type %s", k.file.Algorithm)
	}
	usable = err == nil
	return err
}

// Public returns the public key, *ecdsa.PublicKey or *rsa.PublicKey; nil with HMAC.
func (k *Key) Public() crypto.PublicKey { return k.file.Public() }

// SupportedSchemes returns the TLS signature schemes that work, the preferred one first, for
// tls.Certificate.SupportedSignatureAlgorithms.
func (k *Key) SupportedSchemes() []tls.SignatureScheme { return k.schemes }

// TLS13 reports whether the key can authenticate a client in TLS 1.3. If it cannot,
// tls.Config.MaxVersion must be TLS 1.2; otherwise, crypto/tls sends no certificate.
func (k *Key) TLS13() bool { return tls13(k.file.Algorithm, k.schemes) }

// Sign implements crypto.Signer. An RSA key signs with PKCS #1 v1.5, or with PSS and a salt that
// is as long as the hash. Sign ignores its first argument, because the TPM has its own source of
// randomness.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	scheme, err := k.file.public.sigScheme(digest, opts, k.device.pss())
	if err != nil {
		return nil, explain("sign", err)
	}
	var signature []byte
	err = k.do(func(s session) (err error) {
		signature, err = s.sign(k.object(), digest, scheme)
		return err
	})
	if err != nil {
		return nil, explain("sign", err)
	}
	return signature, nil
}

// HMAC returns the HMAC-SHA256 of at most 1024 bytes.
func (k *Key) HMAC(data []byte) ([]byte, error) {
	var sum []byte
	err := fail(Unsupported, "a key of type %s cannot compute an HMAC", k.file.Algorithm)
	switch {
	case len(data) > maxInput:
		err = fail(Unsupported, "the data has %d bytes; a TPM accepts at most %d", len(data), maxInput)
	case k.file.Algorithm == HMAC:
		err = k.do(func(s session) (err error) {
			sum, err = s.hmac(k.object(), data)
			return err
		})
	}
	if err != nil {
		return nil, explain("compute an HMAC", err)
	}
	return sum, nil
}

func (k *Key) object() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.loaded.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)}
}

// do runs an operation with the loaded key.
func (k *Key) do(run func(session) error) error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return errClosed
	}
	k.device.retain(k.worker) // Close may be called during the operation
	k.mu.Unlock()
	defer k.device.release(k.worker)
	ctx, cancel := k.device.limit(k.ctx)
	defer cancel()
	err := k.worker.do(job{ctx: ctx, link: k.loaded.link, run: func(l *link) error {
		k.mu.Lock()
		closed := k.closed
		k.mu.Unlock()
		if closed { // its handle may now belong to another key
			return errClosed
		}
		return run(session{l, k.device})
	}})
	switch {
	case isWrongPassword(err):
		k.device.refuse(k.file.id())
	case errors.Is(err, tpm2.TPMRCHandle): // for example, the TPM was restarted, and there is no resource manager
		return &lost{err}
	}
	return err
}

var errClosed = errors.New("the key is closed")

// Close removes the key from the TPM, and closes the device if no other key is loaded. If the
// TPM does not answer, Close returns an error after five seconds, and the key is removed when
// the TPM answers. A second Close does nothing.
func (k *Key) Close() error {
	k.mu.Lock()
	closed := k.closed
	k.closed = true
	k.mu.Unlock()
	if closed {
		return nil
	}
	w := k.worker
	w.mu.Lock()
	w.unused = append(w.unused, k.loaded)
	w.mu.Unlock()
	defer k.device.release(w)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), grace)
	defer cancel()
	err := w.do(job{ctx: ctx, link: k.loaded.link, run: func(*link) error { return nil }})
	if errors.Is(err, errGone) { // the key is no longer in the TPM
		return nil
	}
	return explain("unload the key", err)
}

// id returns a string that identifies the key of a file.
func (f *File) id() string {
	sum := sha256.Sum256(f.private)
	return string(sum[:])
}

// refused reports whether the TPM has refused an empty password.
func (d *Device) refused(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.facts.wrongPassword[id]
}

func (d *Device) refuse(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.facts.wrongPassword == nil {
		d.facts.wrongPassword = make(map[string]bool)
	}
	d.facts.wrongPassword[id] = true
}

func (d *Device) pss() pssState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.facts.pss
}

func isWrongPassword(err error) bool {
	return errors.Is(err, tpm2.TPMRCAuthFail) || errors.Is(err, tpm2.TPMRCBadAuth)
}

// pssState says whether the TPM creates RSA-PSS signatures with a salt that is as long as the
// hash, which TLS requires (RFC 8446, 4.2.3). The TPM specification also allows the longest
// possible salt (part 1, B.7).
type pssState int

const (
	pssUnknown pssState = iota
	pssWorks
	pssFails
)

// canPSS reports whether the public area permits RSA-PSS.
func (a area) canPSS() bool {
	return a.kind == tpm2.TPMAlgRSA && (a.scheme == tpm2.TPMAlgNull || a.scheme == tpm2.TPMAlgRSAPSS)
}

// hash is a hash function of TLS and its schemes.
type hash struct {
	id              tpm2.TPMAlgID
	function        crypto.Hash
	ecdsa, pss, pkc tls.SignatureScheme
	own             Algorithm // the EC key type that requires this hash in TLS 1.3
}

// hashesOfTLS returns the hash functions that both TLS 1.2 and 1.3 support.
func hashesOfTLS() [3]hash {
	return [3]hash{
		{tpm2.TPMAlgSHA256, crypto.SHA256, tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.PKCS1WithSHA256, P256},
		{tpm2.TPMAlgSHA384, crypto.SHA384, tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA384, tls.PKCS1WithSHA384, P384},
		{tpm2.TPMAlgSHA512, crypto.SHA512, tls.ECDSAWithP521AndSHA512, tls.PSSWithSHA512, tls.PKCS1WithSHA512, P521},
	}
}

// schemes returns the TLS schemes of a key in a TPM that supports these hash functions. TLS 1.2
// allows each hash function with each curve.
func (a area) schemes(hashes map[tpm2.TPMAlgID]bool, pss bool) []tls.SignatureScheme {
	var first, second []tls.SignatureScheme
	for _, h := range hashesOfTLS() {
		if !hashes[h.id] || a.scheme != tpm2.TPMAlgNull && a.hash != h.id {
			continue
		}
		switch a.kind {
		case tpm2.TPMAlgECC:
			if h.own == a.name() {
				first = append(first, h.ecdsa)
			} else {
				second = append(second, h.ecdsa)
			}
		case tpm2.TPMAlgRSA:
			if pss && a.canPSS() {
				first = append(first, h.pss)
			}
			if a.scheme != tpm2.TPMAlgRSAPSS {
				second = append(second, h.pkc)
			}
		}
	}
	return append(first, second...)
}

// tls13 reports whether one of the schemes works in TLS 1.3.
func tls13(a Algorithm, schemes []tls.SignatureScheme) bool {
	for _, s := range schemes {
		for _, h := range hashesOfTLS() {
			if s == h.pss || s == h.ecdsa && a == h.own {
				return true
			}
		}
	}
	return false
}

// sigScheme returns the scheme of a signature, or an error if the key cannot create it.
func (a area) sigScheme(digest []byte, opts crypto.SignerOpts, pss pssState) (tpm2.TPMTSigScheme, error) {
	id, scheme := tpm2.TPMAlgNull, tpm2.TPMAlgECDSA
	for _, h := range hashesOfTLS() {
		if h.function == opts.HashFunc() && h.function.Size() == len(digest) {
			id = h.id
		}
	}
	if id == tpm2.TPMAlgNull {
		return tpm2.TPMTSigScheme{}, unsupported("dpsd cannot sign a digest of %d bytes with the hash function %v", len(digest), opts.HashFunc())
	}
	switch a.kind {
	case tpm2.TPMAlgECC:
	case tpm2.TPMAlgRSA:
		scheme = tpm2.TPMAlgRSASSA
		if options, ok := opts.(*rsa.PSSOptions); ok {
			scheme = tpm2.TPMAlgRSAPSS
			switch options.SaltLength {
			case rsa.PSSSaltLengthAuto, rsa.PSSSaltLengthEqualsHash, len(digest):
			default:
				return tpm2.TPMTSigScheme{}, unsupported("dpsd does not support RSA-PSS with a salt of %d bytes", options.SaltLength)
			}
			if pss == pssFails {
				return tpm2.TPMTSigScheme{}, unsupported("this TPM uses a longer salt for RSA-PSS than TLS allows")
			}
		}
	default:
		return tpm2.TPMTSigScheme{}, unsupported("an HMAC key cannot sign")
	}
	if a.scheme != tpm2.TPMAlgNull && (a.scheme != scheme || a.hash != id) {
		return tpm2.TPMTSigScheme{}, unsupported("the key is restricted to another signature scheme or hash function: %s", a.describe())
	}
	return sigScheme(scheme, id), nil
}

func sigScheme(scheme, hash tpm2.TPMAlgID) tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash})}
}
