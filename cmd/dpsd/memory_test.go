package main

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Mappings as the kernel shows them, without the lines that nobody reads.
const smaps = `00400000-007f0000 r-xp 00000000 fe:00 1001                               /usr/bin/dpsd
Size:               4032 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me 
007f0000-00be9000 r--p 003f0000 fe:00 1001                               /usr/bin/dpsd (deleted)
Size:               4068 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me 
00be9000-00c00000 r--p 007e9000 fe:00 1001                               /usr/bin/relocated
Anonymous:            72 kB
Swap:                  0 kB
VmFlags: rd mr mw me ac 
00c00000-00c20000 r--p 007e9000 fe:00 1001                               /usr/bin/swapped
Anonymous:             0 kB
Swap:                 72 kB
VmFlags: rd mr mw me ac 
00c20000-00c47000 rw-p 007e9000 fe:00 1001                               /usr/bin/dpsd
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac 
101f78000000-101f79400000 ---p 00000000 00:00 0 
FilePmdMapped:         0 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: mr mw me 
7fbb0f400000-7fbb0f403000 r-xp 00000000 fe:00 1002                       /usr/lib/another
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me 
7fbb0f403000-7fbb0f405000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me de 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: ex 
`

func TestUnchanged(t *testing.T) {
	const pc = 0x400800
	t.Run("pages of the program are unchanged where they are read only and none is the process's own", func(t *testing.T) {
		if got, want := unchanged(smaps, pc), []mapping{{0x400000, 0x7f0000, "fe:00 1001"}, {0x7f0000, 0xbe9000, "fe:00 1001"}}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
	t.Run("what is cut off, or no table of mappings, or that of another process has none", func(t *testing.T) {
		for _, text := range []string{
			"", "nonsense", smaps[:100], "zz-zz r-xp 0 0:0 1 /x\nVmFlags: \n", strings.ReplaceAll(smaps, "00400000-", "00500000-"),
		} {
			if got := unchanged(text, pc); len(got) > 0 {
				t.Errorf("%q: %x", text, got)
			}
		}
	})
}

func TestTheProgramRunsOnWhenItIsUnmapped(t *testing.T) {
	t.Run("and its pages leave the process", func(t *testing.T) {
		before := resident(t)
		for range 3 {
			if err := unmapProgram(); err != nil {
				t.Fatal(err)
			}
		}
		if after := resident(t); after > before*3/4 {
			t.Errorf("%d kB of files are resident, %d kB before", after, before)
		}
	})
	if t.Failed() || os.Getenv(inMemory) != "" {
		return
	}
	t.Run("also as a file of a tmpfs, which is memory that is shared", func(t *testing.T) {
		fd, err := unix.MemfdCreate("program", 0) // a file of the kernel's own tmpfs
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "program")
		defer file.Close()
		self, err := os.Open("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		if _, err := io.Copy(file, self); err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), "/proc/self/fd/"+strconv.Itoa(fd), "-test.run=^TestTheProgramRunsOnWhenItIsUnmapped$")
		c.Env = append(os.Environ(), inMemory+"=true")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// inMemory is set for a test program that is a file of a tmpfs.
const inMemory = "DPSD_TEST_IN_MEMORY"

// resident is how much of files is in this process's memory, in kB: those of a tmpfs are
// counted as shared memory, proc_pid_status(5).
func resident(t *testing.T) (total int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"RssFile:", "RssShmem:"} {
		_, after, _ := strings.Cut(string(status), key)
		n, err := strconv.Atoi(strings.Fields(after)[0])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}
