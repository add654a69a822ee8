package store_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

// wellUsed creates directories with all files that dpsd can leave, including those of
// failures: the record of generation 3 is of gw-0003, and the record of generation 5, which
// the disk refused, is of gw-0005.
func wellUsed(t *testing.T, newer bool) (directory, runtime string) {
	t.Helper()
	directory, runtime = quick(t), quick(t)
	pairs := mustOpen(t, store.Options{Directory: directory})
	for n := range 3 {
		if err := pairs.SavePendingKey(pendingKey(n + 1)); err != nil {
			t.Fatal(err)
		}
		if n == 2 {
			break
		}
		if err := pairs.SavePair(pairUntil(days(90)), chainFor(keyText(n+1)), noon); err != nil {
			t.Fatal(err)
		}
	}
	pairs.Close()
	fill(t, directory, 3)
	s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	if err := s.SaveTransport("websocket"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	put(t, "gw-0001", directory, "certificate", ".current")
	for _, name := range []string{".pending", "current.aside"} {
		put(t, string(keyText(4)), makeDirectory(t, filepath.Join(directory, "certificate", name)), "key.pem")
	}
	r := store.Runtime{Directory: runtime}
	if err := errors.Join(r.SaveConfirmation(store.Confirmation{Generation: 3, At: noon}), r.SaveFloor("endpoint gw-0003", time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"state.json.corrupt-20261101T120000Z", "state.json.corrupt-20261101T120000Z.2",
		".state.json123", ".state.env4", ".state.json.prev5", ".state.json.corrupt-20261101T120000Z6", ".transport7", "attempts.json", ".attempts.json8", "modules.json", ".modules.json9", "modules.json.corrupt-20261101T120000Z"} {
		put(t, "gw-0001", directory, name)
	}
	for _, name := range []string{"attempts.json", ".attempts.json1", ".confirmation.json2", ".retry-after.json3", ".state.json4"} {
		put(t, "gw-0001", runtime, name)
	}
	if err := os.MkdirAll(filepath.Join(directory, "state.json.aside", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, "gw-0001", directory, "state.json.aside", "deep", "note")
	put(t, "gw-0001", directory, "state.env.aside.2")
	if newer {
		other := quick(t)
		fill(t, other, 5)
		for _, name := range []string{"state.json", "state.env"} {
			put(t, content(t, other, name), runtime, name)
		}
	}
	return directory, runtime
}

func TestForget(t *testing.T) {
	t.Run("all files of the identity are removed, and no others", func(t *testing.T) {
		directory, runtime := wellUsed(t, true)
		for _, name := range []string{"state.jsonx", "notes", ".hidden", "transport.txt"} {
			put(t, "somebody else's", directory, name)
		}
		put(t, "somebody else's", directory, "certificate", "notes")
		put(t, "", runtime, "dpsd.sock")
		done, err := store.Forget(store.Options{Directory: directory, RuntimeDirectory: runtime})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := names(t, directory), []string{".hidden", "certificate", "lock", "notes", "state.jsonx", "transport.txt"}; !slices.Equal(got, want) {
			t.Errorf("the state directory holds %q, want %q", got, want)
		}
		if got := names(t, filepath.Join(directory, "certificate")); !slices.Equal(got, []string{"notes"}) {
			t.Errorf("the directory of the certificates holds %q", got)
		}
		if got, want := names(t, runtime), []string{"dpsd.sock", "retry-after.json"}; !slices.Equal(got, want) {
			t.Errorf("the runtime directory holds %q, want %q", got, want)
		}
		if got, want := len(done.Removed), 16+8+19; got != want {
			t.Errorf("%d paths are reported, want %d: %q", got, want, done.Removed)
		}
		if done.Kept != filepath.Join(runtime, "retry-after.json") {
			t.Errorf("the pause that the service requested is kept as %q", done.Kept)
		}
		if until, known := (store.Runtime{Directory: runtime}).LoadFloor("endpoint gw-0003"); !known || until != time.Hour {
			t.Errorf("the pause is %v, %v", until, known)
		}
	})
	t.Run("the next record is the first one", func(t *testing.T) {
		directory, runtime := wellUsed(t, true)
		o := store.Options{Directory: directory, RuntimeDirectory: runtime}
		if _, err := store.Forget(o); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, o)
		if rec := mustSave(t, s, numbered(9), store.Written); rec.Generation != 1 {
			t.Errorf("its generation is %d", rec.Generation)
		}
		gone(t, directory, "state.json.prev")
	})
	t.Run("the modules that stay at the hub are reported", func(t *testing.T) {
		o := store.Options{Directory: quick(t)}
		s := mustOpen(t, o)
		if err := s.SaveModules(identities(2)); err != nil {
			t.Fatal(err)
		}
		s.Close()
		done, err := store.Forget(o)
		if want := identities(2).Identities; err != nil || !slices.Equal(done.Modules, want) {
			t.Errorf("%+v, %v; want %+v", done.Modules, err, want)
		}
	})
	t.Run("without files, nothing is removed or created", func(t *testing.T) {
		parent := t.TempDir()
		done, err := store.Forget(store.Options{Directory: filepath.Join(parent, "state"), RuntimeDirectory: filepath.Join(parent, "run")})
		if err != nil || len(done.Removed) > 0 || done.Kept != "" {
			t.Errorf("%+v, %v", done, err)
		}
		if made := names(t, parent); len(made) > 0 {
			t.Errorf("Forget created %q", made)
		}
	})
	t.Run("a second call removes nothing", func(t *testing.T) {
		directory, runtime := wellUsed(t, false)
		o := store.Options{Directory: directory, RuntimeDirectory: runtime}
		for i := range 2 {
			done, err := store.Forget(o)
			if err != nil || i == 1 && len(done.Removed) > 0 {
				t.Errorf("%+v, %v", done, err)
			}
		}
	})
	t.Run("a state directory behind a link is emptied, and targets of links in it are kept", func(t *testing.T) {
		directory, _ := wellUsed(t, false)
		target := filepath.Join(t.TempDir(), "target")
		put(t, "precious", target)
		for _, name := range []string{"state.json", "state.json.aside.3"} {
			_ = os.Remove(filepath.Join(directory, name))
			if err := os.Symlink(target, filepath.Join(directory, name)); err != nil {
				t.Fatal(err)
			}
		}
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(directory, link); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Forget(store.Options{Directory: link}); err != nil {
			t.Fatal(err)
		}
		if got := names(t, directory); !slices.Equal(got, []string{"certificate", "lock"}) {
			t.Errorf("left over: %q", got)
		}
		if content(t, target) != "precious" {
			t.Error("the target of the link was changed")
		}
	})
	t.Run("a link in the place of the directory of the certificates is removed, and nothing behind it", func(t *testing.T) {
		directory, _ := wellUsed(t, false)
		outside := filepath.Join(quick(t), "moved")
		certificate := filepath.Join(directory, "certificate")
		if err := errors.Join(os.Rename(certificate, outside), os.Symlink(outside, certificate)); err != nil {
			t.Fatal(err)
		}
		mark := tree(t, outside)
		if _, err := store.Forget(store.Options{Directory: directory}); err != nil {
			t.Fatal(err)
		}
		if got := names(t, directory); !slices.Equal(got, []string{"lock"}) {
			t.Errorf("left over: %q", got)
		}
		if got := tree(t, outside); got != mark {
			t.Errorf("it was changed:\n%s\nto:\n%s", mark, got)
		}
	})
	t.Run("links in the directory of the certificates are removed, and nothing behind them", func(t *testing.T) {
		directory, _ := wellUsed(t, false)
		outside := quick(t)
		put(t, "precious", outside, "key.pem")
		for _, name := range []string{"1", "pending", ".pending", "current"} {
			path := filepath.Join(directory, "certificate", name)
			if err := errors.Join(os.RemoveAll(path), os.Symlink(outside, path)); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(directory, "certificate", "2", "key.pem")
		if err := errors.Join(os.Remove(path), os.Symlink(filepath.Join(outside, "key.pem"), path)); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Forget(store.Options{Directory: directory}); err != nil {
			t.Fatal(err)
		}
		if got := names(t, filepath.Join(directory, "certificate")); len(got) > 0 {
			t.Errorf("left over: %q", got)
		}
		if content(t, outside, "key.pem") != "precious" {
			t.Error("the target of a link was changed")
		}
	})
	t.Run("a directory in the place of the record is removed", func(t *testing.T) {
		directory := quick(t)
		if err := os.MkdirAll(filepath.Join(directory, "state.json", "deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Forget(store.Options{Directory: directory}); err != nil {
			t.Fatal(err)
		}
		gone(t, directory, "state.json")
	})
}

func TestForgetWhileTheServiceRuns(t *testing.T) {
	for _, where := range []string{"state", "runtime"} {
		t.Run("while the "+where+" directory is locked, nothing is removed", func(t *testing.T) {
			directory, runtime := wellUsed(t, true)
			taken := map[string]string{"state": directory, "runtime": runtime}[where]
			s := mustOpen(t, store.Options{Directory: taken})
			look := func() string { // a lock may contain its last holder
				return lockLine.ReplaceAllString(prints(t, directory)+prints(t, runtime), "")
			}
			before := look()
			done, err := store.Forget(store.Options{Directory: directory, RuntimeDirectory: runtime})
			var locked *store.LockedError
			if !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Path != filepath.Join(taken, "lock") {
				t.Errorf("the error is %v", err)
			}
			if len(done.Removed) > 0 || look() != before {
				t.Errorf("files were removed: %q", done.Removed)
			}
			s.Close()
			if _, err := store.Forget(store.Options{Directory: directory, RuntimeDirectory: runtime}); err != nil {
				t.Errorf("after the service has ended: %v", err)
			}
		})
	}
	t.Run("no service can start during a Forget", func(t *testing.T) {
		directory, runtime := wellUsed(t, true)
		o := store.Options{Directory: directory, RuntimeDirectory: runtime}
		steps := 0
		_, err := store.ForgetStepped(o, func(string, string) error {
			steps++
			var locked *store.LockedError
			if s, err := store.Open(o, noon); !errors.As(err, &locked) {
				t.Errorf("step %d: Open: %v", steps, err)
				s.Close()
			}
			return nil
		})
		if err != nil || steps == 0 {
			t.Errorf("%d steps, %v", steps, err)
		}
	})
}

func TestForgetStopsAtAFileThatCannotBeRemoved(t *testing.T) {
	t.Run("the first error ends it: no record is removed before the one that a start would restore", func(t *testing.T) {
		for step := 1; ; step++ {
			directory, runtime := wellUsed(t, true)
			n := 0
			done, err := store.ForgetStepped(store.Options{Directory: directory, RuntimeDirectory: runtime}, func(string, string) error {
				if n++; n == step {
					return &os.PathError{Op: "remove", Path: "x", Err: syscall.EIO}
				}
				return nil
			})
			if n < step {
				if err != nil || step < 10 {
					t.Errorf("only %d steps, %v", n, err)
				}
				return
			}
			var refused *store.WriteError
			if !errors.As(err, &refused) || !errors.Is(err, syscall.EIO) || n != step {
				t.Fatalf("step %d of %d: %v", step, n, err)
			}
			for _, path := range done.Removed {
				gone(t, path)
			}
			if slices.Contains(done.Removed, refused.Path) {
				t.Errorf("%s is reported as removed and as failed", refused.Path)
			}
		}
	})
}

// step is a step of a Forget.
type step struct{ what, path string }

// TestForgetInterrupted ends Forget before each step, as by a kill and as by a power
// failure, which may also restore any of the files that were removed since the last sync of
// the directory.
func TestForgetInterrupted(t *testing.T) {
	long(t)
	for _, newer := range []bool{false, true} {
		say := map[bool]string{false: "the latest record is on the disk", true: "the latest record is in the runtime directory"}[newer]
		t.Run(say, func(t *testing.T) {
			steps := stepsOfForget(t, newer)
			for end := range len(steps) + 1 {
				var unsynced []string
				kept := map[string]bool{} // durable removals
				for _, s := range steps[:end] {
					if s.what != "sync" {
						unsynced = append(unsynced, s.path)
						continue
					}
					for _, path := range unsynced {
						if strings.HasPrefix(path, s.path+"/") {
							kept[path] = true
						}
					}
					unsynced = slices.DeleteFunc(unsynced, func(path string) bool { return kept[path] })
				}
				if len(unsynced) > 9 {
					t.Fatalf("%d removals without a sync: %v", len(unsynced), steps[:end])
				}
				for subset := range 1 << len(unsynced) {
					removed := maps.Clone(kept)
					for i, path := range unsynced {
						if subset>>i&1 == 1 {
							removed[path] = true
						}
					}
					all := subset == 1<<len(unsynced)-1
					if all { // a kill
						interrupted(t, fmt.Sprintf("killed ahead of step %d", end+1), newer, removed, false)
					}
					interrupted(t, fmt.Sprintf("power cut ahead of step %d, removed %v", end+1, removed), newer, removed, true)
				}
			}
		})
	}
}

// stepsOfForget returns the steps with paths that begin with "state/" or "run/".
func stepsOfForget(t *testing.T, newer bool) []step {
	t.Helper()
	directory, runtime := wellUsed(t, newer)
	var steps []step
	_, err := store.ForgetStepped(store.Options{Directory: directory, RuntimeDirectory: runtime}, func(what, path string) error {
		path = strings.Replace(path, directory, "state", 1)
		// The order of files that no start reads does not matter: one of each kind is
		// enough.
		if what == "remove" && strings.HasPrefix(path, "state/.state.json.") || strings.Contains(path, "corrupt") {
			return nil
		}
		if strings.Contains(path, "certificate/.") || strings.Contains(path, "certificate/current.aside") {
			return nil
		}
		steps = append(steps, step{what, strings.Replace(path, runtime, "run", 1)})
		return nil
	})
	if err != nil || len(steps) < 10 {
		t.Fatal(steps, err)
	}
	return steps
}

// interrupted creates the directories again without the removed files, and checks them as a
// reader and as the next start.
func interrupted(t *testing.T, say string, newer bool, removed map[string]bool, powerCut bool) {
	t.Helper()
	directory, runtime := wellUsed(t, newer)
	for path := range removed {
		path = strings.Replace(path, "state/", directory+"/", 1)
		if err := os.RemoveAll(strings.Replace(path, "run/", runtime+"/", 1)); err != nil {
			t.Fatal(err)
		}
	}
	latest := "gw-0003"
	if newer && !powerCut {
		latest = "gw-0005"
	}
	if powerCut {
		runtime = quick(t) // /run is in memory
	}
	rec, err := store.Read(directory)
	switch {
	case err == nil && rec.DeviceID == "gw-0003" && rec.Generation == 3:
	case errors.Is(err, store.ErrNoRecord):
	default:
		t.Errorf("%s: a reader finds generation %d of %s: %v", say, rec.Generation, rec.DeviceID, err)
	}
	s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	defer s.Close()
	if rec, published := s.Current(); published {
		if rec.DeviceID != latest {
			t.Errorf("%s: the next start publishes generation %d of %s, the latest was of %s", say, rec.Generation, rec.DeviceID, latest)
		}
		if got := content(t, directory, "state.env"); got != string(store.Environment(rec)) {
			t.Errorf("%s: state.env is %q", say, got)
		}
	} else if removed["state/state.json"] && exists(directory, "state.env") {
		t.Errorf("%s: no record, but its state.env", say)
	}
	// The published pair is the last one, and no key remains without a record.
	pair, found, err := s.Pair()
	if err != nil || found && wholePair(t, say, filepath.Join(directory, "certificate", fmt.Sprint(pair.Number))) != 2 {
		t.Errorf("%s: the next start publishes the pair %d, %v", say, pair.Number, err)
	}
	if removed["state/state.json"] && (exists(directory, "modules.json") || exists(directory, ".modules.json9")) {
		t.Errorf("%s: there is no record, but the root of the keys of modules", say)
	}
	left := slices.DeleteFunc(keys(t, directory), func(path string) bool { return strings.Contains(path, "aside") }) // see stepsOfForget
	if removed["state/state.json"] && len(left) > 0 {
		t.Errorf("%s: there is no record, but %q", say, left)
	}
	if _, published := s.Current(); published {
		consistent(t, say, s, directory)
	}
	// Running the command again completes it.
	s.Close()
	if _, err := store.Forget(store.Options{Directory: directory, RuntimeDirectory: runtime}); err != nil {
		t.Errorf("%s: %v", say, err)
	}
	if left := keys(t, directory); len(left) > 0 {
		t.Errorf("%s: the second Forget leaves %q", say, left)
	}
	if left := names(t, directory); !slices.Equal(left, []string{"certificate", "lock"}) {
		t.Errorf("%s: the second Forget leaves %q", say, left)
	}
}

// keys returns the paths of all keys.
func keys(t *testing.T, directory string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(directory, "certificate", "*", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var lockLine = regexp.MustCompile(`(?m)^lock .*\n`)

func exists(elements ...string) bool {
	_, err := os.Lstat(filepath.Join(elements...))
	return err == nil
}
