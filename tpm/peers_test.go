package tpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// direct connects to swtpm without the code under test. swtpm serves one client at a time.
func direct(t *testing.T, s *tpmtest.Software) transport.TPMCloser {
	t.Helper()
	return transport.FromReadWriteCloser(must(net.Dial("unix", s.Socket))(t))
}

// openssl runs openssl with the tpm2 provider, which uses swtpm.
func openssl(t *testing.T, s *tpmtest.Software, args ...string) {
	t.Helper()
	tpmtest.Need(t, "openssl", "socat")
	if module, _ := filepath.Glob("/usr/lib/*/ossl-modules/tpm2.so"); module == nil {
		if os.Getenv("CI") != "" {
			t.Fatal("tpm2-openssl is not installed")
		}
		t.Skip("tpm2-openssl is not installed; as root on Debian, make test-tpm installs it")
	}
	c := exec.Command("openssl", args...)
	c.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=cmd:socat - UNIX-CONNECT:"+s.Socket, "TSS2_LOG=all+NONE")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestOpenSSLSignsWithTheSameFile(t *testing.T) {
	d, s := software(t)
	dir := t.TempDir()
	data, key, signature := filepath.Join(dir, "data"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "signature")
	text := []byte("the text to sign")
	original := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	persistent := must(d.Persist(t.Context()))(t)
	files := map[string][]byte{"an imported P-256 key": must(d.Import(t.Context(), original, tpm.Owner))(t)}
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		files[string(a)] = must(d.Create(t.Context(), a, tpm.Owner))(t)
		files[string(a)+" with a persistent parent"] = must(d.Create(t.Context(), a, persistent))(t)
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(data, text, 0o600), os.WriteFile(key, file, 0o600)); err != nil {
				t.Fatal(err)
			}
			openssl(t, s, "pkeyutl", "-provider", "tpm2", "-provider", "default", "-sign", "-rawin", "-digest", "sha256", "-inkey", key, "-in", data, "-out", signature)
			digest := sha256.Sum256(text)
			if !valid(must(tpm.Parse(file))(t).Public(), digest[:], must(os.ReadFile(signature))(t), crypto.SHA256) {
				t.Error("the signature is not valid")
			}
		})
	}
}

func TestAFileFromOpenSSLSigns(t *testing.T) {
	d, s := software(t)
	key := filepath.Join(t.TempDir(), "key.pem")
	for name, args := range map[string][]string{
		"ec-p256":  {"-algorithm", "EC", "-pkeyopt", "group:P-256"},
		"ec-p384":  {"-algorithm", "EC", "-pkeyopt", "group:P-384"},
		"rsa-2048": {"-algorithm", "RSA", "-pkeyopt", "bits:2048"},
	} {
		t.Run(name, func(t *testing.T) {
			openssl(t, s, append([]string{"genpkey", "-provider", "tpm2", "-provider", "default", "-out", key}, args...)...)
			signs(t, d, must(os.ReadFile(key))(t), tpm.Algorithm(name))
		})
	}
	t.Run("with a password, it is refused", func(t *testing.T) {
		openssl(t, s, "genpkey", "-provider", "tpm2", "-provider", "default", "-out", key, "-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:secret")
		f := must(tpm.Parse(must(os.ReadFile(key))(t)))(t)
		_, err := d.Load(t.Context(), f)
		wantKind(t, err, tpm.Protected)
	})
}

// signs checks that a file signs.
func signs(t *testing.T, d *tpm.Device, text []byte, a tpm.Algorithm) {
	t.Helper()
	k := load(t, d, text)
	defer k.Close()
	digest := sha256.Sum256(nil)
	if signature := must(k.Sign(nil, digest[:], crypto.SHA256))(t); !valid(k.Public(), digest[:], signature, crypto.SHA256) {
		t.Error("the signature is not valid")
	}
	if f := must(tpm.Parse(text))(t); f.Algorithm != a {
		t.Errorf("the algorithm is %s", f.Algorithm)
	}
}

func TestAFileFromGoTPMKeyfilesSignsAndViceVersa(t *testing.T) {
	d, s := software(t)
	for _, c := range []struct {
		algorithm tpm.Algorithm
		id        tpm2.TPMAlgID
		bits      int
	}{{tpm.P256, tpm2.TPMAlgECC, 256}, {tpm.P384, tpm2.TPMAlgECC, 384}, {tpm.RSA2048, tpm2.TPMAlgRSA, 2048}} {
		t.Run(string(c.algorithm), func(t *testing.T) {
			peer := direct(t, s)
			theirs := must(keyfile.NewLoadableKey(peer, c.id, c.bits, nil, keyfile.WithDescription("a description")))(t)
			peer.Close()
			signs(t, d, theirs.Bytes(), c.algorithm)

			ours := must(keyfile.Decode(must(d.Create(t.Context(), c.algorithm, tpm.Owner))(t)))(t)
			peer = direct(t, s)
			defer peer.Close()
			signer := must(ours.Signer(peer, nil, nil))(t)
			digest := sha256.Sum256(nil)
			if signature := must(signer.Sign(nil, digest[:], crypto.SHA256))(t); !valid(signer.Public(), digest[:], signature, crypto.SHA256) {
				t.Error("the signature is not valid")
			}
		})
	}
}

func TestAnImportableKeyFromAFactorySigns(t *testing.T) {
	d, s := software(t)
	peer := direct(t, s)
	handle, public, err := keyfile.CreateSRK(keyfile.NewTPMSession(peer), tpm2.TPMRHOwner, nil)
	if err != nil {
		t.Fatal(err)
	}
	keyfile.FlushHandle(peer, handle)
	peer.Close()
	original := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	signs(t, d, must(keyfile.NewImportablekey(public, *original))(t).Bytes(), tpm.P256)
}

// withDA creates a P-256 key that counts wrong passwords, with a password or without.
func withDA(t *testing.T, s *tpmtest.Software, password string) *keyfile.TPMKey {
	t.Helper()
	peer := direct(t, s)
	defer peer.Close()
	return must(keyfile.NewLoadableKey(peer, tpm2.TPMAlgECC, 256, nil, keyfile.WithUserAuth([]byte(password))))(t)
}

func TestAPasswordCausesAtMostOneFailure(t *testing.T) {
	d, s := software(t)
	k := withDA(t, s, "secret")
	_, err := d.Load(t.Context(), must(tpm.Parse(k.Bytes()))(t))
	wantKind(t, err, tpm.Protected)
	if n := must(d.Status(t.Context()))(t).Failures; n != 0 {
		t.Errorf("%d failures, although the file says that the key has a password", n)
	}
	k.EmptyAuth = true // the file lies
	for range 3 {
		key, err := d.Load(t.Context(), must(tpm.Parse(k.Bytes()))(t))
		if err == nil {
			err = sign(key)
			key.Close()
		}
		wantKind(t, err, tpm.Protected)
	}
	if n := must(d.Status(t.Context()))(t).Failures; n != 1 {
		t.Errorf("%d failures", n)
	}
}

func TestALockedTPMUsesKeysOfDpsdAndRefusesOthers(t *testing.T) {
	d, s := software(t)
	ours, theirs, guessed := must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t), withDA(t, s, "").Bytes(), withDA(t, s, "secret")
	peer := direct(t, s)
	for range 5 {
		signer := must(guessed.Signer(peer, nil, []byte("wrong")))(t)
		digest := sha256.Sum256(nil)
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err == nil {
			t.Fatal("the wrong password is accepted")
		}
	}
	peer.Close()
	if status := must(d.Status(t.Context()))(t); !status.LockedOut || status.Failures != status.Limit {
		t.Fatalf("%+v", status)
	}
	signs(t, d, ours, tpm.P256)
	k := load(t, d, theirs)
	defer k.Close()
	wantKind(t, sign(k), tpm.LockedOut)
}

func TestAPasswordOfTheOwnerRequiresAPersistentParent(t *testing.T) {
	d, s := software(t)
	before, persistent := must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t), must(d.Persist(t.Context()))(t)
	after := must(d.Create(t.Context(), tpm.P256, persistent))(t)
	peer := direct(t, s)
	must(tpm2.HierarchyChangeAuth{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")},
	}.Execute(peer))(t)
	peer.Close()
	if !must(d.Status(t.Context()))(t).OwnerPassword {
		t.Error("Status does not report the password")
	}
	_, err := d.Load(t.Context(), must(tpm.Parse(before))(t))
	wantKind(t, err, tpm.Protected)
	signs(t, d, after, tpm.P256)
}

func TestAFileFromAnotherTPMIsUnusable(t *testing.T) {
	d, s := software(t)
	other, _ := software(t)
	persistent := must(d.Persist(t.Context()))(t)
	files := map[string][]byte{
		"owner":  must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t),
		"handle": must(d.Create(t.Context(), tpm.P256, persistent))(t),
		"HMAC":   must(d.Seal(t.Context(), make([]byte, 32), tpm.Owner))(t),
	}
	unusable := func(t *testing.T, d *tpm.Device) {
		for name, text := range files {
			_, err := d.Load(t.Context(), must(tpm.Parse(text))(t))
			t.Log(name, err)
			wantKind(t, err, tpm.Unusable)
		}
	}
	t.Run("without the persistent parent", func(t *testing.T) { unusable(t, other) })
	t.Run("with another persistent parent", func(t *testing.T) {
		must(other.Persist(t.Context()))(t)
		unusable(t, other)
	})
	t.Run("the first TPM still uses them", func(t *testing.T) { signs(t, d, files["owner"], tpm.P256) })
	t.Run("after the TPM was cleared", func(t *testing.T) {
		s.Clear()
		unusable(t, d)
		signs(t, d, must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t), tpm.P256)
	})
}

// interrupting is a connection that calls end when the TPM has answered a given command.
type interrupting struct {
	io.ReadWriteCloser
	command, last tpm2.TPMCC
	end           func()
}

func (i *interrupting) Write(b []byte) (int, error) {
	i.last = tpm2.TPMCC(binary.BigEndian.Uint32(b[6:]))
	return i.ReadWriteCloser.Write(b)
}

func (i *interrupting) Read(b []byte) (int, error) {
	n, err := i.ReadWriteCloser.Read(b)
	if i.last == i.command {
		i.end()
	}
	return n, err
}

func TestAnInterruptedSealLeavesNothingInTheTPM(t *testing.T) {
	_, s := software(t)
	for _, command := range []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCStartAuthSession, tpm2.TPMCCCreate, tpm2.TPMCCLoad} {
		ctx, cancel := context.WithCancel(t.Context())
		d := &tpm.Device{Open: func(string) (io.ReadWriteCloser, error) {
			c, err := net.Dial("unix", s.Socket)
			return &interrupting{ReadWriteCloser: c, command: command, end: cancel}, err
		}}
		if _, err := d.Seal(ctx, make([]byte, 32), tpm.Owner); !errors.Is(err, context.Canceled) {
			t.Errorf("after the command %v: %v", command, err)
		}
		peer := direct(t, s) // swtpm serves it after the other connection has ended
		for _, first := range []uint32{0x02000000, 0x80000000} {
			response := must(tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 10}.Execute(peer))(t)
			if left := must(response.CapabilityData.Data.Handles())(t); len(left.Handle) > 0 {
				t.Errorf("after the command %v, %x remain in the TPM", command, left.Handle)
			}
		}
		peer.Close()
	}
}

func TestAParentThatIsNotAStorageKeyIsUnusable(t *testing.T) {
	d, s := software(t)
	peer := direct(t, s)
	signing := must(tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	})}.Execute(peer))(t)
	must(tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: signing.ObjectHandle, Name: signing.Name}, PersistentHandle: 0x81000001}.Execute(peer))(t)
	must(tpm2.FlushContext{FlushHandle: signing.ObjectHandle}.Execute(peer))(t)
	peer.Close()
	_, err := d.Create(t.Context(), tpm.P256, 0x81000001)
	wantKind(t, err, tpm.Unusable)
	if p := must(d.Persist(t.Context()))(t); p != 0x81000002 {
		t.Errorf("the handle is %v", p)
	}
	objects := must(d.List(t.Context()))(t)
	if len(objects) != 2 || objects[0].Storage || !objects[1].Storage || objects[0].Kind != "ec-p256" || objects[0].Public == nil {
		t.Errorf("List returns %+v", objects)
	}
}

func TestATPMFullOfOtherProgramsKeysIsBusyUntilTheyAreRemoved(t *testing.T) {
	d, s := software(t)
	text := must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t)
	peer := direct(t, s)
	var foreign []tpm2.TPMHandle
	for range 3 {
		foreign = append(foreign, must(tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(peer))(t).ObjectHandle)
	}
	peer.Close()
	_, err := d.Load(t.Context(), must(tpm.Parse(text))(t))
	wantKind(t, err, tpm.Busy)
	peer = direct(t, s)
	for _, h := range foreign {
		must(tpm2.FlushContext{FlushHandle: h}.Execute(peer))(t)
	}
	peer.Close()
	signs(t, d, text, tpm.P256)
}

func TestAKeyWorksAgainAfterTheTPMWasKilledAndRestarted(t *testing.T) {
	d, s := software(t)
	text := must(d.Create(t.Context(), tpm.P256, tpm.Owner))(t)
	k := load(t, d, text)
	s.Kill()
	wantKind(t, sign(k), tpm.Unavailable)
	_, err := d.Load(t.Context(), must(tpm.Parse(text))(t))
	wantKind(t, err, tpm.Unavailable)
	s.Restart()
	wantKind(t, sign(k), tpm.Unavailable) // it is no longer loaded
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	signs(t, d, text, tpm.P256)
}

func TestEachKeyAuthenticatesInTLS12And13(t *testing.T) {
	d, _ := software(t)
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		k := load(t, d, must(d.Create(t.Context(), a, tpm.Owner))(t))
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if err := handshake(t, k, version); err != nil {
				t.Errorf("%s, %s: %v", a, tls.VersionName(version), err)
			}
		}
		if !k.TLS13() {
			t.Errorf("%s does not claim TLS 1.3", a)
		}
		_ = k.Close()
	}
}

// handshake authenticates with a self-signed certificate of a key.
func handshake(t *testing.T, k *tpm.Key, version uint16) error {
	t.Helper()
	request := must(x509.CreateCertificateRequest(nil, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "gw"}}, k))(t)
	if err := must(x509.ParseCertificateRequest(request))(t).CheckSignature(); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"server"}}
	own := must(x509.CreateCertificate(nil, template, template, k.Public(), k))(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	other := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	result := make(chan error, 1)
	go func() {
		s := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{other}, PrivateKey: key}}, ClientAuth: tls.RequireAnyClientCert, MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true})
		err := s.HandshakeContext(t.Context())
		if err == nil && !bytes.Equal(s.ConnectionState().PeerCertificates[0].Raw, own) {
			err = errors.New("another certificate arrived")
		}
		result <- err
		if err != nil {
			server.Close()
		}
	}()
	c := tls.Client(client, &tls.Config{
		InsecureSkipVerify: true, MinVersion: version, MaxVersion: version,
		Certificates: []tls.Certificate{{Certificate: [][]byte{own}, PrivateKey: k, SupportedSignatureAlgorithms: k.SupportedSchemes()}},
	})
	err := c.HandshakeContext(t.Context())
	return errors.Join(err, <-result)
}

func TestAKeyWithAPolicyAndSealedDataAreRefused(t *testing.T) {
	d, s := software(t)
	k := withDA(t, s, "")
	k.Policy = []*keyfile.TPMPolicy{{CommandCode: 0x16b, CommandPolicy: []byte{1}}}
	_, err := d.Load(t.Context(), must(tpm.Parse(k.Bytes()))(t))
	wantKind(t, err, tpm.Policy)
	k.EmptyAuth = false // tpm2_encodeobject does not state that there is no password
	_, err = d.Load(t.Context(), must(tpm.Parse(k.Bytes()))(t))
	wantKind(t, err, tpm.Policy)
	peer := direct(t, s)
	blob := must(keyfile.NewSealedData(peer, []byte("data"), nil))(t)
	peer.Close()
	_, err = tpm.Parse(blob.Bytes())
	wantKind(t, err, tpm.Unsupported)
}
