package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
)

// unitName is the service of the package.
const unitName = "dpsd.service"

// systemctlLimit bounds a question to systemd: a busy one answers in milliseconds, a
// hung one not at all.
const systemctlLimit = 5 * time.Second

// unit is what systemd knows of dpsd.service.
type unit struct {
	properties map[string]string // of systemctl show
	load       []string          // patterns of the credentials it hands over
	decrypt    []string          // those that it decrypts
}

// askSystemd returns nil when there is no such unit, and keeps why.
func (i *inspection) askSystemd(ctx context.Context) *unit {
	ctx, cancel := context.WithTimeout(ctx, systemctlLimit)
	defer cancel()
	out, err := i.Systemctl(ctx, "show", unitName,
		"--property=LoadState,UnitFileState,ActiveState,SubState,Result,NeedDaemonReload,FragmentPath,DropInPaths,ProtectHome,PrivateTmp")
	if err != nil {
		i.unitError = err
		return nil
	}
	u := &unit{properties: map[string]string{}}
	for line := range bytes.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		u.properties[name] = value
	}
	if state := u.properties["LoadState"]; state != "loaded" && state != "masked" {
		i.unitError = fmt.Errorf("%s is not installed (%s)", unitName, state)
		return nil
	}
	for _, file := range append(strings.Fields(u.properties["DropInPaths"]), u.properties["FragmentPath"]) {
		if text, err := os.ReadFile(file); err == nil {
			u.read(text)
		}
	}
	return u
}

// read collects which credentials a unit file hands over, systemd.exec(5).
func (u *unit) read(text []byte) {
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		name, _, _ := strings.Cut(value, ":")
		switch strings.TrimSpace(key) {
		case "LoadCredentialEncrypted", "SetCredentialEncrypted":
			u.decrypt = append(u.decrypt, strings.TrimSpace(name))
		case "LoadCredential", "SetCredential", "ImportCredential":
		default:
			continue
		}
		u.load = append(u.load, strings.TrimSpace(name))
	}
}

// decrypts tells whether the unit has systemd decrypt the credential.
func (u *unit) decrypts(name string) bool {
	return u != nil && name != "" && slices.Contains(u.decrypt, name)
}

// running tells whether there is a process of the service: its credentials are there
// then.
func (u *unit) running() bool {
	return u != nil && slices.Contains([]string{"active", "activating", "reloading"}, u.properties["ActiveState"])
}

// notLoaded tells whether the unit keeps a credential from the service that a person
// could use: the stores are systemd's, and the service gets what its unit names.
func (i *inspection) notLoaded(r attest.Reference) error {
	if i.unit == nil || r.Credential == "" || i.unit.properties["LoadState"] != "loaded" {
		return nil
	}
	for _, pattern := range i.unit.load {
		// ImportCredential= takes a glob, of which only a * at its end is in use.
		begin, glob := strings.CutSuffix(pattern, "*")
		if pattern == r.Credential || glob && strings.HasPrefix(r.Credential, begin) {
			return nil
		}
	}
	return &attest.SecretError{Reference: r, Err: fmt.Errorf("%s does not hand it over (%w); add LoadCredential=%s with: systemctl edit dpsd", unitName, fs.ErrNotExist, r.Credential)}
}

// systemd reports how the unit stands.
func (i *inspection) systemd() {
	r := Result{Name: Unit, Subject: unitName}
	switch u := i.unit; {
	case i.Systemctl == nil:
		i.skip(r, "systemd does not run here")
	case u == nil && errors.Is(i.unitError, context.DeadlineExceeded):
		i.warn(r, "systemd did not answer within "+systemctlLimit.String(), "systemctl status")
	case u == nil:
		i.warn(r, i.unitError.Error(), "Install the package dpsd, or copy the unit to /etc/systemd/system.")
	default:
		i.standing(r, u)
	}
}

func (i *inspection) standing(r Result, u *unit) {
	enabled, active := u.properties["UnitFileState"], u.properties["ActiveState"]
	detail := strings.Join([]string{u.properties["LoadState"], enabled, active + " (" + u.properties["SubState"] + ")"}, ", ")
	advice := ""
	switch {
	case u.properties["LoadState"] == "masked":
		advice = "systemctl unmask dpsd && systemctl enable --now --no-block dpsd"
	case enabled == "disabled":
		advice = "So that it starts at boot: systemctl enable --now --no-block dpsd"
	case active == "failed":
		detail += ": " + u.properties["Result"]
		advice = "See journalctl -u dpsd, then: systemctl restart --no-block dpsd"
	case active == "inactive":
		advice = "systemctl start --no-block dpsd"
	case u.properties["NeedDaemonReload"] == "yes":
		detail += ", changed on disk"
		advice = "systemctl daemon-reload && systemctl restart --no-block dpsd"
	}
	if advice != "" {
		i.warn(r, detail, advice)
		return
	}
	i.ok(r, detail)
}
