// Package shipped builds the programs that tests run.
package shipped

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Build builds dpsd and dpsd-sim in dir with the flags of the packages, except for the version,
// which is "devel". With one set of flags for all tests, the standard library is built only once.
func Build(dir string) error {
	module, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	root := filepath.Dir(string(bytes.TrimSpace(module)))
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	cmd := exec.Command("make", "--silent", "--directory", root, "build", "BIN="+dir, "VERSION=devel", "BUILT=0") //nolint:gosec // for tests alone
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("make build: %w\n%s", err, out)
	}
	return nil
}
