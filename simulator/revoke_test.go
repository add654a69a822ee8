package simulator_test

import (
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// certified registers a device with a CSR, and returns the pair that it then has.
func certified(t *testing.T, s *simulator.Server, id string) tls.Certificate {
	t.Helper()
	key := ecKey(t, elliptic.P384())
	p := as(t, s, id, stable).outcome(`{"csr":"` + base64.StdEncoding.EncodeToString(request(t, key, named(id))) + `"}`)
	return pair(p.chain(t), key)
}

func pair(chain []*x509.Certificate, key any) tls.Certificate {
	c := tls.Certificate{PrivateKey: key}
	for _, one := range chain {
		c.Certificate = append(c.Certificate, one.Raw)
	}
	return c
}

// hubAccepts connects a device to its hub with a certificate. why is the beginning of the reason
// for a refusal, or "".
func hubAccepts(t *testing.T, s *simulator.Server, id string, c tls.Certificate, why string) {
	t.Helper()
	connect := connectPacket(0x82, 0, id, hubUser(hubName, id))
	if why == "" {
		call(t, s, connect, 0, c).lives()
		return
	}
	call(t, s, connect, 5, c)
	if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, "401003 IotHubUnauthorized: "+why) {
		t.Errorf("%q, want %q", d, why)
	}
}

func TestRevocationOfADevice(t *testing.T) {
	bubble(t, "the hub refuses every certificate that the device ever received, and no other, until the device registers with a CSR", func(t *testing.T) {
		var refusals []simulator.Refusal
		s := start(t, simulator.Options{OnRefusal: func(r simulator.Refusal) { refusals = append(refusals, r) }})
		first, second, other := certified(t, s, device), certified(t, s, device), certified(t, s, "other")
		hubAccepts(t, s, device, first, "")
		hubAccepts(t, s, device, second, "")
		if !s.RevokeDevice(strings.ToUpper(device)) {
			t.Error("the device is not known")
		}
		hubAccepts(t, s, device, first, "the issued certificate was revoked")
		hubAccepts(t, s, device, second, "the issued certificate was revoked")
		hubAccepts(t, s, "other", other, "")
		if r := refusals[len(refusals)-1].String(); !strings.Contains(r, "the issued certificate was revoked: expected the identifier ") {
			t.Error(r)
		}
		hubAccepts(t, s, device, certified(t, s, device), "")
		hubAccepts(t, s, device, first, "the issued certificate was revoked")
	})
	bubble(t, "a certificate that was issued before the revocation and is received after it is refused", func(t *testing.T) {
		s := start(t, simulator.Options{})
		certified(t, s, device)
		key := ecKey(t, elliptic.P384())
		cl := as(t, s, device, stable)
		operation := cl.ask(`{"csr":"` + base64.StdEncoding.EncodeToString(request(t, key, named(device))) + `"}`).parse(t).OperationID
		s.RevokeDevice(device)
		cl.puback(cl.poll("2", operation).id)
		p := cl.poll("3", operation)
		cl.puback(p.id)
		hubAccepts(t, s, device, pair(p.chain(t), key), "the issued certificate was revoked")
		hubAccepts(t, s, device, certified(t, s, device), "")
	})
	bubble(t, "it also applies to a device that keeps its assignment", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Reprovision: "never"})})
		registered(t, s, device)
		first := certified(t, s, device)
		hubAccepts(t, s, device, first, "")
		s.RevokeDevice(device)
		hubAccepts(t, s, device, first, "the issued certificate was revoked")
		hubAccepts(t, s, device, certified(t, s, device), "")
	})
	bubble(t, "a device that is not assigned has nothing to revoke", func(t *testing.T) {
		if start(t, simulator.Options{}).RevokeDevice(device) {
			t.Error("it was revoked")
		}
	})
	bubble(t, "a directory keeps it across restarts", func(t *testing.T) {
		dir := t.TempDir()
		s := start(t, simulator.Options{Directory: dir})
		first := certified(t, s, device)
		s.Close()
		s = start(t, simulator.Options{Directory: dir})
		hubAccepts(t, s, device, first, "")
		s.RevokeDevice(device)
		s.Close()
		s = start(t, simulator.Options{Directory: dir})
		hubAccepts(t, s, device, first, "the issued certificate was revoked")
		hubAccepts(t, s, device, certified(t, s, device), "")
	})
}

func TestRevocationOfThePolicy(t *testing.T) {
	const replaced = "the issued certificate is not signed by the current issuing CA"
	root := func(t *testing.T, s *simulator.Server) string {
		t.Helper()
		text, err := s.IssuingRoot()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	bubble(t, "the hub refuses the certificates of all devices, and a new CA of the same root issues the next ones", func(t *testing.T) {
		s := start(t, simulator.Options{})
		one, two, before := certified(t, s, device), certified(t, s, "other"), root(t, s)
		if err := s.RevokePolicy(); err != nil {
			t.Fatal(err)
		}
		hubAccepts(t, s, device, one, replaced)
		hubAccepts(t, s, "other", two, replaced)
		next := certified(t, s, device)
		hubAccepts(t, s, device, next, "")
		if root(t, s) != before || string(next.Certificate[1]) == string(one.Certificate[1]) || string(next.Certificate[2]) != string(one.Certificate[2]) {
			t.Error("the root is different, or the issuing CA is the same")
		}
	})
	t.Run("a directory keeps the new CA across restarts, even if it was created without the key of the root", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			s := start(t, simulator.Options{Directory: dir})
			first, before := certified(t, s, device), root(t, s)
			if err := s.RevokePolicy(); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s = start(t, simulator.Options{Directory: dir})
			hubAccepts(t, s, device, first, replaced)
			second := certified(t, s, device)
			hubAccepts(t, s, device, second, "")
			if root(t, s) != before {
				t.Error("the root is different")
			}
			s.Close()
			keyFile := filepath.Join(dir, "issuing-root.key")
			if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
				t.Error(info, err)
			}
			if err := os.Remove(keyFile); err != nil {
				t.Fatal(err)
			}
			s = start(t, simulator.Options{Directory: dir})
			hubAccepts(t, s, device, second, "")
			if err := s.RevokePolicy(); err != nil {
				t.Fatal(err)
			}
			hubAccepts(t, s, device, second, replaced)
			hubAccepts(t, s, device, certified(t, s, device), "")
			if root(t, s) == before {
				t.Error("the root is the same, although its key is unknown")
			}
			s.Close()
			s = start(t, simulator.Options{Directory: dir})
			hubAccepts(t, s, device, certified(t, s, device), "")
		})
	})
}

func TestTheHubSaysThatAnIssuedCertificateIsNotValidNow(t *testing.T) {
	bubble(t, "it has expired", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{CertificateLife: time.Minute})})
		c := certified(t, s, device)
		hubAccepts(t, s, device, c, "")
		time.Sleep(time.Minute)
		hubAccepts(t, s, device, c, "the issued certificate has expired")
		hubAccepts(t, s, device, certified(t, s, device), "")
	})
	bubble(t, "it is not yet valid", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{CertificateDelay: time.Hour}}})
		c := certified(t, s, device)
		hubAccepts(t, s, device, c, "the issued certificate is not yet valid")
		time.Sleep(time.Hour)
		hubAccepts(t, s, device, c, "")
	})
	bubble(t, "the clock of the server decides, not that of the system", func(t *testing.T) {
		var ahead time.Duration
		now := func() time.Time { return time.Now().Add(ahead) }
		s := start(t, simulator.Options{Now: now, Enrollments: keys(t, enroll.Grant{CertificateLife: 30 * time.Minute})})
		c := certified(t, s, device)
		hubAccepts(t, s, device, c, "")
		ahead = 45 * time.Minute
		hubAccepts(t, s, device, c, "the issued certificate has expired")
		later := certified(t, s, device)
		hubAccepts(t, s, device, later, "")
		ahead = -time.Hour
		hubAccepts(t, s, device, later, "the issued certificate is not yet valid")
	})
}

func TestAServerWorksForFiveYears(t *testing.T) {
	bubble(t, "its own certificate is always valid, and it issues certificates", func(t *testing.T) {
		s := start(t, simulator.Options{})
		for range 20 {
			time.Sleep(5 * 365 * 24 * time.Hour / 20)
			hubAccepts(t, s, device, certified(t, s, device), "")
		}
	})
}
