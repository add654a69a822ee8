package input

import (
	"errors"
	"path/filepath"
	"strings"
)

// Mistake says what a file holds in place of what is needed, and the command that corrects
// it. It repeats nothing of the file.
type Mistake struct {
	// What says what the file holds.
	What string
	// Command corrects it, in a shell. FILE stands for the file, DIR for its directory, ID
	// for the registration ID. The commands keep the file's owner and mode, and what was
	// there before as FILE.orig. "" if there is no such command.
	Command string
	// Then says what has to follow the command; "" for nothing.
	Then string
	// Err is the kind of mistake; nil for none.
	Err error

	// File is the path; "" if a command cannot name it.
	File string
	// Credential is the name of a systemd credential, whose file only the unit knows.
	Credential string
}

// Error says what the file holds.
func (m *Mistake) Error() string { return m.What }

// Unwrap returns the kind of mistake.
func (m *Mistake) Unwrap() error { return m.Err }

// Remedy is the command with the names of the file, and what has to follow; "" if there is
// nothing to advise.
func (m *Mistake) Remedy() string {
	text := m.Command
	if m.File != "" {
		text = inShell(text, m.File)
	}
	if m.Command != "" && m.Credential != "" {
		text = strings.ReplaceAll(text, "DIR", "/etc/credstore") + ", where FILE is what dpsd.service loads as the credential " + m.Credential + " (systemctl cat dpsd)"
	}
	then := m.Then
	if m.Credential != "" {
		if then != "" {
			then += "; then: "
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

// inShell puts a path into a command.
func inShell(command, path string) string {
	return strings.NewReplacer("FILE.orig", Quote(path+".orig"), "FILE", Quote(path), "DIR", Quote(filepath.Dir(path))).Replace(command)
}

// Quote writes s as one word for sh, without quotes if it has only harmless characters.
func Quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// About adds the path to a *Mistake in err.
func About(path string, err error) error {
	var m *Mistake
	if errors.As(err, &m) {
		m.File = path
	}
	return err
}
