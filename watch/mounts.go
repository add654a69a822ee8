package watch

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
)

// mountTable is the mount table of this process, see proc_pid_mountinfo(5).
const mountTable = "/proc/self/mountinfo"

// Mount is a mount on a directory.
type Mount struct {
	ID     string // ID of the mount
	Device string // device of the file system, major:minor
}

// Mounts returns the mounts on a directory, of which one may cover another. It returns none
// if the mount table cannot be read.
func Mounts(directory string) []Mount {
	directory, err := filepath.EvalSymlinks(directory)
	if err != nil {
		return nil
	}
	var on []Mount
	for m := range readMounts {
		if m.point == directory {
			on = append(on, m.Mount)
		}
	}
	return on
}

type mount struct {
	Mount
	point string
}

// readMounts yields the mounts of the mount table. A line begins with the ID, the ID of the parent, the
// device, the root in the file system, and the mount point.
func readMounts(yield func(mount) bool) {
	table, err := os.Open(mountTable)
	if err != nil {
		return
	}
	defer table.Close()
	for lines := bufio.NewScanner(table); lines.Scan(); {
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) < 6 {
			continue
		}
		point := fields[4]
		if strings.Contains(point, `\`) {
			point = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(point)
		}
		if !yield(mount{Mount{fields[0], fields[2]}, point}) {
			return
		}
	}
}

// mounts returns the mounts on the directories of the route. No path shows when a covered
// mount is added or removed, as in a mount namespace that keeps its own mount on top.
func (r *route) mounts() (on []mount) {
	for m := range readMounts {
		if r.watched[m.point] != 0 {
			on = append(on, m)
		}
	}
	return on
}

// followMounts calls changed once and then after each change of the mount table, which
// inotify does not report, until the table is closed. The kernel reports a change as an event
// of the open file, for which the runtime's poller waits.
func followMounts(table *os.File, changed func()) {
	if conn, err := table.SyscallConn(); err == nil {
		_ = conn.Read(func(uintptr) bool { changed(); return false })
	}
}
