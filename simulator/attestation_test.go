package simulator_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// ca is a test certificate authority.
type ca struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func (a *ca) issue(t *testing.T, name string, isCA bool, life time.Duration) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IsCA: isCA, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{c, key}
}

func (a *ca) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))
}

// tls returns the certificate with its chain for a client.
func (a *ca) tls(chain ...*ca) tls.Certificate {
	c := tls.Certificate{Certificate: [][]byte{a.certificate.Raw}, PrivateKey: a.key}
	for _, i := range chain {
		c.Certificate = append(c.Certificate, i.certificate.Raw)
	}
	return c
}

func deviceCertificate(t *testing.T, s *simulator.Server, id string) tls.Certificate {
	t.Helper()
	certificate, key, err := s.DeviceCertificate(id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// with sends a CONNECT with only a certificate: the password flag is not set.
func with(t *testing.T, s *simulator.Server, id string, c tls.Certificate) *client {
	t.Helper()
	cl := dial(t, s, c)
	cl.send(connectPacket(0x82, 0, id, userNameOf(s, id))...)
	return cl
}

// refusedLate expects a successful CONNACK and SUBACK and then an error.
func (c *client) refusedLate(code int) {
	c.t.Helper()
	c.expect("CONNECT passes", 0x20, 2, 0, 0)
	c.subscribe()
	p := c.register("1")
	if b := p.parse(c.t); b.ErrorCode != code || p.topic != fmt.Sprintf("$dps/registrations/res/%d/?$rid=1", code/1000) {
		c.t.Errorf("%s %s, want %d", p.topic, p.payload, code)
	}
}

func (c *client) accepted(deviceID string) publish {
	c.t.Helper()
	c.expect("CONNECT passes", 0x20, 2, 0, 0)
	p := c.subscribe().assign()
	if got := string(p.parse(c.t).RegistrationState["deviceId"]); got != `"`+deviceID+`"` {
		c.t.Errorf("device ID %s, want %q: %s", got, deviceID, p.payload)
	}
	return p
}

func TestKeys(t *testing.T) {
	otherKey := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32)))
	for _, c := range []struct {
		name  string
		token func(*simulator.Server) string
	}{
		{"a wrong key", func(s *simulator.Server) string {
			return token(otherKey, resourceOf(s, device), time.Now().Add(time.Hour), "&skn=registration")
		}},
		{"the group key itself", func(s *simulator.Server) string {
			return token(s.GroupKey(), resourceOf(s, device), time.Now().Add(time.Hour), "&skn=registration")
		}},
		{"another device's key", func(s *simulator.Server) string {
			return token(s.DeviceKey("another"), resourceOf(s, device), time.Now().Add(time.Hour), "&skn=registration")
		}},
		{"a token for another device", func(s *simulator.Server) string {
			return token(s.DeviceKey(device), resourceOf(s, "another"), time.Now().Add(time.Hour), "&skn=registration")
		}},
		{"an expired token", func(s *simulator.Server) string {
			return token(s.DeviceKey(device), resourceOf(s, device), time.Now(), "&skn=registration")
		}},
		{"another skn", func(s *simulator.Server) string {
			return token(s.DeviceKey(device), resourceOf(s, device), time.Now().Add(time.Hour), "&skn=owner")
		}},
		{"no token at all", func(*simulator.Server) string { return "secret" }},
	} {
		bubble(t, c.name+" is refused late with 401000", func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl := dial(t, s)
			cl.send(connectPacket(0xc2, 0, device, userNameOf(s, device), c.token(s))...)
			cl.refusedLate(401000)
		})
		bubble(t, c.name+" is refused early with CONNACK 5 if configured", func(t *testing.T) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Refuse: "early"}}})
			cl := dial(t, s)
			cl.send(connectPacket(0xc2, 0, device, userNameOf(s, device), c.token(s))...)
			cl.expect("CONNACK 5", 0x20, 2, 0, 5)
			cl.expectEnd("the connection is closed")
		})
	}
	bubble(t, "the service's clock determines whether a token has expired", func(t *testing.T) {
		s := start(t, simulator.Options{Now: func() time.Time { return time.Now().Add(30 * time.Minute) }})
		cl := dial(t, s)
		cl.send(connectPacket(0xc2, 0, device, userNameOf(s, device), token(s.DeviceKey(device), resourceOf(s, device), time.Now().Add(30*time.Minute), ""))...)
		cl.refusedLate(401000)
	})
}

func TestIndividualKeys(t *testing.T) {
	first := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("1", 64)))
	second := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("2", 16)))
	enrollments := &enroll.Enrollments{Individuals: []enroll.Individual{{
		RegistrationID: device, DeviceID: "Press-7",
		Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: first, SecondaryKey: second},
		Grant:       enroll.Grant{Hubs: []string{"hub-a.azure-devices.net"}, Payload: `{"site":"here"}`},
	}, {
		RegistrationID: "retired",
		Attestation:    enroll.Attestation{Type: "symmetric-key", PrimaryKey: first},
		Grant:          enroll.Grant{Disabled: true},
	}}}
	try := func(t *testing.T, id, key string) *client {
		s := start(t, simulator.Options{Enrollments: enrollments})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, id, userNameOf(s, id), token(key, resourceOf(s, id), time.Now().Add(time.Hour), ""))...)
		return c
	}
	for name, key := range map[string]string{"primary": first, "secondary": second} {
		bubble(t, "the "+name+" key of an individual enrollment is accepted, and the reply has its device ID, hub and payload", func(t *testing.T) {
			p := try(t, device, key).accepted("Press-7")
			if b := p.parse(t); string(b.RegistrationState["assignedHub"]) != `"hub-a.azure-devices.net"` || string(b.RegistrationState["payload"]) != `{"site":"here"}` {
				t.Error(p.payload)
			}
		})
	}
	bubble(t, "an enrolled device is found regardless of case", func(t *testing.T) {
		try(t, "Sample-Device-01", first).accepted("Press-7")
	})
	bubble(t, "another key is refused with 401000", func(t *testing.T) {
		try(t, device, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("3", 64)))).refusedLate(401000)
	})
	bubble(t, "a device that is not enrolled is refused with 404201 when there is no group to verify against", func(t *testing.T) {
		try(t, "stranger", first).refusedLate(404201)
	})
	bubble(t, "a disabled enrollment answers 200 with the status disabled and an empty operation ID", func(t *testing.T) {
		c := try(t, "retired", first)
		c.expect("CONNECT passes", 0x20, 2, 0, 0)
		p := c.subscribe().register("1")
		want := `{"operationId":"","status":"disabled","registrationState":{"registrationId":"retired","status":"disabled"}}`
		if p.topic != "$dps/registrations/res/200/?$rid=1" || p.payload != want {
			t.Error(p)
		}
	})
	bubble(t, "an individual enrollment takes precedence over the group", func(t *testing.T) {
		both := *enrollments
		both.Groups = []enroll.Group{{Name: "g", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: second}}}
		s := start(t, simulator.Options{Enrollments: &both})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, device, userNameOf(s, device), token(first, resourceOf(s, device), time.Now().Add(time.Hour), ""))...)
		c.accepted("Press-7")
	})
}

func TestCertificates(t *testing.T) {
	group := func(root *ca) *enroll.Enrollments {
		return &enroll.Enrollments{Groups: []enroll.Group{{Name: "g", Attestation: enroll.Attestation{Type: "x509", CA: root.pem()}}}}
	}
	bubble(t, "a certificate of the group is accepted, and the state has an x509 member", func(t *testing.T) {
		s := start(t, simulator.Options{})
		p := with(t, s, device, deviceCertificate(t, s, device)).accepted(device)
		if got := string(p.parse(t).RegistrationState["x509"]); got != "{}" {
			t.Errorf("x509 is %s in %s", got, p.payload)
		}
		if !strings.Contains(p.payload, `"registrationState":{"x509":{},"registrationId":`) {
			t.Error(p.payload)
		}
	})
	bubble(t, "an empty password with a certificate is accepted", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s, deviceCertificate(t, s, device))
		c.send(connectPacket(0xc2, 0, device, userNameOf(s, device), "")...)
		c.accepted(device)
	})
	bubble(t, "a common name that is not the registration ID is CONNACK 5", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := with(t, s, device, deviceCertificate(t, s, "another"))
		c.expect("CONNACK 5", 0x20, 2, 0, 5)
		c.expectEnd("the connection is closed")
	})
	bubble(t, "a certificate of another CA is refused late with 401002", func(t *testing.T) {
		s := start(t, simulator.Options{})
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		with(t, s, device, root.issue(t, device, false, time.Hour).tls()).refusedLate(401002)
	})
	bubble(t, "a certificate of another CA is refused early with CONNACK 5 if configured", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Refuse: "early"}}})
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		with(t, s, device, root.issue(t, device, false, time.Hour).tls()).expect("CONNACK 5", 0x20, 2, 0, 5)
	})
	bubble(t, "an expired certificate is refused with 401002", func(t *testing.T) {
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		leaf := root.issue(t, device, false, time.Minute)
		s := start(t, simulator.Options{Enrollments: group(root)})
		time.Sleep(2 * time.Minute)
		with(t, s, device, leaf.tls()).refusedLate(401002)
	})
	bubble(t, "a chain with an intermediate is accepted; without the intermediate it is refused with 401002", func(t *testing.T) {
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		middle := root.issue(t, "middle", true, time.Hour)
		leaf := middle.issue(t, device, false, time.Hour)
		s := start(t, simulator.Options{Enrollments: group(root)})
		with(t, s, device, leaf.tls(middle)).accepted(device)
		with(t, s, device, leaf.tls()).refusedLate(401002)
	})
	bubble(t, "an expired intermediate is refused with 401002", func(t *testing.T) {
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		middle := root.issue(t, "middle", true, time.Minute)
		leaf := middle.issue(t, device, false, time.Hour)
		s := start(t, simulator.Options{Enrollments: group(root)})
		time.Sleep(2 * time.Minute)
		with(t, s, device, leaf.tls(middle)).refusedLate(401002)
	})
	bubble(t, "a group may trust an intermediate", func(t *testing.T) {
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		middle := root.issue(t, "middle", true, time.Hour)
		s := start(t, simulator.Options{Enrollments: group(middle)})
		with(t, s, device, middle.issue(t, device, false, time.Hour).tls()).accepted(device)
	})
	for name, sum := range map[string]func(*x509.Certificate) string{
		"SHA-1":                 func(c *x509.Certificate) string { return fmt.Sprintf("%X", sha1.Sum(c.Raw)) },
		"SHA-256 in lower case": func(c *x509.Certificate) string { return fmt.Sprintf("%x", sha256.Sum256(c.Raw)) },
		"SHA-256 between colons": func(c *x509.Certificate) string {
			return strings.ReplaceAll(fmt.Sprintf("% X", sha256.Sum256(c.Raw)), " ", ":")
		},
	} {
		bubble(t, "an individual enrollment identifies a certificate by "+name, func(t *testing.T) {
			var none *ca
			mine, other := none.issue(t, device, false, time.Hour), none.issue(t, device, false, time.Hour)
			s := start(t, simulator.Options{Enrollments: &enroll.Enrollments{Individuals: []enroll.Individual{{
				RegistrationID: device, DeviceID: "other-name", Thumbprint: sum(mine.certificate), Attestation: enroll.Attestation{Type: "x509"},
			}}}})
			with(t, s, device, mine.tls()).accepted("other-name")
			with(t, s, device, other.tls()).refusedLate(401002)
		})
	}
	bubble(t, "an individual enrollment accepts a certificate of its CA", func(t *testing.T) {
		var root *ca
		root = root.issue(t, "root", true, time.Hour)
		s := start(t, simulator.Options{Enrollments: &enroll.Enrollments{Individuals: []enroll.Individual{{
			RegistrationID: device, Attestation: enroll.Attestation{Type: "x509", CA: root.pem()},
		}}}})
		with(t, s, device, root.issue(t, device, false, time.Hour).tls()).accepted(device)
	})
	bubble(t, "a certificate does not authenticate a device that is enrolled with a key", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: &enroll.Enrollments{Individuals: []enroll.Individual{{
			RegistrationID: device, Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: base64.StdEncoding.EncodeToString(make([]byte, 32))},
		}}}})
		with(t, s, device, deviceCertificate(t, s, device)).refusedLate(401002)
	})
	t.Run("an ID of 65 octets has no certificate", func(t *testing.T) {
		s := start(t, simulator.Options{})
		if _, _, err := s.DeviceCertificate(strings.Repeat("a", 65)); err == nil {
			t.Error("a certificate was issued")
		}
	})
}
