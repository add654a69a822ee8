// Command probe tries what a service may do, and prints a line for each attempt: its name,
// "allowed" or "denied", and the error. Run as the service, it shows the restrictions of the
// sandbox. Run by root, it shows that the attempts are effective.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// attempt is an operation to try. If refused is set, only these errors mean that the operation is
// denied: other errors mean that the kernel permitted it but the arguments were invalid. This way,
// operations can be tried that must not be carried out on the machine.
type attempt struct {
	name    string
	try     func() error
	refused []error
}

func main() {
	runtime.LockOSThread() // an attempt changes the state of its thread
	for _, a := range attempts() {
		err := a.try()
		verdict := "allowed"
		if err != nil && a.refused == nil {
			verdict = "denied"
		}
		for _, r := range a.refused {
			if errors.Is(err, r) {
				verdict = "denied"
			}
		}
		fmt.Printf("%s: %s: %v\n", a.name, verdict, err)
	}
	fmt.Println("end")
}

func attempts() []attempt {
	no := []error{unix.EPERM, unix.EACCES}
	return []attempt{
		{"write to the state directory", write("/var/lib/dpsd/probe"), nil},
		{"write to the runtime directory", write("/run/dpsd/probe"), nil},
		{"read the machine ID", read("/etc/machine-id"), nil},
		{"read the trusted roots", read("/etc/ssl/certs/ca-certificates.crt"), nil},
		{"a TCP socket over IPv4", socket(unix.AF_INET, unix.SOCK_STREAM, 0), nil},
		{"a TCP socket over IPv6", socket(unix.AF_INET6, unix.SOCK_STREAM, 0), nil},
		{"a Unix socket", socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0), nil},

		{"write to /var/lib", write("/var/lib/probe"), nil},
		{"write to /etc", write("/etc/probe"), nil},
		{"write to /etc/dpsd", write("/etc/dpsd/probe"), nil},
		{"write to /usr", write("/usr/probe"), nil},
		{"write to /run", write("/run/probe"), nil},
		{"change an owner", func() error { return os.Chown("/var/lib/dpsd/probe", 1, 1) }, nil},
		{"give a file to another group", func() error { return os.Chown("/var/lib/dpsd/probe", -1, 1) }, nil},
		{"see a file in /home", read("/home/someone"), nil},
		{"see a file in /root", read("/root/secret"), nil},
		{"see another's file in /tmp", read("/tmp/of-another"), nil},
		{"read root's file", read("/etc/shadow"), nil},
		{"read a credential's source", read("/etc/credstore/probe"), nil},
		{"a netlink socket", socket(unix.AF_NETLINK, unix.SOCK_RAW, 0), nil},
		{"a packet socket", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), nil},
		{"a raw socket", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), nil},
		{"a user namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }, no},
		{"a network namespace", func() error { return unix.Unshare(unix.CLONE_NEWNET) }, nil},
		{"a mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }, nil},
		{"a mount", func() error { return unix.Mount("none", "/var/lib/dpsd", "tmpfs", 0, "") }, nil},
		{"chroot", func() error { return unix.Chroot("/") }, nil},
		{"a kernel tunable", writeOnly("/proc/sys/net/ipv4/ip_forward"), nil},
		{"a control group", func() error { return os.Mkdir("/sys/fs/cgroup/probe", 0o700) }, nil},
		{"see another process", read("/proc/1/status"), nil},
		{"see the machine in /proc", read("/proc/cpuinfo"), nil},
		{"a device that is no pseudo device", func() error {
			f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
			return errors.Join(err, f.Close())
		}, nil},
		{"a device file", func() error { return unix.Mknod("/var/lib/dpsd/probe-null", unix.S_IFCHR|0o666, 1<<8|3) }, nil},
		{"writable and executable memory", memory, nil},
		{"memory made executable", executable, nil},
		{"trace a process", func() error { return ptrace(-1) }, no}, // no such request
		{"become root", func() error { return unix.Setresuid(0, 0, 0) }, no},
		{"a set-user-ID file", func() error {
			return errors.Join(os.WriteFile("/var/lib/dpsd/probe-suid", nil, 0o600), unix.Chmod("/var/lib/dpsd/probe-suid", unix.S_ISUID|0o700))
		}, nil},
		{"a set-group-ID directory", func() error {
			return errors.Join(os.Mkdir("/var/lib/dpsd/probe-sgid", 0o700), unix.Chmod("/var/lib/dpsd/probe-sgid", unix.S_ISGID|0o750))
		}, nil},
		{"real-time scheduling", realtime, no},
		{"raised priority", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }, nil},
		{"another personality", func() error { return personality(8) }, no}, // PER_LINUX32
		// The time is invalid: the result is EINVAL unless the call is denied first.
		{"set the clock", func() error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Nsec: -1}) }, no},
		{"the host name", func() error { return unix.Sethostname([]byte("probe")) }, nil},
		{"read the kernel's log", func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 16)); return err }, nil},
		{"load a kernel module", func() error { return unix.DeleteModule("no-such-module", 0) }, no},
		{"restart the machine", func() error { _, _, e := unix.Syscall(unix.SYS_REBOOT, 0, 0, 0); return errno(e) }, no}, // wrong magic: EINVAL
		{"a BPF program", func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 1000, 0, 0); return errno(e) }, no},
		{"io_uring", func() error { _, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); return errno(e) }, no},
		{"performance counters", func() error { _, _, e := unix.Syscall6(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0, 0); return errno(e) }, no},
		{"another process's memory", func() error {
			_, err := unix.ProcessVMReadv(os.Getppid(), nil, nil, 0)
			return err
		}, no},
	}
}

func write(path string) func() error {
	return func() error {
		f, err := os.Create(path)
		return errors.Join(err, f.Close())
	}
}

// writeOnly opens a file and writes nothing.
func writeOnly(path string) func() error {
	return func() error {
		f, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY, 0)
		return errors.Join(err, f.Close())
	}
}

func read(path string) func() error {
	return func() error { _, err := os.ReadFile(path); return err }
}

func socket(family, kind, protocol int) func() error {
	return func() error {
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
}

func memory() error {
	_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	return err
}

func executable() error {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil //nolint:nilerr // counts as allowed, which fails the test
	}
	return unix.Mprotect(page, unix.PROT_READ|unix.PROT_EXEC)
}

func realtime() error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
}

func personality(persona uintptr) error {
	_, _, e := unix.Syscall(unix.SYS_PERSONALITY, persona, 0, 0)
	return errno(e)
}

func ptrace(request int) error {
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(os.Getpid()), 0, 0, 0, 0)
	return errno(e)
}

func errno(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
