package deb

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// separated creates a root directory with the script, runs the package's postinst in it as an
// upgrade from a version whose keys belonged to the group dpsd, and returns the output of postinst
// and the files that belong to each group.
func separated(t *testing.T, script string) (printed string, groups map[string][]string) {
	t.Helper()
	dist(t) // "make test" runs without the privilege
	need(t, true)
	root := filepath.Join(t.TempDir(), "image")
	err := errors.Join(
		os.MkdirAll(filepath.Join(root, "etc/dpsd"), 0o755), os.Mkdir(filepath.Join(root, "data"), 0o755),
		os.WriteFile(filepath.Join(root, "etc/group"), []byte("dpsd:x:64321:\ndpsd-keys:x:64322:dpsd\nsite:x:64323:\n"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	inside := func(script string, args ...string) string {
		cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "DPKG_ROOT="+root)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	inside("set -e\nkey() { mkdir -p ${1%/*}; echo key >$1; chgrp ${2:-64321} ${1%/*} $1; chmod 0640 $1; }\n" + script)
	postinst, err := filepath.Abs("../../packaging/deb/debian/dpsd.postinst")
	if err != nil {
		t.Fatal(err)
	}
	printed = inside(`sh "$1" configure 0.1`, postinst)
	groups = map[string][]string{}
	for _, line := range strings.Split(strings.TrimSpace(inside(`find . -path ./etc/group -o -gid +64320 -printf '%G %p\n' | sort`)), "\n") {
		group, path, _ := strings.Cut(line, " ")
		groups[group] = append(groups[group], strings.TrimPrefix(path, "./"))
	}
	return printed, groups
}

func TestTheKeysGetTheirOwnGroupAlsoBehindLinksOfRoot(t *testing.T) {
	const advice = "dpsd: Members of the group dpsd can still read %, which is not in /etc/dpsd/keys. If it holds keys, run: find % -group dpsd -exec chgrp -h dpsd-keys {} +\n"
	says := func(path string) string { return strings.ReplaceAll(advice, "%", path) }
	for _, c := range []struct {
		name, script string
		moved, kept  string // the files of the groups dpsd-keys and dpsd
		wantsPrinted string
	}{
		{name: "a directory", script: "key etc/dpsd/keys/device.key; key etc/dpsd/keys/site.key 64323; chgrp 64321 etc/dpsd/keys",
			moved: "etc/dpsd/keys etc/dpsd/keys/device.key"},
		{name: "a relative link to a directory", script: "key data/keys/device.key; ln -s ../../data/keys etc/dpsd/keys",
			moved: "data/keys data/keys/device.key"},
		{name: "an absolute link to a directory, which leads to one of the image", script: "key data/keys/device.key; ln -s /data/keys etc/dpsd/keys",
			moved: "data/keys data/keys/device.key"},
		{name: "a link by way of another and past the root", script: "key data/keys/device.key; ln -s ../../../../mnt/keys etc/dpsd/keys; ln -s data mnt",
			moved: "data/keys data/keys/device.key"},
		{name: "a linked directory of the configuration", script: "key data/dpsd/keys/device.key; rmdir etc/dpsd; ln -s /data/dpsd etc/dpsd",
			moved: "data/dpsd/keys data/dpsd/keys/device.key"},
		{name: "a linked key file", script: "key etc/dpsd/keys/device.key; key data/other.key; chgrp 0 data; ln -s /data/other.key etc/dpsd/keys/other.key",
			moved: "etc/dpsd/keys etc/dpsd/keys/device.key", kept: "data/other.key", wantsPrinted: says("/data/other.key")},
		{name: "a linked directory within", script: "key etc/dpsd/keys/device.key; key data/site/other.key; chgrp 0 data/site; ln -s ../../../data/site etc/dpsd/keys/site",
			moved: "etc/dpsd/keys etc/dpsd/keys/device.key", kept: "data/site/other.key", wantsPrinted: says("/data/site")},
		{name: "a key file elsewhere that the configuration names",
			script: `key etc/dpsd/keys/device.key; key data/other.key; chgrp 0 data; printf '[[credential]]\nkey = "file:/data/other.key"\n' >etc/dpsd/dpsd.toml`,
			moved:  "etc/dpsd/keys etc/dpsd/keys/device.key", kept: "data/other.key", wantsPrinted: says("/data/other.key")},
		{name: "linked files that the group cannot read", script: "key etc/dpsd/keys/device.key; key data/other.key; chgrp 0 data; chmod 0600 data/other.key; ln -s /data/other.key etc/dpsd/keys/other.key; ln -s gone etc/dpsd/keys/gone; ln -s loop etc/dpsd/keys/loop",
			moved: "etc/dpsd/keys etc/dpsd/keys/device.key", kept: "data/other.key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			printed, groups := separated(t, c.script)
			if moved, kept := strings.Join(groups["64322"], " "), strings.Join(groups["64321"], " "); moved != c.moved || kept != c.kept {
				t.Errorf("dpsd-keys has %q, want %q; dpsd has %q, want %q", moved, c.moved, kept, c.kept)
			}
			if printed != c.wantsPrinted {
				t.Errorf("postinst prints %q, want %q", printed, c.wantsPrinted)
			}
		})
	}
}

func TestTheMigrationOfTheKeysFollowsNoLinkOfTheService(t *testing.T) {
	for name, script := range map[string]string{
		"a link in the place of the keys":          "ln -s /data/own etc/dpsd/keys; chown -h 64321 etc/dpsd/keys",
		"a link on the way":                        "ln -s /data/link etc/dpsd/keys; ln -s own data/link; chown -h 64321 data/link",
		"a link among the keys of the service":     "key etc/dpsd/keys/device.key; ln -s /data/own/other.key etc/dpsd/keys/link; chown -h 64321:0 etc/dpsd/keys/link",
		"a link with a name that steers terminals": "key etc/dpsd/keys/device.key; ln -s /data/own/other.key \"etc/dpsd/keys/$(printf '\\033[2J\\nx')\"; chown -h 64321:0 etc/dpsd/keys/*x",
	} {
		t.Run(name, func(t *testing.T) {
			printed, groups := separated(t, "key data/own/other.key; chmod 0644 data/own/other.key\n"+script)
			for _, path := range groups["64322"] {
				if strings.HasPrefix(path, "data") {
					t.Errorf("%s belongs to dpsd-keys", path)
				}
			}
			unplaced := strings.HasPrefix(script, "ln")
			if want := "dpsd: The path /etc/dpsd/keys contains a link that does not belong to root, so the keys there keep their group. Members of the group dpsd can still read those that belong to it. To find them, run: find -L /etc/dpsd/keys -group dpsd\n"; unplaced && printed != want || !unplaced && printed != "" {
				t.Errorf("postinst prints %q", printed)
			}
		})
	}
}
