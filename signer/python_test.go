package signer

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The server in Python shares no code with this package, so it shows that docs/signer.md is
// sufficient to write one.
func TestAServerInPythonSignsForTLS12And13(t *testing.T) {
	for _, name := range []string{"P-256", "P-384", "RSA-2048"} {
		path := python(t, name)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			key := dial(t, path)
			if err := handshake(t, name, key, version); err != nil {
				t.Errorf("%s, %s: %v", name, tls.VersionName(version), err)
			}
			key.Close() // this server serves one connection at a time
		}
	}
}

func TestAServerInPythonSignsWithEachScheme(t *testing.T) {
	for _, name := range []string{"P-256", "P-384", "P-521", "RSA-2048"} {
		key := dial(t, python(t, name))
		all := Schemes(key.Public())
		if len(key.SupportedSchemes()) != len(all) {
			t.Errorf("%s: the schemes are %v, want %v", name, key.SupportedSchemes(), all)
		}
		for _, s := range all {
			digest := make([]byte, s.Options().HashFunc().Size())
			rand.Read(digest)
			if _, err := key.Sign(nil, digest, s.Options()); err != nil { // Sign verifies the signature
				t.Errorf("%s, %s: %v", name, s, err)
			}
		}
	}
}

func TestBothServersAnswerInvalidRequestsWithUnsupported(t *testing.T) {
	own := serve(t, func(conn net.Conn) { server(keys()["P-256"]).Serve(conn) })
	for name, path := range map[string]string{"Go": own, "Python": python(t, "P-256")} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		read := bufio.NewReader(conn)
		for _, request := range []string{
			`{"version":1,"request":"decrypt"}`, `{"version":1}`, `{"version":2,"request":"public-key"}`, `{"request":"public-key"}`, `[]`, ``, `hello`,
			`{"version":1,"request":"sign","scheme":"rsa-pss-sha256","digest":"AAAA"}`,
			`{"version":1,"request":"sign","scheme":"ecdsa-sha256","digest":"AAAA"}`,
			`{"version":1,"request":"sign","scheme":"ecdsa-sha256","digest":"?"}`,
			`{"version":1,"request":"sign","scheme":"ecdsa-sha256"}`,
			`{"version":1,"request":"sign"}`,
		} {
			if _, err := io.WriteString(conn, request+"\n"); err != nil {
				t.Fatal(err)
			}
			line, err := read.ReadString('\n')
			if err != nil || !strings.Contains(strings.ReplaceAll(line, " ", ""), `"error":"unsupported"`) {
				t.Errorf("%s: the answer to %s is %q, %v", name, request, line, err)
			}
		}
	}
}

// python starts the server in Python with a key, and returns the path of its socket.
func python(t *testing.T, name string) string {
	t.Helper()
	for _, tool := range []string{"python3", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is not installed", tool)
			}
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	path, file := filepath.Join(dir, "key.sock"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(keys()[name])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "testdata/signer.py", path, file)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening\n" {
		t.Fatalf("the server in Python printed %q, %v", line, err)
	}
	return path
}
