package update

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BeforeCertificates is the last commit before dpsd requested certificates. Its records have no
// member for them, and it does not know their directory.
const BeforeCertificates = "5a2990c60f67b1894f672a745f5802ab3f7e0604"

// ErrNoHistory means that the commits of earlier versions are not available: the tree is not a
// clone, or a shallow one.
var ErrNoHistory = errors.New("the history has no earlier version of dpsd: a complete clone is needed")

// Earlier builds dpsd as of a commit. It returns the tree of the commit, in dir, and the program.
func Earlier(dir, commit string) (tree, program string, err error) {
	git := func(args ...string) *exec.Cmd { // the clone may belong to another user
		return exec.Command("git", append([]string{"-c", "safe.directory=*"}, args...)...) //nolint:gosec // for tests alone
	}
	if git("cat-file", "-e", commit+"^{commit}").Run() != nil {
		return "", "", ErrNoHistory
	}
	top, err := git("rev-parse", "--show-toplevel").Output()
	if err != nil {
		return "", "", fmt.Errorf("git rev-parse: %w", err)
	}
	archive := git("-C", strings.TrimSpace(string(top)), "archive", "--format=tar", commit)
	data, err := archive.Output()
	if err != nil {
		return "", "", fmt.Errorf("git archive: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	tree, bin := filepath.Join(dir, "tree"), filepath.Join(dir, "bin")
	if err := os.MkdirAll(tree, 0o755); err != nil { //nolint:gosec // it contains no secret
		return "", "", err
	}
	unpack := exec.Command("tar", "-x", "-C", tree) //nolint:gosec // for tests alone
	unpack.Stdin = bytes.NewReader(data)
	if out, err := unpack.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("tar: %w\n%s", err, out)
	}
	build := exec.Command("make", "--silent", "--directory", tree, "build", "PROGRAMS=./cmd/dpsd", "BIN="+bin, "VERSION=earlier", "BUILT=0") //nolint:gosec // for tests alone
	if out, err := build.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return tree, filepath.Join(bin, "dpsd"), nil
}
