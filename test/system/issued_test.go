package system

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/test/repack"
)

// issued is the table of dpsd.toml with which a gateway requests a certificate.
const issued = "[certificate]\n"

// certificateReader runs a command as a member of the group that may read the issued certificate.
const certificateReader = "setpriv --reuid=nobody --regid=nogroup --groups=dpsd-certificate "

// pairs lists the directory of the issued certificates.
const pairs = "cd /var/lib/dpsd; stat -c '%a %U:%G %n' . certificate certificate/*; stat -c '%a %U:%G %n' certificate/[1-9]*/*"

// published is the list for that number of pairs.
func published(number int) []string {
	list := []string{"755 dpsd:dpsd .", "2750 dpsd:dpsd-certificate certificate"}
	var files []string
	for n := range number {
		directory := "certificate/" + strconv.Itoa(n+1)
		list = append(list, "750 dpsd:dpsd-certificate "+directory)
		for _, name := range []string{"certificate.json", "chain.pem", "key.pem"} {
			files = append(files, "640 dpsd:dpsd-certificate "+directory+"/"+name)
		}
	}
	return append(append(list, "777 dpsd:dpsd-certificate certificate/current"), files...)
}

// expectPairs compares the directory of the issued certificates with the list for a number of pairs.
func (g *gateway) expectPairs(when string, number int) {
	g.t.Helper()
	if now, want := lines(g.run(pairs)), published(number); !slices.Equal(now, want) {
		g.t.Errorf("%s there are\n%s\nwant\n%s", when, strings.Join(now, "\n"), strings.Join(want, "\n"))
	}
}

// serial prints the serial number of the published certificate.
const serial = "openssl x509 -in /var/lib/dpsd/certificate/current/chain.pem -noout -serial"

func TestTheKeyOfTheIssuedCertificateIsReadableByItsGroupOnly(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, issued)
		g.expectPairs("after the first registration", 1)
		for _, name := range []string{"chain.pem", "key.pem", "certificate.json"} {
			path := "/var/lib/dpsd/certificate/current/" + name
			g.run(certificateReader + "cat " + path + " >/dev/null")
			for _, who := range []string{stranger, member, reader} {
				if out, status := g.try(who + "cat " + path); status == 0 {
					t.Errorf("%scat reads %s: %s", who, path, out)
				}
			}
			if out, status := g.try(certificateReader + "sh -c 'echo >>" + path + "'"); status == 0 {
				t.Errorf("a member of dpsd-certificate can write to %s: %s", path, out)
			}
		}
		for _, command := range []string{"dpsd reprovision", "dpsd certificate renew"} {
			if out, status := g.try(certificateReader + command); status == 0 {
				t.Errorf("a member of dpsd-certificate may run %s: %s", command, out)
			}
		}
		if members := g.run("getent group dpsd-certificate | cut -d: -f4"); members != "" {
			t.Errorf("the package has added %q to dpsd-certificate", members)
		}
		g.run("dpsd check")

		first := g.run(serial)
		g.run(member + "dpsd certificate renew --wait")
		g.expectPairs("after a renewal", 2)
		if second := g.run(serial); second == first {
			t.Errorf("after a renewal the certificate still has the %s", first)
		}
		g.run("systemctl restart dpsd")
		g.expectPairs("after a restart", 2)
		g.reboot()
		dps.start()
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expectPairs("after a reboot", 2)

		g.run("systemctl stop dpsd; dpsd forget --yes")
		if left := g.run("find /var/lib/dpsd -name '*.pem'"); left != "" {
			t.Errorf("dpsd forget leaves %s", left)
		}
		g.run("systemctl start dpsd")
		g.expectPairs("after dpsd forget and another registration", 1)
	})
}

func TestTheKeyOfARequestIsPrivateUntilItsCertificateIsAccepted(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		dps.enroll(hubs(simulatedHub) + "no_certificates = true\n")
		g.configure(dps, issued)
		g.run("systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "certificate-not-issued")
		want := []string{"2700 dpsd:dpsd-certificate pending", "600 dpsd:dpsd-certificate pending/certificate.json", "600 dpsd:dpsd-certificate pending/key.pem"}
		if now := lines(g.run("cd /var/lib/dpsd/certificate; stat -c '%a %U:%G %n' pending pending/*")); !slices.Equal(now, want) {
			t.Errorf("before the certificate is accepted, there are %q, want %q", now, want)
		}
		for _, who := range []string{certificateReader, stranger, member, reader} {
			if out, status := g.try(who + "cat /var/lib/dpsd/certificate/pending/key.pem"); status == 0 {
				t.Errorf("%scat reads the key of a request: %s", who, out)
			}
		}
		const sum = "sha256sum </var/lib/dpsd/certificate/"
		requested := g.run(sum + "pending/key.pem")

		dps.enroll(hubs(simulatedHub))
		g.run("systemctl restart dpsd")
		g.expectPairs("after the certificate was accepted", 1)
		if accepted := g.run(sum + "current/key.pem"); accepted != requested {
			t.Errorf("the key is another than that of the first request")
		}
		g.run(certificateReader + "cat /var/lib/dpsd/certificate/current/key.pem >/dev/null")
	})
}

// uplink is a service that reads the pair at its start and at each reload. It logs the serial number
// if the key belongs to the certificate.
const uplink = `#!/bin/sh
load() {
	pair=$(readlink -e "${DPSD_CERTIFICATE_FILE%/*}")
	certified=$(openssl x509 -in "$pair/chain.pem" -noout -pubkey) owned=$(openssl pkey -in "$pair/key.pem" -pubout)
	if [ -n "$owned" ] && [ "$owned" = "$certified" ]; then
		echo "$1 $(openssl x509 -in "$pair/chain.pem" -noout -serial)"
	else
		echo "$1 no pair"
	fi
}
trap 'load reloaded' HUP
load started
systemd-notify --ready
while :; do
	sleep 1000 &
	wait $!
	kill $!
done
`

// withUplink enables the example of a consumer with the program above, which is reloaded if reload
// is set.
func (g *gateway) withUplink(reload string) {
	g.t.Helper()
	g.write("/usr/local/bin/uplink", uplink, 0o755)
	g.run(`cp /usr/share/doc/dpsd/examples/consumer* /etc/systemd/system/
mkdir -p /etc/systemd/system/consumer.service.d
cp /usr/share/doc/dpsd/examples/certificate.conf /etc/systemd/system/consumer.service.d/`)
	if reload != "" {
		g.run("sed -i 's|^#" + reload + "|" + reload + "|' /etc/systemd/system/consumer.service.d/certificate.conf && grep -q '^" + reload + "' /etc/systemd/system/consumer.service.d/certificate.conf")
	}
	g.write("/etc/systemd/system/consumer.service.d/test.conf",
		"[Service]\nUser=games\nGroup=nogroup\nType=notify\nNotifyAccess=all\nExecStart=\nExecStart=/usr/local/bin/uplink\n", 0o644)
	g.run("systemctl daemon-reload; systemctl -q enable --now --no-block consumer.service consumer-restart.path")
}

// untilSettled waits until the consumer runs, and no job for it is left: the first record is also a
// change for the .path unit.
func (g *gateway) untilSettled() {
	g.t.Helper()
	g.until("the reaction to the first record is over", "systemctl -q is-active consumer.service && "+
		"test $(systemctl show --value -p ExecMainExitTimestampMonotonic consumer-restart.service) -gt 0 && ! systemctl list-jobs | grep -q consumer")
}

// delay returns the time from the publication of the pair to the entry of the consumer.
func (g *gateway) delay(e entry) time.Duration {
	g.t.Helper()
	seconds, err := strconv.ParseFloat(g.run("stat -c %.Y /var/lib/dpsd/certificate/current"), 64)
	if err != nil {
		g.t.Fatal(err)
	}
	micros, err := strconv.ParseFloat(e.text("__REALTIME_TIMESTAMP"), 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return time.Duration((micros/1e6 - seconds) * float64(time.Second))
}

func TestAConsumerIsReloadedWithinFiveSecondsAfterARenewal(t *testing.T) {
	for name, c := range map[string]struct {
		reload, logs string
		kept         bool // the process of the consumer
	}{
		"with ExecReload":    {reload: "ExecReload=", logs: "reloaded ", kept: true},
		"without ExecReload": {logs: "started "},
	} {
		t.Run(name, func(t *testing.T) {
			inBoth(t, func(t *testing.T, s suite) {
				g := withDpsd(t, s)
				dps := g.service(prompt)
				g.configure(dps, issued)
				g.withUplink(c.reload)
				g.run("systemctl start dpsd")
				g.untilSettled()
				first := g.run(serial)
				g.until("the consumer uses the first certificate", "journalctl -b -u consumer -o cat | grep -qx 'started "+first+"'")
				process := g.show("consumer.service", "MainPID")

				g.run("dpsd certificate renew --wait")
				second := g.run(serial)
				g.until("the consumer uses the second certificate", "journalctl -b -u consumer -o cat | grep -qx '"+c.logs+second+"'")
				var entries []entry
				for _, e := range g.journal("-b -u consumer") {
					if e.text("MESSAGE") == c.logs+second {
						entries = append(entries, e)
					}
				}
				after := g.delay(entries[0])
				t.Logf("systemd %d, %s: the consumer used the new certificate %s after its publication", s.systemd, name, after.Round(time.Millisecond))
				if after > 5*time.Second || after < 0 {
					t.Errorf("the consumer used the new certificate after %s, want 5 s at most", after)
				}
				if kept := g.show("consumer.service", "MainPID") == process; kept != c.kept {
					t.Errorf("the consumer runs in the same process: %t, want %t", kept, c.kept)
				}
				if out, status := g.try("journalctl -b -u consumer -o cat | grep 'no pair'"); status == 0 {
					t.Errorf("the consumer has read a key and a chain that do not belong together:\n%s", out)
				}
				g.run("systemctl -q is-active dpsd.service consumer.service")
			})
		})
	}
}

// The test uses the setting in the README of the examples.
func TestSystemdPassesTheIssuedPairAsCredentials(t *testing.T) {
	text, err := os.ReadFile("../../packaging/systemd/examples/README.md")
	if err != nil {
		t.Fatal(err)
	}
	const setting = "LoadCredential=issued:/var/lib/dpsd/certificate/current"
	if !strings.Contains(string(text), setting) {
		t.Fatalf("the README does not contain %s", setting)
	}
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		provisioned(g, issued)
		out := g.run("systemd-run -q --wait --pipe -p DynamicUser=yes -p " + setting + ` /bin/sh -ec 'cd $CREDENTIALS_DIRECTORY; id -Gn
openssl x509 -in issued_chain.pem -noout -pubkey; openssl pkey -in issued_key.pem -pubout'`)
		groups, keys, _ := strings.Cut(out, "\n")
		if strings.Contains(groups, "dpsd") {
			t.Errorf("the service has the groups %q", groups)
		}
		if certified, owned := keys[:len(keys)/2], keys[(len(keys)+1)/2:]; certified != owned || !strings.Contains(owned, "BEGIN PUBLIC KEY") {
			t.Errorf("the key does not belong to the certificate:\n%s", keys)
		}
	})
}

// A state directory that dpsd has not created: on a new file system, or restored as files of root.
func TestAStateDirectoryOfRootKeepsTheGroupOfTheCertificates(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.write("/etc/fstab", "tmpfs /var/lib/dpsd tmpfs mode=755,uid=0,gid=0 0 0\n", 0o644)
		g.reboot()
		g.run("mountpoint -q /var/lib/dpsd")
		provisioned(g, issued)
		g.expectPairs("on a new file system", 1)
		id := g.run("cat /var/lib/dpsd/state.json")

		restore := "systemctl stop dpsd; cp -r /var/lib/dpsd /root/backup; find /var/lib/dpsd -mindepth 1 -delete\n" +
			"cp -r /root/backup/. /var/lib/dpsd/; chown -R 0:0 /var/lib/dpsd /var/lib/dpsd/.; rm -r /root/backup\n"
		g.run(restore + blocks(t, "docs/operations.md", "Backups", "sh")[0]) // the commands of the page
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expectPairs("after the files were restored", 1)
		if now := g.run("cat /var/lib/dpsd/state.json"); now != id {
			t.Errorf("the record is\n%s\nbefore it was\n%s", now, id)
		}
		for _, name := range []string{"lock", "state.json", "state.env"} {
			if owner := g.run("stat -c %U:%G /var/lib/dpsd/" + name); owner != "dpsd:dpsd" {
				t.Errorf("%s belongs to %s", name, owner)
			}
		}
		g.run("dpsd certificate renew --wait")
		g.expectPairs("after a renewal", 2)
	})
}

func TestWithoutTheGroupOnlyTheServiceCanReadTheKeyUntilTheAdviceIsFollowed(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		provisioned(g, issued)
		g.run("systemctl stop dpsd; rm -r /var/lib/dpsd/certificate; systemctl start dpsd")
		const modes = "cd /var/lib/dpsd/certificate; stat -L -c '%a %U:%G' current current/*.pem"
		if now, want := lines(g.run(modes)), []string{"700 dpsd:dpsd", "600 dpsd:dpsd", "600 dpsd:dpsd"}; !slices.Equal(now, want) {
			t.Errorf("after the directory was removed, the pair has %q, want %q", now, want)
		}
		g.run("journalctl -b -u dpsd -o cat | grep -q '/var/lib/dpsd/certificate: .*dpsd-certificate'")

		check := g.run("dpsd check --offline")
		_, advice, found := strings.Cut(check, "certificate-files ")
		_, advice, is := strings.Cut(advice, "→ ")
		if advice, _, _ = strings.Cut(advice, "\n"); !found || !is {
			t.Fatalf("dpsd check gives no advice about the group:\n%s", check)
		}
		g.run(strings.ReplaceAll(advice, "; then run: ", "\n"))
		g.run(certificateReader + "cat /var/lib/dpsd/certificate/current/key.pem >/dev/null")
		g.run("dpsd check --offline --warnings-as-errors")
	})
}

func TestAnUpgradeCreatesTheGroupAndTheDirectoryOfTheCertificates(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		accounts := g.run("getent passwd | cut -d: -f1 | sort; getent group | sort")
		before := g.installBefore(repack.BeforeCertificateGroup, "dpsd-certificate")
		dps := provisioned(g, "")
		g.run("test ! -e /var/lib/dpsd/certificate")
		g.run("cp /usr/share/doc/dpsd/examples/consumer* /etc/systemd/system/; systemctl daemon-reload; systemctl -q enable --now consumer.service consumer-restart.path")
		g.until("the consumer runs", "systemctl -q is-active consumer.service")
		consumer := g.show("consumer.service", "MainPID")

		g.timed("the upgrade", apt+current)
		dps.until(2)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		if now, want := lines(g.run("cd /var/lib/dpsd; stat -c '%a %U:%G %n' . certificate")), published(0)[:2]; !slices.Equal(now, want) {
			t.Errorf("after the upgrade there are\n%s\nwant\n%s", strings.Join(now, "\n"), strings.Join(want, "\n"))
		}
		g.expect("consumer.service", "MainPID", consumer) // not restarted
		g.configure(dps, issued)
		g.run("systemctl restart dpsd")
		g.expectPairs("after the configuration of a certificate", 1)

		g.timed("the downgrade", "apt-get -qq -y --allow-downgrades install "+before)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expectPairs("after the downgrade", 1)
		g.timed("another upgrade", apt+current)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expectPairs("after another upgrade", 1)

		g.run("systemctl -q disable --now consumer.service consumer-restart.path; apt-get -qq -y purge dpsd; test ! -e /var/lib/dpsd")
		if now := g.run("getent passwd | cut -d: -f1 | sort; getent group | sort"); now != accounts {
			t.Errorf("after the purge there are\n%s\nbefore there were\n%s", now, accounts)
		}
	})
}
