package main

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

func TestOnlyALastingReasonNotToReadTheConfigurationExitsWith78(t *testing.T) {
	for errno, code := range map[syscall.Errno]int{
		syscall.EMFILE: exitFailed, syscall.ENFILE: exitFailed, syscall.ENOMEM: exitFailed, syscall.EIO: exitFailed,
		syscall.ESTALE: exitFailed, syscall.ETIMEDOUT: exitFailed, syscall.EINTR: exitFailed, syscall.EAGAIN: exitFailed,
		syscall.ENOENT: exitConfiguration, syscall.EACCES: exitConfiguration, syscall.EISDIR: exitConfiguration, syscall.ELOOP: exitConfiguration,
	} {
		err := invalid(configurationFile, &fs.PathError{Op: "open", Path: configurationFile, Err: errno})
		var exit *exitError
		if !errors.As(err, &exit) || exit.code != code {
			t.Errorf("%v: %v, expected exit code %d", errno, err, code)
		}
		if !errors.Is(err, errno) {
			t.Errorf("%v: the cause is missing in %v", errno, err)
		}
	}
}
