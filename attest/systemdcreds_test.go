package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// measured starts a software TPM on a TCP port, as systemd-creds expects it, whose PCRs 7 and
// 11 contain a measurement. It returns the device for systemd-creds.
func measured(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for range 10 { // another process may use one of the ports
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		c := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--flags", "not-need-init,startup-clear",
			"--server", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port), "--ctrl", fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", port+1))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = c.Wait() // it is killed
			close(ended)
		}()
		t.Cleanup(func() {
			_ = c.Process.Kill()
			<-ended
		})
		for {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				select {
				case <-ended:
				case <-time.After(time.Millisecond):
					continue
				}
				break
			}
			for _, pcr := range []tpm2.TPMHandle{7, 11} {
				_, err := tpm2.PCRExtend{
					PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
					Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{1}, 32)}}},
				}.Execute(transport.FromReadWriter(conn))
				if err != nil {
					t.Fatal(err)
				}
			}
			conn.Close() // swtpm serves one connection at a time
			return fmt.Sprintf("swtpm:host=127.0.0.1,port=%d", port)
		}
	}
	t.Fatal("swtpm does not start")
	return ""
}

// The identifiers in TestEncryptedCredentialsAreRecognized are from systemd's source. This test
// compares them with real ciphertext, except for the scoped kinds, which need systemd 256.
func TestCiphertextOfSystemdCredsIsRecognizedAndItsPlaintextIsTheKey(t *testing.T) {
	tpmtest.Need(t, "swtpm", "systemd-creds", "unshare")
	if libraries, _ := filepath.Glob("/usr/lib/*/libtss2-tcti-swtpm.so*"); libraries == nil && os.Getenv("CI") == "" {
		t.Skip("the libraries with which systemd-creds uses swtpm are not installed; as root on Debian, make test-tpm installs them")
	}
	if out, err := exec.Command("unshare", "--mount", "--map-root-user", "true").CombinedOutput(); err != nil && os.Getenv("CI") == "" {
		t.Skipf("no private mounts here: %v: %s", err, out)
	}
	device := "--tpm2-device=" + measured(t)
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "pcr.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	write(t, filepath.Join(dir, "key"), "ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8=")
	if err := os.Mkdir(filepath.Join(dir, "systemd"), 0o700); err != nil {
		t.Fatal(err)
	}
	// systemd-creds keeps its host key in /var/lib/systemd, which must not change here.
	run := func(args ...string) (string, error) {
		script := "mount --bind " + filepath.Join(dir, "systemd") + ` /var/lib/systemd && exec systemd-creds --name=dps-primary-key "$@"`
		c := exec.Command("unshare", append([]string{"--mount", "--map-root-user", "sh", "-c", script, "sh"}, args...)...)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	policy := []string{"--tpm2-public-key=" + filepath.Join(dir, "pcr.pem"), "--tpm2-public-key-pcrs=11"}
	for _, kind := range [][]string{
		{"host"}, {"tpm2-absent"}, {"tpm2", device}, {"host+tpm2", device},
		append([]string{"tpm2-with-public-key", device}, policy...), append([]string{"host+tpm2-with-public-key", device}, policy...),
	} {
		file := filepath.Join(dir, strings.ReplaceAll(kind[0], "+", "-"))
		if out, err := run(append(append([]string{"--with-key=" + kind[0]}, kind[1:]...), "encrypt", filepath.Join(dir, "key"), file)...); err != nil {
			t.Fatalf("%s: %v\n%s", kind[0], err, out)
		}
		if _, err := (attest.Secrets{}).Read(attest.Reference{File: file}); !errors.Is(err, attest.ErrEncrypted) {
			t.Errorf("the ciphertext of the kind %s is not recognized: %v", kind[0], err)
		}
	}
	plain := filepath.Join(dir, "plain")
	if out, err := run(device, "decrypt", filepath.Join(dir, "tpm2"), plain); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := (attest.Secrets{}).Read(attest.Reference{File: plain})
	if want, _ := os.ReadFile(filepath.Join(dir, "key")); err != nil || !bytes.Equal(text, want) {
		t.Errorf("the plain text differs: %v", err)
	}
}
