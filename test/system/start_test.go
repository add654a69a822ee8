package system

import (
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func TestAStartEndsWhenEveryUserCanReadTheRecord(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service("[settings]\npolls = 1\nretry_after = \"2\"\n")
		g.configure(dps, "")
		text := g.run("systemctl start dpsd; setpriv --reuid=nobody --regid=nogroup --clear-groups cat /var/lib/dpsd/state.json")
		var record struct{ Status, AssignedHub, DeviceID string }
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if record.Status != "assigned" || record.DeviceID != registrationID || record.AssignedHub != "dpsd-sim.azure-devices.net" {
			t.Errorf("the record is %+v", record)
		}
		g.expect("dpsd.service", "ActiveState", "active")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
		g.until("the target is reached", "systemctl -q is-active dpsd-provisioned.target")
		if n := dps.registrations(); n != 1 {
			t.Errorf("%d registrations, want 1", n)
		}
	})
}

// A consumer that can use the previous record is not ordered after dpsd.
const cached = `[Unit]
Wants=dpsd.service
ConditionPathExists=/var/lib/dpsd/state.env
[Service]
EnvironmentFile=/var/lib/dpsd/state.env
ExecStart=/bin/sh -c 'echo "$DPSD_DEVICE_ID of $DPSD_ASSIGNED_HUB"; exec sleep infinity'
[Install]
WantedBy=multi-user.target
`

func TestAnUnreachableServiceDoesNotHoldTheBoot(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		provisioned(g, "")
		g.write("/etc/systemd/system/cached.service", cached, 0o644)
		g.run("cp /usr/share/doc/dpsd/examples/consumer.service /etc/systemd/system/ && systemctl daemon-reload && systemctl -q enable cached consumer")
		before := g.run("cat /var/lib/dpsd/state.json")

		g.reboot() // the service is gone, because the network namespace is new
		g.expect("multi-user.target", "ActiveState", "active")
		g.untilShown("dpsd.service", "StatusText", "Next attempt at")
		g.expect("dpsd.service", "ActiveState", "activating")
		// Its name still resolves to this gateway, where nothing listens.
		if status := g.show("dpsd.service", "StatusText"); !strings.Contains(status, "dns-blocked") {
			t.Errorf("STATUS= does not name the fault: %q", status)
		}
		g.expect("dpsd-provisioned.target", "ActiveState", "inactive")
		g.until("the consumer of the cached record runs", "systemctl -q is-active cached.service")
		g.expect("consumer.service", "ActiveState", "inactive") // it waits for the answer of this boot
		if after := g.run("cat /var/lib/dpsd/state.json"); after != before {
			t.Errorf("the record has changed:\n%s", after)
		}
		g.poweroff() // a clean shutdown while dpsd waits
	})
}

// Until the first assignment of a boot, systemd reports "starting". The documented health checks
// answer immediately, and do not change the state of the system.
func TestHealthChecksDoNotDependOnTheService(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		healthy := strings.Join(blocks(t, "docs/operations.md", "Boot and health checks", "sh"), "")
		verdict := func(want int, when string) {
			t.Helper()
			if out, status := g.try("sh -c '" + healthy + "'"); status != want {
				t.Errorf("%s: %s: the health check ends with %d, want %d:\n%s", s.name, when, status, want, out)
			}
		}
		if state, _ := g.try("systemctl is-system-running --wait"); state != "running" {
			t.Errorf("once the gateway is assigned, the system is %s", state)
		}
		g.reboot()
		g.expect("multi-user.target", "ActiveState", "active")
		g.untilShown("dpsd.service", "StatusText", "Next attempt at")
		if state, _ := g.try("systemctl is-system-running"); state != "starting" {
			t.Errorf("while dpsd waits for the service, the system is %s", state)
		}
		verdict(0, "the service cannot be reached")
		g.run("cp /etc/dpsd/dpsd.toml /root/ && sed -i s/id_scope/id_scop/ /etc/dpsd/dpsd.toml && systemctl restart --no-block dpsd")
		g.untilShown("dpsd.service", "ActiveState", "failed")
		verdict(1, "this version refuses the configuration")
		g.run("cp /root/dpsd.toml /etc/dpsd/ && systemctl restart --no-block dpsd")
		dps.start()
		g.run("dpsd wait --for confirmed --timeout 60s")
		if state, _ := g.try("systemctl is-system-running --wait"); state != "running" {
			t.Errorf("after the assignment the system is %s", state)
		}
		verdict(0, "the gateway is assigned")
		g.run("systemctl stop dpsd && rm -r /var/lib/dpsd/state.* && dpsd status || test $? -eq 3")
		verdict(1, "the identity is gone")
	})
}

func TestVerifyStartsConsumersWithoutTheService(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		provisioned(g, "[provisioning]\non_boot = \"verify\"\n")
		g.run("cp /usr/share/doc/dpsd/examples/consumer.service /etc/systemd/system/ && systemctl daemon-reload && systemctl -q enable consumer")
		g.reboot()
		g.until("the consumer runs", "systemctl -q is-active consumer.service")
		g.expect("dpsd.service", "ActiveState", "active")
		g.untilShown("dpsd.service", "StatusText", "cached")
	})
}

// These are the states of chrony-wait.service and systemd-time-wait-sync.service without a time
// server.
const timeWait = `[Unit]
DefaultDependencies=no
Before=time-sync.target shutdown.target
Wants=time-sync.target
Conflicts=shutdown.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sleep infinity
[Install]
WantedBy=sysinit.target
`

func TestAMissingTimeSynchronizationDelaysNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		dps.stop()
		g.write("/etc/systemd/system/time-wait.service", timeWait, 0o644)
		g.run("systemctl -q enable time-wait.service")
		g.reboot()
		dps.start()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expect("time-wait.service", "ActiveState", "activating")
		g.expect("time-sync.target", "ActiveState", "inactive")
	})
}

func TestAWrongConfigurationEndsTheStart(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.write("/etc/dpsd/dpsd.toml", "[dps]\nid_scop = \"0ne00000000\"\n", 0o644)
		if out, status := g.try("systemctl start dpsd"); status == 0 {
			t.Errorf("the start succeeds: %s", out)
		}
		g.expect("dpsd.service", "ActiveState", "failed")
		g.expect("dpsd.service", "ExecMainStatus", "78")
		g.expect("dpsd.service", "NRestarts", "0")
		if said := g.run("journalctl -b -u dpsd -o cat"); !strings.Contains(said, `/etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key; did you mean "id_scope"?`) {
			t.Errorf("the journal does not name the mistake:\n%s", said)
		}
	})
}

// hold blocks every program that opens a file, like a failed disk, until the returned function is
// called. nspawn does not let a container do that.
func (g *gateway) hold(path string) (release func()) {
	g.t.Helper()
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(g.leader), "--mount", "--", there+"/hold", path)
	ended := startReady(g.t, cmd)
	release = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	g.t.Cleanup(release)
	return release
}

func TestAHangBeforeReadyIsKilledAndStarted(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		dps.stop()
		g.dropIn("[Service]\nTimeoutStartSec=4s\nTimeoutAbortSec=2s\nRestartSec=100ms\n")
		g.run("systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "Next attempt at")
		first := g.show("dpsd.service", "MainPID")
		release := g.hold("/etc/dpsd/dpsd.toml")
		g.run("kill -HUP " + first) // the supervisor reads the file and hangs
		g.until("another process", "test $(systemctl show --value -p NRestarts dpsd) -gt 0")
		if said := g.run("journalctl -b -u dpsd -o cat"); !strings.Contains(said, "start operation timed out") || !strings.Contains(said, "SIGABRT: abort") {
			t.Errorf("the journal does not say why, and where it hangs:\n%s", said)
		}
		release()
		dps.start()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
	})
}

func TestAStartThatWaitsIsNotKilled(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		dps.stop()
		g.dropIn("[Service]\nTimeoutStartSec=4s\nWatchdogSec=4s\n")
		g.run("systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "Next attempt at")
		first := g.show("dpsd.service", "MainPID")
		g.until("a start of twice its time-out", "test $(ps -o etimes= -p "+first+") -ge 8")
		g.expect("dpsd.service", "ActiveState", "activating")
		g.expect("dpsd.service", "MainPID", first)
	})
}

func TestAHungProcessIsRestartedByTheWatchdog(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		provisioned(g, "")
		g.dropIn("[Service]\nWatchdogSec=4s\nTimeoutAbortSec=2s\nRestartSec=100ms\n")
		g.run("systemctl restart dpsd")
		before := g.run("cat /var/lib/dpsd/state.json")
		release := g.hold("/etc/dpsd/dpsd.toml")
		g.run("kill -HUP " + g.show("dpsd.service", "MainPID")) // the supervisor reads the file and hangs
		g.until("another process", "test $(systemctl show --value -p NRestarts dpsd) -gt 0")
		if said := g.run("journalctl -b -u dpsd -o cat"); !strings.Contains(said, "Watchdog timeout") || !strings.Contains(said, "SIGABRT: abort") {
			t.Errorf("the journal does not say why, and where it hangs:\n%s", said)
		}
		release()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		if after := g.run("cat /var/lib/dpsd/state.json"); after != before {
			t.Errorf("the record has changed:\n%s", after)
		}
	})
}
