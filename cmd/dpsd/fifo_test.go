package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestSIGTERMEndsAConfigurationThatNeverEnds(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "dpsd.toml")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("dpsd", "run", "--config", fifo)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	defer late.Stop()
	writer, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when dpsd has opened it too
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if how := c.ProcessState.Sys().(syscall.WaitStatus); how.Signal() != syscall.SIGTERM {
		t.Errorf("dpsd ended with %s, not by SIGTERM", c.ProcessState)
	}
}
