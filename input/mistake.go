package input

import (
	"errors"
	"path/filepath"
	"strings"
)

// Mistake describes a file with the wrong contents and the command that corrects it. It
// quotes nothing from the file.
type Mistake struct {
	// What describes the contents of the file.
	What string
	// Command is the shell command that corrects the file, or "" if there is none. In it,
	// FILE is the file, DIR its directory and ID the registration ID. The command keeps the
	// file's owner and mode, and saves the previous contents as FILE.orig.
	Command string
	// Then is the action to take after the command, or "" for none.
	Then string
	// Err is the kind of mistake, or nil.
	Err error

	// File is the path, or "" if a command cannot use it.
	File string
	// Credential is the name of a systemd credential, whose source only the unit specifies.
	Credential string
}

// Error returns What.
func (m *Mistake) Error() string { return m.What }

// Unwrap returns the kind of mistake.
func (m *Mistake) Unwrap() error { return m.Err }

// Remedy returns the command with the file's names filled in and the action after it, or ""
// if there is no advice.
func (m *Mistake) Remedy() string {
	text := m.Command
	if m.File != "" {
		text = inShell(text, m.File)
	}
	if m.Command != "" && m.Credential != "" {
		text = strings.ReplaceAll(text, "DIR", "/etc/credstore") + ", where FILE is the file that dpsd.service loads as the credential " + m.Credential + " (systemctl cat dpsd)"
	}
	then := m.Then
	if m.Credential != "" {
		if then != "" {
			then += "; then run: "
		}
		then += "systemctl restart --no-block dpsd"
		if m.Then == "" {
			then = "run: " + then
		}
	}
	switch {
	case m.Command == "" && m.Then == "":
		return ""
	case text == "":
		return then
	case then == "":
		return text
	}
	return text + "; then " + then
}

// inShell replaces FILE and DIR in a command.
func inShell(command, path string) string {
	return strings.NewReplacer("FILE.orig", Quote(path+".orig"), "FILE", Quote(path), "DIR", Quote(filepath.Dir(path))).Replace(command)
}

// Quote returns s as one word for sh, without quotes if none of its characters needs them.
func Quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// About sets the path of a *Mistake in err.
func About(path string, err error) error {
	if m, is := errors.AsType[*Mistake](err); is {
		m.File = path
	}
	return err
}
