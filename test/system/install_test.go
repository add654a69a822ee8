package system

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAnUnconfiguredInstallWaitsForItsConfiguration(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		g.timed("the install", apt+current)
		g.expect("dpsd.service", "ActiveState", "inactive")
		g.expect("dpsd.service", "UnitFileState", "enabled")
		g.run("test -e /usr/share/dpsd/dpsd.toml && test ! -e /etc/dpsd/dpsd.toml && test ! -e /var/lib/dpsd/state.json")
		g.run("systemctl start dpsd") // an unmet condition is not a failure
		g.expect("dpsd.service", "ActiveState", "inactive")
		if state, _ := g.try("systemctl is-system-running --wait"); state != "running" {
			t.Errorf("the system is %s", state)
		}
		if mode := g.run("stat -c '%a %U:%G' /etc/dpsd/keys"); mode != "750 root:dpsd-keys" {
			t.Errorf("/etc/dpsd/keys is %s", mode)
		}
		dps := g.service(prompt)
		g.configure(dps, "")
		g.reboot() // the next boot starts it
		dps.start()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
	})
}

// An existing configuration means that a gateway is being restored: the installation starts dpsd,
// but does not wait for it.
func TestAnInstallDoesNotWaitForTheService(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		dps.stop()
		g.timed("the install without the service", apt+current)
		g.untilShown("dpsd.service", "ActiveState", "activating") // and it stays in this state
		g.timed("the downgrade without the service", "apt-get -qq -y install --allow-downgrades "+previous)
		g.timed("the upgrade without the service", apt+current)
		g.untilShown("dpsd.service", "ActiveState", "activating")
		g.timed("the removal without the service", "apt-get -qq -y remove dpsd")
	})
}

func TestAnUpgradeAndADowngradeKeepStateAndKeys(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		g.run(apt + previous)
		dps := provisioned(g, issued)
		g.write("/etc/dpsd/keys/device.key", "a key\n", 0o640)
		g.run("chgrp dpsd-keys /etc/dpsd/keys/device.key")
		const sums = "cd /; sha256sum var/lib/dpsd/state.json var/lib/dpsd/state.env var/lib/dpsd/certificate/*/* etc/dpsd/dpsd.toml etc/dpsd/keys/device.key etc/credstore/dps-primary-key; " +
			"stat -c '%n %a %U:%G' var/lib/dpsd var/lib/dpsd/state.json var/lib/dpsd/certificate var/lib/dpsd/certificate/* var/lib/dpsd/certificate/*/* etc/dpsd/keys/device.key"
		before, process, version := g.run(sums), g.show("dpsd.service", "MainPID"), g.run("dpsd version | head -n 1")

		dps.stop()
		g.timed("the upgrade without the service", apt+current)
		// The upgrade restarts dpsd, but does not wait for it.
		g.until("another process is activating", "test $(systemctl show --value -p ActiveState dpsd) = activating && test $(systemctl show --value -p MainPID dpsd) != "+process)
		if now := g.run("dpsd version | head -n 1"); now == version {
			t.Errorf("the version is still %s", now)
		}
		dps.start()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		if after := g.run(sums); after != before {
			t.Errorf("after the upgrade\n%s\nbefore\n%s", after, before)
		}

		process = g.show("dpsd.service", "MainPID")
		g.timed("the downgrade", "apt-get -qq -y --allow-downgrades install "+previous)
		g.until("the old dpsd is ready", "systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != "+process)
		if after := g.run(sums); after != before {
			t.Errorf("after the downgrade\n%s\nbefore\n%s", after, before)
		}
	})
}

func TestARemovalKeepsTheStateForAReinstall(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		g.run(apt + current)
		provisioned(g, "")
		before := g.run("cat /var/lib/dpsd/state.json")
		g.timed("the removal", "apt-get -qq -y remove dpsd")
		g.run("test ! -e /usr/bin/dpsd && test -e /etc/dpsd/dpsd.toml && ! pgrep -x dpsd")
		g.run("! systemctl -q is-active dpsd.service")
		if after := g.run("cat /var/lib/dpsd/state.json"); after != before {
			t.Errorf("the record has changed:\n%s", after)
		}
		g.run(apt + current)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expect("dpsd.service", "UnitFileState", "enabled")
		if after := g.run("cat /var/lib/dpsd/state.json"); after != before {
			t.Errorf("the record has changed:\n%s", after)
		}
		g.run("dpkg --purge dpsd && " + apt + current) // and once more without any state
		g.expect("dpsd.service", "ActiveState", "inactive")
	})
}

// listing lists all files except those that the system writes: logs, caches, the databases of dpkg
// and of the journal's catalogue.
const listing = `find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /srv -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/lib/apt \) -prune -o -print | sort
find /run -path '*dpsd*' | sort
getent passwd | cut -d: -f1 | sort; getent group | cut -d: -f1 | sort
systemctl list-unit-files --no-legend | cut -d' ' -f1 | sort; systemctl list-units --no-legend --all --plain 'dpsd*' | cut -d' ' -f1`

func TestAPurgeLeavesNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		before := lines(g.run(listing))
		g.run(apt + current + " " + there + "/current/dpsd-sim_*.deb")
		g.run("mkdir /tmp/sim; cd /tmp; timeout 60 dpsd-sim exec --dir /tmp/sim -- /bin/sh -c 'test -s \"$DPS_CA_FILE\"'")
		provisioned(g, issued)
		g.run("test -e /var/lib/dpsd/certificate/current/key.pem")
		g.write("/etc/dpsd/keys/device.key", "a key\n", 0o640)
		g.write("/etc/credstore.encrypted/dps-primary-key", "sealed\n", 0o600)
		g.dropIn("[Service]\nLogLevelMax=debug\n")
		g.run("systemctl reload dpsd")
		g.timed("the purge", "apt-get -qq -y purge dpsd dpsd-sim")
		// The administrator's files stay until they are removed as the page describes.
		g.run("test -s /etc/credstore/dps-primary-key && test -s /etc/credstore.encrypted/dps-primary-key && test -e /etc/systemd/system/dpsd.service.d/test.conf")
		g.run(blocks(t, "docs/operations.md", "What survives what", "sh")[0])
		g.run("test -z \"$(ls -A /etc/credstore /etc/credstore.encrypted | grep -v :)\"")
		for _, dir := range []string{"/etc/credstore", "/etc/credstore.encrypted"} { // created here if systemd has not created them
			if !slices.Contains(before, dir) {
				g.run("rmdir " + dir)
			}
		}
		for _, left := range lines(g.run(listing)) {
			if !slices.Contains(before, left) && !slices.Contains(own, left) {
				t.Errorf("left: %s", left)
			}
		}
		if out, status := g.try("dpkg-query -W dpsd dpsd-sim"); status == 0 {
			t.Errorf("dpkg still knows: %s", out)
		}
	})
}

func TestARemovalResetsTheFailedState(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.write("/etc/dpsd/dpsd.toml", "[dps]\n", 0o644)
		if out, status := g.try("systemctl start dpsd"); status == 0 {
			t.Fatalf("the start succeeds: %s", out)
		}
		g.run("apt-get -qq -y remove dpsd")
		if left := g.run("systemctl list-units --failed --no-legend --plain"); left != "" {
			t.Errorf("the failed state remains: %s", left)
		}
		if state, _ := g.try("systemctl is-system-running"); state != "running" {
			t.Errorf("the system is %s", state)
		}
	})
}

// own are files that Debian's tools leave whenever a user is created or removed.
var own = []string{"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-"}

func lines(text string) []string { return strings.Split(text, "\n") }

func TestPolicyRcDIsHonoured(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		g.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
		dps := g.service(prompt)
		g.configure(dps, "")
		g.run(apt + previous)
		g.expect("dpsd.service", "ActiveState", "inactive")
		g.run("systemctl start dpsd")
		process := g.show("dpsd.service", "MainPID")
		g.run(apt + current)
		g.expect("dpsd.service", "MainPID", process) // not restarted
		g.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)
		g.run("apt-get -qq -y install --reinstall " + current)
		g.until("the new process is ready", fmt.Sprintf("systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != %s", process))
	})
}
