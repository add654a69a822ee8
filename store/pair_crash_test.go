package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

// actAsRenewer is the helper process of the tests of interrupted renewals. With mode "renew N
// DIE", it requests a certificate with the pending key, or otherwise with key N, and saves it
// and the record. It tries each step again if the disk refuses it, and prints each result. It
// is killed before step DIE, or never if DIE is 0. With N = 0, it only saves the record. With
// mode "request", it only saves a pending key.
func actAsRenewer(mode string) (handled bool, code int) {
	var n, die int
	if mode == "request" {
		s, err := store.Open(store.Options{Directory: os.Getenv("DPSD_TEST_STATE")}, noon)
		if err == nil {
			err = s.SavePendingKey(pendingKey(8))
		}
		fmt.Println(err)
		return true, 0
	}
	if _, err := fmt.Sscanf(mode, "renew %d %d", &n, &die); err != nil {
		return false, 0
	}
	count := 0
	s, err := store.OpenStepped(store.Options{Directory: os.Getenv("DPSD_TEST_STATE"), RuntimeDirectory: os.Getenv("DPSD_TEST_RUNTIME")}, noon,
		func(string, string) error {
			if count++; count == die {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // wait for the signal
			}
			return nil
		})
	if err != nil {
		fmt.Println("open", err)
		return true, 0
	}
	twice := func(what string, step func() error) bool {
		for range 2 {
			err := step()
			if err == nil {
				return true
			}
			fmt.Println("refused", what, err)
		}
		return false
	}
	save := func() error {
		_, err := s.Save(numbered(1), noon)
		return err
	}
	if n > 0 {
		var key store.PendingKey
		if !twice("pending key", func() error {
			var found bool
			if key, found, err = s.PendingKey(); err != nil {
				return err
			}
			if !found || key.KeyType != "ec-p384" {
				key = pendingKey(n)
				return s.SavePendingKey(key)
			}
			return nil
		}) {
			return true, 0
		}
		fmt.Println("pending", keyNumber(key.PEM))
		if !twice("pair", func() error { return s.SavePair(pairUntil(days(90)), chainFor(key.PEM), noon) }) {
			return true, 0
		}
		fmt.Println("pair", keyNumber(key.PEM))
	}
	if twice("record", save) {
		rec, _ := s.Current()
		fmt.Println("saved", rec.Generation)
	}
	return true, 0
}

// renewal is a case in which a start, a request or a new certificate writes.
type renewal struct {
	say     string
	prepare func(t *testing.T, directory string)
	n       int    // see actAsRenewer
	old     int    // the key that is published before; 0 for none
	new     int    // the key that is published in the end
	final   uint64 // the generation in the end
	harmed  bool   // what a reader finds before the start is damaged
	pending bool   // there is a pending key before
}

var renewals = []renewal{
	{"the first certificate, with the first record", func(*testing.T, string) {}, 1, 0, 1, 1, false, false},
	{"the first certificate", func(t *testing.T, directory string) { issued(t, directory, 0) }, 1, 0, 1, 2, false, false},
	{"a renewal", func(t *testing.T, directory string) { issued(t, directory, 1) }, 2, 1, 2, 3, false, false},
	{"a renewal with a pending key", func(t *testing.T, directory string) {
		issued(t, directory, 1)
		request(t, directory, pendingKey(2))
	}, 5, 1, 2, 3, false, true},
	{"a renewal with a different key type than that of the pending key", func(t *testing.T, directory string) {
		issued(t, directory, 1)
		key := pendingKey(8)
		key.KeyType = "rsa-2048"
		request(t, directory, key)
	}, 2, 1, 2, 3, false, true},
	{"a renewal that removes an expired and a damaged pair", func(t *testing.T, directory string) {
		s := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, numbered(1), store.Written)
		issue(t, s, 7, days(-1))
		issue(t, s, 8, days(30))
		issue(t, s, 1, days(30))
		s.Close()
		if err := os.Remove(filepath.Join(directory, "certificate", "2", "key.pem")); err != nil {
			t.Fatal(err)
		}
	}, 2, 1, 2, 5, false, false},
	{"a start after the published pair was damaged", func(t *testing.T, directory string) {
		issued(t, directory, 2)
		put(t, "", directory, "certificate", "2", "key.pem")
	}, 0, 0, 1, 4, true, false},
	{"a start after an earlier version of dpsd", func(t *testing.T, directory string) {
		issued(t, directory, 1)
		withoutCertificate(t, directory)
	}, 0, 1, 1, 3, false, false},
	{"a start after current was removed", func(t *testing.T, directory string) {
		issued(t, directory, 1)
		if err := os.Remove(filepath.Join(directory, "certificate", "current")); err != nil {
			t.Fatal(err)
		}
	}, 0, 0, 1, 2, true, false},
}

// makeDirectory creates a state directory if there is none.
func makeDirectory(t *testing.T, directory string) string {
	t.Helper()
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	return directory
}

// least returns the generation on the disk, 0 for none.
func least(directory string) uint64 {
	rec, _ := store.Read(directory)
	return rec.Generation
}

func request(t *testing.T, directory string, key store.PendingKey) {
	t.Helper()
	s := mustOpen(t, store.Options{Directory: directory})
	if err := s.SavePendingKey(key); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// withoutCertificate changes the files like a version of dpsd without certificates that saved
// the same identity.
func withoutCertificate(t *testing.T, directory string) {
	t.Helper()
	var kept strings.Builder
	for line := range strings.Lines(content(t, directory, "state.json")) {
		if !strings.HasPrefix(line, `  "certificate": `) {
			kept.WriteString(line)
		}
	}
	put(t, reseal(kept.String()), directory, "state.json")
	rec := mustRead(t, directory)
	put(t, string(store.Environment(rec)), directory, "state.env")
}

// interrupted checks the files after a crash or a refusal, as a reader and as the next start,
// which continues the renewal. least is the generation before, and out the output of
// actAsRenewer. It returns the keys that a reader found.
func (r renewal) interrupted(t *testing.T, say, directory, runtime string, least uint64, out string) (current, inRecord int) {
	t.Helper()
	if !r.harmed {
		current, inRecord = published(t, say, directory)
		for _, key := range []int{current, inRecord} {
			if key != r.old && key != r.new && key != 0 || key == 0 && r.old != 0 && key == current {
				t.Errorf("%s: a reader finds key %d, want %d or %d", say, key, r.old, r.new)
			}
		}
	}
	if strings.Contains(out, "\npair ") && current != r.new {
		t.Errorf("%s: the pair was reported as saved, but a reader finds key %d", say, current)
	}
	rec, err := store.Read(directory)
	if err != nil && (!errors.Is(err, store.ErrNoRecord) || least > 0) || rec.Generation < least {
		t.Errorf("%s: a reader finds generation %d: %v", say, rec.Generation, err)
	}
	pending := 0
	for line := range strings.Lines(out) {
		_, _ = fmt.Sscanf(line, "pending %d", &pending)
	}

	s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	defer s.Close()
	if _, published := s.Current(); published {
		consistent(t, say+": after the start", s, directory)
	}
	key, found, err := s.PendingKey()
	if err != nil {
		t.Errorf("%s: the pending key: %v", say, err)
	}
	pair, usable, _ := s.Pair()
	if r.old != 0 && !usable {
		t.Errorf("%s: the next start finds no pair; notices:\n%s", say, kinds(s))
	}
	inUse := 0
	if usable {
		inUse = wholePair(t, say+": after the start", filepath.Join(directory, "certificate", fmt.Sprint(pair.Number)))
	}
	if pending != 0 && pending != inUse && (!found || pending != keyNumber(key.PEM)) {
		t.Errorf("%s: key %d, which was saved before its request, is lost: the pending key is %d, the published one %d", say, pending, keyNumber(key.PEM), inUse)
	}
	if r.pending && !found && inUse != r.new {
		t.Errorf("%s: neither the old pending key nor the new one is left", say)
	}
	// The daemon repeats the request.
	if inUse != r.new {
		if !found || keyNumber(key.PEM) != r.new {
			if err := s.SavePendingKey(pendingKey(r.new)); err != nil {
				t.Errorf("%s: %v", say, err)
			}
		}
		if err := s.SavePair(pairUntil(days(90)), chainFor(keyText(r.new)), noon); err != nil {
			t.Errorf("%s: %v", say, err)
		}
	}
	if _, err := s.Save(numbered(1), noon); err != nil {
		t.Errorf("%s: %v", say, err)
	}
	if got := consistent(t, say+": in the end", s, directory); got != r.new {
		t.Errorf("%s: in the end, key %d is published, want %d", say, got, r.new)
	}
	// A start between the certificate and the record, or without the lost certificate, takes
	// another generation.
	if after := mustRead(t, directory); after.Generation < max(rec.Generation, r.final) || after.Generation > r.final+1 {
		t.Errorf("%s: in the end, the generation is %d after %d, want %d", say, after.Generation, rec.Generation, r.final)
	}
	err = filepath.WalkDir(directory, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), ".") && path != directory {
			t.Errorf("%s: %s was left", say, path)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", say, err)
	}
	return current, inRecord
}

// TestARenewalKilledAtEachStep kills a real process before each step that changes the disk.
func TestARenewalKilledAtEachStep(t *testing.T) {
	long(t)
	for _, r := range renewals {
		t.Run(r.say+": killed at any step, a reader finds the old pair or the new one", func(t *testing.T) {
			for step := 1; ; step++ {
				directory, runtime := quick(t), quick(t)
				r.prepare(t, directory)
				before := least(directory)
				out, err := writerProcess(fmt.Sprintf("renew %d %d", r.n, step), directory, runtime).Output()
				r.interrupted(t, fmt.Sprintf("step %d", step), directory, runtime, before, string(out))
				if err == nil { // it ended without being killed
					if step < 5 || !strings.Contains(string(out), fmt.Sprintf("saved %d\n", r.final)) {
						t.Fatalf("%d steps: %s", step-1, out)
					}
					return
				}
			}
		})
	}
}
