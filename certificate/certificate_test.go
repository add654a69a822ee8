package certificate_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/test/imports"
)

// The checks depend only on their arguments, so that tests can try each moment of a
// certificate's life. The rule covers direct imports, since crypto/x509 imports os.
func TestDirectImportsAreTheStandardLibraryWithoutIO(t *testing.T) {
	all, err := imports.Direct(".")
	if err != nil {
		t.Fatal(err)
	}
	for path, file := range all {
		root, _, _ := strings.Cut(path, "/")
		if strings.Contains(root, ".") || root == "net" || root == "os" || root == "context" || root == "syscall" || path == "crypto/tls" {
			t.Errorf("%s imports %s", file, path)
		}
	}
}

var keyTypes = []certificate.KeyType{certificate.P256, certificate.P384, certificate.RSA2048}

// newKey returns a new key and its text.
func newKey(t testing.TB, kind certificate.KeyType) (crypto.Signer, []byte) {
	t.Helper()
	text, err := certificate.NewKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	key, err := certificate.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key, text
}

func TestKeys(t *testing.T) {
	for _, kind := range keyTypes {
		t.Run("a key of type "+string(kind)+" is new each time, and has this type", func(t *testing.T) {
			one, text := newKey(t, kind)
			other, _ := newKey(t, kind)
			if one.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(other.Public()) {
				t.Error("two keys are equal")
			}
			got := ""
			switch k := one.(type) {
			case *ecdsa.PrivateKey:
				got = map[elliptic.Curve]string{elliptic.P256(): "ec-p256", elliptic.P384(): "ec-p384"}[k.Curve]
			case *rsa.PrivateKey:
				got = fmt.Sprint("rsa-", k.N.BitLen())
			}
			if got != string(kind) {
				t.Errorf("its type is %q", got)
			}
			if block, rest := pem.Decode(text); block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 || !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
				t.Error("the text is not one block of PKCS #8")
			}
		})
	}
	t.Run("there are no other types of keys", func(t *testing.T) {
		for _, kind := range []certificate.KeyType{"", "ec-p521", "EC-P256", "rsa-4096"} {
			if text, err := certificate.NewKey(kind); err == nil || text != nil {
				t.Errorf("%q: %v", kind, err)
			}
		}
	})
	ed, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	exchange, err := x509.MarshalPKCS8PrivateKey(ed)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for says, test := range map[string]struct{ text, want string }{
		"an empty file":                 {"", "the file contains no key in PEM"},
		"DER":                           {string(exchange), "the file contains no key in PEM"},
		"a truncated key":               {block("PRIVATE KEY", exchange)[:60], "the file contains no key in PEM"},
		"PEM of something else":         {block("CERTIFICATE", []byte("S3CRET")), "the file contains no private key in PKCS #8"},
		"a key that can only encrypt":   {block("PRIVATE KEY", exchange), "the private key cannot sign"},
		"zeros, as after a power cut":   {strings.Repeat("\x00", 300), "the file contains no key in PEM"},
		"a key whose bytes are damaged": {block("PRIVATE KEY", exchange[:40]), "the file contains no private key in PKCS #8"},
	} {
		t.Run("ParseKey refuses "+says, func(t *testing.T) {
			if key, err := certificate.ParseKey([]byte(test.text)); key != nil || err == nil || err.Error() != test.want {
				t.Errorf("got %v, %v, want %s", key, err, test.want)
			}
		})
	}
}

func TestRequests(t *testing.T) {
	const largest = 8192 // characters of base64 that the service accepts
	for _, kind := range keyTypes {
		key, _ := newKey(t, kind)
		for _, id := range []string{"g", "gw-1", "GW-1", "a.b_c:d-", strings.Repeat("a", 64)} {
			t.Run(fmt.Sprintf("a request with a key of type %s has the registration ID %.8s… of %d characters as its name, and nothing else", kind, id, len(id)), func(t *testing.T) {
				der, err := certificate.Request(key, id)
				if err != nil {
					t.Fatal(err)
				}
				request, err := x509.ParseCertificateRequest(der)
				if err != nil {
					t.Fatal(err)
				}
				if err := request.CheckSignature(); err != nil {
					t.Error(err)
				}
				if got := request.Subject.ToRDNSequence().String(); got != "CN="+id {
					t.Errorf("the subject is %q", got)
				}
				if len(request.Extensions) > 0 || len(request.Subject.Names) != 1 {
					t.Errorf("it has extensions %v and names %v", request.Extensions, request.Subject.Names)
				}
				if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(request.PublicKey) {
					t.Error("it has another key")
				}
				if n := base64.StdEncoding.EncodedLen(len(der)); n > largest {
					t.Errorf("it has %d characters", n)
				}
			})
		}
		t.Run("a request with a key of type "+string(kind)+" for an ID that a common name cannot contain is refused", func(t *testing.T) {
			for _, n := range []int{65, 128} {
				der, err := certificate.Request(key, strings.Repeat("a", n))
				want := fmt.Sprintf("the registration ID has %d characters; it becomes the common name of the issued certificate, which may have at most 64", n)
				if der != nil || err == nil || err.Error() != want {
					t.Errorf("%d characters: %v", n, err)
				}
				checked, is := errors.AsType[*certificate.RegistrationIDError](certificate.CheckRegistrationID(strings.Repeat("a", n)))
				if !is || checked.Error() != want || checked.Remedy() != "Use a registration ID of at most 64 characters, or remove [certificate] from dpsd.toml." {
					t.Errorf("CheckRegistrationID says %v", checked)
				}
			}
		})
	}
	if err := certificate.CheckRegistrationID(strings.Repeat("a", 64)); err != nil {
		t.Errorf("64 characters: %v", err)
	}
}

func TestValidity(t *testing.T) {
	at := func(days int) time.Time { return now.AddDate(0, 0, days) }
	cert := func(from, to int) *x509.Certificate {
		return &x509.Certificate{NotBefore: at(from), NotAfter: at(to)}
	}
	for _, test := range []struct {
		says            string
		chain           certificate.Chain
		from, to, first int
	}{
		{"one certificate has its own times", certificate.Chain{cert(-1, 30)}, -1, 30, 0},
		{"a leaf that is the shortest determines both times", certificate.Chain{cert(-1, 30), cert(-100, 300)}, -1, 30, 0},
		{"an intermediate that expires first determines the end", certificate.Chain{cert(-1, 30), cert(-100, 20), cert(-500, 900)}, -1, 20, 1},
		{"a root that begins last and expires first determines both", certificate.Chain{cert(-2, 30), cert(-100, 20), cert(-1, 10)}, -1, 10, 2},
		{"of two that expire together, the first counts", certificate.Chain{cert(-2, 30), cert(-100, 20), cert(-9, 20)}, -2, 20, 1},
	} {
		t.Run(test.says, func(t *testing.T) {
			from, to, first := test.chain.Validity()
			if !from.Equal(at(test.from)) || !to.Equal(at(test.to)) || first != test.first {
				t.Errorf("got %v, %v, %d", from, to, first)
			}
		})
	}
}

func TestSerialHasTwoDigitsForEachByte(t *testing.T) {
	for n, want := range map[int64]string{0: "00", 1: "01", 16: "10", 0xabc: "0abc", 0xff00: "ff00"} {
		chain := certificate.Chain{{SerialNumber: big.NewInt(n)}}
		if got := chain.Serial(); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestRenewAt(t *testing.T) {
	const year = 365 * 24 * time.Hour
	random := mathrand.New(mathrand.NewPCG(1, 2))
	t.Run("the time is at most 5 % of the lifetime before the percentage, and never after it", func(t *testing.T) {
		for range 100_000 {
			// Lifetimes of all magnitudes from a second to a hundred years.
			life := time.Second
			for life < 100*year && random.IntN(40) > 0 {
				life = min(life+time.Duration(random.Int64N(int64(life))), 100*year)
			}
			percent := 10 + random.IntN(86)
			at := certificate.RenewAt(now, now.Add(life), percent, fmt.Sprint(random.Uint64()))
			used, part := at.Sub(now), life.Seconds()/100
			const rounding = 1e-6 // seconds
			if low, high := part*float64(percent-5)-rounding, part*float64(percent)+rounding; used.Seconds() < low || used.Seconds() > high {
				t.Fatalf("%d %% of %v: after %v", percent, life, used)
			}
		}
	})
	t.Run("a certificate without an end is renewed after decades", func(t *testing.T) {
		at := certificate.RenewAt(now, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), 67, "f")
		if at.Before(now.Add(100*year)) || at.After(now.Add(290*year)) {
			t.Errorf("at %v", at)
		}
	})
	t.Run("it is the same each time, and another for each certificate", func(t *testing.T) {
		of := func(fingerprint string) time.Time {
			return certificate.RenewAt(now, now.Add(90*24*time.Hour), 67, fingerprint)
		}
		if !of("a").Equal(of("a")) || of("a").Equal(of("b")) {
			t.Errorf("%v, %v, %v", of("a"), of("a"), of("b"))
		}
	})
	t.Run("a fleet renews evenly over the 5 %", func(t *testing.T) {
		const gateways, parts = 20_000, 20
		var counts [parts]int
		life := 90 * 24 * time.Hour
		for i := range gateways {
			early := now.Add(life * 67 / 100).Sub(certificate.RenewAt(now, now.Add(life), 67, fmt.Sprint("gateway ", i)))
			counts[min(int(early*parts/(life/20)), parts-1)]++
		}
		for part, n := range counts { // four standard deviations are 123
			if n < gateways/parts-123 || n > gateways/parts+123 {
				t.Errorf("%d of %d gateways renew in part %d of %d", n, gateways, part+1, parts)
			}
		}
	})
}
