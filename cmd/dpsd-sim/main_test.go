package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"dpsd-sim": main,
		"probe":    probe,
		"probe-at": probeAt,
		"bare":     bare,
		"names":    names,

		"probe-hub": probeHub,

		"probe-served": probeServed,
		"enroll":       enrollDevice,
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:       "testdata/script",
		Condition: condition,
		Setup: func(e *testscript.Env) error {
			e.Setenv("GORACE", "atexit_sleep_ms=0") // otherwise, the race detector waits a second at each exit
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":     await,
			"terminate": terminate,
			"mode":      mode,
			"occupy":    occupy,

			"await-served": awaitServed,
			"await-text":   awaitText,
		},
	})
}

// condition implements [ipv6]: this machine has ::1. If CI is set, it must have it.
func condition(name string) (bool, error) {
	if name != "ipv6" {
		return false, errors.New("no such condition")
	}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		return true, l.Close()
	}
	if os.Getenv("CI") == "true" {
		return false, fmt.Errorf("IPv6 is needed here: %w", err)
	}
	return false, nil
}

// await waits until a file exists: await FILE. It gives up after a time that is more than
// enough on any machine.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
	}
	ts.Fatalf("%s does not come", args[0])
}

// occupy listens on an address until the end of the script: occupy HOST:PORT. If another test uses
// the address, it waits until that test ends. If the address is still in use after 15 s, it belongs
// to a service of this machine. Occupy sets the variable OCCUPIED to the address. If PORT is 0, this
// is the address with the port that the system has chosen.
func occupy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: occupy HOST:PORT")
	}
	ts.Setenv("OCCUPIED", args[0])
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l, err := net.Listen("tcp", args[0])
		if err == nil {
			ts.Defer(func() { _ = l.Close() })
			ts.Setenv("OCCUPIED", l.Addr().String())
			return
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			ts.Check(err)
		}
	}
}

// terminate sends a signal to all background programs of the script:
// terminate TERM|INT|HUP.
func terminate(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP}
	if neg || len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: terminate TERM|INT|HUP")
	}
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(signals[args[0]]))
	}
}

// mode checks permissions: mode 0600 FILE...
func mode(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%#o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s", name, got)
		}
	}
}

// probe is a minimal device: it uses the environment that exec has set, connects by MQTT
// with its certificate, and by WebSocket up to the upgrade, and prints the answers.
func probe() {
	if err := doProbe(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func doProbe(out io.Writer) error {
	env := os.Getenv
	ca, err := os.ReadFile(env("DPS_CA_FILE"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	certificate, err := tls.LoadX509KeyPair(env("DPS_CERTIFICATE_FILE"), env("DPS_PRIVATE_KEY_FILE"))
	if err != nil {
		return err
	}
	if key, _ := base64.StdEncoding.DecodeString(env("DPS_SYMMETRIC_KEY")); len(key) != 32 {
		return fmt.Errorf("DPS_SYMMETRIC_KEY: %d bytes", len(key))
	}
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}

	conn, err := tls.Dial("tcp", net.JoinHostPort(env("DPS_ENDPOINT"), env("DPS_MQTT_PORT")), config)
	if err != nil {
		return err
	}
	defer conn.Close()
	id := env("DPS_REGISTRATION_ID")
	user := env("DPS_ID_SCOPE") + "/registrations/" + id + "/api-version=2019-03-31"
	body := fmt.Sprintf("\x00\x04MQTT\x04\x82\x00\x00\x00%c%s\x00%c%s", len(id), id, len(user), user)
	fmt.Fprintf(conn, "\x10%c%s", len(body), body)
	connack := make([]byte, 4)
	if _, err := io.ReadFull(conn, connack); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: mqtt %s\n", id, hex.EncodeToString(connack))

	ws, err := tls.Dial("tcp", net.JoinHostPort(env("DPS_ENDPOINT"), env("DPS_WEBSOCKET_PORT")), config)
	if err != nil {
		return err
	}
	defer ws.Close()
	fmt.Fprint(ws, "GET /$iothub/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(ws), nil)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: websocket %d\n", id, r.StatusCode)
	return r.Body.Close()
}

// probeAt connects to the MQTT port at exactly one address.
func probeAt() {
	conn, err := net.Dial("tcp", net.JoinHostPort(os.Args[1], os.Getenv("DPS_MQTT_PORT")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = conn.Close()
	fmt.Println("connected")
}

// bare prints which of the device's variables are set, without their values.
func bare() {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "DPS_") {
			fmt.Println(name)
		}
	}
}

// names prints the host names and IP addresses of the server's certificate.
func names() {
	conn, err := tls.Dial("tcp", net.JoinHostPort(os.Getenv("DPS_ENDPOINT"), os.Getenv("DPS_MQTT_PORT")),
		&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	for _, name := range leaf.DNSNames {
		fmt.Println(name)
	}
	for _, ip := range leaf.IPAddresses {
		fmt.Println(ip)
	}
}
