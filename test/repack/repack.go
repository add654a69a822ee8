// Package repack creates packages of earlier versions from a built package, for tests of upgrades
// and downgrades.
package repack

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Older returns the same package with a lower version.
func Older(t testing.TB, deb string) string {
	t.Helper()
	return repack(t, deb, "~prev", nil)
}

// BeforeKeysGroup returns the package from the time when the keys belonged to the group dpsd.
func BeforeKeysGroup(t testing.TB, deb string) string {
	t.Helper()
	return repack(t, deb, "~before", map[string][][2]string{
		"usr/lib/sysusers.d/dpsd.conf":        {{"g dpsd-keys -\n", ""}, {"m dpsd dpsd-keys\n", ""}, {"g dpsd-certificate -\n", ""}},
		"usr/lib/tmpfiles.d/dpsd.conf":        append(withoutStateDirectory(), [2]string{" root dpsd-keys ", " root dpsd "}),
		"usr/lib/systemd/system/dpsd.service": {{"SupplementaryGroups=dpsd-keys\n", ""}},
		"DEBIAN/postinst":                     {{"\t\tseparate_keys\n", "\t\t:\n"}},
		"DEBIAN/postrm":                       {{"groupdel ", ": "}},
	})
}

// BeforeCertificateGroup returns the package from the time when dpsd requested no certificates.
func BeforeCertificateGroup(t testing.TB, deb string) string {
	t.Helper()
	return repack(t, deb, "~before", map[string][][2]string{
		"usr/lib/sysusers.d/dpsd.conf": {{"g dpsd-certificate -\n", ""}},
		"usr/lib/tmpfiles.d/dpsd.conf": withoutStateDirectory(),
		"DEBIAN/postrm":                {{" dpsd-certificate; do", "; do"}},
	})
}

// withoutStateDirectory removes the lines about the state directory from the package's tmpfiles.d.
func withoutStateDirectory() [][2]string {
	return [][2]string{
		{"d /var/lib/dpsd :0755 dpsd dpsd -\n", ""},
		{"d /var/lib/dpsd/certificate 2750 dpsd dpsd-certificate -\n", ""},
		{"Z! /var/lib/dpsd - dpsd dpsd -\n", ""},
		{"Z /var/lib/dpsd/certificate - dpsd dpsd-certificate -\n", ""},
	}
}

// repack appends to the version, and replaces texts in files. Each text must exist.
func repack(t testing.TB, deb, version string, edits map[string][][2]string) string {
	t.Helper()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("dpkg-deb", args...).CombinedOutput(); err != nil { //nolint:gosec // the arguments are those of tests
			t.Fatalf("dpkg-deb %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	dir := filepath.Join(t.TempDir(), "dpsd")
	run("--raw-extract", deb, dir)
	edit := func(name string, change func(string) string) {
		t.Helper()
		file := filepath.Join(dir, name)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		changed := change(string(text))
		if changed == string(text) {
			t.Fatalf("%s has changed: nothing to replace in\n%s", name, text)
		}
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil { // its mode does not change
			t.Fatal(err)
		}
	}
	edit("DEBIAN/control", func(s string) string {
		return regexp.MustCompile(`(?m)^Version: .*`).ReplaceAllString(s, "${0}"+version)
	})
	for name, pairs := range edits {
		for _, pair := range pairs {
			edit(name, func(s string) string { return strings.ReplaceAll(s, pair[0], pair[1]) })
		}
	}
	to := filepath.Join(t.TempDir(), version+".deb")
	run("--root-owner-group", "-Znone", "--build", dir, to)
	return to
}
