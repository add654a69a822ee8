package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
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
	resident := func() int {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(status), "RssFile:")
		n, err := strconv.Atoi(strings.Fields(after)[0])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := resident()
	for range 3 {
		if err := unmapProgram(); err != nil {
			t.Fatal(err)
		}
	}
	if after := resident(); after > before*3/4 {
		t.Errorf("%d kB of files are resident, %d kB before", after, before)
	}
}
