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

// This file says why a configuration cannot be opened, and gives the command that
// corrects it. All commands and the log use it. Whether another command has to follow
// depends on the service, which not all of them know.

// unopenedError is a configuration that could not be opened.
type unopenedError struct {
	err     error
	problem string // beside err; "" when that says it all
	remedy  string // a command, perhaps with what has to follow
}

// Error has the command last.
func (e *unopenedError) Error() string { return e.Problem() + "; " + e.remedy }

// Problem is the error without the command.
func (e *unopenedError) Problem() string {
	if e.problem == "" {
		return e.err.Error()
	}
	return e.err.Error() + ": " + e.problem
}

// Remedy is the command.
func (e *unopenedError) Remedy() string { return e.remedy }
func (e *unopenedError) Unwrap() error  { return e.err }

// unopened explains the error of opening a configuration.
func unopened(file string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &unopenedError{err, "the user that dpsd runs as needs to read it, and it holds no secret", check.Opening(file)}
	case errors.Is(err, fs.ErrNotExist):
		other := misnamed(file)
		if other == "" {
			return &unopenedError{err, "", "copy the annotated reference, and set id_scope, registration_id and [[credential]] in it: install -m 0644 /usr/share/dpsd/dpsd.toml " + file}
		}
		remedy := "mv " + other + " " + file
		if filepath.Ext(other) != ".toml" {
			remedy += ", and rewrite it in TOML, as in man dpsd.toml"
		}
		return &unopenedError{err, other + " exists, but dpsd does not read it", remedy}
	}
	return err
}

// misnamed finds a file beside a missing configuration that was probably meant to be it;
// "" for none.
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

// closed returns why the service cannot read its configuration although this user can;
// nil when it can, or when that cannot be known.
func closed(file string) error {
	if file != check.InstalledFile {
		return nil
	}
	account, err := check.LookUpAccount(context.Background(), serviceAccount, bootedSystemctl())
	if err != nil {
		return nil //nolint:nilerr // without the account it cannot be known
	}
	return account.ClosedConfiguration(file)
}

// socketOf finds the path of the control socket in a configuration that cannot be used.
// When the file does not tell, known is false, and path is the standard one.
func socketOf(file string) (path string, known bool) {
	if text, err := contents(file); err == nil {
		path, known = config.Socket(text)
	}
	if !known {
		path = config.Default().Control.Socket
	}
	return path, known
}
