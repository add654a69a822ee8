package system

import (
	"strings"
	"testing"
)

// The flags use the same code as the questions, which the tests of cmd/dpsd answer on a terminal.
func TestOneCommandSetsUpAnInstalledGateway(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.write("/usr/local/share/ca-certificates/service.crt", dps.read("ca.pem")+"\n", 0o644)
		g.write("/root/gateway.key", dps.key(registrationID)+"\n", 0o600)
		g.run("update-ca-certificates >/dev/null 2>&1")
		init := "dpsd init --id-scope " + dps.read("id-scope") + " --registration-id " + registrationID + " --key-file /root/gateway.key"

		out := g.run(init)
		for _, want := range []string{"none failed", "Assigned to " + simulatedHub + " as " + registrationID, "/var/lib/dpsd/state.env"} {
			if !strings.Contains(out, want) {
				t.Errorf("dpsd init does not print %q:\n%s", want, out)
			}
		}
		if strings.Contains(out, dps.read(registrationID+".key")) {
			t.Error("dpsd init prints the key")
		}
		g.expect("dpsd.service", "ActiveState", "active")
		const stat = "stat -c '%a %U:%G %n' "
		if got, want := g.run(stat+"/etc/dpsd/dpsd.toml /etc/dpsd/keys /etc/dpsd/keys/device.key"),
			"644 root:root /etc/dpsd/dpsd.toml\n750 root:dpsd-keys /etc/dpsd/keys\n640 root:dpsd-keys /etc/dpsd/keys/device.key"; strings.TrimSpace(got) != want {
			t.Errorf("the files are\n%s\nwant\n%s", got, want)
		}

		if out, status := g.try(init); status != 1 || !strings.Contains(out, "exists; dpsd init changes it only with --replace") {
			t.Errorf("again: %d, %s", status, out)
		}
		// The service registers again with what has changed, and the command waits for that.
		g.write("/root/proxy.toml", "[provisioning]\ninterval = \"24h\"\n", 0o644)
		before := dps.registrations()
		g.run("dpsd init --replace --settings /root/proxy.toml")
		if after := dps.registrations(); after <= before {
			t.Errorf("%d registrations after the change, and %d before", after, before)
		}
		g.run("grep -q 24h /etc/dpsd/dpsd.toml && test -e /etc/dpsd/dpsd.toml.orig")
	})
}
