package check

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/unitfile"
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
	for _, property := range unitfile.Settings(out) {
		switch value := property.Value; property.Key {
		case "LoadState":
			loaded = value == "loaded"
		case "MainPID":
			pid = value
		case "Environment":
			e.assign(unitfile.Words(value))
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
				// A value may go on in the next line, also in single quotes.
				for _, v := range unitfile.Variables(bytes.ReplaceAll(text, []byte("\\\n"), nil)) {
					e.Values[v.Key] = v.Value
				}
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
