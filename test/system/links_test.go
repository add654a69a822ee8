package system

import (
	"strings"
	"testing"
)

// asService runs a command as the user of the service.
const asService = "setpriv --reuid=dpsd --regid=dpsd --clear-groups "

// The commands that an operator runs as root; those that read most come first.
var asRoot = []string{
	"rm -rf /tmp/r && mkdir /tmp/r && cd /tmp/r && dpsd report --output r.tar.gz; tar -xzOf r.tar.gz",
	"dpsd status", "dpsd status --json", "dpsd status --attempts", "dpsd check --offline", "dpsd check --offline --json",
	"dpsd wait --timeout 1s", "dpsd wait --for confirmed --timeout 1s", "dpsd reprovision",
}

// readsNothing runs the commands and searches for the line that the test has added to
// /etc/shadow.
func readsNothing(g *gateway, commands ...string) {
	g.t.Helper()
	for _, command := range commands {
		out, status := g.try("{ " + command + "; } 2>&1")
		if status == 124 || strings.Contains(out, "canary-4711") {
			g.t.Errorf("%s: status %d, and it says\n%s", command, status, out)
		}
		if strings.Contains(command, "report") && !strings.Contains(out, "dpsd report of") {
			g.t.Errorf("there is no report:\n%s", out)
		}
	}
}

func TestRootsCommandsFollowNoLinkAndOpenNoFIFOOfTheServicesUser(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		g.run("echo 'canary-4711:!:20000::::::' >>/etc/shadow")
		if out, status := g.try(asService + "cat /etc/shadow"); status == 0 {
			t.Fatalf("the service may read /etc/shadow:\n%s", out)
		}
		commands := make([]string, 0, len(asRoot))
		for _, command := range asRoot {
			commands = append(commands, strings.ReplaceAll(command, "dpsd ", "timeout 60 dpsd "))
		}

		// These run while the service runs.
		for _, name := range []string{"confirmation.json", "retry-after.json", "attempts.json", "state.json"} {
			g.run(asService + "ln -sfn /etc/shadow /run/dpsd/" + name)
		}
		readsNothing(g, commands...)
		// The registration that the last command requested writes the confirmation.
		g.run("until timeout 60 dpsd status --json | grep -q '\"idle\"'; do sleep 0.1; done")
		g.run(asService + "rm /run/dpsd/confirmation.json && " + asService + "mkfifo /run/dpsd/confirmation.json")
		readsNothing(g, commands...)

		// These run while the service is stopped, so dpsd does not repair the state files.
		g.run("systemctl stop dpsd && install -d -o dpsd -g dpsd /run/dpsd")
		const names = "for f in /var/lib/dpsd/state.json /var/lib/dpsd/state.json.prev /var/lib/dpsd/state.env /var/lib/dpsd/attempts.json /var/lib/dpsd/transport " +
			"/run/dpsd/state.json /run/dpsd/confirmation.json /run/dpsd/retry-after.json /run/dpsd/attempts.json; do rm -rf $f; "
		g.run(names + asService + "ln -s /etc/shadow $f; done")
		readsNothing(g, commands...)
		g.run(names + asService + "mkfifo $f; done")
		readsNothing(g, commands...)
		readsNothing(g, "timeout 60 dpsd forget --yes")
		g.run("grep -q canary-4711 /etc/shadow && ! ls /var/lib/dpsd/state.json")

		// A file that the configuration names may be in a directory to which the service can write.
		g.configure(dps, "")
		g.run("sed -i 's|^registration_id = .*|&\\npayload_file = \"/var/lib/dpsd/payload.json\"|' /etc/dpsd/dpsd.toml && grep -q payload_file /etc/dpsd/dpsd.toml")
		g.run(asService + "ln -s /etc/shadow /var/lib/dpsd/payload.json")
		readsNothing(g, commands...)
		g.contains("dpsd check --offline 2>&1 || true", "/var/lib/dpsd/payload.json is a link owned by user", "chown -h root: /var/lib/dpsd/payload.json")
	})
}
