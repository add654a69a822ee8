package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/signer"
)

const pin = "648219"

// programs is the directory of the built program and of the library that fails.
var programs string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	for _, tool := range []string{"cc", "softhsm2-util", "pkcs11-tool", "file", "ldd"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				fmt.Fprintf(os.Stderr, "%s is not installed\n", tool)
				return 1
			}
			fmt.Printf("skipped: %s is not installed\n", tool)
			return 0
		}
	}
	var err error
	if programs, err = os.MkdirTemp("", "dpsd-signer"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs)
	headers, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, command := range [][]string{
		{"go", "build", "-race", "-ldflags", "-X main.version=1.2.3", "-o", programs + "/", "."},
		{"cc", "-Wall", "-Werror", "-shared", "-fPIC", "-I", strings.TrimSpace(string(headers)), "-o", programs + "/library.so", "testdata/library.c"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", command, err, out)
			return 1
		}
	}
	return m.Run()
}

// gateway has a token of SoftHSM, and starts the program when a client connects, as systemd does.
type gateway struct {
	t      *testing.T
	dir    string
	socket string
	real   string // SoftHSM

	mu        sync.Mutex
	log       bytes.Buffer // of all programs
	fault     string
	arguments []string
	process   *os.Process
	exits     []int // exit codes; -1 after a signal
	ended     chan bool
}

// newGateway creates a token and the files of the program. The URI is that of the key in the token.
func newGateway(t *testing.T, uri string) *gateway {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("", "gateway") // the names of tests contain characters that SoftHSM does not accept
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &gateway{t: t, dir: dir, ended: make(chan bool, 100)}
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			g.real = path
		}
	}
	if g.real == "" {
		t.Fatal("the library of SoftHSM was not found")
	}
	for _, dir := range []string{"tokens", "credentials", "state"} {
		if err := os.Mkdir(filepath.Join(g.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g.write("softhsm2.conf", "directories.tokendir = "+g.dir+"/tokens\nlog.level = ERROR\n")
	g.write("credentials/pin", pin+"\n")
	g.write("key.uri", "# The key of this gateway.\n\npkcs11:"+uri+"?module-path="+programs+"/library.so\n")
	g.command("softhsm2-util", "--init-token", "--free", "--label", "gateway", "--so-pin", "12345678", "--pin", pin)
	g.socket = filepath.Join(g.dir, "key.sock")
	g.activate()
	return g
}

func (g *gateway) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) environment() []string {
	return append(os.Environ(), "SOFTHSM2_CONF="+g.dir+"/softhsm2.conf", "PKCS11_REAL="+g.real, "PKCS11_LOG="+g.dir+"/logins",
		"CREDENTIALS_DIRECTORY="+g.dir+"/credentials", "STATE_DIRECTORY="+g.dir+"/state")
}

// command runs a command that changes the token.
func (g *gateway) command(name string, arguments ...string) {
	g.t.Helper()
	cmd := exec.Command(name, arguments...)
	cmd.Env = g.environment()
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%s %q: %v\n%s", name, arguments, err, out)
	}
}

// generate creates a key pair.
func (g *gateway) generate(kind, label, id string, more ...string) {
	g.t.Helper()
	g.command("pkcs11-tool", append([]string{"--module", g.real, "--token-label", "gateway", "--login", "--pin", pin, "--keypairgen", "--key-type", kind, "--label", label, "--id", id}, more...)...)
}

// activate listens on the socket, and starts the program while a connection waits, as a socket
// unit with Accept=no does.
func (g *gateway) activate() {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.socket})
	if err != nil {
		g.t.Fatal(err)
	}
	socket, err := listener.File()
	if err != nil {
		g.t.Fatal(err)
	}
	quit, stop, err := os.Pipe()
	if err != nil {
		g.t.Fatal(err)
	}
	var loop sync.WaitGroup
	loop.Go(func() {
		for {
			wait := []unix.PollFd{{Fd: int32(socket.Fd()), Events: unix.POLLIN}, {Fd: int32(quit.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(wait, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if wait[1].Revents != 0 {
				return
			}
			if wait[0].Revents != 0 {
				g.start(socket)
			}
		}
	})
	g.t.Cleanup(func() {
		stop.Close()
		g.kill()
		loop.Wait()
		quit.Close()
		socket.Close()
		listener.Close()
		if g.t.Failed() {
			g.t.Logf("the program logged:\n%s", g.log.String())
		}
		if strings.Contains(g.log.String(), pin) {
			g.t.Error("the log contains the PIN")
		}
	})
}

// start runs the program until it exits.
func (g *gateway) start(socket *os.File) {
	g.mu.Lock()
	arguments := append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh", programs + "/dpsd-signer-pkcs11"}, g.arguments...)
	cmd := exec.Command("sh", append(arguments, g.dir+"/key.uri")...)
	cmd.Env = append(g.environment(), "PKCS11_FAULT="+g.fault)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	err := cmd.Start()
	g.process = cmd.Process
	g.mu.Unlock()
	if err == nil {
		err = cmd.Wait()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	fmt.Fprintf(&g.log, "%s%v\n", log.String(), err)
	g.process = nil
	g.exits = append(g.exits, cmd.ProcessState.ExitCode())
	g.ended <- true
}

// set makes the library of the next process fail.
func (g *gateway) set(fault string, arguments ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault, g.arguments = fault, arguments
}

// kill kills the running process.
func (g *gateway) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.process != nil {
		g.process.Kill()
	}
}

// logins is how often a PIN was sent to the token.
func (g *gateway) logins() int {
	text, err := os.ReadFile(filepath.Join(g.dir, "logins"))
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	return strings.Count(string(text), "login\n")
}

// dial opens the key.
func (g *gateway) dial() *signer.Key {
	g.t.Helper()
	key, err := signer.Dial(g.t.Context(), g.socket)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { key.Close() })
	return key
}

// sign signs with each scheme. The key verifies the signatures.
func sign(key *signer.Key, schemes ...signer.Scheme) error {
	for _, s := range schemes {
		digest := make([]byte, s.Options().HashFunc().Size())
		rand.Read(digest)
		if _, err := key.Sign(nil, digest, s.Options()); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// fails dials and signs, and returns the error, which must be of a kind, and contain words.
func (g *gateway) fails(kind signer.Kind, words string) {
	g.t.Helper()
	key, err := signer.Dial(g.t.Context(), g.socket)
	if err == nil {
		defer key.Close()
		err = sign(key, signer.Schemes(key.Public())[0])
	}
	var failed *signer.Error
	if !errors.As(err, &failed) || failed.Kind != kind || !strings.Contains(err.Error(), words) {
		g.t.Errorf("the error is %v, want kind %v with %q", err, kind, words)
	}
}

func TestKeysInATokenSignWithEachScheme(t *testing.T) {
	for kind, count := range map[string]int{"EC:prime256v1": 3, "EC:secp384r1": 3, "EC:secp521r1": 3, "rsa:2048": 6, "rsa:3072": 6} {
		t.Run(kind, func(t *testing.T) {
			g := newGateway(t, "token=gateway;object=device")
			g.generate(kind, "device", "01")
			key := g.dial()
			all := signer.Schemes(key.Public())
			if len(key.SupportedSchemes()) != count || len(all) != count {
				t.Errorf("the schemes are %v, want %d", key.SupportedSchemes(), count)
			}
			for range 20 { // r and s of an ECDSA signature are sometimes shorter
				if err := sign(key, all...); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestAClientCertificateWithAKeyInATokenIsAcceptedInTLS12And13(t *testing.T) {
	for _, kind := range []string{"EC:prime256v1", "EC:secp384r1", "rsa:2048"} {
		t.Run(kind, func(t *testing.T) {
			g := newGateway(t, "object=device")
			g.generate(kind, "device", "01")
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				if err := handshake(g.dial(), version); err != nil {
					t.Errorf("%s: %v", tls.VersionName(version), err)
				}
			}
		})
	}
}

func TestATokenThatRefusesPSSOffersPKCS1ForTLS12(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("rsa:2048", "device", "01")
	g.set("no-pss")
	key := g.dial()
	if want := []tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512}; !slices.Equal(key.SupportedSchemes(), want) {
		t.Errorf("the schemes are %v, want %v", key.SupportedSchemes(), want)
	}
	if err := handshake(key, tls.VersionTLS12); err != nil {
		t.Error(err)
	}
}

// handshake makes a certificate for the key, and connects with it to a server that requires one.
func handshake(key *signer.Key, version uint16) error {
	client, err := certificate(key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(client.Leaf)
	near, far := net.Pipe()
	defer near.Close()
	result := make(chan error, 1)
	go func() {
		defer far.Close()
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{client}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: version, MaxVersion: version})
		_, err := conn.Write([]byte("x"))
		result <- err
	}()
	conn := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: roots, ServerName: "device", MinVersion: version, MaxVersion: version})
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		near.Close()
		return errors.Join(err, <-result)
	}
	return <-result
}

func certificate(key *signer.Key) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device"}, DNSNames: []string{"device"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf, SupportedSignatureAlgorithms: key.SupportedSchemes()}, err
}

func TestTheURISelectsTheKey(t *testing.T) {
	for uri, words := range map[string]string{
		"object=first":               "",
		"token=gateway;id=%02":       "",
		"object=same;id=%04":         "",
		"object=same":                "several private keys that match the URI; add the id",
		"object=absent":              `the token "gateway" contains no private key`,
		"object=first;id=%02":        "contains no private key",
		"object=%66irst;token=other": "no token matches the URI",
		"object=first;serial=0":      "no token matches the URI",
		"object=first;pin-value=1":   `"pin-value" is not supported`,
		"object=first;slot-id=9":     "no token matches the URI",
		"object=first;manufacturer=SoftHSM%20project;model=SoftHSM%20v2": "",
	} {
		t.Run(uri, func(t *testing.T) {
			g := newGateway(t, uri)
			for id, label := range []string{"first", "second", "same", "same"} {
				g.generate("EC:prime256v1", label, fmt.Sprintf("%02d", id+1))
			}
			if words == "" {
				if err := sign(g.dial(), signer.ECDSAWithSHA256); err != nil {
					t.Error(err)
				}
				return
			}
			kind := signer.Refused
			if strings.Contains(words, "no token matches") {
				kind = signer.Unavailable // it may be connected later
			}
			g.fails(kind, words)
		})
	}
}

func TestTwoTokensThatMatchAreAmbiguous(t *testing.T) {
	g := newGateway(t, "object=device")
	g.command("softhsm2-util", "--init-token", "--free", "--label", "other", "--so-pin", "12345678", "--pin", pin)
	g.fails(signer.Refused, "2 tokens match the URI; add the serial number")
}

func TestAKeyThatRequiresThePINForEachSignatureSignsWithEachScheme(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01", "--always-auth")
	key := g.dial()
	if err := errors.Join(sign(key, signer.ECDSAWithSHA256), sign(key, signer.ECDSAWithSHA256)); err != nil {
		t.Error(err)
	}
	if got := g.logins(); got != 3 {
		t.Errorf("%d logins for two signatures, want 3", got)
	}
}

func TestThePublicKeyIsReadFromACertificateAndItsAbsenceIsReported(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01")
	key := g.dial()
	want := key.Public().(*ecdsa.PublicKey)
	cert, err := certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	g.write("leaf.der", string(cert.Certificate[0]))
	tool := []string{"--module", g.real, "--token-label", "gateway", "--login", "--pin", pin}
	g.command("pkcs11-tool", append(tool, "--delete-object", "--type", "pubkey", "--id", "01")...)
	g.restart(key)
	g.fails(signer.Refused, "no public key and no certificate with the ID")
	<-g.ended
	g.command("pkcs11-tool", append(tool, "--write-object", g.dir+"/leaf.der", "--type", "cert", "--id", "01", "--label", "leaf")...)
	again := g.dial()
	if !want.Equal(again.Public()) {
		t.Errorf("the public key is %v, want %v", again.Public(), want)
	}
	if err := sign(again, signer.ECDSAWithSHA256); err != nil {
		t.Error(err)
	}
}

// restart kills the process of a key, and waits until it has ended.
func (g *gateway) restart(key *signer.Key) {
	key.Close()
	g.kill()
	<-g.ended
}

func TestAPINThatTheTokenRefusesIsSentOnlyOnce(t *testing.T) {
	for _, fault := range []string{"", "no-pin-counter"} {
		t.Run(fault, func(t *testing.T) {
			g := newGateway(t, "object=device")
			g.generate("EC:prime256v1", "device", "01")
			g.set(fault)
			g.write("credentials/pin", "111111")
			g.fails(signer.Refused, "refused the PIN; correct it, then remove "+g.dir+"/state/pin-refused-gateway-")
			<-g.ended
			for range 5 {
				g.fails(signer.Refused, "refused the PIN, and locks itself after a few wrong PINs")
				<-g.ended
			}
			if got := g.logins(); got != 1 {
				t.Errorf("the token received %d PINs, want 1", got)
			}

			g.write("credentials/pin", pin)
			marks, err := filepath.Glob(g.dir + "/state/pin-refused-*")
			if err != nil || len(marks) != 1 {
				t.Fatalf("the files are %q, %v", marks, err)
			}
			if err := os.Remove(marks[0]); err != nil {
				t.Fatal(err)
			}
			if fault == "" { // the counter of the token is a second protection
				g.fails(signer.Refused, "the last PIN that the token \"gateway\" received was wrong")
				<-g.ended
				g.command("pkcs11-tool", "--module", g.real, "--login", "--pin", pin, "--list-objects")
			}
			if err := sign(g.dial(), signer.ECDSAWithSHA256); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoPINIsSentIfARefusalCouldNotBeRecorded(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01")
	g.set("")
	if err := os.RemoveAll(g.dir + "/state"); err != nil { // as on a disk that is full or read-only
		t.Fatal(err)
	}
	g.write("credentials/pin", "111111")
	for range 2 {
		g.fails(signer.Refused, "a refusal could not be recorded")
		<-g.ended
	}
	if got := g.logins(); got != 0 {
		t.Errorf("the token received %d PINs", got)
	}
}

func TestNoPINIsSentIfItCouldLockTheToken(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01")
	for _, row := range []struct{ fault, words string }{
		{"pin-final-try", "was wrong; log in once with the correct PIN"},
		{"pin-locked", "is locked after too many wrong PINs"},
	} {
		g.set(row.fault)
		g.fails(signer.Refused, row.words)
		<-g.ended
	}
	if got := g.logins(); got != 0 {
		t.Errorf("the token received %d PINs", got)
	}
}

func TestAMissingOrEmptyPINIsReported(t *testing.T) {
	g := newGateway(t, "object=device")
	g.write("credentials/pin", "\r\n")
	g.fails(signer.Refused, "is empty")
	<-g.ended
	if err := os.Remove(g.dir + "/credentials/pin"); err != nil {
		t.Fatal(err)
	}
	g.fails(signer.Refused, "the unit has no credential named pin")
}

func TestAFileOrLibraryThatCannotBeUsedIsReported(t *testing.T) {
	g := newGateway(t, "object=device")
	for text, words := range map[string]string{
		"":                                       `begins with "pkcs11:"`,
		"# only a comment\n":                     `begins with "pkcs11:"`,
		"pkcs11:object=a?module-path=/absent.so": "cannot be read",
		"pkcs11:object=a?module-path=" + g.dir + "/key.uri": "cannot be loaded",
	} {
		g.write("key.uri", text)
		g.fails(signer.Refused, words)
		<-g.ended
	}
	if err := os.Remove(g.dir + "/key.uri"); err != nil {
		t.Fatal(err)
	}
	g.fails(signer.Refused, "no such file or directory")
}

func TestAProcessThatIsKilledOrWhoseLibraryFailsIsAnErrorAndTheNextConnectionWorks(t *testing.T) {
	for _, row := range []struct {
		fault string
		kind  signer.Kind
		words string
	}{
		{"initialize-fails", signer.Unavailable, "C_Initialize: pkcs11: 0x5: CKR_GENERAL_ERROR"},
		{"initialize-hangs", signer.Unavailable, "the token did not answer within"},
		{"initialize-crashes", signer.Ended, "closed the connection without an answer"},
		{"sign-hangs", signer.Unavailable, "the token did not answer within"},
		{"sign-crashes", signer.Ended, "closed the connection without an answer"},
		{"sign-aborts", signer.Ended, "closed the connection without an answer"},
		{"sign-exits", signer.Ended, "closed the connection without an answer"},
		{"device-removed", signer.Unavailable, "C_Sign: pkcs11: 0x32: CKR_DEVICE_REMOVED"},
		{"wrong-signature", signer.Malformed, "not valid for the public key"},
		{"empty-signature", signer.Unavailable, "signature of the token has 0 bytes"},
		{"odd-signature", signer.Unavailable, "signature of the token has 63 bytes"},
	} {
		t.Run(row.fault, func(t *testing.T) {
			g := newGateway(t, "object=device")
			g.generate("EC:prime256v1", "device", "01")
			if strings.HasSuffix(row.fault, "-hangs") {
				g.set(row.fault, "--timeout", "1s")
			} else {
				g.set(row.fault)
			}
			g.fails(row.kind, row.words)
			if row.fault == "wrong-signature" {
				g.kill() // only the client has noticed it
			}
			<-g.ended
			g.set("")
			if err := sign(g.dial(), signer.ECDSAWithSHA256); err != nil {
				t.Error(err)
			}
			if got, want := len(g.exits), 1; got != want {
				t.Errorf("%d processes have ended, want %d", got, want)
			}
		})
	}
}

func TestAProcessThatIsKilledDuringAHandshakeIsAnErrorOfTheKey(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("rsa:2048", "device", "01")
	key := g.dial()
	client, err := certificate(key)
	if err != nil {
		t.Fatal(err)
	}
	g.kill()
	<-g.ended
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		other := g.dial()
		own, err := certificate(other)
		if err != nil {
			t.Error(err)
			return
		}
		tls.Server(far, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert}).Handshake()
	}()
	if err := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{client}, InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("the handshake succeeded")
	}
	near.Close()
	var failed *signer.Error
	if !errors.As(key.Err(), &failed) || failed.Kind != signer.Ended {
		t.Errorf("the error of the key is %v", key.Err())
	}
	if err := sign(g.dial(), signer.PSSWithSHA256); err != nil {
		t.Error(err)
	}
}

func TestATokenThatIsReplacedHasAnotherPublicKey(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("rsa:2048", "device", "01")
	key := g.dial()
	was := key.Public().(*rsa.PublicKey)
	g.restart(key)
	g.command("softhsm2-util", "--delete-token", "--token", "gateway")
	g.fails(signer.Unavailable, "no token matches the URI: the token is not connected")
	<-g.ended
	g.command("softhsm2-util", "--init-token", "--free", "--label", "gateway", "--so-pin", "12345678", "--pin", pin)
	g.generate("rsa:2048", "device", "01")
	if was.Equal(g.dial().Public()) {
		t.Error("the public key is that of the previous token")
	}
}

func TestSeveralClientsUseTheKeyAtTheSameTimeWithOneLogin(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01")
	var clients sync.WaitGroup
	first := g.dial()
	for range 8 {
		key := g.dial()
		clients.Go(func() {
			for range 20 {
				if err := sign(key, signer.ECDSAWithSHA256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	if err := sign(first, signer.ECDSAWithSHA256); err != nil {
		t.Error(err)
	}
	if got := g.logins(); got != 1 {
		t.Errorf("%d logins, want 1", got)
	}
}

func TestTheProgramExitsWhenNoClientIsConnectedAndStartsAgain(t *testing.T) {
	g := newGateway(t, "object=device")
	g.generate("EC:prime256v1", "device", "01")
	key := g.dial()
	if err := sign(key, signer.ECDSAWithSHA256); err != nil {
		t.Fatal(err)
	}
	key.Close()
	<-g.ended
	if !slices.Equal(g.exits, []int{0}) {
		t.Errorf("the exit codes are %v, want 0", g.exits)
	}
	if err := sign(g.dial(), signer.ECDSAWithSHA256); err != nil {
		t.Error(err)
	}
}

func TestAnInvocationWithoutASocketOrWithAWrongOptionIsAnError(t *testing.T) {
	for _, row := range []struct {
		arguments []string
		code      int
		words     string
	}{
		{[]string{"/key.uri"}, 2, "systemd passed 0 sockets instead of one"},
		{nil, 2, "usage: dpsd-signer-pkcs11 [--timeout DURATION] FILE"},
		{[]string{"--frob", "/key.uri"}, 2, "usage:"},
		{[]string{"--help"}, 0, "docs"},
		{[]string{"--version"}, 0, "dpsd-signer-pkcs11 1.2.3"},
	} {
		cmd := exec.Command(programs+"/dpsd-signer-pkcs11", row.arguments...)
		out, _ := cmd.CombinedOutput()
		words := row.words
		if words == "docs" {
			words = "/usr/share/doc/dpsd-signer-pkcs11/signer.md"
		}
		if cmd.ProcessState.ExitCode() != row.code || !strings.Contains(string(out), words) {
			t.Errorf("%q exits with %d and prints %s; want %d and %q", row.arguments, cmd.ProcessState.ExitCode(), out, row.code, words)
		}
	}
}

// dpsd must run without a C library, although this program needs one.
func TestDpsdItselfIsStatic(t *testing.T) {
	build := exec.Command("make", "--silent", "-C", "../..", "build", "BIN="+programs, "VERSION=1.2.3", "BUILT=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for program, static := range map[string]bool{"dpsd": true, "dpsd-sim": true, "dpsd-signer-pkcs11": false} {
		about, err := exec.Command("file", "-b", filepath.Join(programs, program)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := regexp.MustCompile(`\bstatically linked\b`).Match(about); got != static {
			t.Errorf("file says about %s: %s", program, about)
		}
		libraries, err := exec.Command("ldd", filepath.Join(programs, program)).CombinedOutput()
		if static == (err == nil) || static != strings.Contains(string(libraries), "not a dynamic executable") {
			t.Errorf("ldd says about %s: %s, %v", program, libraries, err)
		}
	}
}

var _ crypto.Signer = (*signer.Key)(nil)
