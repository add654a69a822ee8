package system

import (
	"strings"
	"testing"
)

// The test runs the commands of docs/certificates.md unchanged. Those in "Commands" renew the
// certificate, so they come after those that give it to a service.
func TestTheCommandsOfTheCertificatesPageGiveAServiceThePair(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		page := func(heading, language string) string {
			return strings.Join(blocks(t, "docs/certificates.md", heading, language), "")
		}
		g := withDpsd(t, s)
		provisioned(g, "")
		g.write("/etc/dpsd/dpsd.toml", g.run("cat /etc/dpsd/dpsd.toml")+"\n"+page("Configuration", "toml"), 0o644)
		g.run(page("Configuration", "sh"))
		g.run(page("Files", "sh"))
		g.run(page("Programs that use the pair", "sh"))
		g.until("the consumer runs", "systemctl -q is-active consumer.service && ! systemctl list-jobs | grep -q consumer")
		first := g.show("consumer.service", "MainPID")
		// The process has the group and the paths of the pair.
		g.run("environment() { tr '\\0' '\\n' </proc/" + first + "/environ | sed -n \"s/^$1=//p\"; }\n" +
			"group=$(getent group dpsd-certificate | cut -d: -f3); grep -q \"^Groups:.*\\b$group\\b\" /proc/" + first + "/status\n" +
			"test -r \"$(environment DPSD_CERTIFICATE_FILE)\"; test -r \"$(environment DPSD_PRIVATE_KEY_FILE)\"")

		g.run(page("Commands", "sh"))
		g.until("the consumer is restarted after the renewal", "test $(systemctl show --value -p MainPID consumer.service) -ne "+first)
		g.run(page("Downgrade and removal", "sh"))
		g.run("test ! -e /var/lib/dpsd/certificate/current; test ! -e /var/lib/dpsd/state.json")
	})
}
