package system

import (
	"strings"
	"testing"
)

func TestACorrectedFileIsAppliedBeforeTheFirstAssignmentWithoutSystemctl(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		correct := dps.configuration("")
		g.write("/etc/dpsd/dpsd.toml", strings.Replace(correct, "websocket_port = 8443", "websocket_port = 8444\nmqtt_port = 8884", 1), 0o644)
		g.run("systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "dns-blocked")
		process := g.show("dpsd.service", "MainPID")

		g.write("/etc/dpsd/dpsd.toml", strings.Replace(correct, "id_scope", "id_scop", 1), 0o644)
		g.untilShown("dpsd.service", "StatusText", "/etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key")
		g.expect("dpsd.service", "ActiveState", "activating")

		g.write("/etc/dpsd/dpsd.toml", correct, 0o644)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "NRestarts", "0")
	})
}

// Many editors write a file in place in more than one step.
func TestAFileThatIsCorrectedInPlaceIsAppliedToo(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		g.run(`sed -i 's/^websocket_port .*/websocket_port = 8444\nmqtt_port = 8884/' /etc/dpsd/dpsd.toml; systemctl start --no-block dpsd`)
		g.untilShown("dpsd.service", "StatusText", "dns-blocked")
		process := g.show("dpsd.service", "MainPID")
		g.run(`correct=$(sed 's/8444/8443/; /^mqtt_port/d' /etc/dpsd/dpsd.toml); printf '%s\n' "$correct" >/etc/dpsd/dpsd.toml`)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "NRestarts", "0")
	})
}
