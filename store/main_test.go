package store_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/inmemory"
)

// helperVariable makes the test binary act as a helper process, see crash_test.go.
const helperVariable = "DPSD_TEST_WRITER"

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperVariable); mode != "" {
		os.Exit(actAsWriter(mode))
	}
	inmemory.Use()
	goleak.VerifyTestMain(m)
}

// long skips a test with hundreds of cases under the race detector. Most cases run in a
// separate process with one goroutine, in which there are no races.
func long(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("long: make test runs it without the race detector")
	}
}

// noon is the time of these tests.
var noon = time.Date(2026, 11, 23, 12, 0, 0, 987654321, time.UTC)

func sample() store.Record {
	return store.Record{
		AssignedHub:            "contoso-eu.azure-devices.net",
		DeviceID:               "gw-0001",
		RegistrationID:         "gw-0001",
		IDScope:                "0ne00000000",
		Endpoint:               "global.azure-devices-provisioning.net",
		Substatus:              "initialAssignment",
		CreatedDateTimeUtc:     "2026-11-23T08:15:40.5163352Z",
		LastUpdatedDateTimeUtc: "2026-11-23T08:15:40.7822551Z",
		ETag:                   "IjY5MDAzNTUyLTAwMDAtMDcwMC0wMDAwLTYyNTlkOGI3MDAwMCI=",
		ConnectionProfile:      "mqttV5",
		Payload:                json.RawMessage(`{"site":"Antwerp","rack":7}`),
		RegistrationState: json.RawMessage(`{"registrationId":"gw-0001","assignedHub":"contoso-eu.azure-devices.net",` +
			`"deviceId":"gw-0001","status":"assigned","payload":{"site":"Antwerp","rack":7},"later":"member"}`),
		ConfigFingerprint: store.Fingerprint("global.azure-devices-provisioning.net", "0ne00000000", "gw-0001", nil),
	}
}

// numbered returns the nth of a series of different records.
func numbered(n int) store.Record {
	rec := sample()
	rec.DeviceID = fmt.Sprintf("gw-%04d", n)
	return rec
}

func mustOpen(t *testing.T, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(o, noon)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustSave(t *testing.T, s *store.Store, rec store.Record, want store.Result) store.Record {
	t.Helper()
	got, err := s.Save(rec, noon)
	if err != nil {
		t.Fatalf("Save: %v", err)
	}
	if got != want {
		t.Fatalf("Save: result %v, want %v", got, want)
	}
	current, ok := s.Current()
	if !ok {
		t.Fatal("Current: nothing is published after a Save")
	}
	if !s.Durable() {
		t.Fatal("Durable is false after a Save without an error")
	}
	return current
}

func mustRead(t *testing.T, directory string) store.Record {
	t.Helper()
	rec, err := store.Read(directory)
	if err != nil {
		t.Fatalf("Read: %v", err)
	}
	return rec
}

func content(t testing.TB, elements ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func put(t *testing.T, data string, elements ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elements...), []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, directory string) []string {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, entry := range entries {
		list = append(list, entry.Name())
	}
	return list
}

func gone(t *testing.T, elements ...string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(elements...)); !os.IsNotExist(err) {
		t.Errorf("%s is there (%v)", filepath.Join(elements...), err)
	}
}

func kinds(s *store.Store) string {
	var list []string
	for _, n := range s.Notices() {
		list = append(list, filepath.Base(n.Path)+": "+string(n.Kind))
	}
	return strings.Join(list, "\n")
}

func noticed(s *store.Store, kind store.NoticeKind) bool {
	for _, n := range s.Notices() {
		if n.Kind == kind {
			return true
		}
	}
	return false
}

// reason returns the error of the last notice of a kind, or nil.
func reason(s *store.Store, kind store.NoticeKind) (err error) {
	for _, n := range s.Notices() {
		if n.Kind == kind {
			err = n.Err
		}
	}
	return err
}

// prints returns the metadata of a directory that any write changes.
func prints(t *testing.T, directory string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range append(names(t, directory), ".") {
		info, err := os.Lstat(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s inode %d mode %v owner %d:%d size %d mtime %v ctime %v\n",
			name, stat.Ino, info.Mode(), stat.Uid, stat.Gid, stat.Size, stat.Mtim, stat.Ctim)
	}
	return b.String()
}

// missing skips a test that needs what; in CI, it fails the test.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: needed in CI", what)
	}
	t.Skipf("%s: this test is left out", what)
}

func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is not installed")
	}
	return path
}

// reseal returns a changed record with a matching checksum.
func reseal(record string) string {
	body := record[:strings.LastIndex(record, `  "checksum": `)]
	return fmt.Sprintf("%s  \"checksum\": \"sha256:%x\"\n}\n", body, sha256.Sum256([]byte(body)))
}
