package report

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/test/pair"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// archive returns the parts of a report about a state directory. said is the output of every
// command in it.
func archive(t *testing.T, state, said string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir) // without tools of the system
	repeat := func() ([]byte, error) { return []byte(said), nil }
	asked := func(context.Context) ([]byte, error) { return []byte(said), errors.New(said) }
	path, _, err := Gateway{
		Configuration: filepath.Join(dir, "dpsd.toml"), Directory: dir, StateDirectory: state, RuntimeDirectory: filepath.Join(dir, "run"),
		Show: repeat, OnFile: repeat, Status: asked, Metrics: asked, Check: asked, Progress: func(string) {},
	}.Write(t.Context(), filepath.Join(dir, "report.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	return parts(t, path)
}

// forms returns the texts that show a key: its PEM text and each of its lines, and its DER and
// its secret numbers in hex, base64 at each offset, and base32.
func forms(t *testing.T, key []byte) map[string]string {
	t.Helper()
	block, _ := pem.Decode(key)
	var parsed any // a TPM key is not readable
	if !tpm.Is(key) {
		var err error
		if parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	secrets := map[string][]byte{"the DER": block.Bytes, "the PEM": key}
	switch k := parsed.(type) {
	case *ecdsa.PrivateKey:
		scalar, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		secrets["the scalar"] = scalar
	case *rsa.PrivateKey:
		secrets["the exponent"], secrets["a prime"] = k.D.Bytes(), k.Primes[0].Bytes()
	}
	all := map[string]string{}
	for n, line := range strings.Split(strings.TrimSpace(string(key)), "\n") {
		if !strings.HasPrefix(line, "-") {
			all[fmt.Sprint("line ", n)] = line
		}
	}
	for name, secret := range secrets {
		all[name+" itself"] = string(secret)
		all[name+" in hex"] = hex.EncodeToString(secret)
		all[name+" in capital hex"] = strings.ToUpper(hex.EncodeToString(secret))
		all[name+" in base32"] = strings.TrimRight(base32.StdEncoding.EncodeToString(secret), "=")
		for before := range 3 {
			whole := secret[(3-before)%3:]
			whole = whole[:len(whole)/3*3]
			all[fmt.Sprintf("%s in base64, %d", name, before)] = base64.StdEncoding.EncodeToString(whole)
			all[fmt.Sprintf("%s in base64 for addresses, %d", name, before)] = base64.URLEncoding.EncodeToString(whole)
		}
	}
	return all
}

// published returns a state directory with an issued certificate, and its pair.
func published(t *testing.T, of certificate.KeyType) (state string, p pair.Pair) {
	t.Helper()
	return publishedWith(t, pair.Certificate{KeyType: of})
}

func publishedWith(t *testing.T, c pair.Certificate) (state string, p pair.Pair) {
	t.Helper()
	state = t.TempDir()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	p, err := pair.PublishWithRecord(state, c)
	if err != nil {
		t.Fatal(err)
	}
	return state, p
}

func TestTheArchiveContainsTheIssuedChainAndItsMetadata(t *testing.T) {
	state, p := published(t, certificate.P384)
	parts := archive(t, state, "")
	if parts["state/certificate/chain.pem"] != string(p.Chain) {
		t.Errorf("the chain is\n%s", parts["state/certificate/chain.pem"])
	}
	want, err := os.ReadFile(filepath.Join(state, "certificate/1/certificate.json"))
	if err != nil || parts["state/certificate/certificate.json"] != string(want) {
		t.Errorf("%v: the metadata are\n%s\nwant\n%s", err, parts["state/certificate/certificate.json"], want)
	}
	record, err := os.ReadFile(filepath.Join(state, "state.json"))
	line := regexp.MustCompile(`(?m)^  "certificate": .*$`).FindString(string(record))
	if err != nil || line == "" || !strings.Contains(parts["state/state.json"], line+"\n") {
		t.Errorf("%v: the record has\n%s, the archive\n%s", err, line, parts["state/state.json"])
	}
	for _, listed := range []string{`certificate:\n(?:.*\n)*d.* 1\n(?:.*\n)*L.* current -> 1\n`, `certificate/1:\n-rw-r----- .* certificate.json\n-rw-r----- .* chain.pem\n-rw-r----- .* key.pem\n`} {
		if !regexp.MustCompile(listed).MatchString(parts["files.txt"]) {
			t.Errorf("the list has no %s:\n%s", listed, parts["files.txt"])
		}
	}
}

func TestNoKeyOfAnIssuedCertificateReachesTheArchive(t *testing.T) {
	inTPM, err := (&tpm.Device{Open: new(tpmtest.TPM).Open}).Create(t.Context(), tpm.P256, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]pair.Certificate{
		"EC on P-256": {KeyType: certificate.P256}, "EC on P-384": {KeyType: certificate.P384}, "RSA": {KeyType: certificate.RSA2048},
		"in the TPM": {KeyType: certificate.P256, TPMKey: inTPM},
	} {
		t.Run(name, func(t *testing.T) {
			state, p := publishedWith(t, c)
			pending, err := certificate.NewKey(c.KeyType)
			if err != nil {
				t.Fatal(err)
			}
			record, err := os.ReadFile(filepath.Join(state, "state.json"))
			if err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(state, "certificate/pending")
			// restore restores the state directory, which each case changes.
			restore := func() error {
				if err := os.RemoveAll(filepath.Join(state, "certificate")); err != nil {
					return err
				}
				_, err := p.Publish(state, 1)
				return errors.Join(err, os.WriteFile(filepath.Join(state, "state.json"), record, 0o600), os.Mkdir(other, 0o700), os.WriteFile(filepath.Join(other, "key.pem"), pending, 0o600))
			}
			block, _ := pem.Decode(p.Key)
			for name, hide := range map[string]func() (said string, err error){
				"its own file only": func() (string, error) { return "", nil },
				"the output of commands": func() (string, error) {
					return fmt.Sprintf("%s\n%s\n%x\n%X\n%s\nx%s\n", p.Key, pending, block.Bytes, block.Bytes,
						base64.StdEncoding.EncodeToString(block.Bytes), base64.URLEncoding.EncodeToString(append([]byte("ab"), block.Bytes...))), nil
				},
				"the name of a file": func() (string, error) {
					line := strings.ReplaceAll(strings.Split(string(p.Key), "\n")[2], "/", "_")
					return "", os.WriteFile(filepath.Join(state, "certificate", line), nil, 0o600)
				},
				"the chain": func() (string, error) {
					return "", os.WriteFile(filepath.Join(state, "certificate/1/chain.pem"), append(append(bytes.Clone(p.Chain), p.Key...), hex.EncodeToString(block.Bytes)...), 0o600)
				},
				"a block that claims to be a certificate": func() (string, error) {
					text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
					return "", os.WriteFile(filepath.Join(state, "certificate/1/chain.pem"), append(text, p.Chain...), 0o600)
				},
				"a link to the key": func() (string, error) {
					path := filepath.Join(state, "certificate/1/chain.pem")
					return "", errors.Join(os.Remove(path), os.Symlink("key.pem", path))
				},
				"the metadata": func() (string, error) {
					text, err := json.Marshal(map[string]string{"issuer": string(p.Key), "serial": hex.EncodeToString(block.Bytes), "keyPEM": string(pending)})
					return "", errors.Join(err, os.WriteFile(filepath.Join(state, "certificate/1/certificate.json"), text, 0o600))
				},
				"metadata that are not JSON": func() (string, error) {
					return "", os.WriteFile(filepath.Join(state, "certificate/1/certificate.json"), p.Key, 0o600)
				},
				"the record": func() (string, error) {
					text, err := json.Marshal(map[string]string{"issuer": string(p.Key), "key": base64.StdEncoding.EncodeToString(block.Bytes)})
					return "", errors.Join(err, os.WriteFile(filepath.Join(state, "state.json"), []byte("{\n  \"certificate\": "+string(text)+",\n  \"key\": \"x\"\n}\n"), 0o600))
				},
			} {
				t.Run(name, func(t *testing.T) {
					if err := restore(); err != nil {
						t.Fatal(err)
					}
					said, err := hide()
					if err != nil {
						t.Fatal(err)
					}
					parts := archive(t, state, said)
					if len(parts) < 8 {
						t.Errorf("the archive has only %d parts", len(parts))
					}
					for _, key := range [][]byte{p.Key, pending} {
						for form, secret := range forms(t, key) {
							for part, text := range parts {
								if strings.Contains(text, secret) || strings.Contains(part, "key.pem") {
									t.Errorf("%s contains %s:\n%.2000s", part, form, text)
								}
							}
						}
					}
				})
			}
		})
	}
}

// A secret other than a key is not masked by its value.
func TestOnlyCertificatesAndKnownMembersReachTheArchive(t *testing.T) {
	state, p := published(t, certificate.P256)
	path := func(name string) string { return filepath.Join(state, name) }
	const secret = "hunter2-and-more"
	chain := "# " + secret + "\n" + string(p.Chain) + "-----BEGIN NOTE-----\n" + base64.StdEncoding.EncodeToString([]byte(secret)) + "\n-----END NOTE-----\n"
	if err := errors.Join(
		os.WriteFile(path("certificate/1/chain.pem"), []byte(chain), 0o600),
		os.WriteFile(path("certificate/1/certificate.json"), []byte(`{"serial":"1f","pin":"`+secret+`"}`), 0o600),
		os.WriteFile(path("state.json"), []byte("{\n  \"certificate\": {\"serial\":\"1f\",\"pin\":\""+secret+"\"},\n  \"certificate\": "+secret+"\n}\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	parts := archive(t, state, "")
	for part, text := range parts {
		if strings.Contains(text, secret) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(secret))) {
			t.Errorf("%s contains it:\n%s", part, text)
		}
	}
	for part, want := range map[string]string{
		"state/certificate/chain.pem":        string(p.Chain) + "[masked] ",
		"state/certificate/certificate.json": `"serial": "1f"`,
		"state/state.json":                   `"serial":"1f"`,
	} {
		if !strings.Contains(parts[part], want) {
			t.Errorf("%s is\n%s\nwithout %s", part, parts[part], want)
		}
	}
}

func TestTheArchiveFollowsNoLinkToACertificateElsewhere(t *testing.T) {
	state, p := published(t, certificate.P256)
	moved := filepath.Join(t.TempDir(), "certificate")
	if err := errors.Join(os.Rename(filepath.Join(state, "certificate"), moved), os.Symlink(moved, filepath.Join(state, "certificate"))); err != nil {
		t.Fatal(err)
	}
	parts := archive(t, state, "")
	for part, text := range parts {
		if strings.Contains(text, "BEGIN CERTIFICATE") || strings.Contains(text, p.Metadata.KeySHA256) || strings.Contains(text, " key.pem") {
			t.Errorf("%s was read through a link:\n%s", part, text)
		}
	}
	if !strings.Contains(parts["README.txt"], "certificate: not a directory") {
		t.Errorf("the link is not named:\n%s", parts["README.txt"])
	}
	t.Run("nor waits for a FIFO", func(t *testing.T) {
		state, _ := published(t, certificate.P256)
		for _, name := range []string{"chain.pem", "key.pem", "certificate.json"} {
			path := filepath.Join(state, "certificate/1", name)
			if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if parts := archive(t, state, ""); !strings.Contains(parts["README.txt"], "not a regular file but a FIFO") {
			t.Errorf("the FIFO is not named:\n%s", parts["README.txt"])
		}
	})
}
