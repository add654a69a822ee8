package main_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// tinyproxy starts the proxy in its own mount namespace, where /etc/hosts contains the name of
// the service, so that all connections stay on this machine.
func (g *gateway) tinyproxy(ts *testscript.TestScript, args []string) {
	if old := g.processes["tinyproxy"]; old != nil {
		ts.Check(old.Process.Kill())
		_ = old.Wait()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	address := l.Addr().String()
	ts.Check(l.Close())
	_, port, _ := net.SplitHostPort(address)
	log := ts.MkAbs("tinyproxy.log")
	configuration := "Listen 127.0.0.1\nPort " + port + "\nTimeout 60\nMaxClients 20\nLogLevel Connect\nLogFile \"" + log + "\"\n"
	if len(args) > 0 {
		user, password, _ := strings.Cut(args[0], ":")
		configuration += "BasicAuth " + user + " " + password + "\n"
	}
	ts.Check(os.WriteFile(ts.MkAbs("tinyproxy.conf"), []byte(configuration), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("hosts"), []byte("127.0.0.1 localhost global.azure-devices-provisioning.net\n"), 0o600))
	ts.Check(os.WriteFile(log, nil, 0o600))

	c := exec.Command("unshare", "--mount", "--map-root-user", "sh", "-c", "mount --bind hosts /etc/hosts && exec tinyproxy -d -c tinyproxy.conf")
	c.Dir = ts.MkAbs(".")
	out, err := os.Create(ts.MkAbs("tinyproxy.out"))
	ts.Check(err)
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	ts.Check(c.Start())
	g.processes["tinyproxy"] = c
	for limit := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		probe, err := net.Dial("tcp", address)
		if err == nil {
			ts.Check(probe.Close())
			break
		}
		if time.Now().After(limit) {
			ts.Fatalf("tinyproxy does not listen: %v\n%s", err, ts.ReadFile("tinyproxy.out"))
		}
	}
	front, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{proxyCertificate(ts)}})
	ts.Check(err)
	forwarder := &forwarder{listener: front, to: address}
	forwarder.running.Go(forwarder.serve)
	g.proxies = append(g.proxies, forwarder)
	ts.Setenv("PROXY", "http://"+address)
	ts.Setenv("PROXY_ADDRESS", address)
	secure := "localhost:" + strconv.Itoa(front.Addr().(*net.TCPAddr).Port)
	ts.Setenv("SECURE_PROXY", "https://"+secure)
	ts.Setenv("SECURE_PROXY_ADDRESS", secure)
}

// forwarder forwards connections to a fixed address.
type forwarder struct {
	listener net.Listener
	to       string
	running  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	ended bool
}

func (f *forwarder) serve() {
	for {
		here, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.running.Go(func() { f.carry(here) })
	}
}

func (f *forwarder) carry(here net.Conn) {
	defer here.Close()
	there, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer there.Close()
	f.mu.Lock()
	f.conns = append(f.conns, here, there)
	ended := f.ended
	f.mu.Unlock()
	if ended {
		return
	}
	f.running.Go(func() { _, _ = io.Copy(there, here); _ = there.Close() })
	_, _ = io.Copy(here, there)
}

func (f *forwarder) Close() error {
	err := f.listener.Close()
	f.mu.Lock()
	f.ended = true
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.running.Wait()
	return err
}

// proxyCertificate returns a certificate for localhost, issued by the authority that it writes
// to proxy-ca.pem.
func proxyCertificate(ts *testscript.TestScript) tls.Certificate {
	now := time.Now()
	sign := func(template, issuer *x509.Certificate, by *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		ts.Check(err)
		if by == nil {
			by = key
		}
		template.SerialNumber = big.NewInt(now.UnixNano())
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), by)
		ts.Check(err)
		return der, key
	}
	authority := &x509.Certificate{
		Subject: pkix.Name{CommonName: fmt.Sprintf("proxy authority %d", now.UnixNano())},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, rootKey := sign(authority, authority, nil)
	leaf, key := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority, rootKey)
	ts.Check(os.WriteFile(ts.MkAbs("proxy-ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o600))
	return tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}
}
