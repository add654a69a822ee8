package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

func newReady() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "ready --dir DIR",
		Short: "Check whether serve is ready",
		Long: `Ready exits with 0 if a simulator serves devices with the directory DIR, and
with 1 otherwise. It is meant as a container's health check: run it in the
simulator's container.

It reads DIR/endpoint.json and checks that the process exists. It does not
connect to the simulator, so health checks neither count as events of a
scenario nor appear in the packet log.`,
		Example: `  dpsd-sim ready --dir sim`,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError("--dir is required")
			}
			return ready(dir)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`DIR` of the simulator")
	_ = c.MarkFlagDirname("dir") // fails only for a flag that does not exist
	return c
}

// ready returns an error if no simulator serves devices with a directory.
func ready(dir string) error {
	file := filepath.Join(dir, endpointFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no simulator is ready: %w", err)
	}
	if err != nil {
		return err
	}
	var e endpoint
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	// Signal 0 is not sent, but the system checks that the process exists, which may belong to
	// another user. This process can have the number of the previous simulator, because both
	// are process 1 of a container.
	err = syscall.Kill(e.Process, 0)
	if e.Process <= 0 || e.Process == os.Getpid() || err != nil && !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("no simulator is ready: %s belongs to process %d, which has ended", file, e.Process)
	}
	return nil
}
