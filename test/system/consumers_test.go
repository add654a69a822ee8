package system

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// local is a local service that uses the hub: a user with a group of the same name.
type local struct{ name, scope string }

var locals = []local{{"diagnostics", "device"}, {"telemetry", "device/messages/events"}, {"updates", "device"}} // as the shell sorts them

// The socket of a service, and the unit of that socket.
func (l local) socket() string { return "/run/dpsd/hub/" + l.name + ".sock" }
func (l local) unit() string   { return "dpsd-hub@" + l.name + ".socket" }

// as returns the beginning of a command that runs as the service.
func (l local) as() string {
	return "setpriv --reuid=" + l.name + " --regid=" + l.name + " --clear-groups "
}

// consumer is the program that the services run.
const consumer = there + "/consumer "

// consumers returns the tables for the services in dpsd.toml.
func consumers() (tables string) {
	for _, l := range locals {
		tables += fmt.Sprintf("[[consumer]]\nname  = %q\nscope = %q\n\n", l.name, l.scope)
	}
	return tables
}

// enableSockets creates the users of the services, and runs the commands of docs/install.md for each
// of them. The commands restart dpsd without waiting; this function waits for the sockets.
func (g *gateway) enableSockets() {
	g.t.Helper()
	commands := blocks(g.t, "docs/install.md", "Sockets for services that use the hub", "sh")[0]
	for _, l := range locals {
		g.run("useradd --system --user-group --no-create-home " + l.name + "\n" + strings.ReplaceAll(commands, "telemetry", l.name))
		g.until("the socket of "+l.name, "systemctl -q is-active "+l.unit())
	}
}

// sockets lists the sockets and their directories.
func (g *gateway) sockets() string {
	g.t.Helper()
	return g.run("stat -c '%a %U:%G %i %n' /run/dpsd /run/dpsd/hub /run/dpsd/hub/*")
}

// served waits until dpsd is ready, and checks the sockets. It returns their list.
func (g *gateway) served() string {
	g.t.Helper()
	g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
	want := []string{"755 dpsd:dpsd /run/dpsd", "755 root:root /run/dpsd/hub"}
	for _, l := range locals {
		g.expect(l.unit(), "ActiveState", "active")
		want = append(want, "660 root:"+l.name+" "+l.socket())
	}
	list := g.sockets()
	var got []string
	for _, line := range lines(list) {
		fields := strings.Fields(line)
		got = append(got, strings.Join(slices.Delete(fields, 2, 3), " "))
	}
	if !slices.Equal(got, want) {
		g.t.Errorf("the sockets are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return list
}

// gets checks that each service gets a token.
func (g *gateway) gets() {
	g.t.Helper()
	for _, l := range locals {
		if said := g.run(l.as() + consumer + "token " + l.name); said != "token for 15 min" {
			g.t.Errorf("%s: %s", l.name, said)
		}
	}
}

// withSockets returns a gateway whose services have sockets.
func withSockets(t *testing.T, s suite) (*gateway, *service) {
	t.Helper()
	g := withDpsd(t, s)
	dps := provisioned(g, consumers())
	g.enableSockets()
	g.served()
	return g, dps
}

// The unit of the page has the name of the group, which a dynamic user could not have.
func TestAServiceGetsATokenAsThePageDescribes(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		of := func(language string) []string { return blocks(t, "docs/consumers.md", "Connect a service", language) }
		dps := g.service(prompt)
		dps.args = []string{"--websocket", "localhost:443"} // dpsd creates the module at the port of a real hub
		dps.start()
		g.configure(dps, of("toml")[0])
		g.run("systemctl start dpsd")
		g.run(strings.Join(of("sh"), ""))
		g.until("the socket is open", "systemctl -q is-active dpsd-hub@meter.socket")
		g.write("/usr/local/lib/meter", "#!/bin/sh\nexec "+consumer+"tokens meter\n", 0o755)
		g.write("/etc/systemd/system/meter.service", of("ini")[0], 0o644)
		g.run("systemctl daemon-reload && systemctl --quiet enable --now meter")
		g.until("the service gets a token", "journalctl -q -b -o cat -u meter | grep -qx 'token for 15 min'")
		g.expect("meter.service", "NRestarts", "0")
	})
}

func TestConsumersCanUseOnlyTheirOwnSockets(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, _ := withSockets(t, s)
		g.expect("dpsd.service", "PrivateUsers", "yes")
		for _, l := range locals {
			resource := simulatedHub + "%2F" + strings.ReplaceAll("devices/"+registrationID+strings.TrimPrefix(l.scope, "device"), "/", "%2F")
			want := fmt.Sprintf("%s: %s: 15 min for %s: 204 ", registrationID, l.scope, resource)
			if said := g.run(l.as() + consumer + "send " + l.name); said != strings.TrimSpace(want) && said != want {
				t.Errorf("%s: %q, want %q", l.name, said, want)
			}
			for _, other := range locals {
				if other == l {
					continue
				}
				if said, status := g.try(l.as() + consumer + "token " + other.name); status == 0 || !strings.Contains(said, other.socket()+": connect: permission denied") {
					t.Errorf("%s uses the socket of %s: %s", l.name, other.name, said)
				}
			}
			for _, who := range []string{stranger, member, reader, certificateReader} {
				if said, status := g.try(who + consumer + "token " + l.name); status == 0 || !strings.Contains(said, "permission denied") {
					t.Errorf("%s%s uses the socket of %s", who, said, l.name)
				}
			}
		}
		for _, record := range []string{"journalctl --boot --output=export", "cat /var/lib/dpsd/*", "find /run/dpsd -type f -exec cat {} +"} {
			if out, status := g.try("{ " + record + "; } | grep -a SharedAccessSignature"); status != 1 {
				t.Errorf("%s contains a token (the exit status of grep is %d):\n%s", record, status, out)
			}
		}

		// systemd changes the owner of RuntimeDirectory= and its content only if the directory has another owner.
		g.run("systemctl restart dpsd")
		g.served()

		// Another group for a socket that is in use.
		first, second := locals[0], locals[1]
		g.write("/etc/systemd/system/"+first.unit()+".d/hub-socket.conf", "[Socket]\nSocketGroup="+second.name+"\n", 0o644)
		g.run("systemctl daemon-reload && systemctl stop " + first.unit() + " && systemctl restart dpsd")
		g.run(second.as() + consumer + "token " + first.name)
		if said, status := g.try(first.as() + consumer + "token " + first.name); status == 0 || !strings.Contains(said, "permission denied") {
			t.Errorf("%s uses a socket of another group: %s", first.name, said)
		}
	})
}

// tokens counts the tokens that a service has received.
func (g *gateway) tokens(l local) int {
	g.t.Helper()
	n, err := strconv.Atoi(g.run("journalctl -q -b -o cat -t tokens-" + l.name + " | grep -c '^token for 15 min$' || true"))
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// all waits until each service has received a token that it requested after the call.
func (g *gateway) all(after string) {
	g.t.Helper()
	var conditions []string
	for _, l := range locals {
		// One request may have begun before the call.
		conditions = append(conditions, fmt.Sprintf("test $(journalctl -q -b -o cat -t tokens-%s | grep -c '^token for 15 min$') -ge %d", l.name, g.tokens(l)+2))
	}
	g.until("all services get tokens "+after, strings.Join(conditions, " && "))
}

func TestSocketsOfConsumersStayWhileDpsdIsRestartedUpgradedOrStopped(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		g.run(apt + previous)
		dps := g.service(prompt)
		g.configure(dps, consumers())
		dps.stop()
		g.enableSockets()
		for _, l := range locals {
			g.run(fmt.Sprintf("systemd-run --quiet --unit=tokens-%[1]s --uid=%[1]s --gid=%[1]s -p SyslogIdentifier=tokens-%[1]s %[2]stokens %[1]s", l.name, consumer))
		}
		for _, l := range locals {
			g.until(l.name+" has to wait", "journalctl -q -b -o cat -t tokens-"+l.name+" | grep -qx 'not yet: not-assigned'")
		}
		dps.start()
		g.all("when DPS assigns the gateway")
		before := g.served()

		for _, step := range []struct{ what, script string }{
			{"after a restart", "systemctl restart dpsd"},
			{"after the upgrade", apt + current},
			{"after the downgrade", "apt-get -qq -y --allow-downgrades install " + previous},
			{"after a stop", "systemctl stop dpsd"}, // the next request starts dpsd
		} {
			process := g.show("dpsd.service", "MainPID")
			g.timed(step.what, step.script)
			g.until("another process is ready "+step.what, "systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != "+process)
			g.all(step.what)
			if now := g.served(); now != before {
				t.Errorf("%s, the sockets are\n%s\nbefore\n%s", step.what, now, before)
			}
		}
		for _, l := range locals {
			g.run("systemctl stop tokens-" + l.name)
			for _, said := range lines(g.run("journalctl -q -b -o cat _COMM=consumer SYSLOG_IDENTIFIER=tokens-" + l.name)) {
				if said != "token for 15 min" && said != "not yet: not-assigned" {
					t.Errorf("%s: %s", l.name, said)
				}
			}
		}

		g.reboot() // DPS cannot be reached, because the network namespace is new
		g.gets()
		if cycles, status := g.try("journalctl -b | grep -i 'ordering cycle'"); status != 1 {
			t.Errorf("the units have an ordering cycle: %s", cycles)
		}
		dps.start()
		g.served()
	})
}

func TestAConnectionOfAConsumerStartsDpsdUnlessTheSocketsAreStopped(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, _ := withSockets(t, s)
		g.run("systemctl stop dpsd")
		g.gets()
		g.served()

		// Connections also wait while systemd delays the next start.
		g.kill("KILL")
		g.gets()
		g.expect("dpsd.service", "NRestarts", "1")

		g.run("systemctl stop 'dpsd-hub@*.socket' dpsd")
		for _, l := range locals {
			if said, status := g.try(l.as() + consumer + "token " + l.name); status == 0 || !strings.Contains(said, "no such file") {
				t.Errorf("%s: %s", l.name, said)
			}
		}
		g.expect("dpsd.service", "ActiveState", "inactive")
		g.run("systemctl start dpsd")
		g.served()
		g.gets()

		// A service whose socket is disabled does not affect the others.
		g.run("systemctl --quiet disable --now " + locals[0].unit() + " && systemctl restart dpsd")
		if list := g.sockets(); strings.Contains(list, locals[0].name) || !strings.Contains(list, locals[1].name) {
			t.Errorf("after the first socket is disabled, there are\n%s", list)
		}
	})
}

func TestAConnectionOfAConsumerWaitsWhileStartsFail(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, _ := withSockets(t, s)
		before := len(g.journal(starting))
		g.run(holdLock)
		g.kill("KILL")
		l := locals[0]
		g.run(fmt.Sprintf("systemd-run --quiet --unit=waiting --uid=%[1]s --gid=%[1]s -p SyslogIdentifier=waiting %[2]stoken %[1]s", l.name, consumer))
		g.until("two starts have failed", "test $(systemctl show --value -p NRestarts dpsd) -ge 2 -a $(systemctl show --value -p ExecMainStatus dpsd) = 1")
		g.run("systemctl stop holder")
		g.until("the connection is served", "journalctl -q -b -o cat -t waiting | grep -qx 'token for 15 min'")
		g.served()
		// The connection has not caused a start before the end of RestartSec=.
		if starts := fmt.Sprint(len(g.journal(starting)) - before); starts != g.show("dpsd.service", "NRestarts") {
			t.Errorf("systemd has started dpsd %s times, and %s times after RestartSec=", starts, g.show("dpsd.service", "NRestarts"))
		}
	})
}

// In these states, systemd starts dpsd because of a connection, but dpsd cannot serve it.
func TestAConnectionOfAConsumerDoesNotStartDpsdRepeatedlyWithoutAValidConfiguration(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSockets(t, s)
		for name, prepare := range map[string]string{
			"an invalid dpsd.toml": "echo '[dps]' >/etc/dpsd/dpsd.toml",
			"no dpsd.toml":         "rm /etc/dpsd/dpsd.toml",
		} {
			g.run(prepare + "; systemctl stop dpsd")
			before := len(g.journal(starting))
			for _, l := range locals {
				if said, status := g.try(l.as() + consumer + "token " + l.name); status == 0 {
					t.Errorf("%s: %s: %s", name, l.name, said)
				}
				g.expect(l.unit(), "Result", "trigger-limit-hit")
			}
			// From now on, nothing starts dpsd.
			starts := len(g.journal(starting)) - before
			t.Logf("systemd %d: %s: %d starts for %d connections", s.systemd, name, starts, len(locals))
			if starts > 4*len(locals) {
				t.Errorf("%s: %d starts for %d connections", name, starts, len(locals))
			}
			g.run("! systemctl -q is-active dpsd.service && ! systemctl list-jobs | grep dpsd")

			g.configure(dps, consumers())
			g.run("systemctl restart dpsd")
			g.served()
			g.gets()
		}
	})
}

func TestAPurgeRemovesTheSocketsOfConsumersAndAReinstallAfterARemovalKeepsThem(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		before := lines(g.run(listing))
		g.run(apt + current)
		dps := provisioned(g, consumers())
		g.enableSockets()
		g.served()

		g.timed("the removal", "apt-get -qq -y remove dpsd")
		g.run("test ! -e /run/dpsd/hub || test -z \"$(ls /run/dpsd/hub)\"")
		g.run(apt + current)
		g.served()
		g.gets()

		g.timed("the purge", "apt-get -qq -y purge dpsd")
		dps.stop()
		for _, l := range locals {
			g.run("test -e /etc/systemd/system/" + l.unit() + ".d/hub-socket.conf; userdel " + l.name)
		}
		g.run("rm -rf /etc/credstore/dps-primary-key")
		g.run(blocks(t, "docs/operations.md", "What survives what", "sh")[0])
		for _, dir := range []string{"/etc/credstore"} { // created here if systemd has not created it
			if !slices.Contains(before, dir) {
				g.run("rmdir " + dir)
			}
		}
		for _, left := range lines(g.run(listing)) {
			if !slices.Contains(before, left) && !slices.Contains(own, left) {
				t.Errorf("left: %s", left)
			}
		}
	})
}
