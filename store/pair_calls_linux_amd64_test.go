package store_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestARenewalKilledAtEachCall kills a real process before each system call that changes the
// disk, and after the last.
func TestARenewalKilledAtEachCall(t *testing.T) {
	long(t)
	for _, r := range renewals {
		t.Run(r.say, func(t *testing.T) {
			for at, last := 1, false; !last; at++ {
				directory, runtime := quick(t), quick(t)
				r.prepare(t, directory)
				before := least(directory)
				name := "after the last"
				tr := tracer{directory: directory, ahead: func(c call) (order, syscall.Errno) {
					if c.number == at {
						name = fmt.Sprintf("ahead of call %d, %s", c.number, c.name)
						return kill, 0
					}
					return proceed, 0
				}}
				out, status := tr.run(t, writerProcess(fmt.Sprintf("renew %d 0", r.n), directory, runtime))
				if last = !status.Signaled(); last && (at < 6 || !strings.Contains(out, fmt.Sprintf("saved %d\n", r.final))) {
					t.Fatalf("only %d calls; output %q", at-1, out)
				}
				r.interrupted(t, name, directory, runtime, before, out)
			}
		})
	}
}

// TestEachCallOfARenewalRefused makes each system call fail: once, and permanently. All cases
// and errors are tested only in CI.
func TestEachCallOfARenewalRefused(t *testing.T) {
	long(t)
	for _, r := range renewals {
		for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EACCES} {
			for _, forEver := range []bool{false, true} {
				if !thorough() && (errno != syscall.EIO || !strings.HasPrefix(r.say, "a renewal with") && r.n > 0) {
					continue
				}
				say := map[bool]string{false: "once", true: "permanently"}[forEver]
				t.Run(fmt.Sprintf("%s, a call fails %s with %v", r.say, say, errno), func(t *testing.T) {
					for at, made := 1, true; made; at++ {
						directory, runtime := quick(t), quick(t)
						r.prepare(t, directory)
						before := least(directory)
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
						out, status := tr.run(t, writerProcess(fmt.Sprintf("renew %d 0", r.n), directory, runtime))
						switch {
						case status.ExitStatus() != 0 || strings.Contains(out, "open"):
							t.Errorf("%s: %s (status %#x)", name, out, status)
						case !forEver && !strings.Contains(out, "saved"):
							t.Errorf("%s: the disk works again, but: %s", name, out)
						}
						r.interrupted(t, name, directory, runtime, before, out)
					}
				})
			}
		}
	}
}

// durability follows the calls of a process, and reports violations of the requirements of
// POSIX: a file is synced before its rename, a directory before its rename and after the last
// change in it, and everything before the link that publishes it.
type durability struct {
	t       *testing.T
	owed    map[string]bool // what a power failure could lose, by the fsync that prevents it
	renamed []string
}

func (d *durability) follow(c call) (order, syscall.Errno) {
	within := func(path string) string {
		if parent := filepath.Dir(path); parent != "." {
			return parent
		}
		return "the directory"
	}
	verb, what, _ := strings.Cut(c.name, " ")
	switch verb {
	case "create", "mkdir":
		if what != "lock" {
			d.owed[what], d.owed[within(what)] = true, true
		}
	case "write", "chmod", "truncate":
		d.owed[what] = true
	case "fsync":
		delete(d.owed, what)
	case "rename":
		from, to, _ := strings.Cut(what, " → ")
		for path := range d.owed {
			if path == from || strings.HasPrefix(path, from+"/") {
				d.t.Errorf("call %d, %s: %s has not been synced", c.number, c.name, path)
			}
		}
		d.renamed = append(d.renamed, to)
		d.owed[within(from)], d.owed[within(to)] = true, true
	case "symlink":
		for path := range d.owed {
			d.t.Errorf("call %d, %s: %s has not been synced", c.number, c.name, path)
		}
		d.owed[within(what)] = true
	case "unlink":
		for path := range d.owed {
			if path == what || strings.HasPrefix(path, what+"/") {
				delete(d.owed, path)
			}
		}
		d.owed[within(what)] = true
	}
	return proceed, 0
}

// end reports what has not been synced.
func (d *durability) end() {
	for path := range d.owed {
		d.t.Errorf("saved, but %s has not been synced", path)
	}
}

func TestOrderOfCallsOfARenewal(t *testing.T) {
	for _, r := range renewals {
		t.Run(r.say, func(t *testing.T) {
			directory, runtime := quick(t), quick(t)
			r.prepare(t, directory)
			d := &durability{t: t, owed: map[string]bool{}}
			tr := tracer{directory: directory, ahead: d.follow}
			if out, _ := tr.run(t, writerProcess(fmt.Sprintf("renew %d 0", r.n), directory, runtime)); !strings.Contains(out, "saved ") {
				t.Fatal(out)
			}
			d.end()
			if r.n == 0 {
				return
			}
			commit := slices.Index(d.renamed, "certificate/current")
			if record := slices.Index(d.renamed, "state.json"); commit < 0 || record < commit {
				t.Errorf("the record is not written after the certificate: %q", d.renamed)
			}
		})
	}
}

func TestAPendingKeyIsDurableBeforeItsRequest(t *testing.T) {
	for _, r := range renewals {
		if r.n == 0 {
			continue
		}
		t.Run(r.say, func(t *testing.T) {
			directory, runtime := quick(t), quick(t)
			r.prepare(t, directory)
			d := &durability{t: t, owed: map[string]bool{}}
			tr := tracer{directory: directory, ahead: d.follow}
			if out, _ := tr.run(t, writerProcess("request", directory, runtime)); out != "<nil>\n" {
				t.Fatal(out)
			}
			d.end()
			if !slices.Contains(d.renamed, "certificate/pending") {
				t.Errorf("it renames %q", d.renamed)
			}
		})
	}
}

// TestPowerCutAtEachCallOfARenewal cuts the power of an ext4 file system before each system
// call of a renewal, and prints what a reader finds after the restart.
func TestPowerCutAtEachCallOfARenewal(t *testing.T) {
	long(t)
	if !withMounts(t) {
		return
	}
	for _, r := range renewals {
		if !thorough() && r.say != "a renewal" {
			continue
		}
		t.Run(r.say, func(t *testing.T) {
			template := newLoopDisk(t)
			state := filepath.Join(template.directory, "state")
			if r.old != 0 || r.final > 1 {
				r.prepare(t, makeDirectory(t, state))
			}
			// The disk is copied to another place, which the paths in the record would name.
			if err := syscall.Unmount(template.directory, 0); err != nil {
				t.Fatal(err)
			}
			var table strings.Builder
			fmt.Fprintf(&table, "%s (old: key %d, new: key %d)\n", r.say, r.old, r.new)
			fmt.Fprintf(&table, "%3s  %-86s %-8s %s\n", "", "power cut ahead of …", "current", "state.json")
			found := r.old
			for at, ended := 1, false; !ended; at++ {
				func() {
					d := template.copyTo(template.directory)
					defer d.end()
					before := least(state)
					name := "nothing: Save has returned"
					tr := tracer{directory: state, ahead: func(c call) (order, syscall.Errno) {
						if c.number != at {
							return proceed, 0
						}
						name = c.name
						d.cut()
						return kill, 0
					}}
					runtime := quick(t)
					out, status := tr.run(t, writerProcess(fmt.Sprintf("renew %d 0", r.n), state, runtime))
					if ended = !status.Signaled(); ended {
						d.cut()
					}
					d.restore()
					makeDirectory(t, state) // like systemd
					current, inRecord := r.interrupted(t, fmt.Sprintf("call %d, %s", at, name), state, quick(t), before, out)
					fmt.Fprintf(&table, "%3d  %-86s %-8s %s\n", at, name, r.which(current), r.which(inRecord))
					if found == r.new && current != r.new && !r.harmed {
						t.Errorf("call %d, %s: the new pair is lost", at, name)
					}
					found = current
					if ended && (at < 6 || current != r.new && !r.harmed) {
						t.Errorf("after %d calls, Save has returned, and key %d is published", at-1, current)
					}
				}()
			}
			report(table.String())
		})
	}
}

// which names a key of a renewal.
func (r renewal) which(key int) string {
	switch {
	case r.harmed:
		return "damaged"
	case key == 0:
		return "none"
	case key == r.new:
		return "new"
	}
	return "old"
}
