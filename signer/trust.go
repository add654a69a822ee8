package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// trust checks that the signer runs as root, as the user of this process, or as the owner of the
// socket's directory.
//
// The kernel reports the user that called listen(2), so nothing can change between the check and
// the use. For a socket that systemd created, this user is root. In a user namespace
// (PrivateUsers=), all other users have the same number; therefore, the owner of the directory is
// trusted only if no other user can write to the directory, and if every directory above it
// belongs to root or to this user, and only its owner can write to it.
func trust(conn *net.UnixConn, path string) error {
	listener, err := listener(conn)
	if err != nil {
		return fmt.Errorf("cannot determine the user of the signer: %w", err)
	}
	if listener == 0 || int(listener) == os.Getuid() {
		return nil
	}
	directory, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot check the directory of the socket: %w", err)
	}
	info, err := os.Lstat(directory)
	if err != nil {
		return fmt.Errorf("cannot check the directory of the socket: %w", err)
	}
	if err := exclusive(directory, info, listener); err != nil {
		return err
	}
	for directory != "/" {
		directory = filepath.Dir(directory)
		if info, err = os.Lstat(directory); err != nil {
			return fmt.Errorf("cannot check the directory of the socket: %w", err)
		}
		if err := exclusive(directory, info, 0, uint32(os.Getuid())); err != nil {
			return err
		}
	}
	return nil
}

// listener returns the user that called listen(2); see SO_PEERCRED in unix(7).
func listener(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, failed); err != nil {
		return 0, err
	}
	return peer.Uid, nil
}

// exclusive checks that a directory belongs to one of the users, and that only its owner can
// create files in it.
func exclusive(path string, info fs.FileInfo, users ...uint32) error {
	owner := info.Sys().(*syscall.Stat_t).Uid
	for _, user := range users {
		if owner == user && info.Mode().Perm()&0o022 == 0 {
			return nil
		}
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("another user listens on the socket, and cannot be trusted, because the group or others can write to %s", path)
	}
	return fmt.Errorf("another user listens on the socket, and cannot be trusted, because the owner of %s is unexpected", path)
}
