package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

// actAsStarved is a helper process that opens the store or saves record n with only a few
// free descriptors, and then saves record n with enough of them.
func actAsStarved(what string, free, n int) int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 2
	}
	starve := func(work func()) {
		next, err := os.Open("/dev/null") // its number is the first free one
		if err != nil {
			os.Exit(2)
		}
		first := int(next.Fd())
		next.Close()
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(first + free), Max: limit.Max}); err != nil {
			os.Exit(2)
		}
		work()
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			os.Exit(2)
		}
	}
	var s *store.Store
	var err error
	open := func() { s, err = store.Open(store.Options{Directory: os.Getenv("DPSD_TEST_STATE")}, noon) }
	if what == "open" {
		starve(open)
	} else {
		open()
	}
	if err != nil {
		fmt.Println("open", err)
		return 0
	}
	if n == 0 {
		return 0
	}
	if what == "save" {
		starve(func() { _, _ = s.Save(numbered(n), noon) })
	}
	_, err = s.Save(numbered(n), noon)
	rec, _ := s.Current()
	fmt.Println(rec.Generation, err)
	return 0
}

func starved(t *testing.T, what, directory string, free, n int) string {
	t.Helper()
	out, err := writerProcess(fmt.Sprintf("starved %s %d %d", what, free, n), directory, "").Output()
	if err != nil {
		t.Fatalf("%d descriptors: %v", free, err)
	}
	return strings.TrimSpace(string(out))
}

// A record that is temporarily unreadable is still valid: the previous record must not
// replace it.
func TestAStartWithoutFreeDescriptorsKeepsTheRecord(t *testing.T) {
	for free := range 8 {
		t.Run(fmt.Sprintf("%d free", free), func(t *testing.T) {
			directory := quick(t)
			fill(t, directory, 3)
			before := content(t, filepath.Join(directory, "state.json"))
			previous := content(t, filepath.Join(directory, "state.json.prev"))
			starved(t, "open", directory, free, 0)
			if left, _ := filepath.Glob(filepath.Join(directory, "state.json.corrupt-*")); len(left) > 0 {
				t.Errorf("the record was kept as %v", left)
			}
			if content(t, filepath.Join(directory, "state.json")) != before || content(t, filepath.Join(directory, "state.json.prev")) != previous {
				t.Error("a record has changed")
			}
			if rec, found := mustOpen(t, store.Options{Directory: directory}).Current(); !found || rec.Generation != 3 || rec.DeviceID != "gw-0003" {
				t.Errorf("the next start publishes generation %d of %s", rec.Generation, rec.DeviceID)
			}
		})
	}
}

func TestARecordThatCouldNotBeReadAtTheStartIsReadBeforeTheNextSave(t *testing.T) {
	for free := range 8 {
		for _, n := range []int{3, 4} { // the same record and the next one
			t.Run(fmt.Sprintf("%d free, record %d", free, n), func(t *testing.T) {
				directory := quick(t)
				fill(t, directory, 3)
				if got, want := starved(t, "open", directory, free, n), fmt.Sprintf("%d <nil>", n); got != want {
					t.Errorf("saving %d: %s, want %s", n, got, want)
				}
				if rec := mustRead(t, directory); rec.Generation != uint64(n) || rec.DeviceID != fmt.Sprintf("gw-%04d", n) {
					t.Errorf("generation %d of %s", rec.Generation, rec.DeviceID)
				}
			})
		}
	}
}

func TestASaveWithoutFreeDescriptorsKeepsThePreviousRecord(t *testing.T) {
	for free := range 8 {
		t.Run(fmt.Sprintf("%d free", free), func(t *testing.T) {
			directory := quick(t)
			fill(t, directory, 3)
			before := content(t, filepath.Join(directory, "state.json"))
			if got := starved(t, "save", directory, free, 4); got != "4 <nil>" {
				t.Errorf("saving 4: %s", got)
			}
			if content(t, filepath.Join(directory, "state.json.prev")) != before {
				t.Error("the previous record is not in state.json.prev")
			}
			if left, _ := filepath.Glob(filepath.Join(directory, "state.json.corrupt-*")); len(left) > 0 {
				t.Errorf("it was kept as %v", left)
			}
		})
	}
}
