package certificate_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
)

// openssl runs openssl in a directory. If it is not installed, it skips the test, or fails in
// CI.
func openssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	c := exec.Command("openssl", args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// forms are the three forms in which certificates of a chain have been observed.
var forms = map[string]func(der []byte) string{
	"base64 of DER": base64.StdEncoding.EncodeToString,
	"base64 of PEM": func(der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	},
	"PEM": func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	},
}

// openssl is the authority, and checks each request, key and chain, independently of the
// code under test and of its library.
func TestEveryTypeOfKeyFormOfChainAndLengthOfChain(t *testing.T) {
	const id = "gw-1.a_b:C"
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("authority.conf", []byte("basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\nsubjectKeyIdentifier = hash\n"))
	write("gateway.conf", []byte("basicConstraints = CA:FALSE\nkeyUsage = critical, digitalSignature\nextendedKeyUsage = clientAuth\n"))
	for _, name := range []string{"root", "intermediate"} {
		openssl(t, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", name+".key")
		openssl(t, dir, "req", "-new", "-key", name+".key", "-subj", "/O=Example/CN="+name, "-out", name+".csr")
	}
	openssl(t, dir, "x509", "-req", "-sha384", "-in", "root.csr", "-signkey", "root.key", "-extfile", "authority.conf", "-days", "3650", "-out", "root.pem")
	openssl(t, dir, "x509", "-req", "-sha384", "-in", "intermediate.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "authority.conf", "-days", "365", "-out", "intermediate.pem")
	read := func(name string) []byte {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	for kind, described := range map[certificate.KeyType]struct{ key, signature string }{
		certificate.P256:    {"ASN1 OID: prime256v1", "ecdsa-with-SHA256"},
		certificate.P384:    {"ASN1 OID: secp384r1", "ecdsa-with-SHA384"},
		certificate.RSA2048: {"Private-Key: (2048 bit, 2 primes)", "sha256WithRSAEncryption"},
	} {
		key, text := newKey(t, kind)
		write("key.pem", text)
		t.Run("openssl reads a key of type "+string(kind), func(t *testing.T) {
			if got := openssl(t, dir, "pkey", "-in", "key.pem", "-check", "-noout", "-text"); !strings.Contains(got, described.key) || !strings.Contains(got, "Key is valid") {
				t.Errorf("got %s", got)
			}
		})
		csr, err := certificate.Request(key, id)
		if err != nil {
			t.Fatal(err)
		}
		write("request.der", csr)
		t.Run("openssl verifies a request with a key of type "+string(kind), func(t *testing.T) {
			got := openssl(t, dir, "req", "-inform", "DER", "-in", "request.der", "-verify", "-noout", "-text", "-nameopt", "RFC2253")
			for _, want := range []string{"verify OK", "Subject: CN=" + id + "\n", "Signature Algorithm: " + described.signature} {
				if !strings.Contains(got, want) {
					t.Errorf("not %q in %s", want, got)
				}
			}
			of := func(args ...string) string {
				return openssl(t, dir, append(args, "-pubout")...)
			}
			if request := openssl(t, dir, "req", "-inform", "DER", "-in", "request.der", "-noout", "-pubkey"); request != of("pkey", "-in", "key.pem") {
				t.Errorf("the request has the key %s", request)
			}
		})
		openssl(t, dir, "x509", "-req", "-sha384", "-inform", "DER", "-in", "request.der", "-CA", "intermediate.pem", "-CAkey", "intermediate.key", "-CAcreateserial",
			"-extfile", "gateway.conf", "-days", "30", "-out", "leaf.pem")
		for form, encode := range forms {
			for length, names := range map[string][]string{
				"leaf only":         {"leaf.pem"},
				"with intermediate": {"leaf.pem", "intermediate.pem"},
				"with root":         {"leaf.pem", "intermediate.pem", "root.pem"},
			} {
				t.Run(string(kind)+", "+form+", "+length+": the chain is accepted, openssl verifies it, and a TLS client can use it", func(t *testing.T) {
					var texts []string
					var want []byte
					for _, name := range names {
						texts = append(texts, encode(read(name)))
						want = append(want, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: read(name)})...)
					}
					raw, err := json.Marshal(texts)
					if err != nil {
						t.Fatal(err)
					}
					chain, err := certificate.Accept(raw, key.Public(), id, time.Now())
					if err != nil {
						t.Fatal(err)
					}
					if string(chain.PEM()) != string(want) {
						t.Error("the file of the chain has other certificates")
					}
					write("chain.pem", chain.PEM())
					// The first certificate of chain.pem is verified with the others, up to the root.
					if got := openssl(t, dir, "verify", "-purpose", "sslclient", "-x509_strict", "-CAfile", "root.pem", "-untrusted", untrusted(names), "chain.pem"); got != "chain.pem: OK\n" {
						t.Errorf("openssl verify says %s", got)
					}
					if _, err := tls.X509KeyPair(chain.PEM(), text); err != nil {
						t.Errorf("tls.X509KeyPair: %v", err)
					}
					got := openssl(t, dir, "x509", "-in", "chain.pem", "-noout", "-serial", "-fingerprint", "-sha256", "-issuer", "-nameopt", "RFC2253", "-enddate")
					digits := strings.ToLower(strings.ReplaceAll(got, ":", ""))
					if !strings.Contains(digits, "serial="+chain.Serial()+"\n") || !strings.Contains(digits, "fingerprint="+chain.Fingerprint()+"\n") || !strings.Contains(got, "issuer="+chain.Issuer()+"\n") {
						t.Errorf("%s, %s, %s, but openssl says %s", chain.Serial(), chain.Fingerprint(), chain.Issuer(), got)
					}
					if _, notAfter, first := chain.Validity(); first != 0 || !strings.Contains(got, "notAfter="+notAfter.UTC().Format("Jan _2 15:04:05 2006")+" GMT\n") {
						t.Errorf("ends at %v, but openssl says %s", notAfter, got)
					}
				})
			}
		}
	}
}

// untrusted returns a file with the intermediates for openssl verify: those of the chain, or
// the one that the hub knows if the chain has none.
func untrusted(names []string) string {
	if len(names) == 1 {
		return "intermediate.pem"
	}
	return "chain.pem"
}
