package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

func TestRuntimeFloor(t *testing.T) {
	r := store.Runtime{Directory: filepath.Join(t.TempDir(), "run")}
	if _, ok := r.LoadFloor("a|1"); ok {
		t.Error("there is a floor before one was saved")
	}
	save := func(key string, until time.Duration) {
		t.Helper()
		if err := r.SaveFloor(key, until); err != nil {
			t.Fatal(err)
		}
	}
	save("a|1", 90*time.Second)
	save("b|1", time.Hour+time.Nanosecond)
	save("a|1", 120*time.Second)

	t.Run("each key has the floor saved last, to the nanosecond", func(t *testing.T) {
		for key, want := range map[string]time.Duration{"a|1": 120 * time.Second, "b|1": time.Hour + time.Nanosecond} {
			if got, ok := r.LoadFloor(key); !ok || got != want {
				t.Errorf("%s: %v, %v", key, got, ok)
			}
		}
	})
	t.Run("another identity has no floor", func(t *testing.T) {
		if _, ok := r.LoadFloor("a|2"); ok {
			t.Error("there is a floor")
		}
	})
	t.Run("zero removes one floor and keeps the others", func(t *testing.T) {
		save("a|1", 0)
		if _, ok := r.LoadFloor("a|1"); ok {
			t.Error("still there")
		}
		if _, ok := r.LoadFloor("b|1"); !ok {
			t.Error("the other floor was removed too")
		}
		mark := prints(t, r.Directory)
		save("never", 0)
		if prints(t, r.Directory) != mark {
			t.Error("removing a missing floor wrote the file")
		}
	})
	t.Run("the size of the file is limited", func(t *testing.T) {
		for i := range 100 {
			save(fmt.Sprint("k", i), time.Second)
		}
		if got, ok := r.LoadFloor("k99"); !ok || got != time.Second {
			t.Error("the latest is gone")
		}
		if n := len(content(t, r.Directory, "retry-after.json")); n > 2000 {
			t.Errorf("%d bytes", n)
		}
	})
	t.Run("a damaged file contains no floor and is replaced", func(t *testing.T) {
		put(t, `[{"key":"k99","boot`, r.Directory, "retry-after.json")
		if _, ok := r.LoadFloor("k99"); ok {
			t.Error("there is a floor")
		}
		save("k1", 5)
		if got, _ := r.LoadFloor("k1"); got != 5 {
			t.Error(got)
		}
	})
	t.Run("all users may read the directory", func(t *testing.T) {
		for path, want := range map[string]fs.FileMode{r.Directory: 0o755, filepath.Join(r.Directory, "retry-after.json"): 0o644} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v", path, info.Mode(), err)
			}
		}
	})
	t.Run("a directory that cannot be created is a WriteError", func(t *testing.T) {
		err := store.Runtime{Directory: filepath.Join(t.TempDir(), "a", "b")}.SaveFloor("k", 1)
		if !errors.As(err, new(*store.WriteError)) || !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}

func TestRuntimeConfirmation(t *testing.T) {
	r := store.Runtime{Directory: t.TempDir()}
	if _, ok := r.LoadConfirmation(); ok {
		t.Error("there is a confirmation before one was saved")
	}
	want := store.Confirmation{Generation: 3, At: noon.Truncate(time.Second), ConfigFingerprint: "sha256:x"}
	for _, at := range []time.Time{noon.Add(-time.Hour), noon.In(time.FixedZone("", 3600))} {
		if err := r.SaveConfirmation(store.Confirmation{Generation: 3, At: at, ConfigFingerprint: "sha256:x"}); err != nil {
			t.Fatal(err)
		}
	}
	if got, ok := r.LoadConfirmation(); !ok || got != want {
		t.Errorf("%v, %v; want %v", got, ok, want)
	}
	for _, damage := range []string{"", "{", "{}", "[]", `{"generation":-1}`} {
		put(t, damage, r.Directory, "confirmation.json")
		if got, ok := r.LoadConfirmation(); ok {
			t.Errorf("%q was accepted as %v", damage, got)
		}
	}
}
