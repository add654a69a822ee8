package deb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/test/repack"
)

// image is a root file system in which nothing runs.
type image struct {
	t    *testing.T
	root string
	// dpkg installs into it from inside, or from outside (DPKG_ROOT, dpkg(1)).
	dpkg func(args ...string)
}

// TestImage installs, upgrades, downgrades, removes and purges the package in images of each
// release, like image builders. There is no systemd and no /proc.
func TestImage(t *testing.T) {
	deb := artefact(t, "dpsd", native(t), ".deb")
	need(t, true, "dpkg-deb", "chroot")
	before := repack.Older(t, deb)
	for _, release := range []string{"bookworm", "trixie"} {
		for _, way := range []string{"chroot", "DPKG_ROOT"} {
			t.Run(release+"/"+way, func(t *testing.T) {
				t.Parallel()
				lifetime(newImage(t, suite(t, release), way), before, deb)
			})
		}
	}
}

// inImages runs a test in images of each release and way in which the package from an earlier
// time is installed, and which have the current package as /dpsd.deb.
func inImages(t *testing.T, repacked func(t testing.TB, deb string) string, test func(t *testing.T, m *image, way string)) {
	t.Helper()
	deb := artefact(t, "dpsd", native(t), ".deb")
	need(t, true, "dpkg-deb", "chroot")
	before := repacked(t, deb)
	for _, release := range []string{"bookworm", "trixie"} {
		for _, way := range []string{"chroot", "DPKG_ROOT"} {
			t.Run(release+"/"+way, func(t *testing.T) {
				t.Parallel()
				m := newImage(t, suite(t, release), way)
				for name, from := range map[string]string{"/before.deb": before, "/dpsd.deb": deb} {
					run(t, "cp", from, m.root+name)
				}
				m.dpkg("--install", "/before.deb")
				test(t, m, way)
			})
		}
	}
}

// TestAnImageUpgradeGivesTheKeysToTheirOwnGroup tests keys that were put into an image with a
// package whose keys belonged to the group dpsd.
func TestAnImageUpgradeGivesTheKeysToTheirOwnGroup(t *testing.T) {
	inImages(t, repack.BeforeKeysGroup, func(t *testing.T, m *image, way string) {
		service := m.group("dpsd")
		groups := map[string]int{"device.key": service, "other.key": 4711}
		for name, group := range groups {
			file := filepath.Join(m.root, "etc/dpsd/keys", name)
			if err := errors.Join(os.WriteFile(file, []byte("a key\n"), 0o640), os.Chown(file, 0, group)); err != nil {
				t.Fatal(err)
			}
		}
		m.dpkg("--install", "/dpsd.deb")
		groups["device.key"] = m.group("dpsd-keys")
		for name, want := range groups {
			info, err := os.Stat(filepath.Join(m.root, "etc/dpsd/keys", name))
			if err != nil {
				t.Fatal(err)
			}
			if got := int(info.Sys().(*syscall.Stat_t).Gid); got != want || info.Mode().Perm() != 0o640 {
				t.Errorf("%s is of group %d with mode %v, want group %d", name, got, info.Mode(), want)
			}
		}
		m.dpkg("--purge", "dpsd")
		text, err := os.ReadFile(filepath.Join(m.root, "etc/group"))
		if err != nil || regexp.MustCompile("(?m)^dpsd").Match(text) {
			t.Errorf("purging leaves a group: %v\n%s", err, text)
		}
	})
}

// TestAnImageUpgradeCreatesTheGroupOfIssuedCertificates tests an image with a package that
// requested no certificates.
func TestAnImageUpgradeCreatesTheGroupOfIssuedCertificates(t *testing.T) {
	inImages(t, repack.BeforeCertificateGroup, func(t *testing.T, m *image, way string) {
		text, err := os.ReadFile(filepath.Join(m.root, "etc/group"))
		if err != nil || strings.Contains(string(text), "dpsd-certificate") {
			t.Fatalf("the package from before is another: %v\n%s", err, text)
		}
		m.dpkg("--install", "/dpsd.deb")
		want := m.group("dpsd-certificate")
		info, err := os.Stat(filepath.Join(m.root, "var/lib/dpsd/certificate"))
		switch {
		case way == "chroot" && errors.Is(err, fs.ErrNotExist): // systemd-tmpfiles creates it at the first boot
		case err != nil:
			t.Error(err)
		case int(info.Sys().(*syscall.Stat_t).Gid) != want || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o750:
			t.Errorf("certificate is of group %d with mode %v, want group %d", info.Sys().(*syscall.Stat_t).Gid, info.Mode(), want)
		}

		// An administrator's program reads the certificate: a purge keeps its group.
		group := filepath.Join(m.root, "etc/group")
		text, err = os.ReadFile(group)
		if err != nil {
			t.Fatal(err)
		}
		member := regexp.MustCompile("(?m)^dpsd-certificate:.*:$").ReplaceAll(text, []byte("${0}games"))
		if err := os.WriteFile(group, member, 0o644); err != nil {
			t.Fatal(err)
		}
		m.dpkg("--purge", "dpsd")
		if text, err = os.ReadFile(group); err != nil || !regexp.MustCompile("(?m)^dpsd-certificate:.*:games$").Match(text) || regexp.MustCompile("(?m)^dpsd(-keys)?:").Match(text) {
			t.Errorf("after the purge: %v\n%s", err, text)
		}
	})
}

// group returns the ID of a group in the image.
func (m *image) group(name string) int {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.root, "etc/group"))
	if err != nil {
		m.t.Fatal(err)
	}
	match := regexp.MustCompile("(?m)^" + name + `:[^:]*:(\d+):`).FindSubmatch(text)
	if match == nil {
		m.t.Fatalf("there is no group %s:\n%s", name, text)
	}
	id, err := strconv.Atoi(string(match[1]))
	if err != nil {
		m.t.Fatal(err)
	}
	return id
}

func newImage(t *testing.T, root, way string) *image {
	t.Helper()
	m := &image{t: t, root: filepath.Join(t.TempDir(), "image")}
	run(t, "cp", "-a", "--reflink=auto", root, m.root)
	m.dpkg = func(args ...string) {
		t.Helper()
		var cmd *exec.Cmd
		if way == "chroot" {
			cmd = exec.Command("/usr/bin/dpkg", args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.root}
			cmd.Dir = "/"
		} else {
			for i, a := range args {
				if strings.HasSuffix(a, ".deb") {
					args[i] = m.root + a
				}
			}
			cmd = exec.Command("dpkg", append([]string{"--root=" + m.root, "--force-script-chrootless"}, args...)...)
		}
		cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("dpkg %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return m
}

// lifetime tests everything that may happen to a package in an image.
func lifetime(m *image, before, deb string) {
	t := m.t
	t.Helper()
	for name, from := range map[string]string{"/prev.deb": before, "/dpsd.deb": deb} {
		run(t, "cp", from, m.root+name)
	}
	empty := m.files()

	m.dpkg("--install", "/prev.deb")
	m.installed(empty, before)

	// The files of the administrator and of dpsd are kept.
	kept := map[string]string{
		"etc/dpsd/dpsd.toml":       "[dps]\n",
		"etc/dpsd/keys/device.key": "c2VjcmV0\n",
		"var/lib/dpsd/state.json":  "{}\n",
	}
	for name, text := range kept {
		path := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	configured := m.files()
	for _, step := range []struct {
		name string
		args []string
	}{
		{"an upgrade", []string{"--install", "/dpsd.deb"}},
		{"the same again", []string{"--install", "/dpsd.deb"}},
		{"a downgrade", []string{"--install", "/prev.deb"}},
		{"another upgrade", []string{"--install", "/dpsd.deb"}},
	} {
		m.dpkg(step.args...)
		if changes := differences(configured, m.files()); len(changes) != 0 {
			t.Errorf("%s changes %q", step.name, changes)
		}
	}

	m.dpkg("--remove", "dpsd")
	removed := m.files()
	for name := range kept {
		if removed[name] != configured[name] {
			t.Errorf("removing changes %s: %q", name, removed[name])
		}
	}
	if _, is := removed["usr/bin/dpsd"]; is {
		t.Error("removing leaves the program")
	}

	m.dpkg("--install", "/dpsd.deb")
	if changes := differences(configured, m.files()); len(changes) != 0 {
		t.Errorf("removing and installing again changes %q", changes)
	}

	m.dpkg("--purge", "dpsd")
	if changes := differences(empty, m.files()); len(changes) != 0 {
		t.Errorf("purging leaves %q", changes)
	}
	m.dpkg("--install", "/dpsd.deb")
	m.installed(empty, deb)
	m.dpkg("--remove", "dpsd")
	m.dpkg("--purge", "dpsd")
	if changes := differences(empty, m.files()); len(changes) != 0 {
		t.Errorf("removing, then purging leaves %q", changes)
	}
}

// installed checks an image into which the package has been installed: it must contain no data of
// a single machine, and no unfilled placeholder.
func (m *image) installed(empty map[string]string, deb string) {
	t := m.t
	t.Helper()
	files := m.files()
	for _, change := range differences(empty, files) {
		sign, name := change[:1], change[1:]
		switch {
		case sign == "+" && strings.Contains(run(t, "dpkg-deb", "--contents", deb), " ./"+name): // the package's own
		case sign == "+" && name == "etc/systemd/system/multi-user.target.wants/dpsd.service": // it is enabled
		case sign == "+" && strings.HasPrefix(name, "var/lib/systemd/deb-systemd-helper-enabled"): // and that is remembered
		case sign == "+" && slices.Contains([]string{"run/dpsd", "var/lib/dpsd", "var/lib/dpsd/certificate"}, name): // tmpfiles.d, where it can
		case sign == "*" && slices.Contains([]string{"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"}, name): // its user
		default:
			t.Errorf("installing changes %s", change)
		}
	}
	passwd, err := os.ReadFile(filepath.Join(m.root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^dpsd:[^:]*:\d+:\d+:[^:]*:/var/lib/dpsd:/usr/sbin/nologin$`).Match(passwd) {
		t.Errorf("there is no user dpsd:\n%s", passwd)
	}
	if enabled := files["etc/systemd/system/multi-user.target.wants/dpsd.service"]; !strings.HasSuffix(enabled, "/lib/systemd/system/dpsd.service") {
		t.Errorf("the service is not enabled: %q", enabled)
	}
	for _, name := range []string{"dpsd", "dpsd-keys", "dpsd-certificate"} {
		m.group(name)
	}
	// In a chroot without /proc, systemd-tmpfiles creates them at the first boot.
	for name, want := range map[string]string{"var/lib/dpsd": "drwxr-xr-x", "var/lib/dpsd/certificate": "dgrwxr-x---"} {
		if directory, is := files[name]; is && !strings.HasPrefix(directory, want+" ") {
			t.Errorf("/%s is %q, want %s", name, directory, want)
		}
	}
	if keys := files["etc/dpsd/keys"]; !strings.HasPrefix(keys, "drwxr-x--- 0 ") {
		t.Errorf("/etc/dpsd/keys is %q, want 0750, root's", keys)
	}
	if _, is := files["etc/dpsd/dpsd.toml"]; is {
		t.Error("there is a dpsd.toml, which is the administrator's to write")
	}
}

// notOurs are files in which dpkg, passwd(1) and journalctl store their data.
var notOurs = regexp.MustCompile(`^(var/lib/dpkg|var/log|var/cache|etc/\.pwd\.lock$|etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|var/lib/systemd/catalog/database$)`)

// files describes each file of the image by its mode, owner and content.
func (m *image) files() map[string]string {
	t := m.t
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(m.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.root, path)
		if err != nil || name == "." || notOurs.MatchString(name) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular() && strings.HasPrefix(name, "usr/"): // only dpkg writes there, and sets the time
			content = fmt.Sprint(info.Size(), info.ModTime())
		case info.Mode().IsRegular():
			content = sum(t, path)
		case info.Mode()&fs.ModeSymlink != 0:
			content, err = os.Readlink(path)
		}
		files[name] = fmt.Sprintf("%s %d %s", info.Mode(), info.Sys().(*syscall.Stat_t).Uid, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// differences lists what is new (+), missing (-) or changed (*).
func differences(before, after map[string]string) (changes []string) {
	for name := range after {
		switch was, is := before[name]; {
		case !is:
			changes = append(changes, "+"+name)
		case was != after[name]:
			changes = append(changes, "*"+name)
		}
	}
	for name := range before {
		if _, is := after[name]; !is {
			changes = append(changes, "-"+name)
		}
	}
	return slices.Sorted(slices.Values(changes))
}
