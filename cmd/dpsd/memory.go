package main

import (
	"os"
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
	for _, m := range unchanged(string(smaps)) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// unchanged returns those mappings of files in proc_pid_smaps(5) that are not writable
// and have no page that this process has changed, in memory or in swap: relocations
// would be lost.
func unchanged(smaps string) (all []mapping) {
	var current mapping
	wanted := false
	for line := range strings.Lines(smaps) {
		key, value, _ := strings.Cut(line, " ")
		switch key {
		case "Anonymous:", "Swap:":
			wanted = wanted && strings.TrimSpace(value) == "0 kB"
		case "VmFlags:": // the last line of each
			if wanted {
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
			current = mapping{uintptr(start), uintptr(end)}
			wanted = err1 == nil && err2 == nil && len(column) >= 5 && !strings.Contains(column[0], "w") && column[3] != "0"
		}
	}
	return all
}
