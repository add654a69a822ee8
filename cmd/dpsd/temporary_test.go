package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
)

// unreadable is a reader that fails with an error.
type unreadable struct{ err error }

func (u unreadable) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: check.InstalledFile, Err: u.err}
}

func TestOnlyAPermanentFailureToReadTheConfigurationExitsWith78(t *testing.T) {
	for reason, code := range map[error]int{
		syscall.EMFILE: exitFailed, syscall.ENFILE: exitFailed, syscall.ENOMEM: exitFailed, syscall.EIO: exitFailed,
		syscall.EINTR: exitFailed, syscall.EAGAIN: exitFailed, syscall.ENOBUFS: exitFailed,
		syscall.ESTALE: exitFailed, syscall.ETIMEDOUT: exitFailed, syscall.EHOSTDOWN: exitFailed, syscall.EREMOTEIO: exitFailed,

		syscall.ENOENT: exitConfiguration, syscall.EACCES: exitConfiguration, syscall.EPERM: exitConfiguration, syscall.EISDIR: exitConfiguration,
		syscall.ENOTDIR: exitConfiguration, syscall.ELOOP: exitConfiguration, syscall.ENAMETOOLONG: exitConfiguration, syscall.ENXIO: exitConfiguration,
	} {
		_, readErr := config.Parse(check.InstalledFile, unreadable{reason})
		for moment, err := range map[string]error{
			"at the open": &fs.PathError{Op: "open", Path: check.InstalledFile, Err: reason},
			"at the read": readErr,
		} {
			for command, err := range map[string]error{
				"run, config show and forget": invalid(check.InstalledFile, err),
				"check":                       checkOptions{}.verdict(&check.Gateway{File: check.InstalledFile, Invalid: err}, check.Report{Steps: []check.Result{{Status: check.Failed}}}),
			} {
				if command == "check" && errors.Is(reason, fs.ErrPermission) && os.Geteuid() != 0 {
					continue // root may be able to read it
				}
				var exit *exitError
				if !errors.As(err, &exit) || exit.code != code {
					t.Errorf("%s, %v %s: %v, expected exit code %d", command, reason, moment, err, code)
				}
			}
			if err := invalid(check.InstalledFile, err); !errors.Is(err, reason) {
				t.Errorf("%v: the cause is missing in %v", reason, err)
			}
		}
	}
	_, err := config.Parse(check.InstalledFile, strings.NewReader("nonsense"))
	var exit *exitError
	if !errors.As(invalid(check.InstalledFile, fmt.Errorf("again: %w", err)), &exit) || exit.code != exitConfiguration {
		t.Errorf("a file that is not TOML: %v", err)
	}
}
