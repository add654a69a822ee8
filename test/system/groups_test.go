package system

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/test/repack"
)

// configureFile configures the gateway for the service, with its key in a file of the group.
func (g *gateway) configureFile(s *service, group string) {
	g.t.Helper()
	g.write("/etc/dpsd/ca.pem", s.read("ca.pem")+"\n", 0o644)
	g.write("/root/device.key", s.key(registrationID)+"\n", 0o600)
	g.run("install -o root -g " + group + " -m 0640 /root/device.key /etc/dpsd/keys/device.key")
	g.write("/etc/dpsd/dpsd.toml", strings.Replace(s.configuration(""), "credential:dps-primary-key", "file:/etc/dpsd/keys/device.key", 1), 0o644)
}

func TestTheGroupsOfRegistrationsAndKeysAreApart(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configureFile(dps, "dpsd-keys")
		g.run("systemctl start dpsd")
		if members := g.run("getent group dpsd-keys | cut -d: -f4"); members != "dpsd" {
			t.Errorf("the members of dpsd-keys are %q, want the service alone", members)
		}

		g.run(member + "dpsd reprovision --wait")
		if n := dps.registrations(); n != 2 {
			t.Errorf("%d registrations, want 2", n)
		}
		if out, status := g.try(member + "cat /etc/dpsd/keys/device.key"); status == 0 {
			t.Errorf("a member of dpsd can read the key: %s", out)
		}
		if out, status := g.try(member + "ls /etc/dpsd/keys"); status == 0 {
			t.Errorf("a member of dpsd can list the keys: %s", out)
		}
		g.run(reader + "cat /etc/dpsd/keys/device.key >/dev/null")
		if out, status := g.try(reader + "dpsd reprovision"); status == 0 {
			t.Errorf("a member of dpsd-keys can request a registration: %s", out)
		}

		g.run("dpsd check --offline --warnings-as-errors")
		g.run("chgrp dpsd /etc/dpsd/keys/device.key")
		out := g.run("dpsd check --offline")
		if want := "→ chown root:dpsd-keys /etc/dpsd/keys/device.key && chmod 0640 /etc/dpsd/keys/device.key"; !strings.Contains(out, want) {
			t.Errorf("dpsd check does not advise %q:\n%s", want, out)
		}
		g.run("chown root:dpsd-keys /etc/dpsd/keys/device.key && chmod 0640 /etc/dpsd/keys/device.key")

		// If the administrator adds a group to the unit, the service also belongs to it, and
		// root sees that.
		g.run("groupadd site && chgrp site /etc/dpsd/keys/device.key")
		if out, status := g.try("dpsd check --offline"); status == 0 || !strings.Contains(out, "credential-unreadable") {
			t.Errorf("the key belongs to another group, and dpsd check ends with %d:\n%s", status, out)
		}
		g.dropIn("[Service]\nSupplementaryGroups=site\n")
		g.run("dpsd check --offline --warnings-as-errors")
		g.run("systemctl restart dpsd")
		dps.until(3)
	})
}

// owners lists the files whose groups an upgrade keeps or changes.
const owners = "cd /etc; stat -c '%a %U:%G %n' dpsd/keys dpsd/keys/* dpsd/keys/site/* dpsd/elsewhere.key site.key"

// installBefore installs the package from the time before a group, and returns its path.
func (g *gateway) installBefore(repacked func(t testing.TB, deb string) string, group string) string {
	g.t.Helper()
	packages, err := filepath.Glob(built + "/current/dpsd_*.deb")
	if err != nil || len(packages) != 1 {
		g.t.Fatal(packages, err)
	}
	text, err := os.ReadFile(repacked(g.t, packages[0]))
	if err != nil {
		g.t.Fatal(err)
	}
	const before = "/root/before.deb"
	g.write(before, string(text), 0o644)
	g.run(apt + before)
	if groups := g.run("getent group " + group + " || true"); groups != "" {
		g.t.Fatalf("the package from before has %s", groups)
	}
	return before
}

func TestAnUpgradeGivesTheKeysToTheirOwnGroup(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		accounts := g.run("getent passwd | cut -d: -f1 | sort; getent group | sort")
		before := g.installBefore(repack.BeforeKeysGroup, "dpsd-keys")

		dps := g.service(prompt)
		g.configureFile(dps, "dpsd")
		g.run(`groupadd site; cd /etc
install -d -o root -g dpsd -m 0750 dpsd/keys/site
install -o root -g dpsd -m 0640 /root/device.key dpsd/keys/site/second.key
install -o dpsd -g dpsd -m 0600 /root/device.key dpsd/keys/own.key
install -o root -g site -m 0640 /root/device.key dpsd/keys/other.key
install -o root -g root -m 0600 /root/device.key dpsd/keys/root.key
install -o root -g dpsd -m 0640 /root/device.key dpsd/elsewhere.key
install -o root -g dpsd -m 0640 /root/device.key site.key
ln -s /etc/site.key dpsd/keys/linked.key`)
		g.run("systemctl start dpsd")
		old := lines(g.run(owners))
		if !slices.Contains(old, "750 root:dpsd dpsd/keys") {
			t.Fatalf("the package from before is another:\n%s", strings.Join(old, "\n"))
		}

		g.timed("the upgrade", apt+current)
		dps.until(2) // the new process reads the key as a member of the new group
		want := []string{
			"750 root:dpsd-keys dpsd/keys",
			"640 root:dpsd-keys dpsd/keys/device.key",
			"777 root:root dpsd/keys/linked.key",
			"640 root:site dpsd/keys/other.key",
			"600 dpsd:dpsd-keys dpsd/keys/own.key",
			"600 root:root dpsd/keys/root.key",
			"750 root:dpsd-keys dpsd/keys/site",
			"640 root:dpsd-keys dpsd/keys/site/second.key",
			"640 root:dpsd dpsd/elsewhere.key",
			"640 root:dpsd site.key",
		}
		if now := lines(g.run(owners)); !slices.Equal(now, want) {
			t.Errorf("after the upgrade\n%s\nwant\n%s\nbefore\n%s", strings.Join(now, "\n"), strings.Join(want, "\n"), strings.Join(old, "\n"))
		}
		if out, status := g.try(member + "cat /etc/dpsd/keys/device.key"); status == 0 {
			t.Errorf("after the upgrade a member of dpsd can read the key: %s", out)
		}
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")

		// From now on, the administrator chooses the groups of the files.
		g.run("chgrp dpsd /etc/dpsd/keys/own.key && apt-get -qq -y install --reinstall " + current)
		dps.until(3)
		if own := g.run("stat -c %G /etc/dpsd/keys/own.key"); own != "dpsd" {
			t.Errorf("another installation gives the administrator's file to %s", own)
		}

		g.timed("the downgrade", "apt-get -qq -y --allow-downgrades install "+before)
		dps.until(4) // the old unit reads the key because its user is a member
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.timed("another upgrade", apt+current)
		dps.until(5)
		if now := lines(g.run(owners)); !slices.Equal(now, want) {
			t.Errorf("after another upgrade\n%s\nwant\n%s", strings.Join(now, "\n"), strings.Join(want, "\n"))
		}

		g.run("apt-get -qq -y purge dpsd; groupdel site; rm /etc/site.key")
		if now := g.run("getent passwd | cut -d: -f1 | sort; getent group | sort"); now != accounts {
			t.Errorf("after the purge there are\n%s\nbefore there were\n%s", now, accounts)
		}
	})
}

// The administrator may add members to the groups. A purge must not leave their files to the next
// group with the same number.
func TestAPurgeKeepsAGroupWithOtherMembers(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.run("usermod -a -G dpsd-keys,dpsd-certificate games && apt-get -qq -y purge dpsd")
		for _, group := range []string{"dpsd-keys", "dpsd-certificate"} {
			if members := g.run("getent group " + group + " | cut -d: -f4"); members != "games" {
				t.Errorf("after the purge the members of %s are %q", group, members)
			}
		}
	})
}
