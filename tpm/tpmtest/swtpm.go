// Package tpmtest provides two TPMs for tests. Software is swtpm, a complete TPM in a process of
// its own. TPM is in memory, works in virtual time, and shows what swtpm cannot: slow commands,
// repeated requests to retry, lockout, and the limitations of real chips.
package tpmtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Need skips a test if a program is not installed. In CI, the test fails.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is not installed", program)
			}
			t.Skipf("%s is not installed; as root on Debian, make test-tpm installs it", program)
		}
	}
}

// Software is swtpm. It has no resource manager and memory for three keys, so keys that are not
// flushed fill it.
type Software struct {
	// Socket is the Unix socket, for tpm.Device.Path.
	Socket string

	dir     string
	t       testing.TB
	process *exec.Cmd
	exited  chan struct{}
}

// Start starts a new swtpm, which ends with the test.
func Start(t testing.TB) *Software {
	t.Helper()
	Need(t, "swtpm")
	dir, err := os.MkdirTemp("", "tpm") // a Unix socket needs a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Software{Socket: filepath.Join(dir, "tpm.sock"), dir: dir, t: t}
	s.Restart()
	t.Cleanup(s.Kill)
	return s
}

// Restart starts swtpm with its old seeds, as after a power failure.
func (s *Software) Restart() {
	s.t.Helper()
	if s.process != nil {
		s.Kill()
	}
	_ = os.Remove(s.Socket)
	s.process = exec.Command("swtpm", //nolint:gosec // the arguments are paths of this package
		"socket", "--tpm2", "--tpmstate", "dir="+s.dir, "--flags", "not-need-init,startup-clear",
		"--ctrl", "type=unixio,path="+filepath.Join(s.dir, "control.sock"), "--server", "type=unixio,path="+s.Socket)
	var output bytes.Buffer
	s.process.Stdout, s.process.Stderr = &output, &output
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	s.exited = exited
	process := s.process
	go func() {
		_ = process.Wait() // it is killed
		close(exited)
	}()
	for {
		if c, err := net.Dial("unix", s.Socket); err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-exited:
			s.t.Fatalf("swtpm has ended: %s", output.String())
		case <-time.After(time.Millisecond):
		}
	}
}

// Kill ends swtpm. Its seeds remain.
func (s *Software) Kill() {
	_ = s.process.Process.Kill() // it may have ended
	<-s.exited
}

// Clear gives swtpm new seeds, as when the owner clears a TPM.
func (s *Software) Clear() {
	s.t.Helper()
	s.Kill()
	files, err := filepath.Glob(filepath.Join(s.dir, "*.permall"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Restart()
}
