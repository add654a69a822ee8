package system

import (
	"fmt"
	"strings"
	"testing"
)

// kill sends a signal to dpsd's process. systemd does not consider this a stop request.
func (g *gateway) kill(signal string) {
	g.t.Helper()
	g.run("systemctl kill --kill-whom=main --signal=" + signal + " dpsd")
}

// killed ends dpsd by a signal, and returns when a new process is ready.
func (g *gateway) killed(signal string) {
	g.t.Helper()
	process := g.show("dpsd.service", "MainPID")
	g.kill(signal)
	g.until("another process is ready after SIG"+signal, fmt.Sprintf(
		"pid=$(systemctl show --value -p MainPID dpsd); test $pid != 0; test $pid != %s; systemctl -q is-active dpsd.service", process))
}

func TestOnlyAStopAndAnInvalidConfigurationEndTheService(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		g.dropIn("[Service]\nRestartSec=100ms\n")
		for i, signal := range []string{"TERM", "INT", "ABRT", "KILL"} {
			g.killed(signal) // the first two are clean exits to systemd
			g.expect("dpsd.service", "NRestarts", fmt.Sprint(i+1))
		}

		g.write("/etc/dpsd/dpsd.toml", "[dps]\nid_scop = \"0ne00000000\"\n", 0o644)
		g.kill("TERM")
		g.until("the service has failed", "systemctl -q is-failed dpsd.service")
		g.expect("dpsd.service", "ExecMainStatus", "78")
		g.expect("dpsd.service", "NRestarts", "5") // the start that found the mistake

		g.write("/etc/dpsd/dpsd.toml", dps.configuration(""), 0o644)
		g.run("systemctl start dpsd; systemctl stop dpsd")
		g.expect("dpsd.service", "SubState", "dead") // not auto-restart
		g.expect("dpsd.service", "NRestarts", "0")
	})
}

// dependencies are the ways in which a consumer can depend on dpsd, systemd.unit(5).
var dependencies = []string{"Wants=dpsd.service", "Requires=dpsd.service", "BindsTo=dpsd.service",
	"Wants=dpsd-provisioned.target", "Requires=dpsd-provisioned.target"}

// wanting returns a consumer for each of the dependencies.
func wanting() (units []string) {
	for i := range dependencies {
		units = append(units, fmt.Sprintf("wanting-%d.service", i))
	}
	return units
}

// enableWanting returns a shell script that creates these consumers, and enables them in the units
// on which they depend.
func enableWanting() (script string) {
	for i, unit := range wanting() {
		_, of, _ := strings.Cut(dependencies[i], "=")
		script += fmt.Sprintf("printf '[Unit]\\n%[2]s\\nAfter=%[3]s\\n[Service]\\nExecStart=/bin/sleep infinity\\n[Install]\\nWantedBy=%[3]s\\n' >/etc/systemd/system/%[1]s\n",
			unit, dependencies[i], of)
	}
	return script + "systemctl daemon-reload; systemctl --quiet enable " + strings.Join(wanting(), " ")
}

// The target is active until dpsd is stopped, because the gateway still has its identity.
func TestConsumersContinueWhileAKilledDpsdIsRestarted(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.configure(g.service(prompt), "")
		g.dropIn("[Service]\nRestartSec=100ms\n")
		g.run("cp /usr/share/doc/dpsd/examples/consumer.service /etc/systemd/system/ && systemctl daemon-reload && systemctl --quiet enable consumer && systemctl start dpsd")
		g.until("the consumer runs", "systemctl -q is-active consumer.service dpsd-provisioned.target")
		consumer := g.show("consumer.service", "MainPID")

		g.killed("KILL")
		g.killed("TERM")
		g.until("the target is reached", "systemctl -q is-active dpsd-provisioned.target")

		// The next starts fail.
		g.run(holdLock)
		g.kill("KILL")
		g.until("two starts have failed", "test $(systemctl show --value -p NRestarts dpsd) -ge 4 -a $(systemctl show --value -p ExecMainStatus dpsd) = 1")
		g.expect("dpsd.service", "ActiveState", "activating")
		g.run("systemctl stop holder")
		g.until("dpsd and the target are back", "systemctl -q is-active dpsd.service && systemctl -q is-active dpsd-provisioned.target")
		g.expect("consumer.service", "MainPID", consumer)

		g.run("systemctl stop dpsd")
		g.expect("dpsd-provisioned.target", "ActiveState", "inactive")
		g.expect("consumer.service", "MainPID", consumer)
	})
}
