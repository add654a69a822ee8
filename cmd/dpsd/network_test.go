package main_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dpsd waits for at least half an hour in a network namespace that has only loopback without
// an address. Then the test adds an address, and thus a route to the endpoint, where no server
// listens.
func TestDpsdRetriesImmediatelyWhenARouteAppears(t *testing.T) {
	t.Parallel()
	const endpoint = "198.51.100.7" // RFC 5737
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	configuration := write("dpsd.toml", `
[dps]
id_scope = "0ne00000000"
registration_id = "gw-1"
endpoint = "`+endpoint+`"

[[credential]]
type = "symmetric-key"
key = "file:`+write("key", "a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5")+`"

[transport]
proxy = "none"

[retry]
initial = "1h"
max = "1h"
offline_max = "1h"

[state]
directory = "`+filepath.Join(dir, "state")+`"

[control]
socket = "`+filepath.Join(dir, "run", "dpsd.sock")+`"
`)
	// The first line shows that the namespace exists, which requires a privilege.
	c := exec.Command("sh", "-c", `ip link set lo up && echo separate && exec dpsd run --config "$0"`, configuration)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	c.Env = append(os.Environ(), "NOTIFY_SOCKET=", "JOURNAL_STREAM=")
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Stdout, c.Stderr = in, in
	err = c.Start()
	_ = in.Close()
	if err != nil {
		cannot(t, "a network namespace cannot be made: "+err.Error())
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	late := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	defer late.Stop()
	lines, seen := bufio.NewScanner(out), new(bytes.Buffer)
	until := func(text string) bool {
		for lines.Scan() {
			seen.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), text) {
				return true
			}
		}
		return false
	}
	if !until("separate") {
		cannot(t, "a network namespace cannot be used: "+seen.String())
	}
	if !until("network-unreachable") {
		t.Fatalf("without a route dpsd logs:\n%s", seen)
	}
	add := exec.Command("nsenter", "--preserve-credentials", "--user", "--net", "--target", strconv.Itoa(c.Process.Pid), "ip", "address", "add", endpoint+"/32", "dev", "lo")
	if text, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, text := range []string{"network-changed", "tcp-refused"} {
		if !until(text) {
			t.Fatalf("when there is a route dpsd does not log %q:\n%s", text, seen)
		}
	}
}

// cannot skips a test that this machine does not support. In CI it fails the test instead.
func cannot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}
