package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// There is no watch here: a host name cannot be watched, and neither can files on a mount, on
// another machine or in an inaccessible directory.
func TestAnInputThatNothingWatchesIsUsedWithinTenSeconds(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(g *gateway) (correct func())
		fault fault.Code
	}{
		{"a host name", func(g *gateway) func() {
			g.Settings.RegistrationID = attest.RegistrationID{Template: "%H"}
			var name atomic.Value
			name.Store("localhost")
			g.Host.Hostname = func() (string, error) { return name.Load().(string), nil }
			return func() { name.Store(device) }
		}, fault.InputUnreadable},
		{"a serial number", func(g *gateway) func() {
			g.Settings.RegistrationID = attest.RegistrationID{File: filepath.Join(g.dir, "mounted", "serial")}
			return func() { g.later("serial", device) }
		}, fault.InputUnreadable},
		{"a payload that was no JSON", func(g *gateway) func() {
			g.write("payload", "{")
			g.Settings.PayloadFile = filepath.Join(g.dir, "payload")
			return func() { g.write("payload", "{}") }
		}, fault.InputInvalid},
		{"a key", func(g *gateway) func() {
			g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "mounted", "key")}}}
			return func() { g.later("key", g.sim.DeviceKey(device)) }
		}, fault.CredentialUnreadable},
		{"a key that was none", func(g *gateway) func() {
			g.write("device.key", "none")
			return func() { g.write("device.key", g.sim.DeviceKey(device)) }
		}, fault.CredentialInvalid},
		{"a file of roots", func(g *gateway) func() {
			g.Settings.Dialer.CAFile = filepath.Join(g.dir, "mounted", "ca.pem")
			return func() { g.later("ca.pem", string(g.sim.CA())) }
		}, fault.CAUnreadable},
		{"the password for the proxy", func(g *gateway) func() {
			g.Settings.ProxyUser, g.Settings.ProxyPassword = "gw", attest.Reference{File: filepath.Join(g.dir, "mounted", "password")}
			return func() { g.later("password", "secret") }
		}, fault.CredentialUnreadable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t)
				correct := c.spoil(g)
				g.run()
				g.until("fault", 1)
				time.Sleep(3 * time.Hour) // the delay is now an hour
				synctest.Wait()
				tries := g.log.FilterMessage("fault").Len()
				correct()
				before := time.Since(g.start)
				if after := g.until("files-changed", 1) - before; after > inputsEvery {
					t.Errorf("found %s after it was there", after)
				}
				g.within(time.Minute, "assigned", 1)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				if code := g.faults()[0]; code != string(c.fault) {
					t.Errorf("the fault is %s, want %s", code, c.fault)
				}
				if n := g.log.FilterMessage("files-changed").Len(); n != 1 {
					t.Errorf("a change was logged %d times, want once", n)
				}
				if tries > 20 {
					t.Errorf("the fault was an attempt %d times in three hours", tries)
				}
			})
		})
	}
}

// later writes a file into a directory that did not exist before.
func (g *gateway) later(name, text string) {
	g.t.Helper()
	if err := os.Mkdir(filepath.Join(g.dir, "mounted"), 0o700); err != nil {
		g.t.Fatal(err)
	}
	g.write(filepath.Join("mounted", name), text)
}

func TestCheckingInputsSendsLogsAndWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "missing")}}}
		g.MetricsFile = filepath.Join(g.dir, "dpsd.prom")
		if err := os.Mkdir(g.Store.RuntimeDirectory, 0o700); err != nil {
			t.Fatal(err)
		}
		g.run()
		time.Sleep(24 * time.Hour) // each delay is now about an hour
		for n := 0; n != g.log.FilterMessage("fault").Len(); time.Sleep(time.Minute) {
			synctest.Wait()
			n = g.log.FilterMessage("fault").Len()
		}
		synctest.Wait()
		entries := g.log.Len()
		notes, _ := g.notified("")
		written := func() (times []time.Time) {
			for _, path := range []string{g.MetricsFile, filepath.Join(g.Store.RuntimeDirectory, "attempts.json")} {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				times = append(times, info.ModTime())
			}
			return times
		}
		before := written()
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		if n := g.log.Len() - entries; n != 0 {
			t.Errorf("%d entries at any level in 20 minutes of looks, want none", n)
		}
		if n, _ := g.notified(""); n-notes > 20*60/15+1 {
			t.Errorf("%d messages to the service manager, want those that extend the time-out alone", n-notes)
		}
		for i, at := range written() {
			if !at.Equal(before[i]) {
				t.Error("a file was written")
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if g.dials != 0 {
			t.Errorf("%d connections", g.dials)
		}
	})
}

func TestAKeyThatAppearsIsUsedAlthoughTheServiceHasRefusedTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		wrong := g.key("wrong", "d3JvbmcgbWF0ZXJpYWwgd3JvbmcgbWF0ZXJpYWw=")
		late := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "mounted", "key")}}
		g.Settings.Credentials = []attest.Credential{late, wrong}
		g.run()
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if n := len(simulator.Summarize(g.sim.Log()).Registers); n > 20 {
			t.Errorf("%d registers in three hours", n)
		}
		g.later("key", g.sim.DeviceKey(device))
		before := time.Since(g.start)
		if after := g.until("files-changed", 1) - before; after > inputsEvery {
			t.Errorf("found %s after it was there", after)
		}
		g.within(time.Minute, "assigned", 1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAMissingHostNameIsAnsweredWithTheCommandThatSetsIt(t *testing.T) {
	_, err := attest.RegistrationID{Template: "%H"}.Resolve(attest.Host{Hostname: func() (string, error) { return "localhost", nil }}, attest.Secrets{})
	f := classify.Classify(classify.At(fault.StageIdentity, err))
	if f.Code != fault.InputUnreadable || !strings.Contains(f.Advice(), "hostnamectl set-hostname NAME") {
		t.Errorf("%s: %s", f.Code, f.Advice())
	}
}

// naming names the gateway by its host name, which the returned function changes.
func (g *gateway) naming(name string) (rename func(string)) {
	var current atomic.Value
	current.Store(name)
	g.Settings.RegistrationID = attest.RegistrationID{Template: "%H"}
	g.Host.Hostname = func() (string, error) { return current.Load().(string), nil }
	return func(name string) { current.Store(name) }
}

// A machine may have a different name, number or ID at first, for which there is no enrollment.
func TestARegistrationIDThatDPSHasNotAssignedIsResolvedAgain(t *testing.T) {
	const before = "debian"
	unknown := simulator.Rule{RegistrationID: before, On: simulator.OnRegister, Status: 404, RetryAfter: "none"}
	unauthorized, failing, mute := unknown, unknown, unknown
	unauthorized.Status = 401
	failing.Status = 500
	mute.Status, mute.RetryAfter, mute.Silent = 0, "", true
	rejected := simulator.Rule{RegistrationID: before, On: simulator.OnConnect, Connack: code(2)}
	name := func(g *gateway) func() {
		rename := g.naming(before)
		return func() { rename(device) }
	}
	for _, c := range []struct {
		name   string
		source func(g *gateway) (change func())
		rule   simulator.Rule
		fault  fault.Code
		says   string // in the cause and in STATUS=
	}{
		{"a host name, of no enrollment", name, unknown, fault.EnrollmentNotFound, "; the registration ID was debian (%H)"},
		{"a host name, of another key", name, unauthorized, fault.Unauthorized, "; the registration ID was debian (%H)"},
		{"a host name, refused at CONNECT", name, rejected, fault.ConnackRejected, "; the registration ID was debian (%H)"},
		{"a host name, under which the service fails", name, failing, fault.ServiceError, ""},
		{"a host name, under which the service is silent", name, mute, fault.NoReply, ""},
		{"a serial number", func(g *gateway) func() {
			g.write("serial", before)
			g.Settings.RegistrationID = attest.RegistrationID{File: filepath.Join(g.dir, "serial")}
			return func() { g.write("serial", device) }
		}, unknown, fault.EnrollmentNotFound, "; the registration ID was debian (first line of "},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, c.rule)
				change := c.source(g)
				g.run()
				time.Sleep(time.Hour)
				synctest.Wait()
				if status := g.lastWaiting(); !strings.Contains(status, c.says) {
					t.Errorf("the status is %q, without %q", status, c.says)
				}
				change()
				changed := time.Since(g.start)
				if c.says != "" { // a transient fault may be tried again before
					if after := g.within(time.Minute, "files-changed", 1) - changed; after > inputsEvery {
						t.Errorf("found %s after the change", after)
					}
				}
				g.within(time.Minute, "assigned", 1)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				if rec := g.wantAssigned(); rec.RegistrationID != device {
					t.Errorf("registered as %s", rec.RegistrationID)
				}
				for _, e := range g.log.FilterMessage("fault").All() {
					if cause := fmt.Sprint(e.ContextMap()["cause"]); e.ContextMap()["fault"] != string(c.fault) || !strings.Contains(cause, c.says) {
						t.Errorf("%s: %q, want %s with %q", e.ContextMap()["fault"], cause, c.fault, c.says)
					}
				}
			})
		})
	}
}

// lastWaiting returns the last status that states when the next attempt starts.
func (g *gateway) lastWaiting() (status string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.notes {
		if strings.HasPrefix(m.state, "STATUS=Next attempt") {
			status = m.state
		}
	}
	return status
}

func TestAnAssignedRegistrationIDIsKeptUntilARegistrationIsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{RegistrationID: "other", On: simulator.OnRegister, Status: 404, RetryAfter: "none"})
		g.Settings.Interval = time.Hour
		rename := g.naming(device)
		s := g.supervised()
		g.until("assigned", 1)
		rename("other")
		time.Sleep(4 * time.Hour)
		// A failure while the name is different changes nothing.
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{
			{RegistrationID: "other", On: simulator.OnRegister, Status: 404, RetryAfter: "none"},
			{RegistrationID: device, On: simulator.OnRegister, Status: 500, RetryAfter: "none", Times: 5},
		}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		assigned := g.log.FilterMessage("assigned").Len()
		if assigned < 6 {
			t.Errorf("%d assignments in eight hours", assigned)
		}
		if n := g.log.FilterMessage("files-changed").Len(); n != 0 {
			t.Errorf("the other name ended a wait %d times", n)
		}
		g.wantFaults(fault.ServiceError, fault.ServiceError, fault.ServiceError, fault.ServiceError, fault.ServiceError)

		s.reprovisions()
		g.within(time.Minute, "fault", 6)
		last := g.log.FilterMessage("fault").All()[5].ContextMap()
		if cause := fmt.Sprint(last["cause"]); last["fault"] != string(fault.EnrollmentNotFound) || !strings.Contains(cause, "the registration ID was other (%H)") {
			t.Errorf("after a request:  %s: %s", last["fault"], cause)
		}
		if rec := g.wantAssigned(); rec.RegistrationID != device || rec.Generation != 1 {
			t.Errorf("the record is %+v", rec)
		}
		rename(device)
		g.within(time.Minute, "assigned", assigned+1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestARegistrationIDOfThePublishedRecordIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		rename := g.naming(device)
		g.publish()
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, Status: 404, RetryAfter: "none", Times: 3}}}); err != nil {
			t.Fatal(err)
		}
		g.run()
		g.until("fault", 1)
		rename("other")
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if rec := g.wantAssigned(); rec.RegistrationID != device || rec.Generation != 1 {
			t.Errorf("the record is %+v", rec)
		}
	})
}

func TestAMissingOrUninitializedMachineIDIsAnsweredWithTheCommandThatMakesOne(t *testing.T) {
	for _, id := range []string{"", "uninitialized", strings.Repeat("0", 32), strings.Repeat("\x00", 32), "short"} {
		_, err := attest.RegistrationID{Template: "gw-%m"}.Resolve(attest.Host{MachineID: func() (string, error) { return id, nil }}, attest.Secrets{})
		f := classify.Classify(classify.At(fault.StageIdentity, err))
		if f.Code != fault.InputUnreadable || f.Advice() != "Create a new machine ID: rm -f /etc/machine-id && systemd-machine-id-setup. dpsd checks it every 10 seconds." {
			t.Errorf("%q: %s: %s", id, f.Code, f.Advice())
		}
	}
	closed := &attest.IdentityError{Source: "%m", Path: "/etc/machine-id", Err: fmt.Errorf("%w: %w", attest.ErrNoMachineID, &os.PathError{Op: "open", Path: "/etc/machine-id", Err: os.ErrPermission})}
	if advice := classify.Classify(classify.At(fault.StageIdentity, closed)).Advice(); !strings.Contains(advice, "make it readable by the user dpsd") {
		t.Errorf("a file that may not be read: %s", advice)
	}
}
