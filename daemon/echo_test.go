package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/simulator"
)

// everything returns all output of a gateway: its log, STATUS= and its files.
func (g *gateway) everything() string {
	g.t.Helper()
	var b strings.Builder
	for _, e := range g.log.All() {
		fields, err := json.Marshal(e.ContextMap())
		if err != nil {
			g.t.Fatal(err)
		}
		b.WriteString(e.Message + string(fields) + "\n")
	}
	for _, n := range g.notes {
		b.WriteString(n.state + "\n")
	}
	for _, dir := range []string{g.Store.Directory, g.Store.RuntimeDirectory} {
		if _, err := os.Stat(dir); err == nil { // nothing may have been written there
			b.WriteString(filepath.Base(dir) + snapshot(g.t, dir))
		}
	}
	return b.String()
}

// registrationToken returns the token with which a gateway registers now.
func registrationToken(key []byte, identity dps.Identity) string {
	expiry := time.Now().Add(attest.TokenLifetime)
	return sas.Token(identity.Resource(), sas.MAC(key, sas.Statement(identity.Resource(), expiry)), expiry, "registration")
}

func TestASignatureThatTheServiceRepeatsInAnyFormIsMasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The same seed gives the same service, and the bubble's clock gives the same token.
		twin := newGateway(t)
		key, err := attest.DecodeKey([]byte(twin.sim.DeviceKey(device)))
		if err != nil {
			t.Fatal(err)
		}
		identity := dps.Identity{IDScope: twin.sim.IDScope(), RegistrationID: device}
		token := registrationToken(key, identity)
		signature := sas.Signature(token)
		escaped := url.QueryEscape(signature)
		raw, err := base64.StdEncoding.DecodeString(signature)
		if err != nil {
			t.Fatal(err)
		}
		forms := []string{
			signature, escaped, signature[:20], signature[:10] + " " + signature[10:20] + "\n" + signature[20:],
			base64.StdEncoding.EncodeToString([]byte(token)), hex.EncodeToString([]byte(token)), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString([]byte(signature))),
			base64.StdEncoding.EncodeToString([]byte("x" + signature)), base64.RawURLEncoding.EncodeToString([]byte("yz" + signature)), base64.URLEncoding.EncodeToString(raw),
			fmt.Sprintf("%d", []byte(signature)), strings.Trim(fmt.Sprintf("% #x", raw), " "), base32.StdEncoding.EncodeToString([]byte(signature)),
		}
		rules := make([]simulator.Rule, 0, len(forms))
		for _, form := range forms {
			message, err := json.Marshal("no " + form + " please")
			if err != nil {
				t.Fatal(err)
			}
			// Each is the first attempt of a gateway, because later attempts have other tokens.
			rules = append(rules, simulator.Rule{On: simulator.OnRegister, Status: 401, Body: text(`{"errorCode":401002,"trackingId":` + string(message) + `,"message":` + string(message) + `}`)})
		}
		for n, rule := range rules {
			if now := registrationToken(key, identity); now != token {
				t.Fatal("the clock has advanced, so this gateway has a different token")
			}
			g := newGateway(t, rule)
			g.run()
			g.until("fault", 1)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			said := g.everything()
			if !strings.Contains(said, redact.Mark) {
				t.Errorf("%q is masked nowhere", forms[n])
			}
			plain := strings.NewReplacer(" ", "", `\n`, "").Replace(said)
			for _, secret := range encodings(signature, escaped, string(raw)) {
				if strings.Contains(plain, secret) {
					t.Errorf("%s is shown, of %q", secret, forms[n])
				}
			}
		}
	})
}

func TestAnAssignmentThatRepeatsTheSignatureIsAMalformedReply(t *testing.T) {
	for _, member := range []string{"substatus", "etag", "connectionProfile", "deviceId", "payload", "later"} {
		for form, of := range map[string]func(string) string{
			"as it is": func(s string) string { return s },
			"in hex":   func(s string) string { return hex.EncodeToString([]byte(s)) },
		} {
			t.Run(member+" "+form, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					twin := newGateway(t)
					key, err := attest.DecodeKey([]byte(twin.sim.DeviceKey(device)))
					if err != nil {
						t.Fatal(err)
					}
					identity := dps.Identity{IDScope: twin.sim.IDScope(), RegistrationID: device}
					signature := sas.Signature(registrationToken(key, identity))
					state := map[string]string{"registrationId": device, "assignedHub": "hub.azure-devices.net", "deviceId": device, "status": "assigned"}
					state[member] = of(signature)
					body, err := json.Marshal(map[string]any{"operationId": "1", "status": "assigned", "registrationState": state})
					if err != nil {
						t.Fatal(err)
					}
					g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 200, Body: text(string(body)), Times: 1})
					g.run()
					g.until("fault", 1)
					g.wantFaults(fault.MalformedReply)
					g.within(time.Hour, "assigned", 1)
					if err := g.end(); err != nil {
						t.Error(err)
					}
					if strings.Contains(g.everything(), state[member]) {
						t.Errorf("%s is shown", state[member])
					}
				})
			})
		}
	}
}

// encodings returns parts of secrets in base64, at any offset, in hexadecimal, and unencoded.
func encodings(secrets ...string) (parts []string) {
	for _, s := range secrets {
		parts = append(parts, s[:14], hex.EncodeToString([]byte(s))[:24], strings.ToUpper(hex.EncodeToString([]byte(s)))[:24])
		for shift := range 3 {
			parts = append(parts, base64.StdEncoding.EncodeToString([]byte("xyz"[:shift] + s))[8:24], base64.URLEncoding.EncodeToString([]byte("xyz"[:shift] + s))[8:24])
		}
	}
	return parts
}

// A certificate may contain any bytes below 0x80, and is read before it is verified.
func TestANameInACertificateForgesNoLogLineAndSendsNoTerminalEscape(t *testing.T) {
	const hostile = "\x1b]0;owned\a\x1b[2J\r\nNov 29 10:00:00 gateway dpsd[1]: assigned\n"
	for name, long := range map[string]string{"a short name": hostile, "a name of 50,000 bytes": strings.Repeat(hostile, 50_000/len(hostile))} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				certificate := selfSigned(t, long)
				g := newGateway(t)
				dial := func() net.Conn {
					ours, theirs := net.Pipe()
					go func() {
						server := newWire(theirs)
						defer server.Close()
						_ = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{certificate}}).Handshake()
						_, _ = io.Copy(io.Discard, server)
					}()
					return newWire(ours)
				}
				g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) { return dial(), nil }
				g.run()
				g.until("fault", 2)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				said := g.everything()
				if !strings.Contains(said, `\\x1b]0;owned`) {
					t.Errorf("the name is not shown: %.2000s", said)
				}
				for n, note := range g.notes {
					if strings.ContainsFunc(note.state, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }) || strings.Contains(note.state, "\nNov 29") || len(note.state) > statusLimit+len("READY=1\n") {
						t.Errorf("note %d to the service manager: %.300q", n, note.state)
					}
				}
				if strings.Contains(said, "\x1b") || strings.Contains(said, "\nNov 29") {
					t.Error("escapes or lines of the certificate are shown as they are")
				}
				if got := g.faults()[0]; got != string(fault.TLSUntrusted) && got != string(fault.TLSWrongHost) {
					t.Errorf("the fault is %s", got)
				}
				if len(said) > 32<<10 {
					t.Errorf("%d bytes are said of it", len(said))
				}
			})
		})
	}
}

// selfSigned returns a certificate for a name.
func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(fmt.Errorf("a certificate for %q: %w", name, err))
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
