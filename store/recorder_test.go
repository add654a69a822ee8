package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

func TestRecorder(t *testing.T) {
	now := time.Now()
	assigned := store.Attempt{At: now.UTC().Round(0), Trigger: "start", Outcome: "assigned", Clock: "plausible", Steps: []store.Step{{Stage: "tcp", Milliseconds: 3}}}
	failed := assigned
	failed.Outcome, failed.Fault = "fault", "unauthorized"
	places := func(t *testing.T) (*store.Recorder, string) {
		dir := t.TempDir()
		r := &store.Recorder{Directory: filepath.Join(dir, "state"), RuntimeDirectory: filepath.Join(dir, "run")}
		for _, d := range []string{r.Directory, r.RuntimeDirectory} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return r, filepath.Join(r.Directory, "attempts.json")
	}
	add := func(t *testing.T, r *store.Recorder, a store.Attempt, at time.Time) {
		t.Helper()
		if err := r.Add(a, at); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the last 64 are kept, the latest last", func(t *testing.T) {
		r, _ := places(t)
		for i := range 70 {
			a := assigned
			a.Trigger = fmt.Sprint(i)
			add(t, r, a, now)
		}
		got := store.Attempts(r.Directory, r.RuntimeDirectory)
		if len(got) != store.MaxAttempts || got[0].Trigger != "6" || got[63].Trigger != "69" {
			t.Errorf("%d attempts, from %q to %q", len(got), got[0].Trigger, got[len(got)-1].Trigger)
		}
	})
	t.Run("the size of the file is also limited", func(t *testing.T) {
		r, _ := places(t)
		for range 64 {
			a := failed
			a.Cause = strings.Repeat("long ", 2000)
			add(t, r, a, now)
		}
		info, err := os.Stat(filepath.Join(r.RuntimeDirectory, "attempts.json"))
		if err != nil || info.Size() > 64<<10 {
			t.Errorf("%v, %v", info.Size(), err)
		}
		if len(store.Attempts(r.Directory, r.RuntimeDirectory)) == 0 {
			t.Error("nothing is kept")
		}
	})
	t.Run("successful attempts write nothing to the state directory", func(t *testing.T) {
		r, copied := places(t)
		for i := range 100 {
			add(t, r, assigned, now.Add(time.Duration(i)*time.Hour))
		}
		if _, err := os.Stat(copied); !os.IsNotExist(err) {
			t.Errorf("there is a copy in the state directory: %v", err)
		}
	})
	t.Run("faults are copied to the state directory at most once an hour", func(t *testing.T) {
		r, copied := places(t)
		copies, before := 0, ""
		for i := range 600 { // ten hours
			add(t, r, failed, now.Add(time.Duration(i)*time.Minute))
			info, err := os.Stat(copied)
			if err != nil {
				t.Fatal(err)
			}
			if id := fmt.Sprint(info.ModTime(), info.Size(), info.Sys()); id != before {
				copies, before = copies+1, id
			}
		}
		if copies != 10 {
			t.Errorf("%d copies in ten hours, want 10", copies)
		}
	})
	t.Run("a reboot loses the runtime directory but not the copy, and a restart loses nothing", func(t *testing.T) {
		r, _ := places(t)
		add(t, r, failed, now)
		restarted := &store.Recorder{Directory: r.Directory, RuntimeDirectory: r.RuntimeDirectory}
		add(t, restarted, assigned, now)
		if got := store.Attempts(r.Directory, r.RuntimeDirectory); len(got) != 2 {
			t.Errorf("%d attempts after a restart", len(got))
		}
		if err := os.Remove(filepath.Join(r.RuntimeDirectory, "attempts.json")); err != nil {
			t.Fatal(err)
		}
		if got := store.Attempts(r.Directory, r.RuntimeDirectory); len(got) != 1 || got[0].Fault != "unauthorized" {
			t.Errorf("after a boot: %+v", got)
		}
		booted := &store.Recorder{Directory: r.Directory, RuntimeDirectory: r.RuntimeDirectory}
		add(t, booted, assigned, now)
		if got := store.Attempts(r.Directory, r.RuntimeDirectory); len(got) != 2 || got[1].Outcome != "assigned" {
			t.Errorf("the first attempt after a boot: %+v", got)
		}
	})
	t.Run("invalid contents count as no attempts", func(t *testing.T) {
		r, _ := places(t)
		path := filepath.Join(r.RuntimeDirectory, "attempts.json")
		for _, text := range []string{"", "{", `{"a":1}`, "[1]"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := store.Attempts(r.Directory, r.RuntimeDirectory); got != nil {
				t.Errorf("%q gives %+v", text, got)
			}
		}
		add(t, r, assigned, now)
		if got := store.Attempts(r.Directory, r.RuntimeDirectory); len(got) != 1 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("an unwritable directory is reported, and the next file that can be written contains the attempt", func(t *testing.T) {
		r, _ := places(t)
		if err := os.RemoveAll(r.RuntimeDirectory); err != nil {
			t.Fatal(err)
		}
		if err := r.Add(assigned, now); err == nil {
			t.Error("no error")
		}
		if err := os.Mkdir(r.RuntimeDirectory, 0o755); err != nil {
			t.Fatal(err)
		}
		add(t, r, failed, now)
		if got := store.Attempts(r.Directory, r.RuntimeDirectory); len(got) != 2 {
			t.Errorf("%d attempts", len(got))
		}
	})
}
