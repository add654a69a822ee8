package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/input"
)

// This file explains why a configuration cannot be opened and provides the command that
// corrects the problem. All commands and the log use it. Whether another command has to follow
// depends on the service, which only some of them know.

// unopenedError means that a configuration could not be opened.
type unopenedError struct {
	err     error
	problem string // in addition to err; "" if err is sufficient
	remedy  string // a command, possibly followed by another
}

// Error returns the problem followed by the command.
func (e *unopenedError) Error() string { return e.Problem() + "; " + e.remedy }

// Problem returns the error without the command.
func (e *unopenedError) Problem() string {
	if e.problem == "" {
		return e.err.Error()
	}
	return e.err.Error() + ": " + e.problem
}

// Remedy returns the command.
func (e *unopenedError) Remedy() string { return e.remedy }
func (e *unopenedError) Unwrap() error  { return e.err }

// unopened explains the error of opening a configuration.
func unopened(file string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &unopenedError{err, "it must be readable by the user that dpsd runs as, and contains no secret", check.Opening(file)}
	case errors.Is(err, fs.ErrNotExist):
		other := misnamed(file)
		if other == "" {
			return &unopenedError{err, "", "run " + check.With(file, "dpsd init") + ", or copy the annotated reference, and set id_scope, registration_id and [[credential]] in it: install -m 0644 /usr/share/dpsd/dpsd.toml " + file}
		}
		remedy := "mv " + other + " " + file
		if filepath.Ext(other) != ".toml" {
			remedy += ", and rewrite it in TOML (see man dpsd.toml)"
		}
		return &unopenedError{err, other + " exists, but dpsd does not read it", remedy}
	}
	return err
}

// misnamed returns a file in the directory of a missing configuration that was probably meant
// to be the configuration, or "".
func misnamed(file string) string {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return ""
	}
	stem, _, _ := strings.Cut(strings.ToLower(filepath.Base(file)), ".")
	for _, e := range entries {
		name := strings.ToLower(e.Name())
		begin, _, _ := strings.Cut(name, ".")
		meant := begin == stem && slices.Contains([]string{"", ".toml", ".yaml", ".yml", ".json", ".conf", ".cfg", ".ini", ".txt", ".tml"}, filepath.Ext(name))
		if e.Type().IsRegular() && (meant || name == "config.toml") {
			return filepath.Join(filepath.Dir(file), e.Name())
		}
	}
	return ""
}

// contents returns the text of a configuration.
func contents(file string) ([]byte, error) {
	f, err := input.Open(file)
	switch {
	case errors.As(err, new(*fs.PathError)):
		return nil, unopened(file, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	return config.Read(file, f)
}

func load(file string) (*config.Config, error) {
	text, err := contents(file)
	if err != nil {
		return nil, err
	}
	return config.Parse(file, bytes.NewReader(text))
}

// closed returns the reason why the service cannot read its configuration although this user
// can. It returns nil if the service can or if that is unknown.
func closed(file string) error {
	if file != check.InstalledFile {
		return nil
	}
	account, err := check.LookUpAccount(context.Background(), serviceAccount, bootedSystemctl())
	if err != nil {
		return nil //nolint:nilerr // without the account it is unknown
	}
	return account.ClosedConfiguration(file)
}

// socketOf returns the path of the control socket in a configuration that cannot be used. If
// the path is uncertain, known is false and path is the default.
func socketOf(file string) (path string, known bool) {
	if text, err := contents(file); err == nil {
		path, known = config.Socket(text)
	}
	if !known {
		path = config.Default().Control.Socket
	}
	return path, known
}
