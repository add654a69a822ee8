package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// certified is a gateway that requests a certificate, with counts of what reaches the service.
type certified struct {
	*gateway
	registers, requests atomic.Int32 // registrations, and those with a certificate request
}

// newCertified returns a gateway whose settings require a certificate.
func newCertified(t *testing.T, rules ...simulator.Rule) *certified {
	t.Helper()
	return newCertifiedAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Rules: rules}})
}

func newCertifiedAt(t *testing.T, service simulator.Options) *certified {
	t.Helper()
	c := &certified{}
	service.Observe = func(e simulator.Entry) {
		if e.Direction == "up" && strings.Contains(e.Topic, "iotdps-register") {
			c.registers.Add(1)
			if bytes.Contains(e.Raw, []byte(`"csr"`)) {
				c.requests.Add(1)
			}
		}
	}
	c.gateway = newGatewayAt(t, service)
	requesting(c.gateway)
	return c
}

// withoutPolicy removes, or restores, the credential policy of the enrollments.
func (c *certified) withoutPolicy(removed bool) {
	c.t.Helper()
	e := *c.sim.Enrollments()
	e.Groups = slices.Clone(e.Groups)
	for i := range e.Groups {
		e.Groups[i].NoCertificates = removed
	}
	if err := c.sim.SetEnrollments(&e); err != nil {
		c.t.Fatal(err)
	}
}

// pair returns the published pair as a consumer loads it.
func (c *certified) pair() (*x509.Certificate, error) {
	directory := filepath.Join(c.Store.Directory, "certificate", "current")
	p, err := tls.LoadX509KeyPair(filepath.Join(directory, "chain.pem"), filepath.Join(directory, "key.pem"))
	if err != nil {
		return nil, err
	}
	return p.Leaf, nil
}

func (c *certified) wantPair() *x509.Certificate {
	c.t.Helper()
	leaf, err := c.pair()
	if err != nil {
		c.t.Fatalf("there is no usable pair: %v", err)
	}
	if leaf.Subject.CommonName != device {
		c.t.Errorf("the certificate is for %q", leaf.Subject.CommonName)
	}
	rec := c.wantAssigned()
	if rec.Certificate == nil || rec.Certificate.NotAfter.After(leaf.NotAfter) || rec.Certificate.Serial != leaf.SerialNumber.Text(16) {
		c.t.Errorf("the record describes the certificate as %+v", rec.Certificate)
	}
	return leaf
}

func (c *certified) wantRequests(registers, requests int32) {
	c.t.Helper()
	synctest.Wait()
	if r, q := c.registers.Load(), c.requests.Load(); r != registers || q != requests {
		c.t.Errorf("%d registrations, %d with a certificate request, want %d and %d", r, q, registers, requests)
	}
}

func (c *certified) wantReady(ready bool) {
	c.t.Helper()
	synctest.Wait()
	if n, _ := c.notified("READY=1"); (n > 0) != ready {
		c.t.Errorf("READY=1 was sent %d times", n)
	}
}

// eventually is until for an event that takes days: it looks every ten minutes.
func (c *certified) eventually(event string, n int) {
	c.t.Helper()
	for limit := time.Now().Add(200 * 24 * time.Hour); ; time.Sleep(10 * time.Minute) {
		synctest.Wait()
		if c.log.FilterMessage(event).Len() >= n {
			return
		}
		if time.Now().After(limit) {
			c.t.Fatalf("%q was not logged %d times; faults: %v", event, n, c.faults())
		}
	}
}

// stopped ends the daemon and checks that it ends without an error.
func (c *certified) stopped() {
	c.t.Helper()
	if err := c.end(); err != nil {
		c.t.Error(err)
	}
}

// reboot stops the daemon and starts it again with the same files.
func (c *certified) reboot() {
	c.t.Helper()
	c.stop()
	if err := <-c.done; err != nil {
		c.t.Error(err)
	}
	c.run()
}

func TestAGatewayReceivesItsCertificateWithItsAssignment(t *testing.T) {
	for _, keyType := range []certificate.KeyType{certificate.P256, certificate.P384, certificate.RSA2048} {
		t.Run(string(keyType), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertified(t)
				c.Settings.Certificate.KeyType = keyType
				c.run()
				c.until("assigned", 1)
				c.wantPair()
				c.wantRequests(1, 1)
				c.wantReady(true)
				c.wantFaults()
				rec := c.wantAssigned()
				if rec.Generation != 1 {
					t.Errorf("generation %d: the record was published without the certificate first", rec.Generation)
				}
				c.stopped()
			})
		})
	}
}

func TestABootWithAValidCertificateRequestsNone(t *testing.T) {
	long(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("assigned", 1)
		first := c.wantPair()
		const boots = 100
		for boot := 2; boot <= boots; boot++ {
			c.reboot()
			c.until("assigned", boot)
		}
		c.wantRequests(boots, 1)
		if !c.wantPair().Equal(first) {
			t.Error("the certificate has changed")
		}
		if rec := c.wantAssigned(); rec.Generation != 1 {
			t.Errorf("generation %d, want 1", rec.Generation)
		}
		t.Logf("%d boots: %d certificate issued", boots, c.requests.Load())
		c.stopped()
	})
}

func TestACertificateIsRenewedWithAnotherKeyBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		first := c.wantPair()
		c.eventually("certificate-issued", 2)
		second := c.wantPair()
		life := first.NotAfter.Sub(first.NotBefore)
		at := time.Since(first.NotBefore)
		if at < life*62/100 || at > life*67/100+time.Minute {
			t.Errorf("renewed after %s of %s", at, life)
		}
		if bytes.Equal(first.RawSubjectPublicKeyInfo, second.RawSubjectPublicKeyInfo) {
			t.Error("both certificates have the same key")
		}
		if rec := c.wantAssigned(); rec.Generation != 2 {
			t.Errorf("generation %d, want 2", rec.Generation)
		}
		c.wantFaults()
		if n := c.log.FilterMessage("certificate-expires").Len(); n != 0 {
			t.Errorf("the expiry was announced %d times, although the certificate was renewed", n)
		}
		c.stopped()
	})
}

func TestWithoutTheTableNothingChangesOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.Settings.Certificate = nil
		c.run()
		c.until("assigned", 1)
		c.wantRequests(1, 0)
		c.wantReady(true)
		c.stopped()
	})
}

func TestAnAssignmentWithoutACertificateIsPublished(t *testing.T) {
	for _, required := range []bool{true, false} {
		t.Run(map[bool]string{true: "required", false: "when offered"}[required], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertifiedAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Settings: simulator.Settings{WithoutPolicy: "assign"}}})
				c.Settings.Certificate.Required = required
				c.withoutPolicy(true)
				c.run()
				c.until("fault", 1)
				c.wantAssigned()
				c.wantReady(!required)
				c.wantFaults(fault.CertificateNotIssued)
				if note := c.lastNote(); !strings.Contains(note, "certificate") {
					t.Errorf("STATUS= does not mention the certificate: %s", note)
				}
				c.withoutPolicy(false)
				c.until("certificate-issued", 1)
				c.wantPair()
				c.wantReady(true)
				c.stopped()
			})
		})
	}
}

func TestAGatewayIsAssignedWithoutACertificateIfDPSRefusesTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.withoutPolicy(true) // the service answers 400
		c.run()
		c.until("assigned", 1)
		c.wantAssigned()
		c.wantReady(false)
		c.wantRequests(2, 1)
		c.wantFaults(fault.CertificateNotIssued)
		entry := c.log.FilterMessage("fault").All()[0].ContextMap()
		if entry["serviceCode"] == int64(0) || entry["trackingId"] == "" {
			t.Errorf("the fault has no code or tracking ID of the service: %v", entry)
		}
		c.withoutPolicy(false)
		c.until("certificate-issued", 1)
		c.wantReady(true)
		c.stopped()
	})
}

func TestARequestWithoutAnAnswerIsRepeatedWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t, simulator.Rule{On: simulator.OnPoll, Reset: true, Times: 1, Skip: 1})
		key := filepath.Join(c.Store.Directory, "certificate", "pending", "key.pem")
		c.run()
		c.until("fault", 1)
		pending, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		c.reboot() // which forgets the operation
		c.until("certificate-issued", 1)
		c.wantRequests(2, 2)
		published, err := os.ReadFile(filepath.Join(c.Store.Directory, "certificate", "current", "key.pem"))
		if err != nil || !bytes.Equal(pending, published) {
			t.Errorf("the certificate is for another key (%v)", err)
		}
		if _, err := os.Stat(key); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the pending key is still there: %v", err)
		}
		c.stopped()
	})
}

func TestAFailedRenewalIsRepeatedAtLeastAnHourLaterAndTheCertificateStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		first := c.wantPair()
		c.withoutPolicy(true)
		c.eventually("fault", 6)
		entries := c.log.FilterMessage("fault").All()
		for i := range entries[1:] {
			if gap := entries[i+1].Time.Sub(entries[i].Time); gap < time.Hour {
				t.Errorf("the renewal was repeated after %s", gap)
			}
		}
		if !c.wantPair().Equal(first) {
			t.Error("the certificate has changed")
		}
		c.withoutPolicy(false)
		c.eventually("certificate-issued", 2)
		c.wantPair()
		c.stopped()
	})
}

func TestAnExpiredCertificateIsRestoredWhenTheServiceReturns(t *testing.T) {
	long(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		first := c.wantPair()
		if err := c.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnAccept, Reset: true}}}); err != nil {
			t.Fatal(err)
		}
		c.eventually("certificate-expired", 1)
		if time.Now().Before(first.NotAfter) {
			t.Errorf("it was announced %s early", time.Until(first.NotAfter))
		}
		var days []int64
		for _, e := range c.log.FilterMessage("certificate-expires").All() {
			fields := e.ContextMap()
			days = append(days, fields["withinDays"].(int64))
			if fields["certificate"] != "issued certificate" {
				t.Errorf("it is called %v", fields["certificate"])
			}
		}
		if !slices.Equal(days, []int64{30, 7, 1}) && !slices.Equal(days, []int64{7, 1}) {
			t.Errorf("announced %v days before", days)
		}
		if _, err := c.pair(); err != nil {
			t.Errorf("the expired pair was removed: %v", err)
		}
		time.Sleep(48 * time.Hour)
		if err := c.sim.SetScenario(&simulator.Scenario{}); err != nil {
			t.Fatal(err)
		}
		c.within(10*time.Minute, "certificate-issued", 2)
		c.wantPair()
		c.stopped()
	})
}

func TestAnotherHubRequiresAnotherCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.Settings.Interval = 24 * time.Hour
		c.run()
		c.until("certificate-issued", 1)
		e := *c.sim.Enrollments()
		e.Groups = slices.Clone(e.Groups)
		for i := range e.Groups {
			e.Groups[i].Hubs = []string{"other.azure-devices.net"}
		}
		if err := c.sim.SetEnrollments(&e); err != nil {
			t.Fatal(err)
		}
		c.eventually("certificate-issued", 2)
		rec := c.wantAssigned()
		if rec.AssignedHub != "other.azure-devices.net" {
			t.Errorf("assigned to %s", rec.AssignedHub)
		}
		if time.Since(c.start) > 25*time.Hour {
			t.Errorf("it was requested after %s", time.Since(c.start))
		}
		c.wantFaults()
		c.stopped()
	})
}

func TestARequestedRenewalIssuesACertificateAtMostOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		s := c.supervised()
		c.until("certificate-issued", 1)
		renew := func() control.Reprovision {
			answers := make(chan answer, 1)
			s.requests <- request{answers, true}
			return (<-answers).Reprovision
		}
		if in := renew().In; in != 0 {
			t.Errorf("the first renewal starts in %v s", in)
		}
		c.until("certificate-issued", 2)
		if in := renew().In; in < 50 || in > 60 {
			t.Errorf("the second renewal starts in %v s", in)
		}
		c.until("certificate-issued", 3)
		time.Sleep(time.Hour)
		c.wantRequests(3, 3)
		st := s.statusDocument()
		if i := st.IssuedCertificate; i == nil || i.State != "valid" || i.Issued != 3 || i.Due != "" || i.RenewAt == nil {
			t.Errorf("the status is %+v", st.IssuedCertificate)
		}
		c.stopped()
	})
}

func TestAKeyThatCannotBeReadIsAFaultAndIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		directory, err := filepath.EvalSymlinks(filepath.Join(c.Store.Directory, "certificate", "current"))
		if err != nil {
			t.Fatal(err)
		}
		key := filepath.Join(directory, "key.pem")
		text, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(key), os.Mkdir(key, 0o700)); err != nil { // root can read any file
			t.Fatal(err)
		}
		c.reboot()
		c.until("fault", 1)
		c.wantFaults(fault.CertificateUnreadable)
		c.wantRequests(2, 1)
		c.wantAssigned()
		if err := errors.Join(os.Remove(key), os.WriteFile(key, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		n, _ := c.notified("READY=1")
		for range 60 {
			time.Sleep(time.Second)
			synctest.Wait()
			if m, _ := c.notified("READY=1"); m > n {
				break
			}
		}
		if m, _ := c.notified("READY=1"); m == n || time.Since(before) > 25*time.Second {
			t.Errorf("READY=1 was sent %d times %s after the key became readable", m-n, time.Since(before))
		}
		c.wantPair()
		c.wantRequests(3, 1)
		c.stopped()
	})
}

func TestAGatewayThatCannotStoreAKeySendsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		blocked := filepath.Join(c.Store.Directory, "certificate")
		if err := errors.Join(os.MkdirAll(c.Store.Directory, 0o755), os.WriteFile(blocked, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		c.run()
		c.until("fault", 1)
		c.wantAssigned()
		c.wantRequests(1, 0)
		c.wantFaults(fault.CertificateUnreadable)
		if err := os.Remove(blocked); err != nil {
			t.Fatal(err)
		}
		c.until("certificate-issued", 1)
		c.wantReady(true)
		c.stopped()
	})
}

func TestAChangedKeyTypeRequestsACertificateWithSuchAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		c.stop()
		<-c.done
		c.Settings.Certificate = &CertificateSettings{Required: true, KeyType: certificate.P384, RenewAt: 67}
		c.Settings.OnBoot = PolicyIfNeeded
		c.run()
		c.until("certificate-issued", 2)
		text, err := os.ReadFile(filepath.Join(c.Store.Directory, "certificate", "current", "key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if k, is := key.(*ecdsa.PrivateKey); !is || k.Curve != elliptic.P384() {
			t.Errorf("the key is %T", key)
		}
		c.wantPair()
		c.stopped()
	})
}

// atHub connects to the assigned hub as a consumer with the published pair, and returns the
// return code of the CONNACK, or -1 if there is none.
func (c *certified) atHub() int {
	c.t.Helper()
	rec := c.wantAssigned()
	p, err := tls.LoadX509KeyPair(rec.Certificate.CertificateFile, rec.Certificate.PrivateKeyFile)
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := c.dial(c.t.Context(), "tcp", rec.AssignedHub+":8883")
	if err != nil {
		c.t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{ServerName: rec.AssignedHub, RootCAs: c.Settings.Dialer.Roots, Certificates: []tls.Certificate{p}})
	defer conn.Close()
	text := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }
	// Clean session, a user name and no password [MQTT-3.1.2].
	body := text("MQTT") + "\x04\x82\x00\x3c" + text(rec.DeviceID) + text(rec.AssignedHub+"/"+rec.DeviceID+"/?api-version=2021-04-12")
	connack := make([]byte, 4)
	if _, err := conn.Write([]byte("\x10" + string(rune(len(body))) + body)); err != nil {
		return -1
	}
	if _, err := io.ReadFull(conn, connack); err != nil {
		return -1
	}
	return int(connack[3])
}

// The rows that the page about certificates describes: the three forms of a certificate, the
// three types of keys, and chains with and without intermediates and root.
func TestTheHubAcceptsEachPair(t *testing.T) {
	for _, form := range []string{"der", "base64-pem", "pem"} {
		for _, keyType := range []certificate.KeyType{certificate.P256, certificate.P384, certificate.RSA2048} {
			for _, chain := range []string{"leaf-only", "without root", "with root"} {
				t.Run(form+", "+string(keyType)+", "+chain, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var rules []simulator.Rule
						if chain == "leaf-only" {
							rules = []simulator.Rule{{On: simulator.OnRegister, Chain: "leaf-only"}}
						}
						c := newCertifiedAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{
							Settings: simulator.Settings{ChainFormat: form, ChainWithoutRoot: chain == "without root"}, Rules: rules,
						}})
						c.Settings.Certificate.KeyType = keyType
						c.run()
						c.until("assigned", 1)
						c.wantPair()
						if code := c.atHub(); code != 0 {
							t.Errorf("the hub answers with the return code %d", code)
						}
						text, err := os.ReadFile(c.wantAssigned().Certificate.CertificateFile)
						if err != nil {
							t.Fatal(err)
						}
						if got, want := bytes.Count(text, []byte("BEGIN CERTIFICATE")), map[string]int{"leaf-only": 1, "without root": 2, "with root": 3}[chain]; got != want {
							t.Errorf("the chain has %d certificates, want %d", got, want)
						}
						c.stopped()
					})
				})
			}
		}
	}
}

func TestARequestedRenewalRestoresARevokedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		s := c.supervised()
		c.until("certificate-issued", 1)
		if code := c.atHub(); code != 0 {
			t.Errorf("the hub answers with the return code %d", code)
		}
		c.sim.RevokeDevice(device)
		if code := c.atHub(); code == 0 {
			t.Error("the hub accepts a revoked certificate")
		}
		answers := make(chan answer, 1)
		s.requests <- request{answers, true}
		<-answers
		c.until("certificate-issued", 2)
		if code := c.atHub(); code != 0 {
			t.Errorf("the hub answers with the return code %d", code)
		}
		c.stopped()
	})
}

func TestACertificateIsPublishedWhenItsValidityBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertifiedAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Settings: simulator.Settings{CertificateDelay: 10 * time.Minute}}})
		c.run()
		c.until("assigned", 1)
		c.wantReady(false)
		if rec := c.wantAssigned(); rec.Certificate != nil {
			t.Error("a certificate is published before it is valid")
		}
		c.until("certificate-issued", 1)
		leaf := c.wantPair()
		if late := time.Since(leaf.NotBefore); late < 0 || late > 5*time.Second {
			t.Errorf("it was published %s after it became valid", late)
		}
		c.wantRequests(1, 1)
		c.wantReady(true)
		c.wantFaults()
		c.stopped()
	})
}

func TestTheSecondCredentialReceivesTheCertificateIfTheFirstIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		good := c.Settings.Credentials[0]
		c.Settings.Credentials = []attest.Credential{c.key("wrong.key", "d3JvbmctZGV2aWNlLWtleS0xMjM0NTY3ODkwMTIzNDU="), good}
		c.run()
		c.until("certificate-issued", 1)
		c.wantFaults(fault.Unauthorized)
		c.wantPair()
		c.wantReady(true)
		c.stopped()
	})
}

func TestWithPoliciesThatTrustTheRecordREADYNeedsTheCertificateToo(t *testing.T) {
	for _, policy := range []Policy{PolicyVerify, PolicyIfNeeded} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertified(t)
				c.Settings.OnBoot = policy
				c.run()
				c.until("certificate-issued", 1)
				c.stop()
				<-c.done
				synctest.Wait()
				if err := os.RemoveAll(filepath.Join(c.Store.Directory, "certificate")); err != nil {
					t.Fatal(err)
				}
				ready, _ := c.notified("READY=1")
				c.withoutPolicy(true)
				c.run()
				c.until("fault", 1)
				time.Sleep(time.Minute)
				synctest.Wait()
				if n, _ := c.notified("READY=1"); n != ready {
					t.Error("READY=1 was sent without a certificate")
				}
				c.withoutPolicy(false)
				c.until("certificate-issued", 2)
				if n, _ := c.notified("READY=1"); n != ready+1 {
					t.Error("READY=1 was not sent")
				}
				c.stopped()
			})
		})
	}
}

// What the advice of certificate-unreadable says works for each file that the fault can name.
func TestAfterTheFileThatTheFaultNamesIsRemovedANewCertificateIsRequested(t *testing.T) {
	for name, put := range map[string]string{
		"the published key": "certificate/1/key.pem", "the published chain": "certificate/1/chain.pem",
		"the directory of all certificates": "certificate",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertified(t)
				c.run()
				c.until("certificate-issued", 1)
				c.stop()
				<-c.done
				synctest.Wait()
				path := filepath.Join(c.Store.Directory, put)
				if err := errors.Join(os.RemoveAll(path), os.Symlink("/nowhere", path)); err != nil {
					t.Fatal(err)
				}
				c.run()
				c.until("fault", 1)
				c.wantFaults(fault.CertificateUnreadable)
				cause := fmt.Sprint(c.log.FilterMessage("fault").All()[0].ContextMap()["cause"])
				if !strings.Contains(cause, path+":") {
					t.Errorf("the cause is %q, and does not name %s", cause, path)
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				c.until("certificate-issued", 2)
				c.wantPair()
				c.stopped()
			})
		})
	}
}
