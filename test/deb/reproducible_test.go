package deb

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSameTreeSameBytes builds the packages of this machine and of a foreign architecture again:
// in a different directory, time zone and language, with a different umask and home, and those of
// this machine with an empty Go cache.
func TestSameTreeSameBytes(t *testing.T) {
	need(t, false, "dh", "dpkg-genchanges")
	other := filepath.Join(t.TempDir(), "a longer path", "with spaces")
	for _, d := range []string{"tmp", "home"} {
		if err := os.MkdirAll(filepath.Join(other, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	surroundings := []string{
		"TMPDIR=" + filepath.Join(other, "tmp"), "HOME=" + filepath.Join(other, "home"),
		"TZ=Pacific/Kiritimati", "LC_ALL=C", "LANG=tr_TR.UTF-8",
		"GOMODCACHE=" + goEnv(t, "GOMODCACHE"), // downloads are not part of the test
	}
	t.Run(native(t), func(t *testing.T) {
		t.Parallel()
		sameBytes(t, native(t), append(surroundings, "GOCACHE="+t.TempDir()))
	})
	t.Run("armhf", func(t *testing.T) {
		t.Parallel()
		sameBytes(t, "armhf", append(surroundings, "GOCACHE="+goEnv(t, "GOCACHE")))
	})
}

func sameBytes(t *testing.T, arch string, surroundings []string) {
	t.Helper()
	dir, version := dist(t)
	again := t.TempDir()
	cmd := exec.Command("sh", "-c", `umask 077; exec ../../packaging/deb/build "$@"`, "sh", version, again, arch)
	cmd.Env = append(os.Environ(), surroundings...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made, err := os.ReadDir(again)
	if err != nil {
		t.Fatal(err)
	}
	packages := 0
	for _, f := range made {
		switch filepath.Ext(f.Name()) {
		case ".deb":
			packages++
		case "": // SHA256SUMS, of fewer packages here
			continue
		}
		first, second := sum(t, filepath.Join(dir, f.Name())), sum(t, filepath.Join(again, f.Name()))
		if first != second {
			t.Errorf("%s differs from build to build; diffoscope shows where", f.Name())
		}
		t.Log(second, f.Name())
	}
	if packages != 3 {
		t.Errorf("%d packages were made, want 3", packages)
	}
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "go", "env", name))
}
