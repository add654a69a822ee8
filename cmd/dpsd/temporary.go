package main

import (
	"errors"
	"slices"
	"syscall"
)

// temporary reports whether err is a failure to read a file that can end without a
// change to the file: too few descriptors, too little memory, or a failing disk or
// network file system. The service manager may then try again, which exit code 78
// would prevent.
func temporary(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && slices.Contains([]syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.EINTR, syscall.EAGAIN, syscall.ESTALE, syscall.ETIMEDOUT,
	}, errno)
}
