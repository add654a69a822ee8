package qemu

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

const (
	gateway  = "gw-clock"
	name     = "global.azure-devices-provisioning.net"
	watchdog = 6 * time.Second // of testdata/root/etc/systemd/system/dpsd.service.d/watchdog.conf
	day      = 24 * time.Hour
	year     = 365 * day
)

// TestAClockThatIsBehindIsCorrected boots with a clock that is behind: dpsd reports that the
// service's
// certificate is not valid yet. The service runs on this machine with the correct time, and checks
// tokens against it.
func TestAClockThatIsBehindIsCorrected(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		behind time.Duration
		steps  []time.Duration // once it is assigned
	}{
		{"a year behind", year, []time.Duration{10 * year, -10 * year}},
		{"four months behind", 120 * day, []time.Duration{-3 * year}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			sim := simulator.Start(t, simulator.Options{})
			m := boot(t, time.Now().Add(-tt.behind), gatewayFiles(t, sim))

			failed := m.next("fault")
			if off := time.Until(m.clock()); off > -tt.behind+day {
				t.Fatalf("the machine's clock is only %s off: something has set it", off)
			}
			if failed.fields["DPSD_FAULT"] != "clock-implausible" || failed.fields["DPSD_LANE"] != "refused" {
				t.Errorf("the fault is not clock-implausible with a wait in the refused lane: %s", failed)
			}
			if cause := failed.fields["DPSD_CAUSE"]; !strings.Contains(cause, "not yet valid") {
				t.Errorf("the cause does not say that the certificate is not yet valid: %s", cause)
			}
			wait, err := time.ParseDuration(failed.fields["DPSD_RETRY_IN"])
			if err != nil || wait <= patience {
				t.Fatalf("a wait of %s is too short to tell whether the step ended it (%v)", wait, err)
			}
			before := m.service()
			if before.state != "activating" || !strings.Contains(before.status, "clock-implausible") || !strings.Contains(before.status, "Next attempt at") {
				t.Errorf("before the clock is right, dpsd is %s, and STATUS= is %q", before.state, before.status)
			}
			t.Logf("%7.3f s  %s; %s", failed.at.Seconds(), before.state, before.status)

			m.setClock(time.Now())
			stepped, assigned := m.next("clock-stepped"), m.next("assigned")
			if late := failed.at + wait; assigned.at >= late {
				t.Errorf("assigned at %s: the wait until %s was not ended by the step", assigned.at, late)
			}
			if n := m.count("fault"); n != 1 {
				t.Errorf("%d faults, want the one", n)
			}
			after := m.until("active", func(s service) bool { return s.state == "active" })
			if after.process != before.process || after.restarts != "0" {
				t.Errorf("process %s was restarted: %+v", before.process, after)
			}
			t.Logf("%7.3f s  the clock is stepped by %s", stepped.at.Seconds(), stepped.fields["DPSD_BY"])
			t.Logf("%7.3f s  %s; %s", assigned.at.Seconds(), after.state, after.status)

			m.undisturbed(sim, tt.steps...)
		})
	}
}

// TestAClockThatIsAheadHasNoEffect boots with a clock that is a year ahead. The service's
// certificate is still
// valid then, so the wrong clock has no effect, neither when the clock is corrected nor afterwards
// with a record from the future.
func TestAClockThatIsAheadHasNoEffect(t *testing.T) {
	t.Parallel()
	sim := simulator.Start(t, simulator.Options{})
	m := boot(t, time.Now().Add(year), gatewayFiles(t, sim))
	assigned := m.next("assigned")
	if off := time.Until(m.clock()); off < year-day {
		t.Fatalf("the machine's clock is only %s off: something has set it", off)
	}
	m.until("active", func(s service) bool { return s.state == "active" })
	t.Logf("%7.3f s  assigned, with a clock a year ahead", assigned.at.Seconds())
	// This is the entry as systemd stores it.
	for field, want := range map[string]string{
		"MESSAGE":    "Assigned to " + assigned.fields["DPSD_ASSIGNED_HUB"] + " as " + gateway + " (generation 1, written)",
		"MESSAGE_ID": "2e9d58aed7656135ba5c4cc2e5afe250", "PRIORITY": "5", "SYSLOG_IDENTIFIER": "dpsd",
		"_TRANSPORT": "journal", "_SYSTEMD_UNIT": "dpsd.service", "DPSD_DEVICE_ID": gateway, "DPSD_GENERATION": "1",
	} {
		if got := assigned.fields[field]; got != want {
			t.Errorf("the journal has %s=%q, want %q", field, got, want)
		}
	}
	m.undisturbed(sim, -year)

	m.run("systemctl restart dpsd.service")
	again := m.next("assigned")
	t.Logf("%7.3f s  assigned after a restart, with the right clock", again.at.Seconds())
	if n := m.count("fault"); n != 0 {
		t.Errorf("%d faults, want none", n)
	}
}

// undisturbed steps the clock of an assigned gateway. dpsd logs each step, and nothing else
// happens: no attempt, no request to the service, the same process and STATUS=, and the watchdog
// messages continue.
func (m *machine) undisturbed(sim *simulator.Local, steps ...time.Duration) {
	m.t.Helper()
	m.until("the disconnect", func(service) bool { return closedAll(sim.Log()) })
	before, entries := m.service(), len(sim.Log())
	for _, step := range steps {
		logged := len(m.sofar())
		m.setClock(m.clock().Add(step))
		stepped := m.next("clock-stepped")
		after := m.until("the watchdog kept for longer than WatchdogSec", func(s service) bool {
			return s.state != "active" || s.watchdog > stepped.at+watchdog*3/2
		})
		kept := after.watchdog
		after.watchdog = before.watchdog
		if after != before {
			m.t.Errorf("after a step of %s: %+v, want %+v", step, after, before)
		}
		if now := len(sim.Log()); now != entries {
			m.t.Errorf("after a step of %s the service has received:  %+v", step, sim.Log()[entries:])
		}
		if events := m.sofar()[logged:]; len(events) != 1 {
			m.t.Errorf("after a step of %s dpsd logged more than that:\n%s", step, listing(events))
		}
		m.t.Logf("%7.3f s  the clock is stepped by %s; %s, the watchdog was kept %s later", stepped.at.Seconds(), stepped.fields["DPSD_BY"], after.state, kept-stepped.at)
	}
}

func closedAll(log []simulator.Entry) bool {
	open := 0
	for _, e := range log {
		switch e.Packet {
		case "OPEN":
			open++
		case "CLOSE":
			open--
		}
	}
	return open == 0
}

// gatewayFiles makes a machine a gateway of that service.
func gatewayFiles(t *testing.T, sim *simulator.Local) map[string]file {
	t.Helper()
	need(t)
	program, err := os.ReadFile("../../bin/dpsd")
	if err != nil {
		t.Fatal("make build: ", err)
	}
	files := configured(sim, `type = "symmetric-key"
key  = "credential:dps-primary-key"`)
	files["usr/bin/dpsd"] = file{text: program, mode: 0o755}
	files["etc/credstore/dps-primary-key"] = file{text: []byte(sim.DeviceKey(gateway) + "\n"), mode: 0o600}
	return files
}

// configured returns the files that configure a gateway for the service sim, with a credential.
func configured(sim *simulator.Local, credential string) map[string]file {
	configuration := fmt.Sprintf(`
[dps]
id_scope        = "%s"
registration_id = "%s"
endpoint        = "%s"

[[credential]]
%s

[transport]
mqtt_port      = %d
websocket_port = %d
ca_file        = "/etc/dpsd/ca.pem"

[retry]
refused_initial = "5m"
`, sim.IDScope(), gateway, name, credential, sim.MQTTPort, sim.WebSocketPort)
	return map[string]file{
		"etc/dpsd/dpsd.toml": {text: []byte(configuration), mode: 0o644},
		"etc/dpsd/ca.pem":    {text: sim.CA(), mode: 0o644},
		"etc/hosts":          {text: []byte("127.0.0.1 localhost\n" + host + " " + name + "\n"), mode: 0o644},
	}
}
