package signer

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(signerVariable); socket != "" {
		listenAs(socket)
	}
	goleak.VerifyTestMain(m)
}

// keys returns the private keys of the tests by name.
var keys = sync.OnceValue(func() map[string]crypto.Signer {
	all := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		all[name] = key
	}
	for name, bits := range map[string]int{"RSA-1024": 1024, "RSA-2048": 2048} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			panic(err)
		}
		all[name] = key
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	all["Ed25519"] = key
	return all
})

// server returns a server for a key in memory.
func server(key crypto.Signer) *Server {
	return &Server{Public: key.Public(), Schemes: Schemes(key.Public()), Sign: func(s Scheme, digest []byte) ([]byte, error) {
		return key.Sign(rand.Reader, digest, s.Options())
	}}
}

// serve calls handle for each connection to a new socket, and returns the path of the socket. It closes the
// connection when handle returns.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.sock")
	serveAt(t, path, handle)
	return path
}

// serveAt is serve with the path of the socket. The function that it returns stops the server.
func serveAt(t *testing.T, path string, handle func(net.Conn)) (stop func()) {
	t.Helper()
	listen, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listen.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	stop = sync.OnceFunc(func() {
		listen.Close()
		all.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// answers returns a handler that sends the lines, one for each request, and then reads until the client
// closes the connection.
func answers(lines ...string) func(net.Conn) {
	return func(conn net.Conn) {
		read := bufio.NewReader(conn)
		for _, line := range lines {
			if _, err := read.ReadString('\n'); err != nil {
				return
			}
			if _, err := io.WriteString(conn, line); err != nil {
				return
			}
		}
		io.Copy(io.Discard, read)
	}
}

// encode returns the line of an answer.
func encode(a answer) string {
	line, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	return string(line) + "\n"
}

// described returns the answers about a key.
func described(public crypto.PublicKey, s ...Scheme) []string {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		panic(err)
	}
	return []string{encode(answer{PublicKey: der}), encode(answer{Schemes: s})}
}

// dial opens the key of a socket, and closes it when the test ends.
func dial(t *testing.T, path string) *Key {
	t.Helper()
	key, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { key.Close() })
	return key
}

// wantKind checks that err is an *Error of a kind, and that its text contains words.
func wantKind(t *testing.T, err error, kind Kind, words string) {
	t.Helper()
	var failed *Error
	if !errors.As(err, &failed) {
		t.Fatalf("the error is %v, want one of kind %v", err, kind)
	}
	if failed.Kind != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("the error is of kind %v: %v; want kind %v with %q", failed.Kind, err, kind, words)
	}
}

func TestAClientCertificateWithASignerKeyIsAcceptedInTLS12And13(t *testing.T) {
	for _, name := range []string{"P-256", "P-384", "RSA-2048"} {
		path := serve(t, func(conn net.Conn) { server(keys()[name]).Serve(conn) })
		for version, text := range map[uint16]string{tls.VersionTLS12: "TLS 1.2", tls.VersionTLS13: "TLS 1.3"} {
			t.Run(name+" "+text, func(t *testing.T) {
				key := dial(t, path)
				if err := handshake(t, name, key, version); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestASignerWithoutPSSWorksInTLS12Only(t *testing.T) {
	path := serve(t, func(conn net.Conn) {
		s := server(keys()["RSA-2048"])
		s.Schemes = []Scheme{PKCS1WithSHA256}
		s.Serve(conn)
	})
	if err := handshake(t, "RSA-2048", dial(t, path), tls.VersionTLS12); err != nil {
		t.Error(err)
	}
	if err := handshake(t, "RSA-2048", dial(t, path), tls.VersionTLS13); err == nil {
		t.Error("TLS 1.3 does not allow PKCS#1 v1.5, and the handshake succeeded")
	}
}

func TestAP384KeySignsSHA256ForTLS12(t *testing.T) {
	path := serve(t, func(conn net.Conn) {
		s := server(keys()["P-384"])
		s.Schemes = []Scheme{ECDSAWithSHA256}
		s.Serve(conn)
	})
	if err := handshake(t, "P-384", dial(t, path), tls.VersionTLS12); err != nil {
		t.Error(err)
	}
}

// handshake connects a client that uses the key, which is the named one, to a server that requires
// a certificate.
func handshake(t *testing.T, name string, key *Key, version uint16) error {
	t.Helper()
	client := certificate(t, keys()[name])
	client.PrivateKey = key
	client.SupportedSignatureAlgorithms = key.SupportedSchemes()
	own := certificate(t, keys()["P-256"])
	roots := x509.NewCertPool()
	roots.AddCert(client.Leaf)
	roots.AddCert(own.Leaf)
	near, far := net.Pipe()
	defer near.Close()
	result := make(chan error, 1)
	go func() {
		defer far.Close()
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: version, MaxVersion: version})
		err := conn.Handshake()
		if err == nil {
			_, err = conn.Write([]byte("x"))
		}
		result <- err
	}()
	conn := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: roots, ServerName: "device", MinVersion: version, MaxVersion: version})
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		near.Close()
		return errors.Join(err, <-result)
	}
	return <-result
}

// certificate returns a certificate that the key itself has signed.
func certificate(t *testing.T, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "device"}, DNSNames: []string{"device"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestEachSchemeSignsWhatTheStandardLibraryVerifies(t *testing.T) {
	for _, name := range []string{"P-256", "P-384", "P-521", "RSA-2048"} {
		t.Run(name, func(t *testing.T) {
			key := dial(t, serve(t, func(conn net.Conn) { server(keys()[name]).Serve(conn) }))
			if want := keys()[name].Public(); !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(want) {
				t.Errorf("the public key is %v, want %v", key.Public(), want)
			}
			all := Schemes(key.Public())
			if len(all) == 0 || len(key.SupportedSchemes()) != len(all) {
				t.Fatalf("the schemes are %v, want those of %v", key.SupportedSchemes(), all)
			}
			for _, s := range all {
				hash := s.Options().HashFunc().New()
				io.WriteString(hash, "data")
				digest := hash.Sum(nil)
				signature, err := key.Sign(nil, digest, s.Options())
				if err != nil {
					t.Errorf("%s: %v", s, err)
					continue
				}
				switch public := key.Public().(type) {
				case *ecdsa.PublicKey:
					if !ecdsa.VerifyASN1(public, digest, signature) {
						t.Errorf("%s: the signature is not valid", s)
					}
				case *rsa.PublicKey:
					if pss, ok := s.Options().(*rsa.PSSOptions); ok {
						err = rsa.VerifyPSS(public, pss.Hash, digest, signature, &rsa.PSSOptions{SaltLength: len(digest)})
					} else {
						err = rsa.VerifyPKCS1v15(public, s.Options().HashFunc(), digest, signature)
					}
					if err != nil {
						t.Errorf("%s: %v", s, err)
					}
				}
			}
		})
	}
}

func TestADigestOrAnOptionThatTheProtocolDoesNotHaveIsAnErrorAndTheKeyRemainsUsable(t *testing.T) {
	key := dial(t, serve(t, func(conn net.Conn) {
		s := server(keys()["RSA-2048"])
		s.Schemes = []Scheme{PSSWithSHA256, PKCS1WithSHA256, PKCS1WithSHA384}
		s.Serve(conn)
	}))
	digest := sha256.Sum256([]byte("data"))
	long := sha512.Sum512([]byte("data"))
	for _, row := range []struct {
		words  string
		digest []byte
		opts   crypto.SignerOpts
	}{
		{"has 32 bytes, not 31", digest[:31], crypto.SHA256},
		{"has 32 bytes, not 64", long[:], crypto.SHA256},
		{"no signature with SHA-1", make([]byte, 20), crypto.SHA1},
		{"no signature with unknown hash value 0", []byte("message"), crypto.Hash(0)},
		{"does not offer rsa-pkcs1-sha512", long[:], crypto.SHA512},
		{"does not offer rsa-pss-sha512", long[:], &rsa.PSSOptions{SaltLength: 64, Hash: crypto.SHA512}},
		{"salt must be as long", digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256}},
		{"salt must be as long", digest[:], &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}},
	} {
		_, err := key.Sign(nil, row.digest, row.opts)
		wantKind(t, err, Unsupported, row.words)
		wantKind(t, key.Err(), Unsupported, row.words)
	}
	for _, opts := range []crypto.SignerOpts{crypto.SHA256, &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}} {
		if _, err := key.Sign(nil, digest[:], opts); err != nil {
			t.Errorf("%T: %v", opts, err)
		}
	}
}

func TestASocketThatCannotBeUsedIsAnErrorThatSaysWhy(t *testing.T) {
	dir := t.TempDir()
	abandoned := filepath.Join(dir, "abandoned.sock")
	listen, err := net.ListenUnix("unix", &net.UnixAddr{Name: abandoned})
	if err != nil {
		t.Fatal(err)
	}
	listen.SetUnlinkOnClose(false)
	listen.Close()
	file := filepath.Join(dir, "file.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, words := range map[string]string{
		filepath.Join(dir, "absent.sock"):        "the socket does not exist",
		filepath.Join(dir, "absent", "key.sock"): "the socket does not exist",
		abandoned:                                "no process is listening",
		file:                                     "it is not a socket",
		filepath.Join(dir, strings.Repeat("x", 108)): "invalid argument",
	} {
		_, err := Dial(t.Context(), path)
		wantKind(t, err, Absent, words)
		if !strings.Contains(err.Error(), path) {
			t.Errorf("%q does not name the path", err)
		}
	}
}

func TestASignerThatDoesNotAcceptConnectionsIsSlow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path) // fills the queue
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, err = Dial(t.Context(), path)
	wantKind(t, err, Slow, "does not accept connections")
}

func TestAnAnswerThatIsNotValidIsAnError(t *testing.T) {
	ec, ed := keys()["P-256"], keys()["Ed25519"]
	good := described(ec.Public(), ECDSAWithSHA256)
	digest := sha256.Sum256([]byte("data"))
	foreign, err := keys()["P-384"].Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	older, err := ec.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		lines []string
		kind  Kind
		words string
	}{
		"HTTP instead of the protocol":     {[]string{"HTTP/1.1 400 Bad Request\r\n\r\n"}, Malformed, "more than one answer"},
		"text":                             {[]string{"hello\n"}, Malformed, `the answer to "public-key" is not valid`},
		"an array":                         {[]string{"[]\n"}, Malformed, "is not valid"},
		"an empty line":                    {[]string{"\n"}, Malformed, "is not valid"},
		"an empty object":                  {[]string{"{}\n"}, Malformed, "does not contain what was requested"},
		"binary data":                      {[]string{"\x00\xff\x16\x03\x01\n"}, Malformed, "is not valid"},
		"an answer without an end":         {[]string{strings.Repeat("x", 1<<20)}, Malformed, "longer than 8192 bytes"},
		"two answers":                      {[]string{good[0] + good[1]}, Malformed, "more than one answer"},
		"the answer to another request":    {[]string{good[1]}, Malformed, "does not contain"},
		"invalid base64":                   {[]string{`{"public_key":"???"}` + "\n"}, Malformed, "is not valid"},
		"a public key that is not DER":     {[]string{`{"public_key":"AAAA"}` + "\n"}, Malformed, "SubjectPublicKeyInfo"},
		"an unknown error":                 {[]string{`{"error":"on-fire","message":"smoke"}` + "\n"}, Unavailable, `"on-fire": smoke`},
		"unsupported":                      {[]string{`{"error":"unsupported"}` + "\n"}, Unsupported, `"unsupported"`},
		"refused":                          {[]string{`{"error":"refused","message":"the PIN is wrong"}` + "\n"}, Refused, "the PIN is wrong"},
		"an Ed25519 key":                   {described(ed.Public()), Unsupported, "ed25519"},
		"a P-224 key":                      {described(keys()["P-224"].Public()), Unsupported, "P-224"},
		"an RSA key of 1024 bits":          {described(keys()["RSA-1024"].Public()), Unsupported, "1024 bits"},
		"no schemes":                       {described(ec.Public()), Malformed, "does not contain"},
		"only unknown schemes":             {described(ec.Public(), "ecdsa-sha3-256", PSSWithSHA256), Unsupported, "no known scheme"},
		"a signature of another key":       {append(slices.Clone(good), encode(answer{Signature: foreign})), Malformed, "not valid for the public key"},
		"a signature of another digest":    {append(slices.Clone(good), encode(answer{Signature: older})), Malformed, "not valid for the public key"},
		"a signature that is not one":      {append(slices.Clone(good), encode(answer{Signature: []byte("x")})), Malformed, "not valid for the public key"},
		"no signature":                     {append(slices.Clone(good), "{}\n"), Malformed, "does not contain"},
		"a failure instead of a signature": {append(slices.Clone(good), encode(answer{Error: CodeUnavailable, Message: "token removed"})), Unavailable, "token removed"},
		"garbage instead of a signature":   {append(slices.Clone(good), "%\n"), Malformed, "is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := Dial(t.Context(), serve(t, answers(row.lines...)))
			if err == nil {
				defer key.Close()
				_, err = key.Sign(nil, digest[:], crypto.SHA256)
			}
			wantKind(t, err, row.kind, row.words)
			if key != nil {
				_, again := key.Sign(nil, digest[:], crypto.SHA256)
				if again != err { //nolint:errorlint // the same value
					t.Errorf("the key is used again after a failure: %v", again)
				}
			}
		})
	}
}

func TestASignerOfAnotherKeyIsDetectedByTheCallerAndByTheFirstSignature(t *testing.T) {
	other := keys()["P-384"]
	key := dial(t, serve(t, func(conn net.Conn) { server(other).Serve(conn) }))
	leaf := certificate(t, keys()["P-256"]).Leaf
	if leaf.PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("Public is the key of a certificate that belongs to another key")
	}
	if !other.Public().(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Error("Public is not the key of the signer")
	}
}

func TestALateAnswerIsNeverTheAnswerToTheNextRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ec := keys()["P-256"]
		near, far := net.Pipe()
		release := make(chan bool)
		served := make(chan bool)
		go func() {
			defer close(served)
			s := server(ec)
			sign := s.Sign
			s.Sign = func(scheme Scheme, digest []byte) ([]byte, error) {
				<-release
				return sign(scheme, digest)
			}
			s.Serve(far)
		}()
		key, err := open(t.Context(), near, "/key.sock")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		digest := sha256.Sum256([]byte("data"))
		_, err = key.Sign(nil, digest[:], crypto.SHA256)
		wantKind(t, err, Slow, "no answer within 30s")
		if waited := time.Since(start); waited != Timeout {
			t.Errorf("Sign waited %v, want %v", waited, Timeout)
		}
		close(release)
		<-served
		_, again := key.Sign(nil, digest[:], crypto.SHA256)
		wantKind(t, again, Slow, "no answer within 30s")
		if time.Since(start) != Timeout {
			t.Error("the second Sign waited for the signer")
		}
		key.Close()
	})
}

func TestASlowAnswerWithinTheTimeoutIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go func() {
			s := server(keys()["P-256"])
			sign := s.Sign
			s.Sign = func(scheme Scheme, digest []byte) ([]byte, error) {
				time.Sleep(Timeout - time.Millisecond)
				return sign(scheme, digest)
			}
			s.Serve(far)
		}()
		key, err := open(t.Context(), near, "/key.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer key.Close()
		for range 3 { // the timeout is for each request
			if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestASignerThatHangsAtAnyRequestIsSlow(t *testing.T) {
	good := described(keys()["P-256"].Public(), ECDSAWithSHA256)
	for answered := range 3 {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer far.Close()
			go answers(good[:answered]...)(far)
			key, err := open(t.Context(), near, "/key.sock")
			if err == nil {
				defer key.Close()
				_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
			}
			wantKind(t, err, Slow, "no answer within 30s")
		})
	}
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe() // nobody reads the request
		defer far.Close()
		_, err := open(t.Context(), near, "/key.sock")
		wantKind(t, err, Slow, "no answer within 30s")
	})
}

func TestASignerThatSendsHalfAnAnswerIsSlow(t *testing.T) {
	good := described(keys()["P-256"].Public(), ECDSAWithSHA256)
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		go answers(good[0][:20])(far)
		_, err := open(t.Context(), near, "/key.sock")
		wantKind(t, err, Slow, "no answer within 30s")
	})
}

func TestASignerThatEndsAtAnyRequestIsAnError(t *testing.T) {
	good := described(keys()["P-256"].Public(), ECDSAWithSHA256)
	for answered := range 3 {
		for _, half := range []string{"", `{"sig`} {
			path := serve(t, func(conn net.Conn) {
				read := bufio.NewReader(conn)
				for _, line := range append(slices.Clone(good[:answered]), half) {
					if _, err := read.ReadString('\n'); err != nil {
						return
					}
					io.WriteString(conn, line)
				}
			})
			key, err := Dial(t.Context(), path)
			if err == nil {
				defer key.Close()
				_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
			}
			wantKind(t, err, Ended, "closed the connection without an answer")
		}
	}
}

// The key belongs to one attempt; only the next attempt connects again.
func TestASignerThatIsReplacedDuringAHandshakeIsAnErrorAndTheNextDialUsesTheNewOne(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		path := filepath.Join(t.TempDir(), "key.sock")
		var mu sync.Mutex
		var open []net.Conn
		stop := serveAt(t, path, func(conn net.Conn) {
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			server(keys()["P-256"]).Serve(conn)
		})
		key := dial(t, path)
		client := certificate(t, key)
		mu.Lock()
		for _, conn := range open { // as the kernel does when the process is killed
			conn.Close()
		}
		mu.Unlock()
		stop()
		serveAt(t, path, func(conn net.Conn) { server(keys()["P-384"]).Serve(conn) })

		near, far := net.Pipe()
		own := certificate(t, keys()["P-256"])
		ended := make(chan bool)
		go func() {
			defer close(ended)
			defer far.Close()
			tls.Server(far, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert, MinVersion: version, MaxVersion: version}).Handshake()
		}()
		err := tls.Client(near, &tls.Config{Certificates: []tls.Certificate{client}, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}).Handshake()
		if err == nil {
			t.Fatal("the handshake succeeded without the signer")
		}
		wantKind(t, key.Err(), Ended, "closed the connection without an answer") // err is only a text
		near.Close()
		<-ended

		if next := dial(t, path); !keys()["P-384"].Public().(*ecdsa.PublicKey).Equal(next.Public()) {
			t.Error("the next Dial has not reached the new signer")
		}
	}
}

func TestCloseAndTheEndOfTheContextInterruptAPendingSignature(t *testing.T) {
	for name, interrupt := range map[string]func(*Key, context.CancelFunc){
		"Close":   func(k *Key, _ context.CancelFunc) { k.Close() },
		"context": func(_ *Key, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			asked := make(chan bool)
			path := serve(t, func(conn net.Conn) {
				answers(described(keys()["P-256"].Public(), ECDSAWithSHA256)...)(onRead{conn, asked})
			})
			key, err := Dial(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			result := make(chan error, 1)
			go func() {
				_, err := key.Sign(nil, make([]byte, 32), crypto.SHA256)
				result <- err
			}()
			<-asked
			interrupt(key, cancel)
			wantKind(t, <-result, Ended, "the connection is closed")
			if err := key.Close(); err != nil {
				t.Errorf("the second Close: %v", err)
			}
		})
	}
}

// onRead closes a channel when the request to sign has arrived.
type onRead struct {
	net.Conn
	asked chan bool
}

func (c onRead) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if strings.Contains(string(b[:n]), requestSign) {
		close(c.asked)
	}
	return n, err
}

func TestTheErrorOfACanceledDialIsEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Dial(ctx, serve(t, func(net.Conn) {}))
	wantKind(t, err, Ended, "")
}

func TestTheServerAnswersUnknownRequestsWithUnsupportedAndContinues(t *testing.T) {
	near, far := net.Pipe()
	result := make(chan error, 1)
	go func() { result <- server(keys()["P-256"]).Serve(far) }()
	read := bufio.NewReader(near)
	for _, row := range []struct{ request, answer string }{
		{`{"version":1,"request":"decrypt"}`, `{"error":"unsupported","message":"the request is not known"}`},
		{`{"version":1}`, `{"error":"unsupported","message":"the request is not known"}`},
		{`{"version":2,"request":"public-key"}`, `{"error":"unsupported","message":"the version of the protocol is 1, not 2"}`},
		{`{"request":"public-key"}`, `{"error":"unsupported","message":"the version of the protocol is 1, not 0"}`},
		{`hello`, `{"error":"unsupported","message":"the request is not valid JSON"}`},
		{`{"version":1,"request":"sign","scheme":"rsa-pss-sha256","digest":"AAAA"}`, `{"error":"unsupported","message":"the scheme is not supported"}`},
		{`{"version":1,"request":"sign","scheme":"ecdsa-sha256","digest":"AAAA"}`, `{"error":"unsupported","message":"the digest has the wrong length for the scheme"}`},
		{`{"version":1,"request":"schemes","later":{"x":1}}`, `{"schemes":["ecdsa-sha256","ecdsa-sha384","ecdsa-sha512"]}`},
	} {
		if _, err := io.WriteString(near, row.request+"\n"); err != nil {
			t.Fatal(err)
		}
		line, err := read.ReadString('\n')
		if err != nil || line != row.answer+"\n" {
			t.Errorf("the answer to %s is %s, %v; want %s", row.request, line, err, row.answer)
		}
	}
	near.Close()
	if err := <-result; err != nil {
		t.Errorf("the client closed the connection, and Serve returned %v", err)
	}
}

func TestTheServerReportsItsErrorsAndItsStateToEveryRequest(t *testing.T) {
	ec := keys()["P-256"]
	for _, row := range []struct {
		err  error
		kind Kind
	}{
		{errors.New("C_Sign: device removed"), Unavailable},
		{&Failure{CodeRefused, "the PIN is wrong"}, Refused},
		{fmt.Errorf("open: %w", &Failure{CodeUnsupported, "the key is too large"}), Unsupported},
	} {
		path := serve(t, func(conn net.Conn) { (&Server{Err: row.err}).Serve(conn) })
		_, err := Dial(t.Context(), path)
		wantKind(t, err, row.kind, "")

		s := server(ec)
		s.Sign = func(Scheme, []byte) ([]byte, error) { return nil, row.err }
		key := dial(t, serve(t, func(conn net.Conn) { s.Serve(conn) }))
		_, err = key.Sign(nil, make([]byte, 32), crypto.SHA256)
		wantKind(t, err, row.kind, "")
	}
}

func TestTheServerEndsAConnectionWithARequestThatIsTooLong(t *testing.T) {
	near, far := net.Pipe()
	result := make(chan error, 1)
	go func() { result <- server(keys()["P-256"]).Serve(far) }()
	go io.WriteString(near, strings.Repeat("x", maxLine))
	line, err := bufio.NewReader(near).ReadString('\n')
	if err != nil || !strings.Contains(line, "the request is too long") {
		t.Errorf("the answer is %q, %v", line, err)
	}
	if err := <-result; err == nil {
		t.Error("the server expects another request")
	}
	near.Close()
}

func TestTheTextOfASignerIsBounded(t *testing.T) {
	path := serve(t, answers(encode(answer{Error: Code(strings.Repeat("c", 3000)), Message: strings.Repeat("m", 3000)})))
	_, err := Dial(t.Context(), path)
	wantKind(t, err, Unavailable, strings.Repeat("m", maxMessage))
	if len(err.Error()) > len(path)+maxMessage+128 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

// memory is a connection whose other side has already sent everything.
type memory struct {
	net.Conn
	io.Reader
}

func (m memory) Read(b []byte) (int, error)  { return m.Reader.Read(b) }
func (m memory) Write(b []byte) (int, error) { return len(b), nil }
func (m memory) Close() error                { return nil }
func (m memory) SetDeadline(time.Time) error { return nil }

// byLine returns at most one line for each Read, as a signer that answers one request at a time.
type byLine struct{ left []byte }

func (b *byLine) Read(to []byte) (int, error) {
	if len(b.left) == 0 {
		return 0, io.EOF
	}
	end := slices.Index(b.left, '\n') + 1
	if end == 0 {
		end = len(b.left)
	}
	n := copy(to, b.left[:end])
	b.left = b.left[n:]
	return n, nil
}

func FuzzAnswersOfASigner(f *testing.F) {
	for _, name := range []string{"P-256", "RSA-2048"} {
		public := keys()[name].Public()
		good := described(public, Schemes(public)...)
		f.Add([]byte(good[0] + good[1] + encode(answer{Signature: make([]byte, 256)})))
	}
	f.Add([]byte(`{"error":"refused","message":"\u0000"}` + "\n"))
	f.Add([]byte(`{"public_key":"` + base64.StdEncoding.EncodeToString(make([]byte, 6000)) + "\"}\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		key, err := open(t.Context(), memory{Reader: &byLine{sent}}, "/key.sock")
		if err == nil {
			defer key.Close()
			for _, s := range Schemes(key.Public()) {
				digest := make([]byte, s.Options().HashFunc().Size())
				signature, err := key.Sign(nil, digest, s.Options())
				if err == nil && s.verify(key.Public(), digest, signature) != nil {
					t.Fatal("Sign returned a signature that is not valid")
				}
				if failed := (*Error)(nil); err != nil && (!errors.As(err, &failed) || failed.Kind == 0) {
					t.Fatalf("the error is %T: %v", err, err)
				}
			}
			return
		}
		if failed := (*Error)(nil); !errors.As(err, &failed) || failed.Kind == 0 || len(err.Error()) > 16<<10 {
			t.Fatalf("the error is %T: %v", err, err)
		}
	})
}

func FuzzRequestsToAServer(f *testing.F) {
	f.Add([]byte(`{"version":1,"request":"public-key"}` + "\n" + `{"version":1,"request":"schemes"}` + "\n"))
	f.Add([]byte(`{"version":1,"request":"sign","scheme":"ecdsa-sha256","digest":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\"}\n"))
	f.Add([]byte("\n{\n"))
	ec := keys()["P-256"]
	f.Fuzz(func(t *testing.T, sent []byte) {
		var out strings.Builder
		server(ec).Serve(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(sent)), &out})
		lines := strings.SplitAfter(out.String(), "\n")
		if last := len(lines) - 1; lines[last] != "" || last > strings.Count(string(sent), "\n")+1 {
			t.Fatalf("%d requests have %d answers: %q", strings.Count(string(sent), "\n"), last, out.String())
		}
		for _, line := range lines[:len(lines)-1] {
			var a answer
			if err := json.Unmarshal([]byte(line), &a); err != nil || len(line) > maxLine {
				t.Fatalf("the answer %q is not valid: %v", line, err)
			}
		}
	})
}
