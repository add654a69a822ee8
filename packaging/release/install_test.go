package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// target is a root file system that is not running, in which the install script of the archive
// installs a program.
type target struct {
	t    *testing.T
	work string // the directory of the archive and of the root, the only one that can be written
	root string
}

const accountsOfRoot = "root:x:0:0::/root:/bin/sh\n"

// newTarget returns a root with directories and files, and an archive with the service.
func newTarget(t *testing.T, files map[string]string) target {
	t.Helper()
	need(t, "bwrap", "systemctl", "systemd-sysusers")
	if os.Getuid() != 0 {
		t.Skip("only root installs the service")
	}
	work := filepath.Join(t.TempDir(), "with a space")
	r := target{t, work, filepath.Join(work, "the root")}
	for name, text := range files {
		write(t, filepath.Join(r.root, name), []byte(text))
	}
	for name, source := range map[string]string{
		"install":                          "scripts/install",
		"bin/dpsd":                         "../init/openrc/dpsd", // any program
		"service/openrc/dpsd":              "../init/openrc/dpsd",
		"service/systemd/dpsd.service":     "../systemd/dpsd.service",
		"service/systemd/dpsd-hub@.socket": "../systemd/dpsd-hub@.socket",
		"service/systemd/dpsd.catalog":     "../systemd/dpsd.catalog",
		"service/sysusers.d/dpsd.conf":     "../systemd/dpsd.sysusers",
		"service/tmpfiles.d/dpsd.conf":     "../systemd/dpsd.tmpfiles",
		"share/dpsd/dpsd.toml":             "../../config/dpsd.toml",
		"share/doc/dpsd/examples/a.conf":   "../../config/dpsd.toml",
		"share/man/man8/dpsd.8":            "../../docs/man/dpsd.8",
	} {
		path := write(t, filepath.Join(work, "archive", name), read(t, source))
		if name == "install" || strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "service/openrc/") {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// try runs the script from the directory above, with a relative DESTDIR and a strict umask.
// Except for the directory of the target, the file system is read-only.
func (r target) try(args ...string) (string, error) {
	cmd := exec.Command("bwrap", append([]string{"--cap-add", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", r.work, r.work, "--chdir", r.work,
		"--setenv", "DESTDIR", "the root", "sh", "-c", `umask 077; exec archive/install "$@"`, "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r target) run(args ...string) {
	r.t.Helper()
	if out, err := r.try(args...); err != nil {
		r.t.Fatalf("install %q: %v\n%s", args, err, out)
	}
}

// modes lists what is in the root: the path, the mode and the kind.
func (r target) modes() string {
	r.t.Helper()
	return tool(r.t, "sh", "-c", `cd "$1" && find . -mindepth 1 -printf '%P %m %y\n' | sort`, "sh", r.root)
}

func (r target) expect(state, list string, want ...string) {
	r.t.Helper()
	for _, line := range want {
		if !strings.Contains("\n"+list, "\n"+line+"\n") {
			r.t.Errorf("%s: there is no %q in\n%s", state, line, list)
		}
	}
}

func TestTheArchiveInstallsIntoARootThatIsNotRunningAndWritesNothingOutsideOfIt(t *testing.T) {
	r := newTarget(t, map[string]string{"etc/systemd/system.conf": "", "etc/passwd": accountsOfRoot, "etc/group": "root:x:0:\n"})
	for range 2 {
		r.run("--prefix", "/opt/dpsd")
	}
	r.expect("installed", r.modes(), "opt/dpsd/bin/dpsd 755 f", "opt/dpsd/bin 755 d", "opt/dpsd/share/dpsd/dpsd.toml 644 f", "etc/dpsd 755 d", "etc/dpsd/keys 750 d", "var/lib/dpsd 755 d",
		"var/lib/dpsd/certificate 2750 d", "etc/systemd/system/dpsd.service 644 f", "etc/systemd/system/dpsd-hub@.socket 644 f", "etc/systemd/system/multi-user.target.wants/dpsd.service 777 l", "usr/lib/systemd/catalog/dpsd.catalog 644 f")
	if unit := string(read(t, filepath.Join(r.root, "etc/systemd/system/dpsd.service"))); !strings.Contains(unit, "ExecStart=/opt/dpsd/bin/dpsd ") || strings.Contains(unit, "/usr/bin/dpsd") {
		t.Errorf("the service is\n%s", unit)
	}
	write(t, filepath.Join(r.root, "var/lib/dpsd/state.json"), []byte("{}"))
	tool(t, "systemctl", "--root="+r.root, "enable", "dpsd-hub@telemetry.socket")
	r.expect("enabled", r.modes(), "etc/systemd/system/dpsd.service.wants/dpsd-hub@telemetry.socket 777 l")
	r.run("--prefix=/opt/dpsd", "--remove")
	after := r.modes()
	r.expect("removed", after, "var/lib/dpsd/state.json 644 f", "etc/dpsd/keys 750 d")
	for line := range strings.Lines(after) {
		if !strings.HasSuffix(line, " d\n") && strings.Contains(line, "dpsd") && !strings.HasPrefix(line, "var/lib/dpsd/state.json ") {
			t.Errorf("left: %s", line)
		}
	}
}

// The root may be of another architecture: none of its programs runs.
func TestTheArchiveEnablesDpsdInARootWithOpenRC(t *testing.T) {
	r := newTarget(t, map[string]string{
		"sbin/openrc-run": "", "etc/passwd": accountsOfRoot + "dpsd:x:101:102::/:/sbin/nologin\n", "etc/group": "root:x:0:\ndpsd:x:102:\ndpsd-keys:x:103:dpsd\ndpsd-certificate:x:104:\n",
		"bin/sh": "of another architecture",
	})
	r.run()
	r.expect("installed", r.modes(), "etc/init.d/dpsd 755 f", "etc/runlevels/default/dpsd 777 l", "usr/local/bin/dpsd 755 f")
	owners := tool(t, "sh", "-c", `cd "$1" && stat -c '%n %u:%g' etc/dpsd/keys var/lib/dpsd var/lib/dpsd/certificate`, "sh", r.root)
	r.expect("installed", owners, "etc/dpsd/keys 0:103", "var/lib/dpsd 101:102", "var/lib/dpsd/certificate 101:104")
	if to, err := os.Readlink(filepath.Join(r.root, "etc/runlevels/default/dpsd")); to != "/etc/init.d/dpsd" {
		t.Errorf("the link leads to %s, %v", to, err)
	}
	if script := string(read(t, filepath.Join(r.root, "etc/init.d/dpsd"))); !strings.Contains(script, `command="/usr/local/bin/dpsd"`) {
		t.Errorf("the script is\n%s", script)
	}
	r.run("--remove")
	if list := r.modes(); strings.Contains(list, "init.d/dpsd") || strings.Contains(list, "runlevels/default/dpsd") || !strings.Contains(list, "var/lib/dpsd/certificate") {
		t.Errorf("after the removal, there is\n%s", list)
	}
}

func TestTheArchiveRefusesARootThatLeadsOutsideOfItselfAndAnUnusualPrefix(t *testing.T) {
	outside := t.TempDir()
	r := newTarget(t, map[string]string{"etc/systemd/system.conf": "", "etc/passwd": accountsOfRoot, "etc/group": "root:x:0:\n", "usr/share/a": ""})
	if err := os.Symlink(outside, filepath.Join(r.root, "usr/local")); err != nil {
		t.Fatal(err)
	}
	before := r.modes()
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "is outside of DESTDIR, because of a symbolic link; nothing is installed"},
		{[]string{"--prefix", "/opt/my programs"}, "may contain only letters"},
		{[]string{"--prefix", "/opt/a|b"}, "may contain only letters"},
		{[]string{"--prefix", "opt"}, "usage: "},
	} {
		if out, err := r.try(c.args...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%q: %v, want %q:\n%s", c.args, err, c.want, out)
		}
		if after := r.modes(); after != before {
			t.Errorf("%q: the root is now\n%s", c.args, after)
		}
	}
}
