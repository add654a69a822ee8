// Package shipped builds the programs that tests run.
package shipped

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Build puts dpsd and dpsd-sim into dir, built as the packages have them, but for the
// version: that is "devel". One set of flags for all is also one build of the
// standard library.
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
