package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
)

// newDelayed returns a gateway whose certificate becomes valid 20 minutes after it was issued.
func newDelayed(t *testing.T) *certified {
	t.Helper()
	return newCertifiedAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Settings: simulator.Settings{CertificateDelay: 20 * time.Minute}}})
}

func TestACertificateThatIsNotValidYetIsPublishedInTimeWithoutAnotherRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDelayed(t)
		c.Settings.Interval = 30 * time.Minute
		c.run()
		c.until("assigned", 1)
		c.wantReady(false)
		if note := c.lastNote(); !strings.Contains(note, "is not valid before") {
			t.Errorf("STATUS= does not say what dpsd waits for: %s", note)
		}
		if took := c.within(time.Hour, "certificate-issued", 1); took < 20*time.Minute || took > 21*time.Minute {
			t.Errorf("it was published after %s", took)
		}
		c.wantReady(true)
		c.wantPair()
		c.wantRequests(1, 1)
		c.stopped()
	})
}

// An interval that ends before the certificate is valid must not make dpsd register, or log,
// all the time.
func TestARegularRegistrationBeforeTheCertificateIsValidHappensOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDelayed(t)
		c.Settings.Interval = 15 * time.Minute
		c.run()
		c.within(time.Hour, "certificate-issued", 1)
		c.wantRequests(2, 1)
		if n := c.log.FilterMessage("assigned").Len(); n != 2 {
			t.Errorf("assigned was logged %d times", n)
		}
		c.stopped()
	})
}

func TestARequestedRegistrationContactsDPSBeforeTheIssuedCertificateIsValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDelayed(t)
		s := c.supervised()
		c.until("assigned", 1)
		s.reprovisions()
		c.until("assigned", 2)
		c.wantRequests(2, 1)
		c.within(time.Hour, "certificate-issued", 1)
		c.stopped()
	})
}

func TestIfTheKeyIsLostBeforeThePublicationAnotherCertificateIsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDelayed(t)
		c.run()
		c.until("assigned", 1)
		if err := os.RemoveAll(filepath.Join(c.Store.Directory, "certificate", "pending")); err != nil {
			t.Fatal(err)
		}
		c.within(time.Hour, "certificate-issued", 1)
		c.wantPair()
		c.wantRequests(2, 2)
		c.wantFaults(fault.StateUnwritable)
		c.wantReady(true)
		c.stopped()
	})
}

// The wait after the fault is longer than the interval: what remains due must not make dpsd
// register more often than both.
func TestAPairThatCannotBeReadDoesNotShortenTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.Settings.Interval, c.Settings.Retry.RefusedInitial = 10*time.Minute, 30*time.Minute
		c.run()
		c.until("certificate-issued", 1)
		c.stop()
		<-c.done
		synctest.Wait()
		key := filepath.Join(c.Store.Directory, "certificate", "1", "key.pem")
		if err := errors.Join(os.Remove(key), os.Mkdir(key, 0o700)); err != nil {
			t.Fatal(err)
		}
		c.run()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := c.registers.Load() - 1; n < 6 || n > 9 {
			t.Errorf("%d registrations in an hour", n)
		}
		c.stopped()
	})
}

func TestOnceAssignsTheGatewayAlthoughDPSRefusesTheCertificateRequest(t *testing.T) {
	for _, required := range []bool{true, false} {
		t.Run(map[bool]string{true: "required", false: "when offered"}[required], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertified(t)
				c.Once, c.Timeout, c.Settings.Certificate.Required = true, time.Minute, required
				c.withoutPolicy(true)
				c.run()
				err := <-c.done
				if f := (fault.Fault{}); required != errors.As(err, &f) || required && f.Code != fault.CertificateNotIssued {
					t.Errorf("Run returned %v", err)
				}
				c.wantAssigned()
				c.wantRequests(2, 1)
			})
		})
	}
}

func TestAFaultOfTheCertificateIsUnresolvedUntilThereIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.withoutPolicy(true)
		s := c.supervised()
		c.until("assigned", 1)
		c.until("fault", 2)
		c.until("assigned", 2)
		st := s.statusDocument()
		if st.Health != control.Degraded || len(st.Faults) != 1 || !st.Faults[0].Unresolved || st.Faults[0].Count != 2 {
			t.Errorf("the gateway is %s, with the faults %+v", st.Health, st.Faults)
		}
		if st.IssuedCertificate.NotBeforeNextRequest == nil {
			t.Error("the status does not say when dpsd requests a certificate again")
		}
		c.withoutPolicy(false)
		c.until("certificate-issued", 1)
		st = s.statusDocument()
		if st.Health != control.OK || st.Faults[0].Unresolved {
			t.Errorf("the gateway is %s, with the faults %+v", st.Health, st.Faults)
		}
		if at := st.IssuedCertificate.NotBeforeNextRequest; at != nil {
			t.Errorf("no request is due, but the next one is announced, not before %s", at)
		}
		c.stopped()
	})
}

// DPS may have issued a certificate for each request whose answer was lost.
func TestARenewalWhoseAnswerIsLostDoesNotRequestMoreThanOneCertificateAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		c.stop()
		<-c.done
		time.Sleep(25 * day) // the renewal is due
		lost := simulator.Rule{On: simulator.OnRegister, CSR: true, Reset: true}
		if err := c.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{lost}}); err != nil {
			t.Fatal(err)
		}
		c.run()
		c.within(time.Minute, "assigned", 2)
		c.wantReady(true)
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := c.requests.Load() - 1; n < 3 || n > 4 {
			t.Errorf("%d requests in three hours", n)
		}
		if err := c.sim.SetScenario(&simulator.Scenario{}); err != nil {
			t.Fatal(err)
		}
		c.within(2*time.Hour, "certificate-issued", 2)
		c.wantPair()
		c.stopped()
	})
}

// DPS is available, but not its service that issues certificates.
func TestAGatewayIsAssignedAlthoughDPSFailsOnCertificateRequests(t *testing.T) {
	long(t)
	for name, rule := range map[string]simulator.Rule{
		"an internal error": {On: simulator.OnRegister, CSR: true, Status: 500},
		"no answer":         {On: simulator.OnPoll, CSR: true, Silent: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCertified(t, rule)
				c.run()
				c.within(10*time.Minute, "assigned", 1)
				c.wantReady(false)
				time.Sleep(day)
				synctest.Wait()
				if n := c.registers.Load(); n > 150 {
					t.Errorf("%d registrations in a day", n)
				}
				if err := c.sim.SetScenario(&simulator.Scenario{}); err != nil {
					t.Fatal(err)
				}
				c.within(2*time.Hour, "certificate-issued", 1)
				c.wantReady(true)
				c.stopped()
			})
		})
	}
}

func TestARenewalUsesTheNextCredentialIfTheFirstIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.Settings.Credentials = append([]attest.Credential{c.key("old.key", c.sim.DeviceKey("another"))}, c.Settings.Credentials...)
		c.run()
		c.until("certificate-issued", 1)
		c.eventually("certificate-issued", 2)
		c.wantPair()
		c.wantRequests(4, 4)
		c.stopped()
	})
}

func TestAfterAPowerFailureARenewalWaitsForTheBootDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCertified(t)
		c.run()
		c.until("certificate-issued", 1)
		c.stop()
		<-c.done
		time.Sleep(25 * day) // the renewal is due
		c.Settings.OnBoot, c.Settings.BootDelayMax = PolicyIfNeeded, time.Hour
		before := time.Now()
		c.run()
		c.within(2*time.Hour, "certificate-issued", 2)
		if took := time.Since(before); took < time.Minute {
			t.Errorf("it was renewed %s after the start", took)
		}
		c.stopped()
	})
}

func TestTheOtherNameOfTheHubNeedsNoOtherCertificate(t *testing.T) {
	now := time.Now()
	c := CertificateSettings{KeyType: certificate.P384, RenewAt: 67}
	pair := store.Pair{RegistrationID: "a", DeviceID: "a", AssignedHub: "hub.azure-devices.net", KeyType: "ec-p384", NotBefore: now, NotAfter: now.Add(day)}
	for hub, want := range map[string]string{
		"hub.azure-devices.net": "", "Hub.device.azure-devices.net": "", "other.azure-devices.net": "the assigned hub has changed",
	} {
		if got := c.need(pair, true, store.Record{RegistrationID: "a", DeviceID: "a", AssignedHub: hub}, false, now); got != want {
			t.Errorf("%s: %q, want %q", hub, got, want)
		}
	}
}
