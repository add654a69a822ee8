package main_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test simulates a log collector in a container that exits and is restarted.
func TestTheServiceContinuesWithoutAReaderOfItsLogAndReportsTheLossToTheNextReader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "simulator"), os.DirFS(shop.simulator)); err != nil {
		t.Fatal(err)
	}
	scenario, packets := filepath.Join(dir, "scenario"), filepath.Join(dir, "packets")
	if err := os.WriteFile(scenario, []byte(prompt+"[[rule]]\non = \"register\"\nstatus = 503\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sim, err := startSimulator(filepath.Join(dir, "simulator"), packets, "--scenario", scenario)
	if err != nil {
		t.Fatal(err)
	}
	defer sim.kill()
	vars := sim.variables()
	vars["WORK"], vars["PROTOCOLS"] = dir, `"mqtt"`
	configuration := filepath.Join(dir, "dpsd.toml")
	text := complete("[log]\nlevel = \"debug\"\n", func(name string) string { return vars[name] })
	if err := os.WriteFile(configuration, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	fifo := filepath.Join(dir, "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	collector := func() *os.File {
		f, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	reader := collector()
	stderr, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	run := exec.Command("dpsd", "run", "--config", configuration)
	run.Stderr = stderr
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	late := time.AfterFunc(patience, func() { _ = run.Process.Kill() })
	defer late.Stop()

	if line := bufio.NewScanner(reader); !line.Scan() {
		t.Fatal("no first line")
	}
	reader.Close()
	connections := func() int {
		text, _ := os.ReadFile(packets)
		return strings.Count(string(text), `"packet":"CONNECT"`)
	}
	before := connections()
	for limit := time.Now().Add(patience); connections() < before+3; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Error("dpsd makes no attempts without a reader of its log")
			break
		}
	}
	reader = collector()
	defer reader.Close()
	reported := false
	for lines := bufio.NewScanner(reader); !reported && lines.Scan(); {
		reported = strings.Contains(lines.Text(), `"event":"log-lost"`)
	}
	if !reported {
		t.Error("no entry reports the loss to the new reader")
	}
	_ = run.Process.Signal(syscall.SIGTERM)
	if err := run.Wait(); err != nil {
		t.Errorf("dpsd ended with %v", err)
	}
}

// "dpsd config show | head -1" must not print an error.
func TestACommandEndsWithoutAnErrorMessageWhenItsReaderHasExited(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"completion", "bash"}, {"--help"}} {
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close()
		var complaint strings.Builder
		c := exec.Command("dpsd", args...)
		c.Stdout, c.Stderr = writer, &complaint
		_ = c.Run()
		writer.Close()
		if how := c.ProcessState.Sys().(syscall.WaitStatus); how.Signal() != syscall.SIGPIPE || complaint.Len() > 0 {
			t.Errorf("%s ended with %s and printed %q, want SIGPIPE", fmt.Sprint(args), c.ProcessState, complaint.String())
		}
	}
}
