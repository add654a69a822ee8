package system

import (
	"strings"
	"testing"
)

// contains compares the output of a command with texts.
func (g *gateway) contains(command string, texts ...string) {
	g.t.Helper()
	out, _ := g.try(command)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			g.t.Errorf("%s: %s does not contain %q:\n%s", g.suite.name, command, text, out)
		}
	}
}

// A gateway without a usable dpsd.toml: each place where a user looks states the problem
// and the command that fixes it. systemd itself logs that the file is missing.
func TestAMissingMisnamedOrUnreadableConfigurationIsNamedWithItsRemedy(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		const log = "journalctl --quiet --no-pager --output=cat --unit=dpsd.service"
		for _, c := range []struct{ prepare, problem, remedy, logged string }{
			{"mv /etc/dpsd/dpsd.toml /root/", "open /etc/dpsd/dpsd.toml: no such file or directory", "install -m 0644 /usr/share/dpsd/dpsd.toml /etc/dpsd/dpsd.toml", "ConditionPathExistsGlob=/etc/dpsd/{dpsd,dpsd.toml,"},
			{"mv /root/dpsd.toml /etc/dpsd/dpsd.yaml", "/etc/dpsd/dpsd.yaml exists, but dpsd does not read it", "mv /etc/dpsd/dpsd.yaml /etc/dpsd/dpsd.toml", ""},
			{"mv /etc/dpsd/dpsd.yaml /etc/dpsd/config.toml", "/etc/dpsd/config.toml exists, but dpsd does not read it", "mv /etc/dpsd/config.toml /etc/dpsd/dpsd.toml", ""},
			{"mv /etc/dpsd/config.toml /etc/dpsd/dpsd.toml; chmod 600 /etc/dpsd/dpsd.toml", "permission denied", "chmod a+r /etc/dpsd/dpsd.toml", ""},
		} {
			g.run(c.prepare + "\njournalctl --rotate; journalctl --vacuum-time=1s; systemctl start dpsd || :")
			g.contains("dpsd check 2>&1", "failed   configuration", c.problem, c.remedy)
			g.contains("dpsd status 2>&1", c.problem, c.remedy)
			if c.logged != "" {
				g.expect("dpsd.service", "ActiveState", "inactive")
				g.contains(log, c.logged)
				continue
			}
			g.expect("dpsd.service", "ExecMainStatus", "78")
			g.contains(log, c.problem, c.remedy)
		}

		// As long as the user dpsd cannot read the file, root, who can, gets advice that works.
		const remedy = "chmod a+r /etc/dpsd/dpsd.toml; then run: systemctl restart --no-block dpsd"
		for _, command := range []string{"systemctl start --no-block dpsd && dpsd wait --timeout 3s 2>&1", "dpsd status 2>&1", "dpsd check 2>&1"} {
			out, _ := g.try(command)
			if !strings.Contains(out, remedy) || strings.Contains(out, "is valid now") {
				t.Errorf("%s: %s: want %q and nothing about a valid configuration:\n%s", s.name, command, remedy, out)
			}
			if n := strings.Count(out, remedy); n != 1 && !strings.Contains(command, "check") {
				t.Errorf("%s: %s: the remedy is named %d times:\n%s", s.name, command, n, out)
			}
		}
		g.run("chmod a+r /etc/dpsd/dpsd.toml; systemctl start dpsd")
	})
}

// The first mistakes that a user makes: the status line of the service, dpsd status and
// dpsd check name each, and the most likely reason comes first.
func TestAFirstMistakeIsNamedWithItsMostLikelyReasonFirst(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt + `
[[rule]]
on = "connect"
registration_id = "elsewhere"
connack = 3
`)
		g.configure(dps, "")
		right := dps.configuration("")
		// The endpoint does not have the name of Azure's endpoint: for that name, a simulator
		// would be
		// reported as a TLS interceptor, and an address of this gateway as blocked.
		local := strings.Replace(right, "[dps]", "[dps]\nendpoint = \"localhost\"", 1)
		const twoPorts = "websocket_port = 8443"
		for _, c := range []struct {
			mistake    string
			was, is    string
			prepare    string
			code       string
			advice     string
			check      []string
			adviceLess string // text that the advice must not contain
		}{
			{"an ID scope that no DPS has", `"gw-1"`, `"elsewhere"`, "", "connack-unavailable", "Check id_scope first", []string{"(CONNACK return code 3)"}, ""},
			{"nothing listens at port 443", twoPorts, "websocket_port = 443\nprotocols = [\"websocket\"]", "", "tcp-refused", "Check the name and port of the server", []string{"443: tcp-refused"}, "443"},
			{"nothing listens at port 8883", twoPorts, "mqtt_port = 8884\nprotocols = [\"mqtt\"]", "", "tcp-refused", "configure dpsd to also try port 443", []string{"8884: tcp-refused"}, ""},
			{"no /etc/resolv.conf", `"localhost"`, `"dps.example.com"`, "rm -f /etc/resolv.conf", "resolver-missing", "Check that /etc/resolv.conf exists", []string{"/etc/resolv.conf"}, ""},
			{"the group's key", "", "", "cp /etc/credstore/dps-primary-key /root/; head -c 32 /dev/zero | base64 >/etc/credstore/dps-primary-key", "unauthorized", "If you use a key, first check that it is the device's own key, not the enrollment group's (dpsd derive-key), and that the registration ID has no upper-case letters", []string{"unauthorized"}, ""},
			{"a key that the sandbox hides", `"credential:dps-primary-key"`, `"file:/root/gw-1.key"`, "cp /root/dps-primary-key /etc/credstore/; cp /root/dps-primary-key /root/gw-1.key", "credential-unreadable", "put the file in /etc/dpsd/keys", []string{"failed   credential", "hides /root from dpsd", "Move it to /etc/dpsd"}, ""},
		} {
			g.run(c.prepare)
			g.write("/etc/dpsd/dpsd.toml", strings.Replace(local, c.was, c.is, 1), 0o644)
			g.run("systemctl stop dpsd; systemctl start --no-block dpsd")
			g.untilShown("dpsd.service", "StatusText", c.code)
			g.contains("dpsd status", c.code, c.advice)
			g.contains("dpsd wait --timeout 1s 2>&1", c.code, c.advice)
			g.contains("dpsd check 2>&1", append(c.check, c.advice, "failed   service")...)
			if out, _ := g.try("dpsd status | grep 'what to do'"); c.adviceLess != "" && strings.Contains(out, c.adviceLess) {
				t.Errorf("%s: %s: the advice contains %q:\n%s", s.name, c.mistake, c.adviceLess, out)
			}
		}

		g.write("/etc/dpsd/dpsd.toml", strings.Replace(right, `"`+dps.read("id-scope")+`"`, "“0ne00000000”", 1), 0o644)
		g.untilShown("dpsd.service", "StatusText", "TOML does not allow the character “ (U+201C, left double quotation mark)")
		g.write("/etc/dpsd/dpsd.toml", strings.Replace(right, dps.read("id-scope"), "One00000000", 1), 0o644)
		g.event("configuration-doubtful")
		g.contains("dpsd check 2>&1", `id_scope "One00000000" does not begin with "0ne"`)

		g.write("/etc/dpsd/dpsd.toml", right, 0o644)
		g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		if out, status := g.try("dpsd check"); status != 0 {
			t.Errorf("%s: dpsd check ends with %d:\n%s", s.name, status, out)
		}
		g.contains("dpsd check", "ok       service", "ok       hub-name")
		g.contains("dpsd check --list", "hub-name", "hub-tcp", "hub-tls", "service")
		g.contains("dpsd check --skip hub-tls", "skipped  hub-tls               not checked: excluded with --skip")
		g.run("printf '# changed\\n[retry]\\nmax = \"2h\"\\n' >>/etc/dpsd/dpsd.toml")
		g.contains("dpsd check", "warning  service", "the running dpsd uses a different configuration than this file")
		if out, status := g.try("dpsd check --warnings-as-errors"); status != 1 {
			t.Errorf("%s: dpsd check --warnings-as-errors ends with %d:\n%s", s.name, status, out)
		}

		// The proxy is that of the service, not that of the shell.
		g.dropIn("[Service]\nEnvironment=HTTPS_PROXY=http://127.0.0.1:3128\n")
		g.run("systemctl restart --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "proxy-unreachable")
		g.contains("env -u HTTPS_PROXY dpsd check 2>&1", "127.0.0.1:3128: proxy-unreachable", "not checked: the proxy 127.0.0.1:3128 resolves it")
	})
}
