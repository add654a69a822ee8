package main

import (
	"errors"
	"slices"
	"syscall"
)

// lasting are the reasons why a file cannot be read that only a person can remove.
var lasting = []syscall.Errno{
	syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EACCES, syscall.EPERM, syscall.ELOOP,
	syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENXIO, syscall.ENODEV,
}

// temporary reports whether err is a failure to read a file that can end without a
// change to the file: too few descriptors, too little memory, a failing disk, or a
// network file system that does not answer. The service manager may then try again,
// which exit code 78 would prevent.
func temporary(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && !slices.Contains(lasting, errno)
}
