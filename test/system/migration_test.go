package system

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// identityService is a stand-in for the package aziot-identity-service: the units have the names,
// paths, users and dependencies of its units. aziot-identityd responds to GET /identities/identity as
// the original does for the device of the test.
const identityService = `
for user in aziotid aziotks aziotcs aziottpm; do useradd --system --user-group $user; done
unit() { cat >/etc/systemd/system/$1; }
socket() { # NAME FILE USER MORE
	unit aziot-$1.socket <<END
[Unit]
PartOf=aziot-$1.service
[Socket]
ListenStream=/run/aziot/$2.sock
SocketMode=0660
DirectoryMode=0755
SocketUser=$3
SocketGroup=$3
$4
[Install]
WantedBy=sockets.target
END
	unit aziot-$1.service <<END
[Unit]
Requires=aziot-$1.socket
After=aziot-$1.socket
[Service]
ExecStart=sleep infinity
User=$3
[Install]
WantedBy=multi-user.target
END
}
socket identityd identityd aziotid Accept=yes
socket keyd keyd aziotks
socket certd certd aziotcs
socket tpmd tpmd aziottpm
unit aziot-identityd@.service <<END
[Service]
ExecStart=sh -c 'while read -r line && [ "\$\${line%%[[:cntrl:]]}" ]; do :; done; cat /srv/answer'
StandardInput=socket
END
systemctl daemon-reload
systemctl enable --now aziot-identityd.socket aziot-keyd.socket aziot-certd.socket aziot-tpmd.socket
systemctl enable aziot-identityd.service
`

// byIdentityService is the response of the stand-in.
var byIdentityService = func() string {
	body := fmt.Sprintf(`{"type":"aziot","spec":{"hubName":%q,"gatewayHost":%q,"deviceId":%q,"auth":{"type":"sas","keyHandle":"x"}}}`, simulatedHub, simulatedHub, registrationID)
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}()

// curl runs a block of the page with requests to a Unix socket of the gateway. It runs curl on this
// machine, because the gateway does not have it.
func (g *gateway) curl(block string) string {
	g.t.Helper()
	script := strings.ReplaceAll(block, "--unix-socket /", fmt.Sprintf("--unix-socket /proc/%d/root/", g.leader))
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		g.t.Fatalf("%s\n%v: %s", block, err, out)
	}
	return string(out)
}

// The test runs the commands of docs/migration.md unchanged, on a gateway with a stand-in for the
// Identity Service.
func TestTheCommandsOfTheMigrationPageReplaceTheIdentityServiceAndRestoreIt(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		steps := blocks(t, "docs/migration.md", "Migrate one gateway", "sh")
		stay := blocks(t, "docs/migration.md", "The read-only socket for unchanged programs", "sh")
		if len(steps) != 8 || len(stay) != 2 {
			t.Fatalf("the page has %d and %d blocks", len(steps), len(stay))
		}
		stock, convert, start, compare, move, stop, back, purge := steps[0], steps[1], steps[2], steps[3], steps[4], steps[5], steps[6], steps[7]

		g := booted(t, s)
		g.write("/srv/answer", byIdentityService, 0o644)
		g.run(identityService)
		dps := g.service(prompt)
		g.write("/etc/aziot/config.toml", fmt.Sprintf(`[provisioning]
source = "dps"
global_endpoint = "https://%s"
id_scope = "%s"
[provisioning.attestation]
method = "symmetric_key"
registration_id = "%s"
symmetric_key = { value = "%s" }
`, endpoint, dps.read("id-scope"), registrationID, dps.key(registrationID)), 0o600)
		g.write("/etc/aziot/identityd/config.d/telemetry.toml", "[[principal]]\nuid = 1001\nname = \"telemetry\"\nidtype = [\"module\"]\n", 0o600)

		if out := g.run(stock); !strings.Contains(out, `name = "telemetry"`) {
			t.Errorf("the principal is not listed:\n%s", out)
		}
		g.run(apt + current)
		notes := g.run(convert)
		for _, command := range regexp.MustCompile(`(?m)^    (.+)$`).FindAllStringSubmatch(notes, -1) {
			g.run(command[1])
		}
		// The simulated service has its own roots and port.
		g.write("/etc/dpsd/ca.pem", dps.read("ca.pem")+"\n", 0o644)
		g.run("printf '\n[transport]\nwebsocket_port = 8443\nca_file = \"/etc/dpsd/ca.pem\"\n' >>dpsd.toml")
		g.run(start)
		requests, files := parts(compare)
		for answer, from := range map[string]string{g.curl(requests): "the Identity Service", g.run(files): "dpsd"} {
			if !strings.Contains(answer, simulatedHub) || !strings.Contains(answer, registrationID) {
				t.Errorf("%s has another identity: %s", from, answer)
			}
		}

		g.run("cat >>/etc/dpsd/dpsd.toml <<'END'\n" + strings.Join(blocks(t, "docs/migration.md", "Migrate one gateway", "toml"), "") + "END\n")
		g.run(move)
		g.until("the socket of the service", "test \"$(stat -c '%a %G' /run/dpsd/hub/telemetry.sock)\" = '660 telemetry'")
		if answer := g.curl("curl -fsS --retry 3 --unix-socket /run/dpsd/hub/telemetry.sock http://dpsd/v1/hub"); !strings.Contains(answer, `"moduleId":"telemetry"`) {
			t.Errorf("GET /v1/hub: %s", answer)
		}
		if answer := g.curl(requests); !strings.Contains(answer, "keyHandle") {
			t.Errorf("the Identity Service does not answer any more: %s", answer)
		}

		g.run(stop)
		g.run(stay[0])
		g.until("the read-only socket", "systemctl -q is-active dpsd-hub@aziot-identity.socket && test \"$(stat -c '%a %G' /run/aziot/identityd.sock)\" = '660 aziotid'")
		if answer := g.curl(stay[1]); strings.Contains(answer, "keyHandle") || !strings.Contains(answer, `"deviceId":"`+registrationID+`"`) ||
			!strings.Contains(answer, `"scope_id":"`+dps.read("id-scope")+`"`) {
			t.Errorf("the read-only socket: %s", answer)
		}
		g.run(purge)
		g.reboot()
		dps.start()
		g.until("the read-only socket after a reboot", "systemctl -q is-active dpsd.service dpsd-hub@aziot-identity.socket")
		g.curl(stay[1])

		g.run(back)
		g.until("dpsd is stopped", "! systemctl -q is-active dpsd.service")
		if answer := g.curl(requests); !strings.Contains(answer, "keyHandle") {
			t.Errorf("the Identity Service does not answer again: %s", answer)
		}
		g.expect("aziot-identityd.socket", "UnitFileState", "enabled")
		g.run("test ! -e /run/dpsd/hub/telemetry.sock")
	})
}

// parts separates the requests in a block of the page from its other commands.
func parts(block string) (requests, others string) {
	for line := range strings.Lines(block) {
		if strings.HasPrefix(line, "curl ") {
			requests += line
		} else {
			others += line
		}
	}
	return requests, others
}
