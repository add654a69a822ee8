package system

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The test runs the commands of the section unchanged, and those that install a key file. The
// service has the ID scope, the gateway and the key on the page.
func TestTheManualConfigurationConnectsAGateway(t *testing.T) {
	const page = "docs/operations.md"
	inBoth(t, func(t *testing.T, s suite) {
		commands := strings.Join(blocks(t, page, "Manual configuration", "sh"), "")
		value := func(pattern string) string {
			match := regexp.MustCompile(pattern).FindStringSubmatch(commands)
			if match == nil {
				t.Fatalf("%s does not contain %s", page, pattern)
			}
			return match[1]
		}
		g := booted(t, s)
		dps := g.service(prompt)
		dps.write("id-scope", value(`id_scope += "(\w+)"`)+"\n")
		dps.enroll(fmt.Sprintf("[[individual]]\nregistration_id = %q\ntype = \"symmetric-key\"\nprimary_key = %q\n",
			value(`registration_id += "([a-z0-9-]+)"`), value(`(?m)^([A-Za-z0-9+/]{43}=)$`)))
		// The gateway trusts its certificate like that of the real service.
		g.write("/usr/local/share/ca-certificates/service.crt", dps.read("ca.pem")+"\n", 0o644)
		g.run("update-ca-certificates >/dev/null 2>&1; " + apt + current)
		g.write("/root/gateway-1.key", dps.key("gateway-1"), 0o600)

		// Values that vary between gateways, starts and versions of systemd are not compared.
		out := steady(g.run(commands))
		for _, line := range steady(blocks(t, page, "Manual configuration", "console")[0]) {
			if line == "…" {
				continue
			}
			if !slices.Contains(out, line) {
				t.Errorf("the page shows a line that is missing in the output: %s\n%s", line, strings.Join(out, "\n"))
			}
		}
		g.run("cd /root; " + strings.Join(blocks(t, page, "Keys and certificates", "sh"), ""))
		g.run("setpriv --reuid=dpsd --regid=dpsd --init-groups cat /etc/dpsd/keys/device.key >/dev/null")
		for _, who := range []string{stranger, member} {
			if out, status := g.try(who + "cat /etc/dpsd/keys/device.key"); status == 0 {
				t.Errorf("%scat reads the key: %s", who, out)
			}
		}
	})
}

// steady returns the lines of a transcript without numbers, the time and the host.
func steady(transcript string) (kept []string) {
	varies := regexp.MustCompile(`^\w{3} \d+ [0-9:]+ \S+ |since .*|/usr/lib/systemd|/lib/systemd|dpsd \S+ started|[0-9.]+m?s|\d+`)
	for _, line := range lines(transcript) {
		if line = strings.Join(strings.Fields(varies.ReplaceAllString(line, "")), " "); line != "" {
			kept = append(kept, line)
		}
	}
	return kept
}
