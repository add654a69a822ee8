package control

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, see unix(7).
type peer struct {
	pid      int32
	uid, gid uint32
	groups   []uint32 // supplementary
	known    bool
}

type peerKey struct{}

// withPeer is the ConnContext function of http.Server.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	if held, ok := c.(*counted); ok {
		return context.WithValue(ctx, peerKey{}, held.peer)
	}
	return ctx
}

func peerOf(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}

// trusted reports whether the peer may request a registration: root, the service's user and
// members of its group may. In a user namespace (PrivateUsers=), all other users have the
// overflow ID 65534, so no other user ID is checked.
func (p peer) trusted() bool {
	if !p.known {
		return false
	}
	own := uint32(os.Getegid())
	return p.uid == 0 || p.uid == uint32(os.Geteuid()) || p.gid == own || slices.Contains(p.groups, own)
}

// identify gets the credentials that the kernel recorded when the peer connected.
func identify(c *net.UnixConn) (p peer) {
	raw, err := c.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		credentials, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		p = peer{pid: credentials.Pid, uid: credentials.Uid, gid: credentials.Gid, known: true}
		p.groups = peerGroups(fd)
	})
	return p
}

// peerGroups returns SO_PEERGROUPS, which x/sys does not wrap. On an error, it returns no
// group.
func peerGroups(fd uintptr) []uint32 {
	buffer := make([]byte, 4*256)
	for {
		size := uint32(len(buffer))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // a system call without a wrapper
		switch {
		case errno == unix.ERANGE && size > uint32(len(buffer)) && size <= 4*65536: // NGROUPS_MAX
			buffer = make([]byte, size)
			continue
		case errno != 0:
			return nil
		}
		groups := make([]uint32, 0, size/4)
		for b := buffer[:size]; len(b) >= 4; b = b[4:] {
			groups = append(groups, binary.NativeEndian.Uint32(b))
		}
		return groups
	}
}
