package system

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// listen opens a port in the network of the gateway.
func (g *gateway) listen(address string) net.Listener {
	g.t.Helper()
	type opened struct {
		l   net.Listener
		err error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", g.leader))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- opened{err: err}
			return
		}
		l, err := net.Listen("tcp", address)
		done <- opened{l, err}
	}()
	o := <-done
	if o.err != nil {
		g.t.Fatal(o.err)
	}
	g.t.Cleanup(func() { _ = o.l.Close() })
	return o.l
}

// impostor answers with a self-made certificate for a name.
func (g *gateway) impostor(address, name string) {
	g.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	template.Subject.CommonName = name[:min(len(name), 64)]
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		g.t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	l := tls.NewListener(g.listen(address), config)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.(*tls.Conn).Handshake()
			}()
		}
	}()
}

// An untrusted certificate may contain any bytes in its names, and dpsd shows the names to users
// who check why the gateway is not provisioned.
func TestTerminalEscapesOfACertificateDoNotReachTheStatusOutput(t *testing.T) {
	const escapes = "\x1b]0;owned\a\x1b[2J\r\nActive: active (running)\n"
	inBoth(t, func(t *testing.T, s suite) {
		for port, name := range map[int]string{8885: escapes, 8886: strings.Repeat(escapes, 3000)} {
			g := withDpsd(t, s)
			dps := g.service(prompt)
			g.configure(dps, "")
			g.impostor(fmt.Sprintf("127.0.0.1:%d", port), name)
			text := strings.Replace(dps.configuration(""), "websocket_port = 8443", fmt.Sprintf("mqtt_port = %d\nprotocols = [\"mqtt\"]", port), 1)
			g.write("/etc/dpsd/dpsd.toml", text, 0o644)
			g.run("systemctl start --no-block dpsd")
			g.untilShown("dpsd.service", "StatusText", "]0;owned") // systemctl show escapes the preceding character
			for _, command := range []string{
				"SYSTEMD_COLORS=0 systemctl status --no-pager --full dpsd || :",
				"systemctl show --property=StatusText dpsd",
				"dpsd status || :", "dpsd status --json || :", "dpsd status --attempts || :", "dpsd check 2>&1 || :", "dpsd wait --timeout 1s 2>&1 || :",
				"journalctl --no-pager --output=cat --unit=dpsd", "cat /run/dpsd/attempts.json",
			} {
				out := g.run(command)
				if !strings.Contains(out, "owned") {
					t.Errorf("%s: %s does not show the certificate's name:\n%.2000s", s.name, command, out)
				}
				if at := strings.IndexFunc(out, func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsGraphic(r) }); at >= 0 {
					t.Errorf("%s: %s prints %q", s.name, command, out[max(0, at-20):min(len(out), at+20)])
				}
				for line := range strings.Lines(out) {
					if strings.HasPrefix(line, "Active: active") {
						t.Errorf("%s: %s prints a forged line", s.name, command)
					}
				}
				if len(out) > 64<<10 {
					t.Errorf("%s: %s prints %d bytes", s.name, command, len(out))
				}
			}
		}
	})
}
