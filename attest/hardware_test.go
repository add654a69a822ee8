package attest_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// inTPM returns a TPM, secrets that use it, and a key in it.
func inTPM(t *testing.T, a tpm.Algorithm) (*tpmtest.TPM, attest.Secrets, string, crypto.PublicKey) {
	t.Helper()
	f := new(tpmtest.TPM)
	s := attest.Secrets{TPM: &tpm.Device{Open: f.Open}}
	text, err := s.CreateKey(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	file, err := tpm.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f, s, string(text), file.Public()
}

// publicOnly is a key whose private part is unknown. issue needs only the public key of a leaf.
type publicOnly struct{ crypto.PublicKey }

func (k publicOnly) Public() crypto.PublicKey { return k.PublicKey }
func (publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only the public key is known")
}

// newIssuer returns an authority.
func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key := ecKey(t, elliptic.P256())
	return &issuer{issue(t, nil, "root", key, true), key}
}

func wantReleased(t *testing.T, f *tpmtest.TPM) {
	t.Helper()
	if f.Loaded() != 0 {
		t.Errorf("%d keys are loaded", f.Loaded())
	}
}

func TestADeviceCertificateWithATPMKey(t *testing.T) {
	root := newIssuer(t)
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		t.Run("a server accepts "+string(a)+", and the key is removed from the TPM afterwards", func(t *testing.T) {
			f, secrets, text, public := inTPM(t, a)
			waited := 0
			secrets.Waiting = func(what string) {
				if waited++; what != "the TPM" {
					t.Errorf("it waits for %q", what)
				}
			}
			leaf := issue(t, root, "gw-1", publicOnly{public}, false)
			p, err := pair(t, certificatePEM(leaf), text).Prove(t.Context(), gw, secrets, midway)
			if err != nil {
				t.Fatal(err)
			}
			if f.Loaded() == 0 || waited != 1 || !p.Hardware() || len(p.Certificate.SupportedSignatureAlgorithms) == 0 {
				t.Errorf("%d keys are loaded, it has waited %d times, and the schemes are %v", f.Loaded(), waited, p.Certificate.SupportedSignatureAlgorithms)
			}
			if err := errors.Join(handshake(t, p.Certificate, root.certificate), p.KeyError(), p.Close()); err != nil {
				t.Error(err)
			}
			wantReleased(t, f)
		})
	}
	t.Run("the certificates may be in the same file", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.P256)
		x := pair(t, text+certificatePEM(issue(t, root, "gw-1", publicOnly{public}, false)), "")
		x.PrivateKey = x.Certificate
		p, err := x.Prove(t.Context(), gw, secrets, midway)
		if err := errors.Join(err, p.Close()); err != nil {
			t.Error(err)
		}
		wantReleased(t, f)
	})
	t.Run("an expired certificate is returned with its key", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.P256)
		leaf := issue(t, root, "gw-1", publicOnly{public}, false)
		p, err := pair(t, certificatePEM(leaf), text).Prove(t.Context(), gw, secrets, notAfter.AddDate(1, 0, 0))
		if !errors.Is(err, attest.ErrExpired) || f.Loaded() == 0 {
			t.Errorf("got %v; %d keys are loaded", err, f.Loaded())
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		wantReleased(t, f)
	})
	for name, c := range map[string]struct {
		cn   string
		key  crypto.Signer
		want error
	}{
		"the key of another certificate is removed from the TPM":               {"gw-1", ecKey(t, elliptic.P256()), attest.ErrKeyMismatch},
		"the key of a certificate for another gateway is removed from the TPM": {"gw-2", nil, attest.ErrCommonName},
	} {
		t.Run(name, func(t *testing.T) {
			f, secrets, text, public := inTPM(t, tpm.P256)
			if c.key == nil {
				c.key = publicOnly{public}
			}
			p, err := pair(t, certificatePEM(issue(t, root, c.cn, c.key, false)), text).Prove(t.Context(), gw, secrets, midway)
			if !errors.Is(err, c.want) || p.Certificate != nil {
				t.Errorf("got %v, want %v", err, c.want)
			}
			wantReleased(t, f)
		})
	}
	t.Run("after a failed signature the TPM is not asked again", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.P256)
		p, err := pair(t, certificatePEM(issue(t, root, "gw-1", publicOnly{public}, false)), text).Prove(t.Context(), gw, secrets, midway)
		if err != nil {
			t.Fatal(err)
		}
		f.Before = func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == tpm2.TPMCCSign {
				return tpm2.TPMRCLockout, nil
			}
			return 0, nil
		}
		before := f.Count(tpm2.TPMCCSign)
		for range 3 {
			if handshake(t, p.Certificate, root.certificate) == nil {
				t.Error("the handshake succeeded")
			}
		}
		var of *tpm.Error
		if err := p.KeyError(); !errors.As(err, new(*attest.SecretError)) || !errors.As(err, &of) || of.Kind != tpm.LockedOut {
			t.Errorf("the key has the error %v", err)
		}
		if n := f.Count(tpm2.TPMCCSign) - before; n != 1 {
			t.Errorf("the TPM was asked for %d signatures", n)
		}
		f.Before = nil
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		wantReleased(t, f)
	})
	t.Run("with FilesOnly the TPM is not used, and the errors about the files are the same", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.P256)
		f.Absent, secrets.FilesOnly = true, true
		good := certificatePEM(issue(t, root, "gw-1", publicOnly{public}, false))
		if p, err := pair(t, good, text).Prove(t.Context(), gw, secrets, midway); err != nil || p.Hardware() {
			t.Errorf("got %+v, %v", p, err)
		}
		other := certificatePEM(issue(t, root, "gw-1", ecKey(t, elliptic.P256()), false))
		if _, err := pair(t, other, text).Prove(t.Context(), gw, secrets, midway); !errors.Is(err, attest.ErrKeyMismatch) {
			t.Errorf("got %v", err)
		}
		if _, err := pair(t, good, strings.Replace(text, "M", "!", 1)).Prove(t.Context(), gw, secrets, midway); !errors.As(err, new(*tpm.Error)) || errors.As(err, new(*attest.HardwareError)) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an absent TPM is an error about the device, not about the file", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.P256)
		f.Absent = true
		_, err := pair(t, certificatePEM(issue(t, root, "gw-1", publicOnly{public}, false)), text).Prove(t.Context(), gw, secrets, midway)
		hardware, is := errors.AsType[*attest.HardwareError](err)
		if !is || hardware.Path != tpm.Path || hardware.Lost() || !errors.Is(err, syscall.ENOENT) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a key is lost only after a reset", func(t *testing.T) {
		f, secrets, text, _ := inTPM(t, tpm.P256)
		f.Reset()
		_, err := secrets.LoadKey(t.Context(), []byte(text))
		if hardware, is := errors.AsType[*attest.HardwareError](err); !is || !hardware.Lost() {
			t.Errorf("got %v", err)
		}
		wantReleased(t, f)
	})
	t.Run("a chip whose salt is too long offers only PKCS #1", func(t *testing.T) {
		f, secrets, text, public := inTPM(t, tpm.RSA2048)
		f.LongSalt = true
		p, err := pair(t, certificatePEM(issue(t, root, "gw-1", publicOnly{public}, false)), text).Prove(t.Context(), gw, secrets, midway)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(handshake(t, p.Certificate, root.certificate), p.Close()); err != nil {
			t.Error(err)
		}
		for _, scheme := range p.Certificate.SupportedSignatureAlgorithms {
			if !strings.HasPrefix(scheme.String(), "PKCS1") {
				t.Errorf("it offers %v", scheme)
			}
		}
	})
	t.Run("a credential with a symmetric key refuses a private key", func(t *testing.T) {
		_, secrets, text, _ := inTPM(t, tpm.P256)
		file := filepath.Join(t.TempDir(), "device.tss2")
		write(t, file, text)
		_, err := attest.SymmetricKey{Key: attest.Reference{File: file}}.Prove(t.Context(), gw, secrets, midway)
		if !errors.Is(err, attest.ErrTPMKey) || !strings.Contains(err.Error(), "ec-p256") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheAdviceForADamagedTPMKeyIsToRestoreItOrCreateANewOne(t *testing.T) {
	_, secrets, text, public := inTPM(t, tpm.P256)
	leaf := certificatePEM(issue(t, newIssuer(t), "gw-1", publicOnly{public}, false))
	for _, c := range []struct {
		text, advice string
		kind         tpm.Kind
	}{
		{text[:len(text)/2], "Restore the file from a backup", tpm.Damaged},
		{strings.Replace(text, "\nMI", "\nMJ", 1), "Restore the file from a backup", tpm.Damaged},
		// The OID of another type of key.
		{strings.Replace(text, "BgZngQUKAQOg", "BgZngQUKAQKg", 1), "Create a key that dpsd can use", tpm.Unsupported},
	} {
		_, err := pair(t, leaf, c.text).Prove(t.Context(), gw, secrets, midway)
		of, is := errors.AsType[*tpm.Error](err)
		if !is || of.Kind != c.kind {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		var advice interface{ Remedy() string }
		if !errors.As(err, &advice) || !strings.HasPrefix(advice.Remedy(), c.advice) {
			t.Errorf("%v: %v", err, advice)
		}
	}
}

func TestASymmetricKeyInTheTPMSignsTheSameTokens(t *testing.T) {
	software := tpmtest.Start(t)
	secrets := attest.Secrets{TPM: &tpm.Device{Path: software.Socket}}
	dir := t.TempDir()
	for _, length := range []int{16, 32, 64} {
		key := make([]byte, length)
		_, _ = rand.Read(key)
		text, err := secrets.TPM.Seal(t.Context(), key, tpm.Owner)
		if err != nil {
			t.Fatal(err)
		}
		plain, sealed := filepath.Join(dir, "device.key"), filepath.Join(dir, "device.tss2")
		write(t, plain, base64.StdEncoding.EncodeToString(key))
		write(t, sealed, string(text))
		want, err := attest.SymmetricKey{Key: attest.Reference{File: plain}}.Prove(t.Context(), gw, attest.Secrets{}, midway)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // a key that is not removed would fill the TPM
			got, err := attest.SymmetricKey{Key: attest.Reference{File: sealed}}.Prove(t.Context(), gw, secrets, midway)
			if err != nil || got.Password != want.Password || !got.Expires.Equal(want.Expires) {
				t.Fatalf("%d bytes: %q, %v, want %q", length, got.Password, err, want.Password)
			}
			if err := got.Close(); err != nil {
				t.Error(err)
			}
		}
		statement := []byte("a statement")
		mac, err := attest.SymmetricKey{Key: attest.Reference{File: sealed}}.MAC(t.Context(), secrets, statement)
		if err != nil || !bytes.Equal(mac, sas.MAC(key, statement)) {
			t.Errorf("%d bytes: the HMAC is %x, %v", length, mac, err)
		}
		x := attest.X509{Certificate: attest.Reference{File: plain}, PrivateKey: attest.Reference{File: sealed}}
		write(t, plain, certificatePEM(issue(t, newIssuer(t), "gw-1", ecKey(t, elliptic.P256()), false)))
		if _, err := x.Prove(t.Context(), gw, secrets, midway); !errors.Is(err, attest.ErrTPMKey) {
			t.Errorf("as a private key: %v", err)
		}
		secrets := secrets
		secrets.FilesOnly = true
		if p, err := (attest.SymmetricKey{Key: attest.Reference{File: sealed}}).Prove(t.Context(), gw, secrets, midway); err != nil || p.Password != "" {
			t.Errorf("with FilesOnly: %+v, %v", p, err)
		}
		if mac, err := (attest.SymmetricKey{Key: attest.Reference{File: sealed}}).MAC(t.Context(), secrets, statement); err != nil || mac != nil {
			t.Errorf("with FilesOnly: %x, %v", mac, err)
		}
	}
}

// hanging is a connection to a TPM that does not answer the command that removes an HMAC key.
type hanging struct {
	io.ReadWriteCloser
	until <-chan struct{}
	used  bool
}

func (h *hanging) Write(b []byte) (int, error) {
	switch tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) {
	case tpm2.TPMCCHMAC:
		h.used = true
	case tpm2.TPMCCFlushContext:
		if h.used {
			<-h.until
		}
	}
	return h.ReadWriteCloser.Write(b)
}

func TestATokenIsUsedEvenIfTheTPMDoesNotRemoveItsKeyInTime(t *testing.T) {
	software := tpmtest.Start(t)
	synctest.Test(t, func(t *testing.T) {
		until := make(chan struct{})
		secrets := attest.Secrets{TPM: &tpm.Device{Open: func(string) (io.ReadWriteCloser, error) {
			c, err := net.Dial("unix", software.Socket)
			return &hanging{ReadWriteCloser: c, until: until}, err
		}}}
		text, err := (&tpm.Device{Path: software.Socket}).Seal(t.Context(), make([]byte, 32), tpm.Owner)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "device.tss2")
		write(t, path, string(text))
		p, err := attest.SymmetricKey{Key: attest.Reference{File: path}}.Prove(t.Context(), gw, secrets, midway)
		if err != nil || p.Password == "" {
			t.Errorf("the token is %q, %v", p.Password, err)
		}
		close(until)
	})
}

func TestAKeyIsCreatedUnderAPersistentParentIfTheOwnerHasAPassword(t *testing.T) {
	software := tpmtest.Start(t)
	secrets := attest.Secrets{TPM: &tpm.Device{Path: software.Socket}}
	parent, err := secrets.TPM.Persist(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", software.Socket)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")},
	}.Execute(transport.FromReadWriter(c))
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	text, err := secrets.CreateKey(t.Context(), tpm.P256)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := tpm.Parse(text); err != nil || f.Parent != parent {
		t.Errorf("the key is %+v, %v", f, err)
	}
}

// listen starts a signer for a key, and returns its socket.
func listen(t *testing.T, key crypto.Signer, sign func(signer.Scheme, []byte) ([]byte, error)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "signer.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = (&signer.Server{Public: key.Public(), Schemes: []signer.Scheme{signer.ECDSAWithSHA256}, Sign: sign}).Serve(c)
			}()
		}
	}()
	return socket
}

func TestADeviceCertificateWhoseKeyASignerHolds(t *testing.T) {
	root, key := newIssuer(t), ecKey(t, elliptic.P256())
	good := func(_ signer.Scheme, digest []byte) ([]byte, error) {
		return key.Sign(rand.Reader, digest, crypto.SHA256)
	}
	prove := func(t *testing.T, leaf *x509.Certificate, socket string, secrets attest.Secrets) (attest.Proof, error) {
		x := pair(t, certificatePEM(leaf), "")
		x.PrivateKey = attest.Reference{Signer: socket}
		return x.Prove(t.Context(), gw, secrets, midway)
	}
	leaf := issue(t, root, "gw-1", key, false)
	t.Run("a server accepts it", func(t *testing.T) {
		socket := listen(t, key, good)
		waited := ""
		p, err := prove(t, leaf, socket, attest.Secrets{Waiting: func(what string) { waited = what }})
		if err != nil {
			t.Fatal(err)
		}
		if waited != "the signer "+socket || !p.Hardware() {
			t.Errorf("it waits for %q", waited)
		}
		if err := errors.Join(handshake(t, p.Certificate, root.certificate), p.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a signer with another key is refused", func(t *testing.T) {
		if _, err := prove(t, leaf, listen(t, ecKey(t, elliptic.P256()), good), attest.Secrets{}); !errors.Is(err, attest.ErrKeyMismatch) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a signer that fails during the handshake is an error of the key", func(t *testing.T) {
		p, err := prove(t, leaf, listen(t, key, func(signer.Scheme, []byte) ([]byte, error) { return nil, errors.New("the card was removed") }), attest.Secrets{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if handshake(t, p.Certificate, root.certificate) == nil {
			t.Error("the handshake succeeded")
		}
		if err := p.KeyError(); !errors.As(err, new(*attest.HardwareError)) || !strings.Contains(err.Error(), "the card was removed") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an absent signer is an error that names the socket", func(t *testing.T) {
		_, err := prove(t, leaf, "/nowhere/signer.sock", attest.Secrets{})
		if err == nil || err.Error() != "signer:/nowhere/signer.sock: the socket does not exist" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("with FilesOnly the signer is not asked", func(t *testing.T) {
		if _, err := prove(t, leaf, "/nowhere/signer.sock", attest.Secrets{FilesOnly: true}); err != nil {
			t.Error(err)
		}
	})
	t.Run("there is no file to watch or to read", func(t *testing.T) {
		r := attest.Reference{Signer: "/run/dpsd-signer/device.sock"}
		if paths := (attest.Secrets{Directories: []string{"/etc"}}).Paths(r); len(paths) != 0 {
			t.Errorf("%q", paths)
		}
		if _, err := (attest.Secrets{}).Read(r); !errors.Is(err, attest.ErrSigner) {
			t.Errorf("got %v", err)
		}
		if x := (attest.X509{PrivateKey: r}); !slices.Contains(x.References(), r) {
			t.Errorf("%v", x.References())
		}
	})
}

func TestAReferenceToASignerIsAnAbsolutePathOfLimitedLength(t *testing.T) {
	for text, want := range map[string]string{
		"signer:/run/dpsd-signer/../device.sock":   "signer:/run/device.sock",
		"signer:" + "/" + strings.Repeat("a", 106): "signer:/" + strings.Repeat("a", 106),
		"signer:/" + strings.Repeat("a", 107):      "",
		"signer:device.sock":                       "",
		"signer://run/device.sock":                 "",
		"signer:/run/a\nb":                         "",
		"signer:":                                  "",
	} {
		r, err := attest.ParseReference(text)
		if got := r.String(); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
