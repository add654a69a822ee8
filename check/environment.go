package check

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/dpsd-project/dpsd/input"
)

// Environment is the environment of the service, and where it was found.
type Environment struct {
	Values map[string]string
	Origin string // for people
}

// ServiceEnvironment finds the environment of dpsd.service: that of its process, or of
// its unit when it does not run or may not be looked at. A shell has another one. The
// error says that there is no such unit, or that systemd does not answer.
func ServiceEnvironment(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (Environment, error) {
	ctx, cancel := context.WithTimeout(ctx, systemctlLimit)
	defer cancel()
	out, err := systemctl(ctx, "show", unitName, "--property=LoadState,MainPID,Environment,EnvironmentFiles")
	if err != nil {
		return Environment{}, err
	}
	var files []string
	e := Environment{Values: map[string]string{}, Origin: unitName}
	pid, loaded := "", false
	for line := range bytes.Lines(out) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(string(line)), "="); name {
		case "LoadState":
			loaded = value == "loaded"
		case "MainPID":
			pid = value
		case "Environment":
			e.assign(words(value))
		case "EnvironmentFiles": // "/etc/default/dpsd (ignore_errors=yes)", one on each line
			if at := strings.LastIndex(value, " (ignore_errors="); at > 0 {
				files = append(files, value[:at])
			}
		}
	}
	if !loaded {
		return Environment{}, errors.New(unitName + " is not installed")
	}
	if text, err := os.ReadFile(filepath.Join("/proc", pid, "environ")); err == nil && pid != "" && pid != "0" {
		running := Environment{Values: map[string]string{}, Origin: "the running dpsd"}
		running.assign(strings.Split(string(text), "\x00"))
		return running, nil
	}
	// Files win over Environment=, later ones over earlier ones (systemd.exec(5)).
	for _, pattern := range files {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if text, err := input.Read(name, maxUnitFile); err == nil {
				e.assign(lines(string(text)))
			}
		}
	}
	return e, nil
}

func (e *Environment) assign(assignments []string) {
	for _, a := range assignments {
		if name, value, found := strings.Cut(a, "="); found {
			e.Values[name] = value
		}
	}
}

// words splits what systemctl show prints of Environment=, in which an assignment with a
// space is quoted.
func words(text string) []string {
	var all []string
	var word strings.Builder
	quoted, escaped := false, false
	for _, r := range text + " " {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case quoted && r == '\\':
			escaped = true
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			if word.Len() > 0 {
				all = append(all, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(r)
		}
	}
	return all
}

// lines reads a file of EnvironmentFile=: an assignment on each line, with or without
// quotes around the value; comments begin with # or ;.
func lines(text string) []string {
	var all []string
	text = strings.ReplaceAll(text, "\\\n", "")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, found := strings.Cut(line, "=")
		if !found || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		value = strings.TrimSpace(value)
		if len(value) > 1 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		all = append(all, strings.TrimSpace(name)+"="+value)
	}
	return all
}
