package main

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapProgram takes the program as it is on disk out of this process's memory. The
// kernel maps 64 KB around each page that is touched, nearly all of the program in the
// end, and is slow to reclaim code that is mapped; a gateway at rest uses little of it.
// What is used again is mapped again, from the page cache or the disk: madvise(2),
// MADV_DONTNEED.
func unmapProgram() error {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	pc, _, _, _ := runtime.Caller(0)
	for _, m := range unchanged(string(smaps), pc) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

// mapping is a range of addresses, and the file that is there.
type mapping struct {
	start, end uintptr
	file       string // device and inode
}

// unchanged returns those mappings in proc_pid_smaps(5) of the file that the code at pc
// is from which have no page that this process has changed, in memory or in swap, and
// never will: relocations would be lost. There are none where the table is that of
// somebody else: of an emulator, whose addresses are others.
func unchanged(smaps string, pc uintptr) (all []mapping) {
	var current mapping
	var ours string
	same := false
	for line := range strings.Lines(smaps) {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "Anonymous:", "Swap:":
			same = same && strings.TrimSpace(value) == "0 kB"
		case "VmFlags:": // the last line of each
			if same {
				all = append(all, current)
			}
		default:
			first, last, head := strings.Cut(key, "-")
			if !head {
				continue
			}
			start, err1 := strconv.ParseUint(first, 16, strconv.IntSize)
			end, err2 := strconv.ParseUint(last, 16, strconv.IntSize)
			column := strings.Fields(value) // permissions, offset, device, inode, path
			same = err1 == nil && err2 == nil && len(column) >= 5 && column[3] != "0" && !strings.Contains(column[0], "w")
			if !same {
				continue
			}
			current = mapping{uintptr(start), uintptr(end), column[2] + " " + column[3]}
			if current.start <= pc && pc < current.end {
				ours = current.file
			}
		}
	}
	return slices.DeleteFunc(all, func(m mapping) bool { return m.file != ours })
}
