package setup

import (
	"cmp"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/tpm"
)

// Default names of the files with TPM keys, in the directory of the keys.
const (
	TPMKeyName  = "device.tss2"        // a private key
	TPMSealName = "symmetric-key.tss2" // a symmetric key
)

// TPMKeys creates keys in a TPM and writes their TSS2 files. Each method can be repeated: if
// the file exists, and the TPM can use the key in it, the method returns this key and changes
// nothing.
type TPMKeys struct {
	Device *tpm.Device
	// Place says which group may read the files.
	Place *Place
	// Persistent makes the parent of the keys persistent in the TPM.
	Persistent bool
	// Replace replaces a file that the TPM can no longer use. A file with a key that works is
	// never replaced.
	Replace bool
	// Progress is called before each step that may take a long time. It may be nil.
	Progress func(what string)
}

// TPMKey is the file of a key that the TPM can use.
type TPMKey struct {
	Path string
	File *tpm.File
	// Tested is the result of the test of this key.
	Tested tpm.Result
	// Existed means that the file already existed, and was not changed.
	Existed bool
	// Copy is the copy of the file that was replaced, or "".
	Copy string
}

// OccupiedError reports that a file exists which does not contain the requested key.
type OccupiedError struct {
	Path string
	// What describes the file in a clause, such as "it is not a TPM key".
	What string
	// Replaceable means that the file can be replaced if Replace is set.
	Replaceable bool
	// Err is the reason why the TPM cannot use the file, or nil.
	Err error
}

// Error names the file.
func (e *OccupiedError) Error() string {
	text := e.Path + " already exists, and " + e.What
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the reason.
func (e *OccupiedError) Unwrap() error { return e.Err }

// TPMKeyPath returns the path of a key. A name without a slash is a file in the directory of the
// keys. TPMKeyPath rejects names such as "" and "keys/", which are usually the result of an empty
// variable in a script.
func (p *Place) TPMKeyPath(name string) (string, error) {
	if err := secret(name); err != nil {
		return "", err
	}
	if name == "" || name == "-" || strings.HasSuffix(name, "/") {
		return "", fmt.Errorf("%q is not the name of a key file", name)
	}
	if !strings.Contains(name, "/") {
		return filepath.Join(p.Keys, name), nil
	}
	return filepath.Abs(name)
}

// Create creates a private key in the TPM. If the algorithm is empty, Create uses the first one
// that both the TPM and DPS support.
func (k *TPMKeys) Create(ctx context.Context, path string, a tpm.Algorithm) (*TPMKey, error) {
	return k.provide(ctx, path, request{
		make: func(ctx context.Context, parent tpm.Parent) ([]byte, error) {
			chosen, err := k.algorithm(ctx, a)
			if err != nil {
				return nil, err
			}
			k.progress("Creating a key in the TPM (%s)", chosen)
			return k.Device.Create(ctx, chosen, parent)
		},
		differs: func(_ context.Context, f *tpm.File) (string, error) {
			switch {
			case f.Public() == nil:
				return "it contains a symmetric key", nil
			case a != "" && a != f.Algorithm:
				return "it contains a key of type " + string(f.Algorithm), nil
			}
			return "", nil
		},
	})
}

// Import encrypts an existing private key for the TPM.
func (k *TPMKeys) Import(ctx context.Context, path string, key crypto.Signer) (*TPMKey, error) {
	return k.provide(ctx, path, request{
		make: func(ctx context.Context, parent tpm.Parent) ([]byte, error) {
			k.progress("Importing the key into the TPM")
			return k.Device.Import(ctx, key, parent)
		},
		differs: func(_ context.Context, f *tpm.File) (string, error) {
			if public, is := f.Public().(interface{ Equal(crypto.PublicKey) bool }); is && public.Equal(key.Public()) {
				return "", nil
			}
			return "it contains a different key", nil
		},
	})
}

// Seal encrypts a symmetric key for the TPM.
func (k *TPMKeys) Seal(ctx context.Context, path string, key []byte) (*TPMKey, error) {
	return k.provide(ctx, path, request{
		make: func(ctx context.Context, parent tpm.Parent) ([]byte, error) {
			k.progress("Encrypting the key with the TPM")
			return k.Device.Seal(ctx, key, parent)
		},
		differs: func(ctx context.Context, f *tpm.File) (string, error) {
			same, err := k.contains(ctx, f, key)
			if err != nil || same {
				return "", err
			}
			return "it contains a different key", nil
		},
	})
}

// contains reports whether a file contains a symmetric key. The TPM never returns the key, so
// contains compares what the two keys compute.
func (k *TPMKeys) contains(ctx context.Context, f *tpm.File, key []byte) (bool, error) {
	if f.Algorithm != tpm.HMAC {
		return false, nil
	}
	loaded, err := k.Device.Load(ctx, f)
	if err != nil {
		return false, err
	}
	probe := make([]byte, sha256.Size)
	_, _ = rand.Read(probe) // never fails
	got, err := loaded.HMAC(probe)
	if err = errors.Join(err, loaded.Close()); err != nil {
		return false, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(probe)
	return hmac.Equal(got, mac.Sum(nil)), nil
}

// Request returns a certificate request for a key in PEM (PKCS #10). Its common name is the
// registration ID.
func (k *TPMKeys) Request(ctx context.Context, f *tpm.File, registrationID string) (text []byte, err error) {
	key, err := k.Device.Load(ctx, f)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: registrationID}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// request makes a key, and compares an existing key with the requested one.
type request struct {
	make func(ctx context.Context, parent tpm.Parent) ([]byte, error)
	// differs describes how the key in a file differs from the requested one; "" if it does not.
	differs func(ctx context.Context, f *tpm.File) (string, error)
}

// provide returns the key in an existing file, or makes the key, tests it, and writes its file.
func (k *TPMKeys) provide(ctx context.Context, path string, r request) (*TPMKey, error) {
	key, old, err := k.existing(ctx, path, r)
	if key != nil || err != nil {
		return key, err
	}
	parent, err := k.parent(ctx)
	if err != nil {
		return nil, err
	}
	text, err := r.make(ctx, parent)
	if err != nil {
		return nil, err
	}
	key = &TPMKey{Path: path}
	if key.File, err = tpm.Parse(text); err != nil {
		return nil, fmt.Errorf("the TPM returned a key that cannot be read: %w", err)
	}
	k.progress("Testing the key")
	if key.Tested, err = k.Device.Test(ctx, key.File); err != nil {
		return nil, fmt.Errorf("the new key does not work: %w", err)
	}
	difference, err := r.differs(ctx, key.File)
	if err != nil {
		return nil, fmt.Errorf("the new key does not work: %w", err)
	}
	if difference != "" {
		return nil, errors.New("the TPM returned the wrong key: " + difference)
	}
	file := k.Place.keyFile(path, text)
	file.Old = old
	copies, err := Write(ctx, []File{file}, old != nil)
	key.Copy = strings.Join(copies, "")
	return key, err
}

// existing returns the key in the file, or nil if the key must be made. old is the text of the
// file if the file exists and may be replaced.
func (k *TPMKeys) existing(ctx context.Context, path string, r request) (key *TPMKey, old []byte, err error) {
	text, err := input.Read(path, maxFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return nil, nil, &OccupiedError{Path: path, What: "it is a symbolic link to a file that does not exist"}
		}
		return nil, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", path, input.Cause(err))
	}
	occupied := &OccupiedError{Path: path}
	if !tpm.Is(text) {
		clear(text) // it may be a private key
		occupied.What = "it is not a TPM key"
		return nil, nil, occupied
	}
	key = &TPMKey{Path: path, Existed: true}
	k.progress("Testing the existing key")
	if key.File, err = tpm.Parse(text); err == nil {
		key.Tested, err = k.Device.Test(ctx, key.File)
	}
	if err == nil {
		if occupied.What, err = r.differs(ctx, key.File); err == nil && occupied.What == "" {
			return key, nil, nil
		}
	}
	known, _ := errors.AsType[*tpm.Error](err)
	switch {
	case err == nil:
		return nil, nil, occupied
	case known != nil && (known.Kind == tpm.Unusable || known.Kind == tpm.Damaged):
		if k.Replace {
			return nil, text, nil
		}
		occupied.What, occupied.Replaceable, occupied.Err = "this TPM cannot use it", true, err
	default:
		occupied.What, occupied.Err = "it could not be tested", err
	}
	return nil, nil, occupied
}

// parent returns the parent for a new key.
func (k *TPMKeys) parent(ctx context.Context) (tpm.Parent, error) {
	if k.Persistent {
		k.progress("Making the parent key persistent")
		return k.Device.Persist(ctx)
	}
	return k.Device.Parent(ctx)
}

// preferred lists the algorithms that DPS accepts, in order of preference.
var preferred = []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048, tpm.P521, tpm.RSA3072, tpm.RSA4096}

// KeyTypes returns the algorithms of private keys.
func KeyTypes() []tpm.Algorithm { return slices.Clone(preferred) }

// algorithm returns the algorithm for a new key.
func (k *TPMKeys) algorithm(ctx context.Context, want tpm.Algorithm) (tpm.Algorithm, error) {
	s, err := k.Device.Status(ctx)
	if err != nil {
		return "", err
	}
	var has []string
	for _, a := range preferred {
		if slices.Contains(s.Algorithms, a) {
			if want = cmp.Or(want, a); want == a {
				return a, nil
			}
			has = append(has, string(a))
		}
	}
	return "", &tpm.Error{Kind: tpm.Unsupported, Op: "create a key", Err: fmt.Errorf("the TPM does not support %s; it supports %s", cmp.Or(string(want), "private keys"), cmp.Or(strings.Join(has, ", "), "none"))}
}

// progress reports a step.
func (k *TPMKeys) progress(format string, args ...any) {
	if k.Progress != nil {
		k.Progress(fmt.Sprintf(format, args...))
	}
}

// keyFile returns a file with a key.
func (p *Place) keyFile(path string, text []byte) File {
	f := File{Path: path, Text: text, Mode: 0o600, Group: p.KeyGroup, Secret: true}
	if p.KeyGroup >= 0 {
		f.Mode = 0o640
	}
	return f
}

// Use returns the lines of dpsd.toml that use a key. certificate is the path of the certificate
// for a private key.
func (k *TPMKey) Use(certificate string) string {
	setting := func(key, value string) string { return config.Setting{Key: key, Value: value}.TOML() + "\n" }
	file := attest.Reference{File: k.Path}.String()
	text := "[[credential]]\n"
	if k.File.Public() == nil {
		return text + setting("type", attest.SymmetricKey{}.Type().Name) + setting("key", file)
	}
	return text + setting("type", attest.X509{}.Type().Name) + setting("certificate", attest.Reference{File: certificate}.String()) + setting("private_key", file)
}
