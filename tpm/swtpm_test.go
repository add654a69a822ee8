package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// software returns a device that uses swtpm.
func software(t testing.TB) (*tpm.Device, *tpmtest.Software) {
	t.Helper()
	s := tpmtest.Start(t)
	return &tpm.Device{Path: s.Socket}, s
}

// must returns a value whose error must be nil.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func load(t testing.TB, d *tpm.Device, text []byte) *tpm.Key {
	t.Helper()
	k := must(d.Load(t.Context(), must(tpm.Parse(text))(t)))(t)
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// wantKind checks the kind of an error.
func wantKind(t testing.TB, err error, want tpm.Kind) {
	t.Helper()
	e, ok := errors.AsType[*tpm.Error](err)
	if !ok || e.Kind != want {
		t.Fatalf("the error is %v, want the kind %d", err, want)
	}
}

func TestEachAlgorithmSignsFiftyTimesWithoutAResourceManager(t *testing.T) {
	d, _ := software(t)
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		t.Run(string(a), func(t *testing.T) {
			text := must(d.Create(t.Context(), a, tpm.Owner))(t)
			f := must(tpm.Parse(text))(t)
			if f.Algorithm != a || f.Protected || f.Policy || f.Parent != tpm.Owner {
				t.Errorf("the file is %+v", f)
			}
			for range 10 { // with the four slots of swtpm, one leak in each Load would fail the fourth
				k := load(t, d, text)
				for i := range 5 {
					digest := sha256.Sum256([]byte{byte(i)})
					signature := must(k.Sign(nil, digest[:], crypto.SHA256))(t)
					if !valid(k.Public(), digest[:], signature, crypto.SHA256) {
						t.Fatal("the signature is not valid")
					}
				}
				if err := k.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func valid(key crypto.PublicKey, digest, signature []byte, opts crypto.SignerOpts) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest, signature)
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, opts.HashFunc(), digest, signature, o) == nil
		}
		return rsa.VerifyPKCS1v15(key, opts.HashFunc(), digest, signature) == nil
	}
	return false
}

func TestAnHMACKeyOf16To64BytesComputesWhatTheStandardLibraryComputes(t *testing.T) {
	d, _ := software(t)
	for _, n := range []int{16, 32, 64} {
		secret := make([]byte, n)
		_, _ = rand.Read(secret)
		text := must(d.Seal(t.Context(), secret, tpm.Owner))(t)
		k := load(t, d, text)
		for _, data := range [][]byte{nil, []byte("0ne/registrations/gw\n1764460800"), make([]byte, 1024)} {
			mac := hmac.New(sha256.New, secret)
			mac.Write(data)
			if got := must(k.HMAC(data))(t); !bytes.Equal(got, mac.Sum(nil)) {
				t.Errorf("%d bytes: the HMAC of %d bytes differs", n, len(data))
			}
		}
		if k.Public() != nil {
			t.Error("an HMAC key has a public key")
		}
		_, err := k.HMAC(make([]byte, 1025))
		wantKind(t, err, tpm.Unsupported)
		_, err = k.Sign(nil, make([]byte, 32), crypto.SHA256)
		wantKind(t, err, tpm.Unsupported)
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []int{0, 15, 65} {
		_, err := d.Seal(t.Context(), make([]byte, n), tpm.Owner)
		wantKind(t, err, tpm.Unsupported)
	}
}

func TestAnImportedKeySignsAsBefore(t *testing.T) {
	d, _ := software(t)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	for _, original := range []crypto.Signer{p256, p384, rsa2048} {
		text := must(d.Import(t.Context(), original, tpm.Owner))(t)
		k := load(t, d, text)
		digest := sha256.Sum256([]byte("text"))
		signature := must(k.Sign(nil, digest[:], crypto.SHA256))(t)
		if !valid(original.Public(), digest[:], signature, crypto.SHA256) {
			t.Errorf("%T: the signature is not valid", original)
		}
		_ = k.Close()
	}
	rsa1024, _ := rsa.GenerateKey(rand.Reader, 1024)
	_, err := d.Import(t.Context(), rsa1024, tpm.Owner)
	wantKind(t, err, tpm.Unsupported)
	_, err = d.Import(t.Context(), exponent3(t), tpm.Owner)
	wantKind(t, err, tpm.Unsupported)
	if !strings.Contains(err.Error(), "exponent 3") {
		t.Errorf("the error does not name the exponent: %v", err)
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, err = d.Import(t.Context(), p224, tpm.Owner)
	wantKind(t, err, tpm.Unsupported)
}

// exponent3 returns an RSA key with the exponent 3.
func exponent3(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	three, one := big.NewInt(3), big.NewInt(1)
	for {
		p, err := rand.Prime(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		n := new(big.Int).Mul(p, q)
		d := new(big.Int).ModInverse(three, new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)))
		if d == nil || n.BitLen() != 2048 {
			continue
		}
		k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 3}, D: d, Primes: []*big.Int{p, q}}
		k.Precompute()
		return k
	}
}

func TestTheStatusDescribesTheTPM(t *testing.T) {
	d, _ := software(t)
	status := must(d.Status(t.Context()))(t)
	want := []tpm.Algorithm{tpm.P256, tpm.P384, tpm.P521, tpm.RSA2048, tpm.RSA3072, tpm.HMAC}
	if status.Manufacturer != "IBM" || !strings.HasPrefix(status.Vendor, "SW") || status.Firmware == "0.0" || !slices.Equal(status.Algorithms, want) ||
		status.LockedOut || status.OwnerPassword || status.Failures != 0 || status.Limit == 0 || status.Recovery == 0 {
		t.Errorf("%+v", status)
	}
}

func TestPersistCreatesOneParent(t *testing.T) {
	d, _ := software(t)
	if objects := must(d.List(t.Context()))(t); len(objects) != 0 {
		t.Fatalf("the new TPM has %+v", objects)
	}
	for range 2 {
		if p := must(d.Persist(t.Context()))(t); p != 0x81000001 {
			t.Errorf("the handle is %v", p)
		}
	}
	objects := must(d.List(t.Context()))(t)
	if len(objects) != 1 || objects[0].Handle != 0x81000001 || !objects[0].Storage || objects[0].Kind != "ec-p256" || objects[0].Public == nil {
		t.Errorf("%+v", objects)
	}
}

func TestTheTestReportsTheSchemesAndVersionsOfTLS(t *testing.T) {
	d, _ := software(t)
	for a, want := range map[tpm.Algorithm][]tls.SignatureScheme{
		tpm.P256:    {tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512},
		tpm.P384:    {tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP521AndSHA512},
		tpm.P521:    {tls.ECDSAWithP521AndSHA512, tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384},
		tpm.RSA2048: {tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512},
	} {
		r := must(d.Test(t.Context(), must(tpm.Parse(must(d.Create(t.Context(), a, 0))(t)))(t)))(t)
		salt := -1
		if a == tpm.RSA2048 {
			salt = 32
		}
		if !slices.Equal(r.Schemes, want) || !r.TLS12 || !r.TLS13 || r.Salt != salt || r.Load == 0 || r.Use == 0 {
			t.Errorf("%s: %+v", a, r)
		}
	}
	r := must(d.Test(t.Context(), must(tpm.Parse(must(d.Seal(t.Context(), make([]byte, 32), 0))(t)))(t)))(t)
	if len(r.Schemes) != 0 || r.TLS12 || r.TLS13 || r.Use == 0 {
		t.Errorf("%+v", r)
	}
}

// withoutECC removes elliptic curves from the list of algorithms, because very old firmware does
// not support them.
type withoutECC struct{ net.Conn }

func (c withoutECC) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	// TPM_CAP_ALGS, the number of algorithms, and TPM_ALG_RSA at the beginning of the list
	if n > 20 && bytes.Equal(b[11:15], make([]byte, 4)) {
		for at := 19; at+6 <= n; at += 6 {
			if b[at] == 0 && b[at+1] == 0x23 { // TPM_ALG_ECC
				b[at+1] = 0xff
			}
		}
	}
	return n, err
}

func TestATPMWithoutEllipticCurvesHasAnRSAParent(t *testing.T) {
	complete, s := software(t)
	d := &tpm.Device{Path: s.Socket, Open: func(path string) (io.ReadWriteCloser, error) {
		c, err := net.Dial("unix", path)
		return withoutECC{c}, err
	}}
	_, err := d.Create(t.Context(), tpm.P256, tpm.Owner)
	wantKind(t, err, tpm.Unsupported)
	original := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	created, imported := must(d.Create(t.Context(), tpm.RSA2048, tpm.Owner))(t), must(d.Import(t.Context(), original, tpm.Owner))(t)
	sealed := must(d.Seal(t.Context(), make([]byte, 32), tpm.Owner))(t)
	for _, text := range [][]byte{created, imported} {
		signs(t, d, text, tpm.RSA2048)
		signs(t, complete, text, tpm.RSA2048) // the file names the kind of parent
	}
	must(complete.Test(t.Context(), must(tpm.Parse(sealed))(t)))(t)
	persistent := must(d.Persist(t.Context()))(t)
	if objects := must(d.List(t.Context()))(t); len(objects) != 1 || objects[0].Kind != "RSA with 2048 bits" || !objects[0].Storage {
		t.Errorf("%+v", objects)
	}
	signs(t, d, must(d.Create(t.Context(), tpm.RSA2048, persistent))(t), tpm.RSA2048)
}
