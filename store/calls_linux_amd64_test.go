package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

// TestKilledAtEachCall kills a real process before each system call that changes the disk,
// and after the last.
func TestKilledAtEachCall(t *testing.T) {
	long(t)
	for _, situation := range situations {
		t.Run(situation.say, func(t *testing.T) {
			for at, last := 1, false; !last; at++ {
				directory, runtime := quick(t), quick(t)
				situation.prepare(t, directory, runtime)
				name := "after the last"
				tr := tracer{directory: directory, ahead: func(c call) (order, syscall.Errno) {
					if c.number == at {
						name = fmt.Sprintf("ahead of call %d, %s", c.number, c.name)
						return kill, 0
					}
					return proceed, 0
				}}
				out, status := tr.run(t, writerProcess("save 9", directory, runtime))
				if last = !status.Signaled(); last && (at < 12 || !strings.HasPrefix(out, "saved ")) {
					t.Fatalf("only %d calls; output %q", at-1, out)
				}
				afterwards(t, name, directory, runtime, situation.least, situation.final, out)
			}
		})
	}
}

// afterwards checks the files after a crash, as a reader and as the next start. least is
// the generation before the crash, 0 for none or a damaged one; final is the generation of
// a Save.
func afterwards(t *testing.T, say, directory, runtime string, least, final uint64, out string) (found store.Record) {
	t.Helper()
	rec, err := store.Read(directory)
	switch {
	case err == nil && rec.Generation >= least && (rec.DeviceID != "gw-0009" || rec.Generation >= final):
	case least == 0 && !strings.Contains(out, "saved"): // no record, or still damaged
	default:
		t.Errorf("%s: a reader finds generation %d: %v", say, rec.Generation, err)
	}
	if strings.Contains(out, "saved") && rec.DeviceID != "gw-0009" {
		t.Errorf("%s: reported as saved, but the disk has %s", say, rec.DeviceID)
	}
	if env, err := os.ReadFile(filepath.Join(directory, "state.env")); err == nil && least > 0 {
		if _, err := environmentFile(string(env)); err != nil || strings.Count(string(env), "\n") < 1 {
			t.Errorf("%s: state.env: %v in %q", say, err, env)
		}
	}
	s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	defer s.Close()
	if _, err := s.Save(numbered(9), noon); err != nil {
		t.Errorf("%s: the next start: %v", say, err)
	}
	after := mustRead(t, directory)
	if after.DeviceID != "gw-0009" || after.Generation < max(rec.Generation, final) || after.Generation > final+2 {
		t.Errorf("%s: the next start ends with generation %d after %d, want about %d", say, after.Generation, rec.Generation, final)
	}
	if got := content(t, directory, "state.env"); got != string(store.Environment(after)) {
		t.Errorf("%s: state.env is %q", say, got)
	}
	for _, name := range names(t, directory) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s: %s was left", say, name)
		}
	}
	return rec
}

// TestEachCallRefused makes each system call fail: once, and permanently. All situations
// and errors are tested only in CI.
func TestEachCallRefused(t *testing.T) {
	long(t)
	for _, situation := range situations {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS} {
			for _, forEver := range []bool{false, true} {
				if !forEver && errno != syscall.EIO || !thorough() && (errno != syscall.EIO || situation.final > 3) {
					continue
				}
				say := map[bool]string{false: "once", true: "for ever"}[forEver]
				t.Run(fmt.Sprintf("%s, a call fails %s with %v", situation.say, say, errno), func(t *testing.T) {
					for at, made := 1, true; made; at++ {
						directory, runtime := quick(t), quick(t)
						situation.prepare(t, directory, runtime)
						made = false
						name := ""
						tr := tracer{directory: directory, ahead: func(c call) (order, syscall.Errno) {
							if c.number == at {
								made, name = true, fmt.Sprintf("call %d, %s", c.number, c.name)
							}
							if c.number == at || forEver && c.number > at {
								return refuse, errno
							}
							return proceed, 0
						}}
						out, status := tr.run(t, writerProcess("save 9", directory, runtime))
						switch {
						case status.ExitStatus() != 0 || strings.Contains(out, "open"):
							t.Errorf("%s: %s (status %#x)", name, out, status)
						case situation.repaired == 0 && strings.Contains(name, " .state.") && !strings.HasPrefix(out, "refused"):
							t.Errorf("%s: the error was ignored: %s", name, out)
						case !forEver && !strings.Contains(out, "saved"):
							t.Errorf("%s: the disk works again, but: %s", name, out)
						case !strings.Contains(out, "saved"):
							if rec, err := store.Read(runtime); err != nil || rec.DeviceID != "gw-0009" {
								t.Errorf("%s: not published in the runtime directory: %v", name, err)
							}
						}
						afterwards(t, name, directory, runtime, situation.least, situation.final, out)
					}
				})
			}
		}
	}
}

// TestOrderOfCalls checks the requirements of POSIX, which exceed those of ext4: a file is
// synced before its rename, and a directory after the last change in it.
func TestOrderOfCalls(t *testing.T) {
	for _, situation := range situations {
		t.Run(situation.say, func(t *testing.T) {
			directory, runtime := filepath.Join(quick(t), "state"), quick(t)
			if situation.least > 0 || situation.repaired > 0 {
				if err := os.Mkdir(directory, 0o755); err != nil {
					t.Fatal(err)
				}
				situation.prepare(t, directory, runtime)
			}
			owed := map[string]bool{} // what a power failure could lose, by the fsync that prevents it
			var renamed []string
			tr := tracer{directory: directory, ahead: func(c call) (order, syscall.Errno) {
				verb, what, _ := strings.Cut(c.name, " ")
				switch verb {
				case "mkdir":
					owed["its parent"] = true
				case "create", "write", "chmod", "truncate":
					if what != "lock" {
						owed[what] = true
					}
				case "fsync":
					delete(owed, what)
				case "rename":
					from, to, _ := strings.Cut(what, " → ")
					if owed[from] {
						t.Errorf("call %d, %s: %s has not been synced", c.number, c.name, from)
					}
					renamed = append(renamed, to)
					owed["the directory"] = true
				case "link", "unlink":
					owed["the directory"] = true
				}
				return proceed, 0
			}}
			if out, _ := tr.run(t, writerProcess("save 9", directory, runtime)); !strings.HasPrefix(out, "saved ") {
				t.Fatal(out)
			}
			delete(owed, "state") // only its mode has not been synced
			if len(owed) > 0 {
				t.Errorf("saved, but these have not been synced: %v", owed)
			}
			want := []string{"state.json.prev", "state.json", "state.env"}
			if situation.final == 1 {
				want = want[1:]
			}
			if n := len(renamed) - len(want); n < 0 || !slices.Equal(renamed[n:], want) {
				t.Errorf("the Save renames %q, want %q", renamed, want)
			}
		})
	}
}

// TestPowerCutAtEachCall cuts the power of an ext4 file system before and after each system
// call of a Save, and prints the files after the restart.
func TestPowerCutAtEachCall(t *testing.T) {
	long(t)
	if !withMounts(t) {
		return
	}
	for _, test := range []struct {
		say     string
		records int // on the disk before
	}{{"the first record", 0}, {"the second record", 1}, {"a later record", 3}} {
		if !thorough() && test.records == 1 {
			continue
		}
		t.Run(test.say, func(t *testing.T) {
			template := newLoopDisk(t)
			if test.records > 0 {
				fill(t, filepath.Join(template.directory, "state"), test.records)
			}
			if err := syscall.Unmount(template.directory, 0); err != nil {
				t.Fatal(err)
			}
			// outcome cuts the power and returns the results of a reader and of the next
			// start.
			outcome := func(at int, after bool) (name, found, previous, saved string, ended bool) {
				d := template.copy()
				defer d.end()
				directory := filepath.Join(d.directory, "state")
				cut := func(c call) order {
					if c.number != at {
						return proceed
					}
					name = c.name
					d.cut()
					return kill
				}
				tr := tracer{directory: directory, ahead: func(c call) (order, syscall.Errno) {
					if after {
						return proceed, 0
					}
					return cut(c), 0
				}}
				if after {
					tr.after = cut
				}
				out, status := tr.run(t, writerProcess("save 9", directory, t.TempDir()))
				if !status.Signaled() {
					d.cut() // Save has returned
				}
				d.restore()
				say := fmt.Sprintf("cut at call %d, %s (after: %v)", at, name, after)
				found, previous = "none", "none"
				rec, err := store.Read(directory)
				switch {
				case err == nil && rec.DeviceID == "gw-0009" && rec.Generation == uint64(test.records+1):
					found = "new"
				case err == nil && rec.DeviceID == numbered(test.records).DeviceID && rec.Generation == uint64(test.records):
					found = "old"
				case !errors.Is(err, store.ErrNoRecord) || test.records > 0:
					t.Errorf("%s: a reader finds generation %d of %s: %v", say, rec.Generation, rec.DeviceID, err)
				}
				if data, err := os.ReadFile(filepath.Join(directory, "state.json.prev")); err == nil {
					prev, err := store.Parse(data)
					if err != nil || prev.Generation != uint64(test.records) && prev.Generation != uint64(test.records-1) {
						t.Errorf("%s: state.json.prev: generation %d, %v", say, prev.Generation, err)
					}
					previous = fmt.Sprint(prev.Generation)
				} else if test.records > 1 {
					t.Errorf("%s: state.json.prev: %v", say, err)
				}
				if err := os.MkdirAll(directory, 0o755); err != nil { // like systemd
					t.Fatal(err)
				}
				afterwards(t, say, directory, t.TempDir(), uint64(test.records), uint64(test.records+1), out)
				return name, found, previous, strings.TrimSpace(out), !status.Signaled()
			}
			before := fmt.Sprintf("generation %d", test.records)
			if test.records == 0 {
				before = "none"
			}
			var table strings.Builder
			fmt.Fprintf(&table, "%s (old: %s, new: generation %d)\n", test.say, before, test.records+1)
			fmt.Fprintf(&table, "%3s  %-46s %-8s %-8s %s\n", "", "power cut …", "ahead", "after", "prev")
			last := ""
			for at := 1; ; at++ {
				name, ahead, prev1, saved, ended := outcome(at, false)
				if ended {
					fmt.Fprintf(&table, "%3s  %-46s %-8s %-8s %s\n", "", "Save has returned: "+saved, "", ahead, prev1)
					if ahead != "new" || at < 12 {
						t.Errorf("after %d calls Save has returned, and the record is %s", at-1, ahead)
					}
					break
				}
				_, after, prev2, _, _ := outcome(at, true)
				previous := prev1
				if prev2 != prev1 {
					previous += " → " + prev2
				}
				fmt.Fprintf(&table, "%3d  %-46s %-8s %-8s %s\n", at, name, ahead, after, previous)
				if last == "new" && (ahead != "new" || after != "new") {
					t.Errorf("call %d, %s: the earlier record is lost", at, name)
				}
				last = after
			}
			report(table.String())
		})
	}
}
