package network

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set for the test program that runs in separate namespaces.
const inside = "DPSD_TEST_NETWORK_INSIDE"

func TestTheStateOfThisMachineStaysWhenNothingChanges(t *testing.T) {
	to := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	first, second := State(to), State(to)
	if first != second {
		t.Error("two fingerprints differ")
	}
	if first == State(nil) {
		t.Error("the destinations make no difference")
	}
}

// TestChangesOfTheNetwork runs itself in new user, network and mount namespaces, which have
// only loopback and an empty /etc.
func TestChangesOfTheNetwork(t *testing.T) {
	if os.Getenv(inside) != "" {
		changes(t)
		return
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestChangesOfTheNetwork$", "-test.v")
	c.Env = append(os.Environ(), inside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	out, err := c.CombinedOutput()
	switch impossible := c.ProcessState == nil || bytes.Contains(out, []byte("--- SKIP")); {
	case err == nil && !impossible:
	case impossible && os.Getenv("CI") == "":
		t.Skipf("cannot create namespaces for this test: %v\n%s", err, out)
	default:
		t.Errorf("%v\n%s", err, out)
	}
}

func changes(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ip := func(args ...string) func() {
		return func() {
			t.Helper()
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
		}
	}
	write := func(name, text string) func() {
		return func() { t.Helper(); must(os.WriteFile(name, []byte(text), 0o600)) }
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("ip link set lo up: %v: %s", err, out)
	}
	must(unix.Mount("none", "/etc", "tmpfs", 0, "size=1m"))
	to := []netip.Addr{netip.MustParseAddr("203.0.113.9")} // RFC 5737
	for _, tt := range []struct {
		says    string
		do      func()
		differs bool
	}{
		{"nothing is no change", func() {}, false},
		{"an address is no change when there is no route by it", ip("address", "add", "198.51.100.1/32", "dev", "lo"), false},
		{"a default route is a change", ip("route", "add", "default", "dev", "lo", "src", "198.51.100.1"), true},
		{"a second address is no change", ip("address", "add", "198.51.100.2/32", "dev", "lo"), false},
		{"a default route from another address is a change", ip("route", "replace", "default", "dev", "lo", "src", "198.51.100.2"), true},
		{"a route to the destination is a change", ip("route", "add", "203.0.113.0/24", "dev", "lo", "src", "198.51.100.1"), true},
		{"a route to something else is no change", ip("route", "add", "198.18.0.0/15", "dev", "lo", "src", "198.51.100.1"), false},
		{"a name server is a change", write("/etc/resolv.conf", "nameserver 198.51.100.53\n"), true},
		{"the same name server written again is no change", write("/etc/resolv.conf", "nameserver 198.51.100.53\n"), false},
		{"another name server is a change", write("/etc/resolv.conf", "nameserver 198.51.100.54\n"), true},
		{"a link to another file is a change", func() {
			write("/etc/other", "nameserver 198.51.100.55\n")()
			must(os.Symlink("other", "/etc/link"))
			must(os.Rename("/etc/link", "/etc/resolv.conf"))
		}, true},
		{"the file behind the link is a change", write("/etc/other", "nameserver 198.51.100.56\n"), true},
		{"a host is a change", write("/etc/hosts", "198.51.100.7 endpoint\n"), true},
		{"the order of sources is a change", write("/etc/nsswitch.conf", "hosts: files\n"), true},
		{"no resolver file is a change", func() { must(os.Remove("/etc/resolv.conf")) }, true},
		{"a FIFO in place of a resolver file is like no file", func() { must(syscall.Mkfifo("/etc/resolv.conf", 0o600)) }, false},
		{"no default route is a change", ip("route", "del", "default"), true},
	} {
		before := State(to)
		tt.do()
		if got := State(to) != before; got != tt.differs {
			t.Errorf("%s: differs %v, want %v", tt.says, got, tt.differs)
		}
	}
}
