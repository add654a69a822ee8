package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call of a traced process that changes a file in the directory or makes a
// change durable.
type call struct {
	number int    // from 1
	name   string // e.g. "rename .state.json# → state.json"
}

// order is the tracer's action for a call.
type order int

const (
	proceed order = iota
	kill          // the process is killed before the call
	refuse        // the call is not executed and returns the errno
)

// tracer stops a process before each of its calls that may count, and after it if that matters
// (ptrace(2), seccomp(2)), so that tests include every step, even those of libraries.
type tracer struct {
	directory string // only calls for files in it count
	ahead     func(call) (order, syscall.Errno)
	after     func(call) order // nil means proceed
}

// run starts cmd and traces it until it ends. It returns the standard output of cmd.
func (tr *tracer) run(t *testing.T, cmd *exec.Cmd) (string, syscall.WaitStatus) {
	t.Helper()
	runtime.LockOSThread() // the kernel identifies the tracer by its thread
	defer runtime.UnlockOSThread()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.Env = append(cmd.Env, tracedVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		missing(t, fmt.Sprintf("ptrace(2) (%v)", err))
	}
	leader := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }()
	var status syscall.WaitStatus
	if _, err := wait4(leader, &status); err != nil {
		t.Fatal(err)
	}
	const exitKill = 0x100000 // PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(leader, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE|unix.PTRACE_O_TRACESECCOMP|exitKill); err != nil {
		_ = syscall.Kill(leader, syscall.SIGKILL)
		missing(t, fmt.Sprintf("ptrace(2) (%v)", err))
	}
	_ = syscall.PtraceCont(leader, 0)
	count := 0
	inside := map[int]call{}          // threads within a call that counts
	errnos := map[int]syscall.Errno{} // threads whose call is refused
	for {
		thread, err := wait4(-leader, &status)
		if err != nil {
			t.Fatalf("wait4: %v", err)
		}
		if !status.Stopped() {
			if thread == leader {
				data, err := os.ReadFile(out.Name())
				if err != nil {
					t.Fatal(err)
				}
				return string(data), status
			}
			continue
		}
		signal, resume, what := status.StopSignal(), syscall.PtraceCont, proceed
		switch {
		case status.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			signal = 0
			name := tr.describe(leader, syscallInfo(thread).entry)
			if name == "" {
				break
			}
			count++
			c := call{count, name}
			var errno syscall.Errno
			if what, errno = tr.ahead(c); what == refuse {
				setRegisters(thread, func(r *syscall.PtraceRegs) { r.Orig_rax = ^uint64(0) })
				errnos[thread] = errno
			}
			if what == refuse || tr.after != nil {
				inside[thread] = c
				resume = syscall.PtraceSyscall // until the end of the call
			}
		case signal == syscall.SIGTRAP|0x80:
			signal = 0
			c := inside[thread]
			delete(inside, thread)
			if errno, ok := errnos[thread]; ok {
				setRegisters(thread, func(r *syscall.PtraceRegs) { r.Rax = uint64(-int64(errno)) })
				delete(errnos, thread)
			}
			if tr.after != nil {
				what = tr.after(c)
			}
		case signal == syscall.SIGTRAP, signal == syscall.SIGSTOP: // a new thread, and its start
			signal = 0
		}
		if what == kill {
			// A pending call is no longer executed.
			_ = syscall.Kill(leader, syscall.SIGKILL)
			continue
		}
		// A thread that has ended (ESRCH) need not be resumed.
		if err := resume(thread, int(signal)); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("ptrace: %v", err)
		}
	}
}

// tracedVariable is set in a traced process.
const tracedVariable = "DPSD_TEST_TRACED"

// In a traced process, only the calls in countable stop it. Without this filter, each start of the
// Go runtime and of the test would stop it a thousand times.
func init() {
	if os.Getenv(tracedVariable) == "" {
		return
	}
	jump := func(code uint16, k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | code, K: k, Jt: uint8(yes), Jf: uint8(no)}
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// The offsets are those of struct seccomp_data: the number, and the flags of openat.
	filter := []unix.SockFilter{load(0)}
	for i, number := range countable {
		filter = append(filter, jump(unix.BPF_JEQ, number, len(countable)-i+4, 0))
	}
	filter = append(filter,
		jump(unix.BPF_JEQ, syscall.SYS_OPENAT, 1, 0),
		unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
		load(16+2*8),
		jump(unix.BPF_JSET, syscall.O_CREAT|syscall.O_TRUNC, 1, 0),
		unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET, K: unix.SECCOMP_RET_TRACE},
	)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program))); errno != 0 {
		panic(errno)
	}
}

// countable has the numbers of the calls that may count, apart from that of openat.
var countable = []uint32{
	syscall.SYS_MKDIRAT, syscall.SYS_SYMLINKAT, syscall.SYS_WRITE, syscall.SYS_PWRITE64, syscall.SYS_FTRUNCATE, syscall.SYS_FSYNC, syscall.SYS_FDATASYNC,
	syscall.SYS_FCHMOD, syscall.SYS_FCHMODAT, syscall.SYS_FCHOWN, syscall.SYS_FLOCK, syscall.SYS_UNLINKAT, syscall.SYS_RENAMEAT, unix.SYS_RENAMEAT2, syscall.SYS_LINKAT,
}

func wait4(pid int, status *syscall.WaitStatus) (int, error) {
	for {
		thread, err := syscall.Wait4(pid, status, syscall.WALL, nil)
		if !errors.Is(err, syscall.EINTR) {
			return thread, err
		}
	}
}

type entry struct {
	number    uint64
	arguments [6]uint64
}

type information struct {
	op    uint8
	_     [3]uint8
	arch  uint32
	ip    uint64
	sp    uint64
	entry entry
	_     uint64
}

func syscallInfo(thread int) (info information) {
	const getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PTRACE, getSyscallInfo, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	return info
}

func setRegisters(thread int, change func(*syscall.PtraceRegs)) {
	var r syscall.PtraceRegs
	if syscall.PtraceGetRegs(thread, &r) == nil {
		change(&r)
		_ = syscall.PtraceSetRegs(thread, &r)
	}
}

// describe returns a description of a call that counts, and "" for others.
func (tr *tracer) describe(pid int, e entry) string {
	a := e.arguments
	descriptor := func(i int) string {
		path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, int32(a[i])))
		return path
	}
	memory := func(i int) string {
		f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
		if err != nil {
			return ""
		}
		defer f.Close()
		var path [4096]byte
		n, _ := f.ReadAt(path[:], int64(a[i]))
		text, _, _ := bytes.Cut(path[:n], []byte{0})
		return string(text)
	}
	// at returns the path of a call with a descriptor of a directory.
	at := func(i int) string {
		path := memory(i + 1)
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(descriptor(i), path)
	}
	switch e.number {
	case syscall.SYS_OPENAT: // with O_CREAT or O_TRUNC
		return tr.below("create", at(0))
	case syscall.SYS_MKDIRAT:
		return tr.below("mkdir", at(0))
	case syscall.SYS_SYMLINKAT:
		return tr.below("symlink", at(1))
	case syscall.SYS_WRITE, syscall.SYS_PWRITE64:
		return tr.below("write", descriptor(0))
	case syscall.SYS_FTRUNCATE:
		return tr.below("truncate", descriptor(0))
	case syscall.SYS_FSYNC, syscall.SYS_FDATASYNC:
		return tr.below("fsync", descriptor(0))
	case syscall.SYS_FCHMOD:
		return tr.below("chmod", descriptor(0))
	case syscall.SYS_FCHMODAT:
		return tr.below("chmod", at(0))
	case syscall.SYS_FCHOWN:
		return tr.below("chown", descriptor(0))
	case syscall.SYS_FLOCK:
		return tr.below("flock", descriptor(0))
	case syscall.SYS_UNLINKAT:
		return tr.below("unlink", at(0))
	case syscall.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return tr.below("rename", at(0), at(2))
	case syscall.SYS_LINKAT:
		return tr.below("link", at(0), at(2))
	}
	panic(fmt.Sprintf("call %d stops the process, but has no description", e.number))
}

// digits matches the digits that make a temporary name unique.
var digits = regexp.MustCompile(`^(\.[a-z.]+?)[0-9]+$`)

func (tr *tracer) below(verb string, paths ...string) string {
	var short []string
	for _, path := range paths {
		switch {
		case path == filepath.Dir(tr.directory): // synced after the directory has been created
			short = append(short, "its parent")
		case path == tr.directory:
			short = append(short, "the directory")
		case filepath.Dir(path) == tr.directory:
			short = append(short, digits.ReplaceAllString(filepath.Base(path), "$1#"))
		case strings.HasPrefix(path, tr.directory+"/"):
			short = append(short, path[len(tr.directory)+1:])
		default:
			return ""
		}
	}
	return verb + " " + strings.Join(short, " → ")
}
