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

// Environment is the environment of the service and its origin.
type Environment struct {
	Values map[string]string
	Origin string // description for people
}

// ServiceEnvironment returns the environment of dpsd.service, which differs from that of a
// shell: the environment of its process, or of its unit if the process does not run or may
// not be inspected. The error means that the unit does not exist or that systemd does not
// answer.
func ServiceEnvironment(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (Environment, error) {
	properties, err := show(ctx, systemctl, unitName, "--property=LoadState,MainPID,Environment,EnvironmentFiles")
	if err != nil {
		return Environment{}, err
	}
	if properties["LoadState"] != "loaded" {
		return Environment{}, errors.New(unitName + " is not installed")
	}
	if pid := properties["MainPID"]; pid != "" && pid != "0" {
		if text, err := os.ReadFile(filepath.Join("/proc", pid, "environ")); err == nil {
			return environment("the running dpsd", strings.Split(string(text), "\x00")), nil
		}
	}
	e := environment(unitName, unitfile.Words(properties["Environment"]))
	// Files override Environment=, and later files override earlier ones (systemd.exec(5)).
	for line := range strings.Lines(properties["EnvironmentFiles"]) {
		// "/etc/default/dpsd (ignore_errors=yes)"
		names, _ := filepath.Glob(line[:max(0, strings.LastIndex(line, " (ignore_errors="))])
		for _, name := range names {
			if text, err := input.Read(name, maxUnitFile); err == nil {
				// A value may continue in the next line, even in single quotes.
				for _, v := range unitfile.Variables(bytes.ReplaceAll(text, []byte("\\\n"), nil)) {
					e.Values[v.Key] = v.Value
				}
			}
		}
	}
	return e, nil
}

// environment returns the environment of assignments. Later assignments override earlier ones.
func environment(origin string, assignments []string) Environment {
	e := Environment{Values: map[string]string{}, Origin: origin}
	for _, a := range assignments {
		if name, value, found := strings.Cut(a, "="); found {
			e.Values[name] = value
		}
	}
	return e
}
