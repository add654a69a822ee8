package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestServeContinuesWhenTheReaderOfItsOutputExits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sim")
	if out, err := exec.Command("dpsd-sim", "credentials", "--dir", dir, "--registration-id", "gw-1").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	serve := exec.Command("dpsd-sim", "serve", "--dir", dir, "--mqtt", "127.0.0.1:0", "--websocket", "", "--service", "")
	serve.Stdout, serve.Stderr = writer, writer
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { _ = serve.Process.Kill() })
	defer late.Stop()
	writer.Close()
	if line := bufio.NewScanner(reader); !line.Scan() {
		t.Fatal("no first line")
	}
	reader.Close()

	// It reads each of these completely before it reports on the previous one. The
	// first causes an error message on standard error, the others cause messages on
	// standard output.
	enrollments := filepath.Join(dir, "enrollments.toml")
	for _, text := range []string{"nonsense", group("hub-b.example"), group("hub-c.example"), group("hub-d.example")} {
		reload(t, serve.Process, enrollments, text)
	}
	if reply, err := register(dir, "gw-1"); err != nil || !strings.Contains(reply, "assigned hub-") {
		t.Errorf("a device receives %q, %v", reply, err)
	}
	_ = serve.Process.Signal(syscall.SIGTERM)
	if err := serve.Wait(); err != nil {
		t.Errorf("serve ended with %v", err)
	}
}

// reload makes serve read a text as its enrollments, and returns when serve reads it.
func reload(t *testing.T, serve *os.Process, enrollments, text string) {
	t.Helper()
	if err := errors.Join(os.Remove(enrollments), syscall.Mkfifo(enrollments, 0o600), serve.Signal(syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		file, err := os.OpenFile(enrollments, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			_, err = file.WriteString(text)
			file.Close()
			if err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("serve does not read the enrollments: %v", err)
		}
	}
}

func TestServeEndsOnSIGTERMWhenNobodyReadsItsOutput(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for err == nil { // until the pipe is full
		_ = writer.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, err = writer.Write([]byte{'x'})
	}
	dir := filepath.Join(t.TempDir(), "sim")
	serve := exec.Command("dpsd-sim", "serve", "--dir", dir, "--mqtt", "127.0.0.1:0", "--websocket", "", "--service", "", "--quiet")
	serve.Stdout, serve.Stderr = writer, writer
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	late := time.AfterFunc(30*time.Second, func() { _ = serve.Process.Kill() })
	defer late.Stop()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "endpoint.json")); err == nil {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("serve does not become ready")
		}
	}
	enrollments := filepath.Join(dir, "enrollments.toml")
	for _, text := range []string{"nonsense", group("hub-b.example"), "nonsense"} { // it reads each one after it has reported on the previous one
		reload(t, serve.Process, enrollments, text)
	}
	_ = serve.Process.Signal(syscall.SIGTERM)
	if err := serve.Wait(); err != nil {
		t.Errorf("serve ended with %v", err)
	}
}

func TestADemonstrationLeavesNothingWhenItsReaderExits(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	temporary := t.TempDir()
	demo := exec.Command("dpsd-sim", "demo")
	demo.Env = append(os.Environ(), "TMPDIR="+temporary)
	demo.Stdout, demo.Stderr = writer, writer
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	if line := bufio.NewScanner(reader); !line.Scan() {
		t.Fatal("no first line")
	}
	reader.Close()
	if err := demo.Wait(); err != nil {
		t.Errorf("demo ended with %v", err)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("files remain: %v, %v", left, err)
	}
}

// group assigns every device with a certificate to a hub.
func group(hub string) string {
	return fmt.Sprintf("[[group]]\nname = \"certificates\"\ntype = \"x509\"\nca_file = \"device-ca.pem\"\nhubs = [%q]\n", hub)
}

// The shell's "yes | head" relies on this behaviour.
func TestTheCommandOfExecEndsOnSIGPIPE(t *testing.T) {
	out, err := exec.Command("dpsd-sim", "exec", "--", "sh", "-c", "grep SigIgn /proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	var ignored uint64
	if _, err := fmt.Sscanf(string(out), "SigIgn:\t%x", &ignored); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if ignored&(1<<(syscall.SIGPIPE-1)) != 0 {
		t.Errorf("the command ignores SIGPIPE: %s", out)
	}
}
