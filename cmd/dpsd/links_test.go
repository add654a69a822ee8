package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/pair"
)

// stateFiles and runtimeFiles are the names of the files below /var/lib/dpsd and /run/dpsd
// that a command reads.
var (
	stateFiles   = []string{"state.json", "state.json.prev", "state.env", "attempts.json", "transport", "lock", "certificate"}
	runtimeFiles = []string{"state.json", "state.env", "confirmation.json", "retry-after.json", "attempts.json", "dpsd.sock"}
)

// rootsCommands are the commands that an operator runs as root and that read the directories
// of the service.
var rootsCommands = []string{
	"status", "status --json", "status --attempts", "check --offline", "check --offline --json",
	"wait --timeout 0.1s", "wait --for confirmed --timeout 0.1s", "wait --for certificate --timeout 0.1s", "reprovision", "certificate status", "certificate status --json", "certificate renew",
	"report --output report.tar.gz", "forget --yes",
}

// impostors calls put for the path of each file and returns the directory.
func impostors(t *testing.T, put func(path, name string) error) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "state"), 0o755), os.Mkdir(filepath.Join(dir, "run"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for sub, names := range map[string][]string{"state": stateFiles, "run": runtimeFiles} {
		for _, name := range names {
			if err := put(filepath.Join(dir, sub, name), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := fmt.Sprintf("[dps]\nid_scope = \"0ne00000000\"\nregistration_id = \"gw-1\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:%[1]s/gw-1.key\"\n"+
		"[state]\ndirectory = \"%[1]s/state\"\n[control]\nsocket = \"%[1]s/run/dpsd.sock\"\n", dir)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "dpsd.toml"), []byte(text), 0o600),
		os.WriteFile(filepath.Join(dir, "gw-1.key"), []byte("c2VjcmV0LWtleS1vZi1nYXRld2F5LTE=\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// runsToItsEnd runs a command of dpsd, which must end without external events, and returns its
// output, including the content of a report.
func runsToItsEnd(t *testing.T, dir, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, "dpsd", append(strings.Fields(command), "--config", "dpsd.toml")...)
	c.Dir, c.WaitDelay = dir, time.Second
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	_ = c.Run() // most commands fail because every file is replaced
	if ctx.Err() != nil {
		t.Fatalf("dpsd %s did not end; its output is\n%s", command, out.Bytes())
	}
	if strings.HasPrefix(command, "report") {
		text, err := exec.Command("tar", "-xzOf", filepath.Join(dir, "report.tar.gz")).Output()
		if err != nil || !bytes.Contains(text, []byte("dpsd report of")) {
			t.Errorf("the report is incomplete: %v\n%s", err, text)
		}
		out.Write(text)
	}
	return out.String()
}

func TestNoCommandReadsThroughALinkInTheDirectoriesOfTheService(t *testing.T) {
	t.Parallel()
	// The targets of the links are valid, so a command that reads them uses them.
	hidden := t.TempDir()
	s, err := store.Open(store.Options{Directory: filepath.Join(hidden, "state"), RuntimeDirectory: filepath.Join(hidden, "run")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	const canary = "canary-4711"
	issued, err := pair.Issue(pair.Certificate{RegistrationID: canary, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
	if err == nil {
		_, err = issued.Publish(filepath.Join(hidden, "state"), 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	record := store.Record{AssignedHub: canary + ".azure-devices.net", DeviceID: canary, RegistrationID: canary, IDScope: "0ne00000000", Endpoint: canary + ".test"}
	for range 2 {
		record.ETag += canary
		record.DeviceID += "x"
		if _, err := s.Save(record, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	runtime := store.Runtime{Directory: filepath.Join(hidden, "run")}
	recorder := store.Recorder{Directory: filepath.Join(hidden, "state"), RuntimeDirectory: filepath.Join(hidden, "run")}
	if err := errors.Join(runtime.SaveConfirmation(store.Confirmation{Generation: 2, At: time.Now(), ConfigFingerprint: canary}), runtime.SaveFloor(canary, time.Hour),
		recorder.Add(store.Attempt{At: time.Now(), Trigger: canary, Outcome: "fault", Cause: canary}, time.Now()),
		os.WriteFile(filepath.Join(hidden, "state", "transport"), []byte(canary), 0o600),
		os.WriteFile(filepath.Join(hidden, "run", "state.json"), []byte(canary), 0o600)); err != nil {
		t.Fatal(err)
	}
	dir := impostors(t, func(path, name string) error {
		for _, sub := range []string{filepath.Base(filepath.Dir(path)), "state"} {
			if to := filepath.Join(hidden, sub, name); name != "dpsd.sock" {
				if _, err := os.Stat(to); err == nil {
					return os.Symlink(to, path)
				}
			}
		}
		return os.Symlink("/etc/shadow", path)
	})
	for _, command := range rootsCommands {
		if said := runsToItsEnd(t, dir, command); strings.Contains(said, canary) || strings.Contains(said, "root:") || strings.Contains(said, "BEGIN CERTIFICATE") {
			t.Errorf("dpsd %s has followed a link:\n%s", command, said)
		}
	}
	for sub, name := range map[string]string{"state": "state.json", "state/certificate/1": "key.pem", "run": "confirmation.json"} {
		if text, err := os.ReadFile(filepath.Join(hidden, sub, name)); err != nil || len(text) == 0 {
			t.Errorf("forget has removed more than the link: %v", err)
		}
	}
}

func TestNoCommandWaitsForAFIFOInTheDirectoriesOfTheService(t *testing.T) {
	t.Parallel()
	dir := impostors(t, func(path, _ string) error { return syscall.Mkfifo(path, 0o600) })
	// A FIFO that another process keeps open for writing never ends.
	for _, name := range []string{"state/state.json", "run/confirmation.json", "run/attempts.json"} {
		writer, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
	}
	for _, command := range rootsCommands {
		runsToItsEnd(t, dir, command)
	}
}
