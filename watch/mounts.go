package watch

import "os"

// mounts is the mount table of this process, proc_pid_mountinfo(5). Inotify reports neither
// a mount nor an unmount.
type mounts struct {
	file *os.File // nil: there is no /proc
}

func openMounts() mounts {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mounts{}
	}
	return mounts{file}
}

// follow calls changed whenever the table has changed, and once before, until close. The
// kernel reports a change as an event of the open file, which the runtime's poller waits for.
func (m mounts) follow(changed func()) {
	if m.file == nil {
		return
	}
	conn, err := m.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(uintptr) bool { changed(); return false })
}

func (m mounts) close() {
	if m.file != nil {
		_ = m.file.Close()
	}
}
