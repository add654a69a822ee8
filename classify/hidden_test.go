package classify

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

func TestTheAdviceForAFileThatTheServiceCannotSeeIsToMoveIt(t *testing.T) {
	kinds := []struct {
		says string
		code fault.Code
		err  func(path string, err error) error
	}{
		{"a key", fault.CredentialUnreadable, func(path string, err error) error {
			return &attest.SecretError{Reference: attest.Reference{File: path}, Path: path, Err: &fs.PathError{Op: "open", Path: path, Err: err}}
		}},
		{"a file of the registration ID", fault.InputUnreadable, func(path string, err error) error {
			return &attest.IdentityError{Source: "registration_id_file", Path: path, Err: &fs.PathError{Op: "open", Path: path, Err: err}}
		}},
		{"a payload", fault.InputUnreadable, func(path string, err error) error { return &PayloadError{path, err} }},
		{"ca_file", fault.CAUnreadable, func(path string, err error) error {
			return transport.Errors{{Stage: transport.StageCA, Address: path, Err: err}}
		}},
	}
	for _, kind := range kinds {
		for path, hidden := range map[string]bool{
			"/home/pi/gw": true, "/root/gw": true, "/run/user/1000/gw": true,
			"/etc/dpsd/keys/gw": false, "/rooted/gw": false, "/var/home/gw": false,
		} {
			for _, cause := range []error{fs.ErrPermission, fs.ErrNotExist} {
				f := Classify(kind.err(path, cause))
				moves := strings.Contains(f.Advice(), "cannot see files there") && strings.Contains(f.Advice(), "/etc/dpsd")
				if f.Code != kind.code || moves != hidden {
					t.Errorf("%s: %s: %v: %s: %q", kind.says, path, cause, f.Code, f.Advice())
				}
			}
		}
		if f := Classify(kind.err("/root/gw", errors.New("input/output error"))); strings.Contains(f.Advice(), "/root") {
			t.Errorf("%s that a disk does not give: %q", kind.says, f.Advice())
		}
	}
}

func TestTheAdviceForAMissingFileIsToCreateIt(t *testing.T) {
	for _, code := range []fault.Code{fault.CredentialUnreadable, fault.InputUnreadable} {
		if advice := fault.New(code, fault.StageCredential, fmt.Errorf("%w", fs.ErrNotExist)).Advice(); !strings.Contains(advice, "reate the file if it does not exist") {
			t.Errorf("%s: %q", code, advice)
		}
	}
}
