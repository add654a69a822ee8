package simulator_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// linked reports whether each certificate is signed by the next one, and the last by itself.
func linked(chain []*x509.Certificate) bool {
	for i, c := range chain {
		if c.CheckSignatureFrom(chain[min(i+1, len(chain)-1)]) != nil {
			return false
		}
	}
	return true
}

func TestEachFaultyChainHasTheFaultOfItsName(t *testing.T) {
	key := ecKey(t, elliptic.P384())
	csr := csrBody(t, base64.StdEncoding.EncodeToString(request(t, key, named(device))))
	ours := func(c *x509.Certificate) bool { return key.PublicKey.Equal(c.PublicKey) }
	valid := func(c *x509.Certificate) bool {
		return !time.Now().Before(c.NotBefore) && !time.Now().After(c.NotAfter)
	}
	// What is true of each chain. The members that are not certificates are nil.
	facts := map[string]func(raw string, chain []*x509.Certificate) bool{
		"empty":      func(raw string, _ []*x509.Certificate) bool { return raw == "[]" },
		"not-a-list": func(raw string, chain []*x509.Certificate) bool { return raw[0] == '"' && chain == nil },
		"not-text": func(raw string, chain []*x509.Certificate) bool {
			return strings.Contains(raw, `",7,"`) && len(chain) == 3 && ours(chain[0])
		},
		"garbage": func(_ string, chain []*x509.Certificate) bool {
			return len(chain) == 3 && ours(chain[0]) && chain[1] == nil && chain[2] != nil
		},
		"leaf-only": func(_ string, chain []*x509.Certificate) bool {
			return len(chain) == 1 && ours(chain[0]) && chain[0].Issuer.CommonName == "dpsd-sim issuing CA"
		},
		"reordered": func(_ string, chain []*x509.Certificate) bool {
			backwards := slices.Clone(chain)
			slices.Reverse(backwards)
			return len(chain) == 3 && ours(chain[2]) && linked(backwards)
		},
		"duplicate": func(_ string, chain []*x509.Certificate) bool {
			return len(chain) == 4 && ours(chain[0]) && linked(chain) && chain[2].Equal(chain[3])
		},
		"hundred": func(_ string, chain []*x509.Certificate) bool {
			return len(chain) == 100 && ours(chain[0]) && linked(chain)
		},
		"megabyte": func(raw string, chain []*x509.Certificate) bool {
			return len(raw) > 1_000_000 && len(raw) < 1_040_000 && len(chain) == 3 && ours(chain[0]) && linked(chain)
		},
		"foreign-leaf": func(_ string, chain []*x509.Certificate) bool {
			return !ours(chain[0]) && chain[0].Subject.CommonName == device && linked(chain)
		},
		"wrong-name": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && chain[0].Subject.CommonName == "another-device" && linked(chain)
		},
		"two-names": func(_ string, chain []*x509.Certificate) bool {
			names := chain[0].Subject.Names
			return ours(chain[0]) && len(names) == 2 && names[0].Value == device && names[0].Type.Equal(names[1].Type) && names[1].Value == device && linked(chain)
		},
		"self-signed": func(_ string, chain []*x509.Certificate) bool {
			return len(chain) == 1 && ours(chain[0]) && bytes.Equal(chain[0].RawIssuer, chain[0].RawSubject) && chain[0].Subject.CommonName == device
		},
		"leaf-ca": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && chain[0].IsCA && linked(chain)
		},
		"wrong-signature": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && bytes.Equal(chain[0].RawIssuer, chain[1].RawSubject) &&
				chain[0].CheckSignatureFrom(chain[1]) != nil && linked(chain[1:])
		},
		"rsa-8192": func(_ string, chain []*x509.Certificate) bool {
			big, is := chain[1].PublicKey.(*rsa.PublicKey)
			return ours(chain[0]) && is && big.N.BitLen() == 8192 && linked(chain)
		},
		"expired": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && chain[0].NotBefore.Before(chain[0].NotAfter) && chain[0].NotAfter.Before(time.Now()) && linked(chain)
		},
		"expired-issuer": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && valid(chain[0]) && chain[1].NotAfter.Before(time.Now()) && linked(chain)
		},
		"short-issuer": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && valid(chain[0]) && valid(chain[1]) && chain[1].NotAfter.Before(chain[0].NotAfter) && linked(chain)
		},
		"not-yet-valid": func(_ string, chain []*x509.Certificate) bool {
			return ours(chain[0]) && chain[0].NotBefore.After(time.Now().Add(24*time.Hour)) && chain[0].NotAfter.After(chain[0].NotBefore) && linked(chain)
		},
	}
	page, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range scenario.Chains {
		if !strings.Contains(string(page), "| `"+kind+"` |") {
			t.Errorf("docs/simulator.md does not explain %s", kind)
		}
		fact := facts[kind]
		if fact == nil {
			t.Errorf("%s has no test", kind)
			continue
		}
		bubble(t, kind, func(t *testing.T) {
			var issued []simulator.Issued
			s := start(t, simulator.Options{
				OnIssue:  func(i simulator.Issued) { issued = append(issued, i) },
				Scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, CSR: true, Times: 1, Chain: kind}}},
			})
			as(t, s, device, stable).outcome("") // without a CSR, the rule does not act
			p := as(t, s, device, stable).outcome(csr)
			if p.parse(t).Status != "assigned" {
				t.Fatal(p.payload)
			}
			raw := p.state(t, "issuedCertificateChain")
			var texts []any
			var chain []*x509.Certificate
			_ = json.Unmarshal([]byte(raw), &texts) // not-a-list
			for _, text := range texts {
				text, _ := text.(string)
				der, _ := base64.StdEncoding.DecodeString(text)
				c, _ := x509.ParseCertificate(der)
				chain = append(chain, c)
			}
			if !fact(raw, chain) {
				t.Errorf("%.2000s", raw)
			}
			if len(issued) != 1 || issued[0].RegistrationID != device {
				t.Errorf("%d certificates are reported", len(issued))
			}
			good := as(t, s, device, stable).outcome(csr).chain(t)
			if len(good) != 3 || !ours(good[0]) || !linked(good) || good[0].NotAfter.Sub(good[0].NotBefore) != 30*24*time.Hour+time.Hour {
				t.Error("the next chain is not faultless", good)
			}
			if len(issued) != 2 || !issued[1].Certificate.Equal(good[0]) {
				t.Errorf("%d certificates are reported", len(issued))
			}
		})
	}
}

func TestTheLifetimeAndTheDelayOfAnIssuedCertificateAreSettings(t *testing.T) {
	csr := csrBody(t, base64.StdEncoding.EncodeToString(request(t, ecKey(t, elliptic.P384()), named(device))))
	const week = 7 * 24 * time.Hour
	for name, c := range map[string]struct {
		settings    string
		own         time.Duration // of the enrollment
		from, until time.Duration // after it was issued
	}{
		"without settings": {from: -time.Hour, until: 30 * 24 * time.Hour},
		"a lifetime":       {settings: `certificate_life = "168h"`, from: -time.Hour, until: week},
		"a lifetime of the enrollment, which takes precedence": {settings: `certificate_life = "168h"`, own: time.Minute, from: -time.Hour, until: time.Minute},
		"a validity that begins later":                         {settings: "certificate_life = \"168h\"\ncertificate_delay = \"5m\"", from: 5 * time.Minute, until: week + 5*time.Minute},
	} {
		bubble(t, name, func(t *testing.T) {
			sc, err := scenario.Parse("s.toml", strings.NewReader("[settings]\npolls = 0\n"+c.settings))
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, simulator.Options{Scenario: sc, Enrollments: keys(t, enroll.Grant{CertificateLife: c.own})})
			leaf := as(t, s, device, stable).ask(csr).chain(t)[0]
			if from, until := time.Until(leaf.NotBefore), time.Until(leaf.NotAfter); from != c.from || until != c.until {
				t.Errorf("valid from %v to %v, want %v to %v", from, until, c.from, c.until)
			}
		})
	}
}

// Each rule acts only on the registration with a CSR, and not on the one without.
func TestARuleCanBeLimitedToRequestsWithACSR(t *testing.T) {
	csr := csrBody(t, base64.StdEncoding.EncodeToString(request(t, ecKey(t, elliptic.P384()), named(device))))
	bubble(t, "a CSR is refused with 400", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Rules: []simulator.Rule{
			{On: simulator.OnRegister, CSR: true, Times: 1, Status: 400, ErrorCode: 400000, ErrorMessage: "no"},
		}}})
		if p := as(t, s, device, stable).outcome(""); p.parse(t).Status != "assigned" {
			t.Error(p.payload)
		}
		if p := as(t, s, device, stable).ask(csr); p.parse(t).Message != "no" {
			t.Error(p.payload)
		}
		if p := as(t, s, device, stable).outcome(csr); len(p.chain(t)) != 3 {
			t.Error(p.payload)
		}
	})
	bubble(t, "the operation of a CSR fails", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Rules: []simulator.Rule{
			{On: simulator.OnPoll, CSR: true, State: "failed", ErrorCode: 400000, ErrorMessage: "no"},
		}}})
		if p := as(t, s, device, stable).outcome(""); p.parse(t).Status != "assigned" {
			t.Error(p.payload)
		}
		if p := as(t, s, device, stable).outcome(csr); p.parse(t).Status != "failed" || p.state(t, "errorMessage") != `"no"` {
			t.Error(p.payload)
		}
	})
	bubble(t, "the answer is lost after the certificate was issued", func(t *testing.T) {
		issued := 0
		s := start(t, simulator.Options{
			OnIssue:  func(simulator.Issued) { issued++ },
			Scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnPoll, CSR: true, Times: 1, Reset: true}}},
		})
		cl := as(t, s, device, stable)
		operation := cl.ask(csr).parse(t).OperationID
		cl.send(publishPacket(0x30, pollTopic("2", operation), 0, "")...)
		cl.expectEnd("the poll is lost")
		if issued != 1 {
			t.Errorf("%d certificates were issued", issued)
		}
		if p := as(t, s, device, stable).outcome(csr); len(p.chain(t)) != 3 || issued != 2 {
			t.Error(issued, p.payload)
		}
	})
	bubble(t, "over HTTPS", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{
			Settings: simulator.Settings{Polls: new(0)},
			Rules:    []simulator.Rule{{On: simulator.OnRegister, CSR: true, Chain: "empty"}},
		}})
		a := openAPI(t, s)
		target := strings.Replace(a.path("/register"), version, stable, 1)
		if r := a.ask("PUT", target, csr); r.StatusCode != http.StatusOK || !strings.Contains(r.text, `"issuedCertificateChain":[]`) {
			t.Error(r.text)
		}
	})
}
