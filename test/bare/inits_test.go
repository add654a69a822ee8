package bare

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// inits returns the root file system with other service managers, which test/bare/root makes.
func inits(t *testing.T) string {
	t.Helper()
	root := filepath.Join(os.Getenv("DPSD_ROOTS"), "init")
	if _, err := os.Stat(root + ".key"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("there is no root file system with other service managers: ", err)
	}
	return root
}

// boot starts a system with the scripts of packaging/init, dpsd and its users. Process 1 runs the
// shell script; the tests run further commands in the system.
func boot(t *testing.T, script string) *container {
	t.Helper()
	need(t, "bwrap", "nsenter")
	root := directory(t) + "/root"
	if out, err := exec.Command("cp", "-a", inits(t), root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	configure(t, root+"/etc/dpsd", credential)
	write(t, root+"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644)
	write(t, root+"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndpsd:x:990:990::/var/lib/dpsd:/bin/false\n", 0o644)
	write(t, root+"/etc/group", "root:x:0:\ndpsd:x:990:\ndpsd-keys:x:991:dpsd\ndpsd-certificate:x:992:\n", 0o644)
	write(t, root+"/etc/nsswitch.conf", "passwd: files\ngroup: files\n", 0o644)
	write(t, root+"/usr/bin/dpsd", "", 0o755)
	// As on a gateway, only the service may read the key.
	if err := errors.Join(os.Chmod(root+"/etc/dpsd/device.key", 0o640), os.Chown(root+"/etc/dpsd/device.key", 0, 991),
		os.CopyFS(root+"/init", os.DirFS("../../packaging/init"))); err != nil {
		t.Fatal(err)
	}
	c := &container{root: true, done: make(chan error, 1), env: []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}}
	run(t, c, []string{"bwrap", "--cap-add", "ALL", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--as-pid-1", "--new-session",
		"--info-fd", "3", "--bind", root, "/", "--ro-bind", program("dpsd"), "/usr/bin/dpsd", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--tmpfs", "/tmp",
		"/bin/sh", "-ec", script})
	until(t, "process 1 is the shell", func() bool { return !strings.HasPrefix(commandOf(c.pid), "bwrap") })
	return c
}

// booted waits until process 1 has run its script.
func (c *container) booted(t *testing.T) {
	t.Helper()
	until(t, "process 1 has run its script", func() bool { _, code := c.exits(t, "test", "-e", "/run/booted"); return code == 0 })
}

// service checks that dpsd runs as a service should: as the user dpsd with the group of the keys,
// with its directories, and provisioned.
func (c *container) service(t *testing.T) {
	t.Helper()
	c.must(t, "dpsd", "wait", "--for", "confirmed", "--timeout", patience.String())
	c.answers(t)
	if out := c.must(t, "dpsd", "health"); out != "Assigned to localhost as gw-1\n" {
		t.Errorf("dpsd health prints %q", out)
	}
	status := c.must(t, "cat", "/proc/"+c.process(t)+"/status")
	contains(t, "the status of the process", status, "\nUid:\t990\t990\t990\t990\n", "\nGid:\t990\t990\t990\t990\n", "\nUmask:\t0077\n", "991")
	modes := c.must(t, "stat", "-c", "%n %a %U:%G", "/var/lib/dpsd", "/run/dpsd", "/var/lib/dpsd/certificate", "/var/lib/dpsd/state.env")
	if want := "/var/lib/dpsd 755 dpsd:dpsd\n/run/dpsd 755 dpsd:dpsd\n/var/lib/dpsd/certificate 2750 dpsd:dpsd-certificate\n/var/lib/dpsd/state.env 644 dpsd:dpsd\n"; modes != want {
		t.Errorf("the files are\n%swant\n%s", modes, want)
	}
}

// process returns the process ID of the service dpsd, and "" while it does not run. The commands
// of health checks have the same name.
func (c *container) process(t *testing.T) string {
	t.Helper()
	out, _ := c.exits(t, "sh", "-c", `for p in $(pidof dpsd); do
		tr "\\000" " " </proc/$p/cmdline | grep -q "^/usr/bin/dpsd run " && echo $p
	done 2>/dev/null`)
	return strings.TrimSpace(out)
}

// answers waits until dpsd is ready. It has then read dpsd.toml.
func (c *container) answers(t *testing.T) {
	t.Helper()
	until(t, "dpsd is ready", func() bool { _, code := c.exits(t, "dpsd", "health"); return code == 0 })
}

// restarts kills dpsd, and waits until the service manager has started it again and it is ready.
func (c *container) restarts(t *testing.T) {
	t.Helper()
	before := c.process(t)
	c.must(t, "kill", "-9", before)
	until(t, "the service manager has restarted dpsd", func() bool { now := c.process(t); return now != "" && now != before })
	c.answers(t)
}

// edit appends a text to dpsd.toml, and returns a function that removes it again.
func (c *container) edit(t *testing.T, text string) (undo func()) {
	t.Helper()
	c.must(t, "sh", "-c", "cp /etc/dpsd/dpsd.toml /tmp/before && echo '"+text+"' >>/etc/dpsd/dpsd.toml")
	return func() { c.must(t, "cp", "/tmp/before", "/etc/dpsd/dpsd.toml") }
}

// syslogged waits until the system logger has a text.
func (c *container) syslogged(t *testing.T, text string) {
	t.Helper()
	until(t, "the log contains "+text, func() bool { return strings.Contains(c.must(t, "cat", "/var/log/messages"), text) })
}

const (
	// syslogd returns before it listens.
	logger = "syslogd -O /var/log/messages; until [ -S /dev/log ]; do sleep 0.1; done; : >>/var/log/messages; "
	// Like an init, the shell removes the orphans that end.
	forever = ": >/run/booted; while :; do sleep 0.2; done"
)

func TestOpenRCStartsReloadsAndStopsDpsd(t *testing.T) {
	t.Parallel()
	c := boot(t, logger+`
		mkdir -p /etc/runlevels/sysinit /etc/runlevels/boot /etc/runlevels/default
		cp /init/openrc/dpsd /etc/init.d/dpsd
		openrc sysinit && openrc boot && rc-update add dpsd default
		openrc default
		`+forever)
	c.booted(t)
	c.must(t, "rc-service", "dpsd", "status")
	c.service(t)
	c.syslogged(t, "daemon.notice dpsd["+c.process(t)+"]: Assigned to localhost as gw-1 (generation 1, written)\n")

	c.edit(t, "[retry]\nmax = \"4m\"")
	c.must(t, "rc-service", "dpsd", "reload")
	c.syslogged(t, "Configuration reloaded; changes applied")

	before := c.process(t)
	undo := c.edit(t, "x = 1")
	for _, command := range []string{"checkconfig", "reload", "restart"} {
		if out, code := c.exits(t, "rc-service", "dpsd", command); code == 0 || !strings.Contains(out, "unknown key") {
			t.Errorf("%s with an invalid dpsd.toml: exit code %d: %s", command, code, out)
		}
	}
	if now := c.process(t); now != before {
		t.Errorf("dpsd is process %q, want %q: an invalid dpsd.toml has stopped it", now, before)
	}
	undo()

	c.restarts(t)
	c.renumbered(t, []string{"rc-service", "dpsd", "stop"}, []string{"rc-service", "dpsd", "start"})
	c.must(t, "rc-service", "dpsd", "stop")
	if now := c.process(t); now != "" {
		t.Errorf("process %s is left", now)
	}
}

func TestRunitStartsAndStopsDpsdAndKnowsWhenItIsReady(t *testing.T) {
	t.Parallel()
	c := boot(t, "mkdir -p /run/service; cp -R /init/runit /run/service/dpsd; exec runsvdir -P /run/service")
	until(t, "runit supervises dpsd", func() bool { _, code := c.exits(t, "sv", "status", "/run/service/dpsd"); return code == 0 })
	c.must(t, "sv", "-w", fmt.Sprint(patience.Seconds()), "start", "/run/service/dpsd") // waits for the script "check"
	c.service(t)
	c.logs(t, " info  Assigned to localhost as gw-1 (generation 1, written)\n")

	c.must(t, "sv", "hup", "/run/service/dpsd")
	c.restarts(t)
	c.renumbered(t, []string{"sv", "down", "/run/service/dpsd"}, []string{"sv", "up", "/run/service/dpsd"})
	c.edit(t, "x = 1")
	c.must(t, "kill", "-9", c.process(t))
	until(t, "runit does not start dpsd with an invalid dpsd.toml", func() bool {
		out, _ := c.exits(t, "sv", "status", "/run/service/dpsd")
		return strings.HasPrefix(out, "down: ") && strings.Contains(c.out.String(), "unknown key")
	})
}

func TestS6StartsAndStopsDpsdAndKnowsWhenItIsReady(t *testing.T) {
	t.Parallel()
	c := boot(t, "mkdir -p /run/service; cp -R /init/s6 /run/service/dpsd; exec s6-svscan /run/service")
	until(t, "s6 supervises dpsd", func() bool { _, code := c.exits(t, "s6-svok", "/run/service/dpsd"); return code == 0 })
	c.must(t, "s6-svwait", "-U", "-t", fmt.Sprint(patience.Milliseconds()), "/run/service/dpsd")
	c.service(t)
	c.logs(t, " info  Assigned to localhost as gw-1 (generation 1, written)\n")

	c.restarts(t)
	c.renumbered(t, []string{"s6-svc", "-d", "/run/service/dpsd"}, []string{"s6-svc", "-u", "/run/service/dpsd"})
	c.edit(t, "x = 1")
	c.must(t, "kill", "-9", c.process(t))
	until(t, "s6 does not start dpsd with an invalid dpsd.toml", func() bool {
		out, _ := c.exits(t, "s6-svstat", "-o", "up,wantedup,exitcode", "/run/service/dpsd")
		return out == "false false 78\n" && strings.Contains(c.out.String(), "unknown key")
	})
}

// renumbered stops dpsd, gives its files to another user, as after a start from an image in which
// the user and the groups have other numbers, and starts it again.
func (c *container) renumbered(t *testing.T, stop, start []string) {
	t.Helper()
	c.must(t, stop...)
	until(t, "dpsd has ended", func() bool { return c.process(t) == "" })
	c.must(t, "sh", "-ec", `: >/var/lib/dpsd/certificate/old; ln -s /etc/hosts /var/lib/dpsd/link; chown -Rh 1234:1235 /var/lib/dpsd`)
	c.must(t, start...)
	c.service(t)
	if left := c.must(t, "find", "/var/lib/dpsd", "(", "-user", "1234", "-o", "-group", "1235", ")"); left != "" {
		t.Errorf("these files keep the other numbers:\n%s", left)
	}
	if owner := c.must(t, "stat", "-c", "%U:%G", "/var/lib/dpsd/certificate/old", "/etc/hosts"); owner != "dpsd:dpsd-certificate\nroot:root\n" {
		t.Errorf("the owners of the file of a certificate and of the target of a link are\n%s", owner)
	}
}

// procd exists only in OpenWrt. This substitute for /etc/rc.common passes what the script gives to
// procd to the test.
const rcCommon = `#!/bin/sh
initscript=$1 action=$2
procd_open_instance() { : >/tmp/procd; }
procd_set_param() { echo "$*" >>/tmp/procd; }
procd_close_instance() { echo end >>/tmp/procd; }
procd_send_signal() { echo "signal $*" >>/tmp/procd; }
. "$initscript"
case $action in
start | reload) "${action}_service" ;;
*) "$action" ;;
esac
`

func TestTheScriptForProcdPassesACommandThatRuns(t *testing.T) {
	t.Parallel()
	c := boot(t, logger+"cp /init/procd/dpsd /etc/init.d/dpsd; "+forever)
	c.booted(t)
	c.must(t, "sh", "-c", "cat >/etc/rc.common <<'END'\n"+rcCommon+"END\n")
	c.must(t, "/etc/init.d/dpsd", "start")
	parameters := map[string]string{}
	for line := range strings.Lines(c.must(t, "cat", "/tmp/procd")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		parameters[name] = value
	}
	for name, want := range map[string]string{"user": "dpsd", "group": "dpsd", "respawn": "3600 5 0", "reload_signal": "HUP", "file": "/etc/dpsd/dpsd.toml", "end": ""} {
		if got, found := parameters[name]; !found || got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// procd adds the groups of the user.
	start := "umask 077; s6-setuidgid " + parameters["user"] + " " + parameters["command"] + " </dev/null >/tmp/out 2>&1 &"
	c.must(t, "sh", "-c", start)
	c.service(t)
	c.renumbered(t, []string{"kill", c.process(t)}, []string{"sh", "-c", "/etc/init.d/dpsd start; " + start})
	c.syslogged(t, "Assigned to localhost as gw-1 (generation 1, written)")

	c.must(t, "/etc/init.d/dpsd", "reload")
	contains(t, "procd's part", c.must(t, "cat", "/tmp/procd"), "signal dpsd * HUP\n")
	c.edit(t, "x = 1")
	for _, command := range []string{"start", "reload", "checkconfig"} {
		if out, code := c.exits(t, "/etc/init.d/dpsd", command); code == 0 || !strings.Contains(out, "unknown key") {
			t.Errorf("%s with an invalid dpsd.toml: exit code %d: %s", command, code, out)
		}
	}
}

func TestShellcheckAcceptsTheScripts(t *testing.T) {
	need(t, "shellcheck")
	found := 0
	err := filepath.WalkDir("../../packaging/init", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(text), "#!") {
			return err
		}
		found++
		// local: in every shell of these systems. Variables that look unused: for openrc-run and
		// rc.common.
		if out, err := exec.Command("shellcheck", "--shell=sh", "--exclude=SC3043,SC2034", path).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil || found != 8 {
		t.Errorf("%d scripts: %v", found, err)
	}
}
