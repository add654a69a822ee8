// dpsd-signer-pkcs11 signs for dpsd with a private key in a PKCS#11 token.
//
// systemd starts it when a client connects to its socket. It exits when no client is connected,
// and after any failure of the library, so that the library is initialized again for the next
// connection; docs/signer.md explains why.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/dpsd-project/dpsd/pkcs11/token"
	"github.com/dpsd-project/dpsd/pkcs11/uri"
	"github.com/dpsd-project/dpsd/signer"
)

const (
	// unused is how long the program waits for a client before it exits.
	unused = 10 * time.Second
	// silent is how long a client may stay connected without sending a request.
	silent = 10 * time.Minute
	// parting is how long clients may stay connected after a failure.
	parting = time.Second
)

var version = "unknown" // set by the linker

const usage = `usage: dpsd-signer-pkcs11 [--timeout DURATION] FILE

Signs for dpsd with a private key in a PKCS#11 token. FILE contains the PKCS#11
URI of the key (RFC 7512), such as
  pkcs11:token=gateway;object=device?module-path=/usr/lib/softhsm/libsofthsm2.so
systemd starts the program when a client connects to its socket, and passes the
PIN as the credential "pin". See /usr/share/doc/dpsd-signer-pkcs11/signer.md.

`

func main() {
	flags := flag.NewFlagSet("dpsd-signer-pkcs11", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flags.PrintDefaults()
	}
	timeout := flags.Duration("timeout", 25*time.Second, "the time that the token may take to answer a request; dpsd waits 30s")
	printVersion := flags.Bool("version", false, "print the version")
	_ = flags.Parse(os.Args[1:]) // exits if there is an error
	if *printVersion {
		fmt.Println("dpsd-signer-pkcs11", version)
		return
	}
	if flags.NArg() != 1 {
		flags.Usage()
		os.Exit(2)
	}
	listeners, err := activation.Listeners()
	if err != nil || len(listeners) != 1 {
		fmt.Fprintf(os.Stderr, "dpsd-signer-pkcs11: systemd passed %d sockets instead of one; see systemd.socket(5)\n", len(listeners))
		os.Exit(2)
	}
	listener, ok := listeners[0].(*net.UnixListener)
	if !ok {
		fmt.Fprintln(os.Stderr, "dpsd-signer-pkcs11: the socket is not a Unix stream socket")
		os.Exit(2)
	}
	s := &service{file: flags.Arg(0), pin: token.PIN{Credentials: os.Getenv("CREDENTIALS_DIRECTORY"), State: os.Getenv("STATE_DIRECTORY")}, timeout: *timeout}
	if err := s.run(listener); err != nil {
		fmt.Fprintln(os.Stderr, "dpsd-signer-pkcs11:", err)
		os.Exit(1)
	}
}

// service serves the clients of one key.
type service struct {
	file    string
	pin     token.PIN
	timeout time.Duration

	clients atomic.Int32
	failed  atomic.Bool
	mu      sync.Mutex // one call of the library at a time
	key     *token.Key // nil until the first call of open
	err     error      // the reason why the key cannot be used
}

// run serves connections until there are none. It accepts the first connection before it loads the
// library: if the program exited before that, the connection would still be pending, and systemd
// would start the program again immediately.
func (s *service) run(listener *net.UnixListener) error {
	for {
		if err := listener.SetDeadline(time.Now().Add(unused)); err != nil {
			return err
		}
		conn, err := listener.Accept()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && s.clients.Load() == 0:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return err
		default:
			s.clients.Add(1)
			go s.serve(conn)
		}
	}
}

// serve answers the requests of a client.
func (s *service) serve(conn net.Conn) {
	defer s.ended(conn)
	server := &signer.Server{Sign: s.sign}
	key, err := call(s, s.open)
	if err != nil {
		server.Err = err
	} else {
		server.Public, server.Schemes = key.Public, key.Schemes
	}
	if err := server.Serve(requests{conn}); err != nil {
		fmt.Fprintln(os.Stderr, "dpsd-signer-pkcs11: a client:", err)
	}
}

// ended closes a connection. If it was the last one and there was a failure, the program exits.
func (s *service) ended(conn net.Conn) {
	_ = conn.Close()
	if s.clients.Add(-1) == 0 && s.failed.Load() {
		os.Exit(1)
	}
}

// requests is a connection on which the next request has a deadline.
type requests struct{ net.Conn }

func (r requests) Read(b []byte) (int, error) {
	if err := r.SetDeadline(time.Now().Add(silent)); err != nil {
		return 0, err
	}
	return r.Conn.Read(b)
}

// open returns the key, which it opens for the first client.
func (s *service) open() (*token.Key, error) {
	if s.key != nil {
		return s.key, nil
	}
	text, err := os.ReadFile(s.file)
	if err != nil {
		return nil, &signer.Failure{Code: signer.CodeRefused, Message: err.Error()}
	}
	u, err := uri.Parse(firstLine(string(text)))
	if err != nil {
		return nil, &signer.Failure{Code: signer.CodeRefused, Message: s.file + ": " + err.Error()}
	}
	s.key, err = token.Open(u, s.pin)
	return s.key, err
}

// firstLine returns the first line that is neither empty nor a comment.
func firstLine(text string) string {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

func (s *service) sign(scheme signer.Scheme, digest []byte) ([]byte, error) {
	return call(s, func() ([]byte, error) { return s.key.Sign(scheme, digest) })
}

// call calls the library. If the call fails or takes too long, the program answers the client and
// exits, because a call of the library cannot be interrupted.
func call[T any](s *service, library func() (T, error)) (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var none T
	if s.err != nil {
		return none, s.err
	}
	type result struct {
		value T
		err   error
	}
	results := make(chan result, 1)
	go func() {
		value, err := library()
		results <- result{value, err}
	}()
	select {
	case r := <-results:
		if r.err == nil {
			return r.value, nil
		}
		s.err = r.err
	case <-time.After(s.timeout):
		s.err = fmt.Errorf("the token did not answer within %v", s.timeout)
	}
	text := s.err.Error()
	if failure := (*signer.Failure)(nil); errors.As(s.err, &failure) {
		text = failure.Message
	}
	fmt.Fprintln(os.Stderr, "dpsd-signer-pkcs11:", text)
	s.failed.Store(true)
	time.AfterFunc(parting, func() { os.Exit(1) })
	return none, s.err
}
