package system

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// hubs returns enrollments that assign every device to that hub.
func hubs(hub string) string {
	return fmt.Sprintf("[[group]]\nname = \"keys\"\ntype = \"symmetric-key\"\nprimary_key_file = \"group-key\"\nhubs = [\"%s\"]\n", hub)
}

func TestConsumersStartWithTheIdentityAndFollowIt(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service("[settings]\npolls = 1\nretry_after = \"2\"\n")
		g.configure(dps, "")
		g.run("cp /usr/share/doc/dpsd/examples/consumer* /etc/systemd/system/; systemctl daemon-reload; systemctl -q enable --now --no-block consumer.service consumer-restart.path")
		g.run("systemctl start dpsd")
		g.until("the consumer runs", "systemctl -q is-active consumer.service")
		g.run("test $(systemctl show --value -p InactiveExitTimestampMonotonic consumer) -ge $(systemctl show --value -p ActiveEnterTimestampMonotonic dpsd)")
		g.until("the consumer has logged its hub", "journalctl -b -u consumer -o cat | grep -qx 'gw-1 of dpsd-sim.azure-devices.net'")

		// The first record is also a change for the .path unit.
		g.until("the restart for the first record is over", "test $(systemctl show --value -p ExecMainExitTimestampMonotonic consumer-restart.service) -gt 0 &&"+
			" ! systemctl list-jobs | grep -q consumer && test $(systemctl show --value -p MainPID consumer.service) -ne 0")
		consumer := g.show("consumer.service", "MainPID")
		g.run("systemctl restart dpsd")
		g.expect("consumer.service", "MainPID", consumer)
		g.until("the target is reached", "systemctl -q is-active dpsd-provisioned.target")

		dps.enroll(hubs("other.azure-devices.net"))
		g.run("systemctl reload dpsd")
		g.until("the consumer is restarted with the other hub", "journalctl -b -u consumer -o cat | grep -qx 'gw-1 of other.azure-devices.net'")
		g.run("grep -qx 'DPSD_GENERATION=\"2\"' /var/lib/dpsd/state.env")
		g.run("systemctl -q is-active dpsd.service consumer.service")
	})
}

func TestAnEncryptedCredentialIsUsedAndCiphertextIsNamed(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		g.run(`mkdir -p -m 700 /etc/credstore.encrypted
systemd-creds encrypt --with-key=host --name=dps-primary-key /etc/credstore/dps-primary-key /etc/credstore.encrypted/dps-primary-key
rm /etc/credstore/dps-primary-key`)

		g.run("systemctl start --no-block dpsd")
		want := "credential-encrypted" // systemd 257 passes the ciphertext
		if s.systemd < 256 {
			want = "credential-unreadable" // systemd 252 does not search this directory
		}
		g.untilShown("dpsd.service", "StatusText", want)
		g.expect("dpsd.service", "NRestarts", "0")

		g.run(`mkdir -p /etc/systemd/system/dpsd.service.d
cp /usr/share/doc/dpsd/examples/encrypted-credentials.conf /etc/systemd/system/dpsd.service.d/
systemctl daemon-reload; systemctl restart dpsd`)
		g.expect("dpsd.service", "ActiveState", "active")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
	})
}

func TestAMissingCredentialIsNamedByDpsd(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.configure(g.service(prompt), "")
		g.run("mv /etc/credstore/dps-primary-key /root/; systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "credential-unreadable")
		g.expect("dpsd.service", "ActiveState", "activating")
		g.expect("dpsd.service", "ExecMainStatus", "0") // not 243, EXIT_CREDENTIALS of systemd.exec(5)
		g.expect("dpsd.service", "NRestarts", "0")

		g.run("mv /root/dps-primary-key /etc/credstore/; systemctl restart dpsd")
		g.expect("dpsd.service", "ActiveState", "active")
		// The key belongs to dpsd and root, and is removed with the service.
		g.run("test -s /run/credentials/dpsd.service/dps-primary-key")
		if out, status := g.try("setpriv --reuid=nobody --regid=nogroup --clear-groups cat /run/credentials/dpsd.service/dps-primary-key"); status == 0 {
			t.Errorf("everybody can read the key: %s", out)
		}
		g.run("systemctl stop dpsd; test ! -e /run/credentials/dpsd.service/dps-primary-key")
	})
}

func TestTheJournalExplainsItself(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		dps.stop()
		g.run("systemctl start --no-block dpsd")
		failed := g.event("fault")
		dps.start()
		assigned := g.event("assigned")
		for _, want := range []struct {
			entry entry
			field string
			text  string
		}{
			{failed, "PRIORITY", "4"},
			{failed, "DPSD_FAULT", "dns-blocked"},
			{failed, "DPSD_STAGE", "tcp"},
			{failed, "DPSD_CLASS", "interception"},
			{failed, "_SYSTEMD_UNIT", "dpsd.service"},
			{failed, "SYSLOG_IDENTIFIER", "dpsd"},
			{assigned, "PRIORITY", "5"},
			{assigned, "DPSD_ASSIGNED_HUB", "dpsd-sim.azure-devices.net"},
			{assigned, "DPSD_DEVICE_ID", "gw-1"},
			{assigned, "DPSD_GENERATION", "1"},
			{assigned, "_SYSTEMD_UNIT", "dpsd.service"},
		} {
			if got := want.entry.text(want.field); got != want.text {
				t.Errorf("%s of %s is %q, want %q", want.field, want.entry.text("DPSD_EVENT"), got, want.text)
			}
		}
		for _, e := range g.journal("DPSD_EVENT=fault DPSD_EVENT=assigned DPSD_EVENT=started") {
			id := e.text("MESSAGE_ID")
			if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
				t.Errorf("MESSAGE_ID is %q: %v", id, e)
				continue
			}
			// The package's trigger has updated the catalogue, so there is an explanation.
			explained := g.run("journalctl --no-pager -x -o short MESSAGE_ID=" + id)
			if !strings.Contains(explained, "Subject: dpsd: ") || !strings.Contains(explained, "man:dpsd") {
				t.Errorf("journalctl -x does not explain %q:\n%s", e.text("MESSAGE"), explained)
			}
			if message := e.text("MESSAGE"); message == "" || strings.ContainsAny(message, "{}\n") {
				t.Errorf("the message is not readable: %q", message)
			}
		}
		if key := dps.key(registrationID); strings.Contains(g.run("journalctl --no-pager -o export -u dpsd"), key) {
			t.Error("the key is in the journal")
		}
	})
}

func TestAnOddDeviceIDReachesConsumersAsItIs(t *testing.T) {
	const odd = "a \"b\" 'c' $HOME `id` \\ \\$ ; # % é"
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		dps.enroll(fmt.Sprintf("[[individual]]\nregistration_id = %q\ndevice_id = '''%s'''\ntype = \"symmetric-key\"\nprimary_key = %q\n", registrationID, odd, dps.key(registrationID)))
		g.configure(dps, "")
		g.run("systemctl start dpsd")
		for by, script := range map[string]string{
			"systemd": `systemd-run -q --wait --pipe --property=EnvironmentFile=/var/lib/dpsd/state.env /usr/bin/printenv DPSD_DEVICE_ID`,
			"dash":    `. /var/lib/dpsd/state.env; printf %s "$DPSD_DEVICE_ID"`,
			"bash":    `bash -c '. /var/lib/dpsd/state.env; printf %s "$DPSD_DEVICE_ID"'`,
		} {
			if got := g.run(script); got != odd {
				t.Errorf("%s reads %q, want %q", by, got, odd)
			}
		}
	})
}

func TestTheSandboxDenies(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.run(`mkdir -p /etc/credstore /var/lib/dpsd /run/dpsd
for file in /home/someone /root/secret /tmp/of-another /etc/credstore/probe /etc/dpsd/dpsd.toml; do echo there >$file; done; chmod 600 /etc/credstore/probe`)
		g.dropIn("[Service]\nType=oneshot\nExecStart=\nExecStart=" + there + "/probe\nRestart=no\n")
		g.probed("dpsd.service", "write to the state directory", "write to the runtime directory", "read the machine ID", "read the trusted roots",
			"a TCP socket over IPv4", "a TCP socket over IPv6", "a Unix socket")
	})
}

// probed starts a service that runs the program probe, and compares what the sandbox allows with
// what the service needs.
func (g *gateway) probed(service string, needed ...string) {
	g.t.Helper()
	g.run("systemctl start " + service)
	// The test selects by identifier, because journald cannot look up the name of a process
	// that has ended.
	g.until("the probe's last line", "journalctl -b -t probe -o cat | grep -qx end")
	inside := verdicts(g.t, g.run("journalctl -b -t probe -o cat"))
	outside := verdicts(g.t, g.run(there+"/probe"))
	if len(inside) != len(outside) || len(inside) < 40 {
		g.t.Fatalf("%d attempts inside, %d outside", len(inside), len(outside))
	}
	denied := 0
	for name, verdict := range inside {
		switch {
		case slices.Contains(needed, name):
			if verdict != "allowed" {
				g.t.Errorf("inside the sandbox %s needs %q: it is %s", service, name, verdict)
			}
		case verdict != "denied":
			g.t.Errorf("inside the sandbox %q is allowed", name)
		default:
			denied++
		}
		if outside[name] != "allowed" {
			g.t.Errorf("%q is denied to root without the sandbox: it tries nothing", name)
		}
	}
	g.t.Logf("systemd %d: %d of %d attempts are denied", g.suite.systemd, denied, len(inside))
}

// verdicts parses the output of the program probe.
func verdicts(t *testing.T, text string) map[string]string {
	t.Helper()
	verdicts := make(map[string]string)
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ": ", 3)
		if len(parts) == 3 {
			verdicts[parts[0]] = parts[1]
		}
	}
	if os.Getenv("DPSD_PROBES") != "" {
		t.Log(text)
	}
	return verdicts
}

func TestTheUnitIsExposedAsLittleAsPromised(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		out, status := g.try("systemd-analyze security --no-pager --threshold=12 dpsd.service")
		_, figure, _ := strings.Cut(out, "Overall exposure level")
		t.Logf("systemd %d: exposure%s", s.systemd, strings.TrimRight(figure, "\n"))
		if status != 0 {
			t.Errorf("more than 1.2:\n%s", out)
		}
		for _, limit := range []string{"MemoryMax", "TasksMax"} {
			if g.show("dpsd.service", limit) == "infinity" {
				t.Errorf("%s is not set", limit)
			}
		}
		g.expect("dpsd.service", "LimitCORE", "0")
	})
}

// The test types the commands under "Metrics" in docs/operations.md unchanged.
func TestTheMetricsReachTheDirectoryOfNodeExporter(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		setting, commands := blocks(t, "docs/operations.md", "Metrics", "toml")[0], blocks(t, "docs/operations.md", "Metrics", "sh")[0]
		file := regexp.MustCompile(`metrics_file = "(.*)"`).FindStringSubmatch(setting)[1]
		g := withDpsd(t, s)
		g.run("mkdir -p -m 755 $(dirname " + file + ")") // as in Debian's package
		provisioned(g, setting)
		if entry := g.event("metrics-not-written"); entry.text("DPSD_ERROR") == "" {
			t.Error("without the commands of the page, no command reports that the file cannot be written")
		}
		g.run(commands)
		g.until("the file exists", "grep -qx 'dpsd_provisioned 1' "+file)
		g.run("setpriv --reuid=nobody --regid=nogroup --clear-groups grep -qx 'dpsd_attempts_total{outcome=\"assigned\"} 1' " + file)
	})
}
