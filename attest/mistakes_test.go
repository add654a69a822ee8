package attest_test

import (
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// tools skips the test if a program that it needs is not installed. In CI it fails instead.
func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatal(name, " is not installed")
		}
		t.Skip(name, " is not installed")
	}
}

// passphrase protects every file that has a passphrase.
const passphrase = "S3CRET"

// shell runs a script in a directory, without a terminal and with the passphrase on
// standard input.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	c := exec.Command("sh", "-ec", script)
	c.Dir, c.Stdin = dir, strings.NewReader(passphrase+"\n"+passphrase+"\n")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// remedy returns the command of an error's advice and the whole advice.
func remedy(t *testing.T, err error) (command, all string) {
	t.Helper()
	var known interface{ Remedy() string }
	if !errors.As(err, &known) {
		t.Fatalf("%v has no remedy", err)
	}
	command, _, _ = strings.Cut(known.Remedy(), "; then ")
	return command, known.Remedy()
}

// The files of a gateway: key.pem and chain.pem, which belong together. The tests convert
// them.
const makeFiles = `umask 077
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
openssl req -x509 -new -key key.pem -subj /CN=gw-1 -days 30 -out leaf.pem
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca.key
openssl req -x509 -new -key ca.key -subj /CN=ca -days 30 -out ca.pem
cat leaf.pem ca.pem >chain.pem
`

func TestTheErrorNamesTheContentThatIsNotAPrivateKeyOrCertificateAndTheCommandConvertsIt(t *testing.T) {
	tools(t, "openssl", "ssh-keygen", "iconv", "grep", "base64")
	for _, test := range []struct {
		expect string
		script string // writes key and chain
		says   string
	}{
		{"a key in DER", "openssl pkey -in key.pem -outform DER -out key; cp chain.pem chain", "/key: the file contains a private key in DER, not in PEM"},
		{"an EC key in DER", "openssl ec -in key.pem -outform DER -out key; cp chain.pem chain", "/key: the file contains a private key in DER"},
		{"a key in DER with a passphrase", "openssl pkcs8 -topk8 -in key.pem -passout pass:S3CRET -outform DER -out key; cp chain.pem chain", "/key: the file contains a private key that is protected by a passphrase in DER"},
		{"a key with a passphrase", "openssl pkcs8 -topk8 -in key.pem -passout pass:S3CRET -out key; cp chain.pem chain", "/key: the private key is protected by a passphrase"},
		{"a key with a passphrase in the traditional format", "openssl ec -in key.pem -aes128 -passout pass:S3CRET -out key; cp chain.pem chain", "/key: the private key is protected by a passphrase"},
		{"a key with a passphrase under a wrong label", "openssl pkcs8 -topk8 -in key.pem -passout pass:S3CRET | sed 's/ENCRYPTED //' >key; cp chain.pem chain", "/key: line 1: the private key is protected by a passphrase, but the label does not say so"},
		{"a key of OpenSSH", "cp key.pem key; ssh-keygen -q -p -N '' -f key; cp chain.pem chain", "/key: a private key in OpenSSH format"},
		{"a curve that is described by its parameters", "openssl ec -in key.pem -param_enc explicit -out key; cp chain.pem chain", "/key: a private key whose curve P-256, P-384 or P-521 is given by its parameters"},
		{"a curve that is described by its parameters, in PKCS#8", "openssl pkey -in key.pem -ec_param_enc explicit -out key; cp chain.pem chain", "/key: a private key whose curve P-256, P-384 or P-521 is given by its parameters"},
		{"a key in base64 without PEM", "openssl pkey -in key.pem -outform DER | base64 >key; cp chain.pem chain", "/key: the file contains a private key in base64 without the PEM header and footer"},
		{"a key in base64 of PEM", "base64 key.pem >key; cp chain.pem chain", "/key: the file contains PEM that is encoded in base64"},
		{"a key in UTF-16", "iconv -f UTF-8 -t UTF-16 key.pem >key; cp chain.pem chain", "/key: the file is UTF-16 text, not UTF-8"},
		{`a key with \n in place of line breaks`, `awk '{printf "%s\\n", $0}' key.pem >key; cp chain.pem chain`, `/key: line 1: the file contains \n as two characters instead of line breaks`},
		{"a certificate in DER", "cp key.pem key; openssl x509 -in leaf.pem -outform DER -out chain", "/chain: the file contains a certificate in DER, not in PEM"},
		{"a certificate in base64 without PEM", "cp key.pem key; openssl x509 -in leaf.pem -outform DER | base64 -w 0 >chain", "/chain: the file contains a certificate in base64 without the PEM header and footer"},
		{"a certificate in UTF-16", "cp key.pem key; iconv -f UTF-8 -t UTF-16LE chain.pem >chain", "/chain: the file is UTF-16 text, not UTF-8"},
		{"a P7B in PEM", "cp key.pem key; openssl crl2pkcs7 -nocrl -certfile chain.pem -out chain", "/chain: line 1: a PKCS#7 bundle (P7B)"},
		{"a P7B in DER", "cp key.pem key; openssl crl2pkcs7 -nocrl -certfile chain.pem -outform DER -out chain", "/chain: the file is a PKCS#7 bundle (P7B)"},
		{"a TRUSTED CERTIFICATE", "cp key.pem key; { cat leaf.pem; openssl x509 -in ca.pem -trustout -addtrust clientAuth; } >chain", "a TRUSTED CERTIFICATE, which only openssl reads"},
		{"an X509 CERTIFICATE", "cp key.pem key; sed 's/ CERTIFICATE-/ X509 CERTIFICATE-/' chain.pem >chain", "/chain: line 1: a certificate with the old label X509 CERTIFICATE"},
		{"a PFX", "openssl pkcs12 -export -inkey key.pem -in leaf.pem -certfile ca.pem -passout pass:S3CRET -out chain; cp chain key", "/chain: the file is a PKCS#12 archive (PFX)"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			shell(t, dir, makeFiles+test.script+"\nchmod 640 key chain")
			at := func(name string) attest.Reference { return attest.Reference{File: filepath.Join(dir, name)} }
			x := attest.X509{Certificate: at("chain"), PrivateKey: at("key")}
			_, err := x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now())
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v\nwant … %s", err, test.says)
			}
			for n := 0; err != nil; n++ { // a PFX is corrected once for the certificate and once for the key
				if n == 2 {
					t.Fatalf("after the command: %v", err)
				}
				command, _ := remedy(t, err)
				shell(t, dir, command)
				_, err = x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now())
			}
			for _, name := range []string{"key", "chain"} {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o640 {
					t.Errorf("%s has mode %v now, %v", name, info.Mode(), err)
				}
			}
		})
	}
}

// pkcs8Of makes a private key for an algorithm that openssl may not support. The
// algorithm's identifier follows.
const pkcs8Of = `make() {
	printf '%s\n' asn1=SEQUENCE:key '[key]' v=INTEGER:0 a=SEQUENCE:algorithm k=FORMAT:HEX,OCTETSTRING:80200102 '[algorithm]' "oid=OID:$1" >asn1
	openssl asn1parse -genconf asn1 -noout -out der
	{ echo -----BEGIN PRIVATE KEY-----; base64 der; echo -----END PRIVATE KEY-----; } >key
}
make `

func TestTheErrorAboutAnUnsupportedPrivateKeyContainsTheCommandForASupportedOne(t *testing.T) {
	tools(t, "openssl", "ssh-keygen", "base64")
	for _, test := range []struct{ expect, script, says string }{
		{"secp256k1", "openssl ecparam -name secp256k1 -genkey -noout -out key", "a private key on the curve secp256k1; DPS accepts RSA and EC on P-256, P-384 and P-521"},
		{"secp256k1 in PKCS#8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out key", "on the curve secp256k1"},
		{"secp256k1 with the parameters in front", "openssl ecparam -name secp256k1 -genkey -out key", "on the curve secp256k1"},
		{"brainpool", "openssl ecparam -name brainpoolP384t1 -genkey -noout -out key", "a private key on a brainpool curve"},
		{"the parameters of brainpool", "openssl ecparam -name brainpoolP256r1 -param_enc explicit -genkey -noout -out key", "a private key on a curve that is given by its parameters"},
		{"P-192", "openssl ecparam -name prime192v1 -genkey -noout -out key", "on the curve P-192"},
		{"P-224", "openssl ecparam -name secp224r1 -genkey -noout -out key", "on the curve P-224"},
		{"RSA-PSS", "openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out key", "for RSA-PSS only"},
		{"Ed25519", "openssl genpkey -algorithm ED25519 -out key", "for Ed25519"},
		{"Ed448", "openssl genpkey -algorithm ed448 -out key", "a private key for Ed448; DPS accepts RSA and EC on P-256, P-384 and P-521"},
		{"Ed448 in DER", "openssl genpkey -algorithm ed448 -outform DER -out key", "a private key for Ed448"},
		{"Ed25519 in base64 without PEM", "openssl genpkey -algorithm ED25519 -outform DER | base64 >key", "a private key for Ed25519"},
		{"Ed25519 of OpenSSH", "ssh-keygen -q -t ed25519 -N '' -f key", "an Ed25519 private key in OpenSSH format"},
		{"X25519", "openssl genpkey -algorithm X25519 -out key", "a private key for X25519"},
		{"X448", "openssl genpkey -algorithm X448 -out key", "a private key for X448"},
		{"Diffie-Hellman", "openssl genpkey -algorithm DH -pkeyopt group:ffdhe2048 -out key", "a private key for Diffie-Hellman"},
		{"ML-DSA", pkcs8Of + "2.16.840.1.101.3.4.3.18", "a private key for ML-DSA"},
		{"an unknown algorithm", pkcs8Of + "2.999.7", "a private key for the algorithm 2.999.7"},
		{"an unknown curve", "openssl ecparam -name sect283k1 -genkey -noout -out key", "a private key on the curve with the OID 1.3.132.0.16"},
		{"an unknown curve in PKCS#8", "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:sect283k1 -outform DER -out key", "a private key on the curve with the OID 1.3.132.0.16"},
		{"DSA in the traditional format", "openssl dsaparam -genkey -noout 1024 | openssl dsa -out key", "for DSA"},
		{"DSA in the traditional format in DER", "openssl dsaparam -genkey -noout 1024 | openssl dsa -outform DER -out key", "for DSA"},
		{"DSA", "openssl genpkey -genparam -algorithm DSA -pkeyopt dsa_paramgen_bits:1024 -out p; openssl genpkey -paramfile p -out key", "for DSA"},
		{"RSA of 512 bits", "openssl genrsa -out key 512", "an RSA key of 512 bits"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			shell(t, dir, makeFiles+test.script)
			x := attest.X509{Certificate: attest.Reference{File: filepath.Join(dir, "leaf.pem")}, PrivateKey: attest.Reference{File: filepath.Join(dir, "key")}}
			_, err := x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now())
			if err == nil || !errors.Is(err, pemfile.ErrUnsupportedKey) || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v\nwant … %s", err, test.says)
			}
			command, all := remedy(t, err)
			if !strings.HasSuffix(all, "; then have a certificate issued for the new key") {
				t.Errorf("the remedy is %q", all)
			}
			shell(t, dir, command+"\nopenssl req -x509 -new -key key -subj /CN=gw-1 -days 30 -out leaf.pem; test -s key.orig")
			if _, err = x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now()); err != nil {
				t.Errorf("after the command: %v", err)
			}
		})
	}
	t.Run("the error about a certificate for such a key names it", func(t *testing.T) {
		dir := t.TempDir()
		shell(t, dir, "openssl ecparam -name secp256k1 -genkey -noout -out key; openssl req -x509 -new -key key -subj /CN=gw-1 -days 30 -out leaf.pem")
		x := attest.X509{Certificate: attest.Reference{File: filepath.Join(dir, "leaf.pem")}, PrivateKey: attest.Reference{File: filepath.Join(dir, "key")}}
		_, err := x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now())
		if err == nil || !strings.Contains(err.Error(), "line 1: certificate 1 is for a key on the curve secp256k1") {
			t.Errorf("got %v", err)
		}
	})
}

func TestTheErrorAboutAFileOfTheOtherKindContainsTheCommandThatFindsTheRightFile(t *testing.T) {
	tools(t, "openssl", "grep")
	const request = "openssl req -new -key key.pem -subj /CN=gw-1 "
	for _, test := range []struct {
		expect, script string // writes the file
		key            bool   // the file is used as the private key
		says           string
	}{
		{"a certificate in place of the key", "cp leaf.pem x", true, "the file contains a certificate but no private key"},
		{"a request in place of the key", request + "-out x", true, "the file contains a certificate request (CSR) but no private key"},
		{"a request in DER in place of the key", request + "-outform DER -out x", true, "the file contains a certificate request (CSR) in DER"},
		{"a public key in place of the key", "openssl pkey -in key.pem -pubout -out x", true, "the file contains a public key but no private key"},
		{"a public key in DER in place of the key", "openssl pkey -in key.pem -pubout -outform DER -out x", true, "the file contains a public key"},
		{"a public key of OpenSSH in place of the key", "ssh-keygen -y -f key.pem >x", true, "the file contains a public key"},
		{"a certificate under the label of a key", "sed 's/ CERTIFICATE-/ PRIVATE KEY-/' leaf.pem >x", true, "line 1: the block is labelled as a private key, but it contains a certificate"},
		{"a P7B in place of the key", "openssl crl2pkcs7 -nocrl -certfile chain.pem -out x", true, "the file contains a PKCS#7 bundle (P7B) but no private key"},
		{"a symmetric key in place of the key", "echo c2VjcmV0LWtleS1vZi1nYXRld2F5LTE= >x", true, "the file contains a symmetric key"},
		{"a key in place of the certificate", "cp key.pem x", false, "the file contains a private key but no certificate"},
		{"a key in DER in place of the certificate", "openssl pkey -in key.pem -outform DER -out x", false, "the file contains a private key in DER"},
		{"a request in place of the certificate", request + "-out x", false, "line 1: a certificate request (CSR), which a CA has yet to sign"},
		{"a public key in place of the certificate", "openssl pkey -in key.pem -pubout -out x", false, "line 1: a public key, not a certificate"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			if strings.Contains(test.script, "ssh-keygen") {
				tools(t, "ssh-keygen")
			}
			t.Parallel()
			dir := t.TempDir()
			shell(t, dir, makeFiles+test.script)
			x := attest.X509{Certificate: attest.Reference{File: filepath.Join(dir, "leaf.pem")}, PrivateKey: attest.Reference{File: filepath.Join(dir, "x")}}
			right := "key.pem"
			if !test.key {
				right, x = "leaf.pem", attest.X509{Certificate: x.PrivateKey, PrivateKey: attest.Reference{File: filepath.Join(dir, "key.pem")}}
			}
			_, err := x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, time.Now())
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v\nwant … %s", err, test.says)
			}
			command, _ := remedy(t, err)
			if found := shell(t, dir, command); !strings.Contains(found, filepath.Join(dir, right)+"\n") {
				t.Errorf("%s finds\n%s", command, found)
			}
		})
	}
}

func TestACertificateFileWithAnErrorThatOpensslToleratesIsUsed(t *testing.T) {
	p256 := ecKey(t, elliptic.P256())
	root := &issuer{key: ecKey(t, elliptic.P256())}
	root.certificate = issue(t, nil, "root", root.key, true)
	leaf := issue(t, root, "gw-1", p256, false)
	chain, key := certificatePEM(leaf, root.certificate), pkcs8(t, p256)
	for expect, files := range map[string][2]string{
		"a missing line feed between two files":            {strings.Replace(chain, "-----\n-----", "----------", 1), key},
		"a byte order mark":                                {"\ufeff" + chain, "\ufeff" + key},
		"Windows line endings":                             {strings.ReplaceAll(chain, "\n", "\r\n"), strings.ReplaceAll(key, "\n", "\r\n")},
		"a key after the certificates of the file":         {chain + key, chain + key},
		"a key after the certificates without a line feed": {strings.TrimSuffix(chain, "\n") + key, strings.TrimSuffix(chain, "\n") + key},
		"the explanations that openssl pkcs12 writes":      {"Bag Attributes\n    localKeyID: 01\nsubject=CN = gw-1\n" + chain, "Key Attributes: <No Attributes>\n" + key},
	} {
		t.Run(expect, func(t *testing.T) {
			p, err := pair(t, files[0], files[1]).Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, midway)
			if err != nil || len(p.Certificate.Certificate) != 2 {
				t.Errorf("got %v, %v", p.Certificate, err)
			}
		})
	}
	for expect, files := range map[string][2]string{
		"a truncated last certificate":   {chain[:len(chain)-60], key},
		"a second private key":           {chain, key + key},
		"a list of revoked certificates": {chain + encode("X509 CRL", []byte("x")), key},
	} {
		t.Run(expect+" is an error that names its line", func(t *testing.T) {
			_, err := pair(t, files[0], files[1]).Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, midway)
			if err == nil || !strings.Contains(err.Error(), ": line ") || !strings.Contains(err.Error(), "/device.") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTheErrorNamesTheWrongFormOfASymmetricKeyAndTheCommandConvertsIt(t *testing.T) {
	tools(t, "iconv", "basenc", "base64", "sed", "tr", "head")
	key := []byte("\xfb\xff\xfe a key that has both + and / in its text")[:32]
	text := base64.StdEncoding.EncodeToString(key) // "+//+…="
	for _, test := range []struct{ expect, file, says string }{
		{"quotes around it", `"` + text + `"` + "\n", "quotes, blanks or other characters around it"},
		{"typographic quotes around it", "“" + text + "”\n", "quotes, blanks or other characters around it"},
		{"a blank in it", text[:10] + " " + text[10:], "quotes, blanks or other characters around it or in it"},
		{"a no-break space after it", text + "\u00a0\u200b\n", "quotes, blanks or other characters around it"},
		{"a name before it", "primaryKey: " + text + "\n", "a name before the key"},
		{"a line of TOML", `key = "` + text + `"` + "\n", "a name before the key"},
		{"a connection string", "HostName=x.azure-devices.net;DeviceId=gw-1;SharedAccessKey=" + text, "a connection string"},
		{"two keys", text + "\n" + text + "\n", "more lines after the key"},
		{"the base64 alphabet for URLs", strings.NewReplacer("+", "-", "/", "_").Replace(text), "the key is in base64url"},
		{"no padding", strings.TrimRight(text, "=") + "\n", `"=" is missing at the end of the key`},
		{"the bytes themselves", string(key), "the key is 32 bytes, not base64 text"},
		{"UTF-16", "\xff\xfe" + strings.Join(strings.Split(text, ""), "\x00") + "\x00", "UTF-16 text"},
		{"no padding and a blank in it", text[:10] + " " + strings.TrimRight(text[10:], "="), `"=" is missing at the end of the key`},
		{"hexadecimal digits with blanks and hyphens", hex.EncodeToString(key[:4]) + " " + hex.EncodeToString(key[4:9]) + "-" + hex.EncodeToString(key[9:]), "the key is 64 hexadecimal digits, not base64"},
		{"hexadecimal digits with colons", strings.ToUpper(hex.EncodeToString(key[:1])) + ":" + hex.EncodeToString(key[1:]), "the key is 64 hexadecimal digits, not base64"},
		{"base64 of base64 of a long key", base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(append(key, key...)))), "the key is encoded in base64 twice"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			want := key
			if strings.HasSuffix(test.expect, "long key") {
				want = append(want[:len(want):len(want)], want...)
			}
			k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
			write(t, k.Key.File, test.file)
			subject := attest.Subject{Resource: "r", RegistrationID: "gw-1"}
			_, err := k.Prove(context.Background(), subject, attest.Secrets{}, midway)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("got %v\nwant … %s", err, test.says)
			}
			if strings.Contains(err.Error(), text[:8]) {
				t.Errorf("the error contains the key: %v", err)
			}
			command, _ := remedy(t, err)
			shell(t, "/", command)
			p, err := k.Prove(context.Background(), subject, attest.Secrets{}, midway)
			if err != nil || p.Password != registrationToken(want, "r", p.Expires) {
				t.Errorf("after %s: %v", command, err)
			}
		})
	}
}

// Text that is shorter or longer than a key of 16 to 64 bytes in any form is not recognized
// as a key, because the command would not convert it to one.
func TestATextIsRecognizedAsAnotherFormOfAKeyOnlyIfItHasTheLengthOfAKey(t *testing.T) {
	digits := strings.Repeat("0123456789abcdef", 10)
	for _, test := range []struct{ file, says string }{
		{digits[:128], "the key is 128 hexadecimal digits, not base64"},
		{digits[:127], "the key is cut off: it has 127 characters, but the length of base64 text is a multiple of 4"},
		{digits[:130], "the key is cut off: it has 130 characters, but the length of base64 text is a multiple of 4"},
		{digits[:132], ""},
		{strings.Repeat("\x01", 15), ""},
		{strings.Repeat("\x01", 16), "the key is 16 bytes, not base64 text"},
		{strings.Repeat("\x01", 64), "the key is 64 bytes, not base64 text"},
		{strings.Repeat("\x01", 65), ""},
		{strings.Repeat("\xff", 16), "the key is 16 bytes, not base64 text"},
		{"this is not a key.", ""},
	} {
		_, err := attest.DecodeKey([]byte(test.file))
		if !errors.Is(err, attest.ErrNotBase64) && !errors.Is(err, attest.ErrKeyLength) {
			t.Errorf("%q: got %v", test.file, err)
		}
		said := ""
		if mistake := (*input.Mistake)(nil); errors.As(err, &mistake) {
			said = mistake.Error()
		}
		if said != test.says {
			t.Errorf("%q is recognized as %q, want %q", test.file, said, test.says)
		}
	}
}

func TestTheErrorAboutAFileThatCannotContainASymmetricKeySaysWhatToDo(t *testing.T) {
	p256 := ecKey(t, elliptic.P256())
	leaf := issue(t, nil, "gw-1", p256, false)
	for _, test := range []struct{ expect, file, says, remedy string }{
		{"PEM", pkcs8(t, p256), "the file contains PEM, not a symmetric key", `set type = "x509", certificate and private_key in this [[credential]]`},
		{"a certificate in DER", string(leaf.Raw), "the file contains a certificate in DER, not in PEM; a symmetric key is base64 text", `set type = "x509"`},
		{"a SAS token", "SharedAccessSignature sr=x&sig=y&se=1", "a SAS token", "put the primary key of the enrollment into it"},
	} {
		k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
		write(t, k.Key.File, test.file)
		_, err := k.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway)
		if err == nil || !errors.Is(err, attest.ErrNotBase64) && !errors.Is(err, attest.ErrKeyLength) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: got %v", test.expect, err)
			continue
		}
		if _, all := remedy(t, err); !strings.HasPrefix(all, test.remedy) {
			t.Errorf("%s: the remedy is %q", test.expect, all)
		}
	}
}

// The service may have been configured with such a text as the key, so dpsd tries it.
func TestADoubtfulSymmetricKeyIsUsedAndTheDoubtContainsTheCommand(t *testing.T) {
	tools(t, "basenc", "base64", "tr")
	key := []byte("0123456789\xfb\xff\xfe a key of 32 bytes or more")[:32]
	text := base64.StdEncoding.EncodeToString(key)
	for _, test := range []struct{ expect, file, says string }{
		{"64 hexadecimal digits with Windows line endings", hex.EncodeToString(key[:20]) + "\r\n" + hex.EncodeToString(key[20:]) + "\r\n", "the key is 64 hexadecimal digits"},
		{"64 hexadecimal digits", hex.EncodeToString(key) + "\n", "the key is 64 hexadecimal digits"},
		{"base64 of base64", base64.StdEncoding.EncodeToString([]byte(text)), "the key is encoded in base64 twice"},
		{"base64 of a line of base64", base64.StdEncoding.EncodeToString([]byte(text + "\n")), "the key is encoded in base64 twice"},
		{"base64 of hexadecimal digits", base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(key))), "the key is base64 of 64 hexadecimal digits"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
			write(t, k.Key.File, test.file)
			p, err := k.Prove(context.Background(), attest.Subject{Resource: "r"}, attest.Secrets{}, midway)
			var doubt *attest.Doubt
			if err != nil || !errors.As(p.Doubt, &doubt) || doubt.Group || !strings.Contains(doubt.Error(), test.says) || p.Password == "" {
				t.Fatalf("got %v, the doubt %v, want … %s", err, p.Doubt, test.says)
			}
			command, _ := remedy(t, p.Doubt)
			shell(t, "/", command)
			p, err = k.Prove(context.Background(), attest.Subject{Resource: "r"}, attest.Secrets{}, midway)
			if err != nil || p.Doubt != nil || p.Password != registrationToken(key, "r", p.Expires) {
				t.Errorf("after %s: %v, the doubt %v", command, err, p.Doubt)
			}
		})
	}
	t.Run("a key of 64 bytes may be the group key, from which the device key is derived", func(t *testing.T) {
		k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
		write(t, k.Key.File, base64.StdEncoding.EncodeToString(append(key, key...)))
		p, err := k.Prove(context.Background(), attest.Subject{RegistrationID: "gw-1"}, attest.Secrets{}, midway)
		var doubt *attest.Doubt
		if err != nil || !errors.As(p.Doubt, &doubt) || !doubt.Group {
			t.Fatalf("got %v, the doubt %v", err, p.Doubt)
		}
		want := "key=$(dpsd derive-key --registration-id gw-1 <" + k.Key.File + `) && echo "$key" >` + k.Key.File
		if !strings.Contains(doubt.Remedy(), want) {
			t.Errorf("the remedy is %q, which does not contain %q", doubt.Remedy(), want)
		}
	})
	for expect, file := range map[string]string{
		"a key of 32 bytes is not doubted":                                      text,
		"a key of 63 bytes is not doubted":                                      base64.StdEncoding.EncodeToString(append(key, key[:31]...)),
		"28 hexadecimal digits, too few for a key of 16 bytes, are not doubted": hex.EncodeToString(key[:14]),
	} {
		t.Run(expect, func(t *testing.T) {
			k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
			write(t, k.Key.File, file)
			if p, err := k.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway); err != nil || p.Doubt != nil {
				t.Errorf("got %v, the doubt %v", err, p.Doubt)
			}
		})
	}
	t.Run("32 hexadecimal digits are doubted", func(t *testing.T) {
		k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
		write(t, k.Key.File, hex.EncodeToString(key[:16]))
		if p, err := k.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway); err != nil || p.Doubt == nil || !strings.Contains(p.Doubt.Error(), "32 hexadecimal digits") {
			t.Errorf("got %v, the doubt %v", err, p.Doubt)
		}
	})
}

func TestTheErrorAboutACredentialInAWrongFormContainsTheCommandForTheFileThatTheUnitLoads(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "dps-primary-key"), "\xff\xfek\x00e\x00y\x00")
	_, err := attest.SymmetricKey{Key: attest.Reference{Credential: "dps-primary-key"}}.Prove(context.Background(), attest.Subject{}, attest.Secrets{Directories: []string{dir}}, midway)
	if err == nil || !strings.Contains(err.Error(), "UTF-16") {
		t.Fatalf("got %v", err)
	}
	_, all := remedy(t, err)
	if strings.Contains(all, dir) || !strings.Contains(all, "where FILE is the file that dpsd.service loads as the credential dps-primary-key") || !strings.HasSuffix(all, "systemctl restart --no-block dpsd") {
		t.Errorf("the remedy is %q", all)
	}
}

// The test covers the kinds of files that people put in the place of each secret.
func TestTheErrorNamesAFileThatCannotContainASecretAndTheCommandWritesTheRightContent(t *testing.T) {
	tools(t, "install", "mkfifo", "head")
	p256 := ecKey(t, elliptic.P256())
	leaf := issue(t, nil, "gw-1", p256, false)
	symmetric := base64.StdEncoding.EncodeToString([]byte("the key of the gateway"))
	for _, place := range []struct{ name, content, junk string }{
		{"key", symmetric + "\n", "this is not base64!\n"},
		{"certificate", certificatePEM(leaf), "no certificate\n"},
		{"private_key", pkcs8(t, p256), "no key\n"},
		{"proxy_password", "S3CRET\n", "two\nlines\n"},
	} {
		for _, test := range []struct{ expect, script, says, command string }{
			{"an empty file", ": >x", "the file is empty", "cat >FILE"},
			{"a file of blanks", "echo >x", "the file is empty", "cat >FILE"},
			{"junk", "cp junk x", "", "cp -p FILE FILE.orig && cat >FILE"},
			{"a file that is too large", "head -c 70000 /dev/zero >x", "the file is too large: the limit is 64 KiB", "mv FILE FILE.orig && cp -p --attributes-only FILE.orig FILE && cat >FILE"},
			{"a FIFO", "mkfifo x", "not a regular file but a FIFO", "mv FILE FILE.orig && install -o root -g dpsd-keys -m 0640 /dev/stdin FILE"},
			{"an empty directory", "mkdir x", "not a regular file but a directory", "rmdir FILE && install -o root -g dpsd-keys -m 0640 /dev/stdin FILE"},
			{"a link to a FIFO", "mkfifo y; ln -s y x", "not a regular file but a FIFO", "mv FILE FILE.orig && install -o root -g dpsd-keys -m 0640 /dev/stdin FILE"},
			{"a link to a device", "ln -s /dev/null x", "not a regular file but a device", "mv FILE FILE.orig && install -o root -g dpsd-keys -m 0640 /dev/stdin FILE"},
		} {
			t.Run(place.name+" is "+test.expect, func(t *testing.T) {
				dir := t.TempDir()
				file := filepath.Join(dir, "x")
				at := func(name string) attest.Reference { return attest.Reference{File: filepath.Join(dir, name)} }
				write(t, filepath.Join(dir, "junk"), place.junk)
				write(t, filepath.Join(dir, "leaf"), certificatePEM(leaf))
				write(t, filepath.Join(dir, "private"), pkcs8(t, p256))
				shell(t, dir, test.script)
				use := func() error {
					var err error
					subject := attest.Subject{RegistrationID: "gw-1"}
					switch place.name {
					case "key":
						_, err = attest.SymmetricKey{Key: at("x")}.Prove(context.Background(), subject, attest.Secrets{}, midway)
					case "certificate":
						_, err = attest.X509{Certificate: at("x"), PrivateKey: at("private")}.Prove(context.Background(), subject, attest.Secrets{}, midway)
					case "private_key":
						_, err = attest.X509{Certificate: at("leaf"), PrivateKey: at("x")}.Prove(context.Background(), subject, attest.Secrets{}, midway)
					default:
						_, err = attest.Secrets{}.Password(at("x"))
					}
					return err
				}
				err := use()
				if err == nil || !strings.HasPrefix(err.Error(), "file:"+file+": ") || !strings.Contains(err.Error(), test.says) {
					t.Fatalf("got %v\nwant … %s", err, test.says)
				}
				command, all := remedy(t, err)
				if want := strings.NewReplacer("FILE.orig", file+".orig", "FILE", file).Replace(test.command); command != want {
					t.Errorf("the command is %s\nwant %s", command, want)
				}
				if !strings.HasSuffix(all, " and press Ctrl+D") {
					t.Errorf("the remedy is %q", all)
				}
				// Only root may change the owner of a file, and the group exists only if the package
				// is installed.
				c := exec.Command("sh", "-ec", strings.Replace(command, " -o root -g dpsd-keys", "", 1))
				c.Stdin = strings.NewReader(place.content)
				if out, err := c.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", command, err, out)
				}
				if err := use(); err != nil {
					t.Errorf("after %s: %v", command, err)
				}
			})
		}
	}
	t.Run("the advice for a directory with files is to complete the path", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "device.key"), symmetric)
		_, err := attest.SymmetricKey{Key: attest.Reference{File: dir}}.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway)
		command, all := remedy(t, err)
		if !strings.Contains(shell(t, "/", command), "device.key") || all != "ls -lA "+dir+`; then refer to the right file in it: key = "file:`+dir+`/NAME"` {
			t.Errorf("got %v, the remedy %q", err, all)
		}
	})
	t.Run("the advice for a device is to write the key to a file", func(t *testing.T) {
		_, err := attest.SymmetricKey{Key: attest.Reference{File: "/dev/zero"}}.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway)
		const want = `install -o root -g dpsd-keys -m 0640 /dev/stdin /etc/dpsd/keys/device.key; then paste the device's key in base64 and press Ctrl+D; then set key = "file:/etc/dpsd/keys/device.key" in dpsd.toml`
		if _, all := remedy(t, err); all != want {
			t.Errorf("got %v, the remedy %q", err, all)
		}
	})
	t.Run("a truncated key is reported as truncated", func(t *testing.T) {
		k := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(t.TempDir(), "gw-1.key")}}
		write(t, k.Key.File, symmetric[:21]+"\n")
		_, err := k.Prove(context.Background(), attest.Subject{}, attest.Secrets{}, midway)
		if err == nil || !strings.Contains(err.Error(), "the key is cut off: it has 21 characters, but the length of base64 text is a multiple of 4") {
			t.Errorf("got %v", err)
		}
	})
}
