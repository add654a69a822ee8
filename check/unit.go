package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/unitfile"
)

// unitName is the service of the package.
const unitName = "dpsd.service"

// systemctlLimit bounds a question to systemd: a busy one answers in milliseconds, a
// hung one not at all.
const systemctlLimit = 5 * time.Second

// unit is what systemd knows of dpsd.service.
type unit struct {
	properties  map[string]string // of systemctl show
	credentials []credential      // that it hands over
}

// credential is one that a unit hands over, systemd.exec(5).
type credential struct {
	name      string // or a pattern
	path      string // "" for one that systemd looks for in its stores
	encrypted bool   // systemd decrypts it
}

// seal is the command that makes the file of an encrypted one.
func (c credential) seal() string {
	return "systemd-creds encrypt --name=" + c.name + " KEY-FILE " + c.path
}

// errNotInstalled is a unit that systemd cannot load.
var errNotInstalled = errors.New("is not installed")

// askUnit asks systemd about the unit, and reads its files. Errors: errNotInstalled,
// context.DeadlineExceeded, or that of systemctl.
func askUnit(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (*unit, error) {
	properties, err := show(ctx, systemctl,
		"--property=LoadState,UnitFileState,ActiveState,SubState,Result,NeedDaemonReload,FragmentPath,DropInPaths,ProtectHome,PrivateTmp",
		"--property=ExecMainCode,ExecMainStatus,RestartUSec,ConditionResult,ConditionTimestampMonotonic",
		"--property=InactiveEnterTimestamp,InactiveExitTimestampMonotonic")
	if err != nil {
		return nil, err
	}
	u := &unit{properties: properties}
	if state := u.properties["LoadState"]; state != "loaded" && state != "masked" {
		return nil, fmt.Errorf("%s %w (%s)", unitName, errNotInstalled, state)
	}
	for _, file := range append(strings.Fields(u.properties["DropInPaths"]), u.properties["FragmentPath"]) {
		if text, err := input.Read(file, maxUnitFile); err == nil {
			u.read(text)
		}
	}
	return u, nil
}

// show returns properties of the unit; those that are on several lines, with a line feed
// between them.
func show(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error), properties ...string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, systemctlLimit)
	defer cancel()
	out, err := systemctl(ctx, append([]string{"show", unitName}, properties...)...)
	values := map[string]string{}
	for _, property := range unitfile.Settings(out) {
		values[property.Key] = strings.TrimPrefix(values[property.Key]+"\n"+property.Value, "\n")
	}
	return values, err
}

// maxUnitFile bounds what is read of a file of systemd, in bytes.
const maxUnitFile = 1 << 20

// read collects which credentials a unit file hands over, systemd.exec(5).
func (u *unit) read(text []byte) {
	for _, s := range unitfile.Settings(text) {
		name, path, _ := strings.Cut(s.Value, ":")
		c := credential{name: strings.TrimSpace(name)}
		switch s.Key {
		case "LoadCredentialEncrypted":
			c.path, c.encrypted = strings.TrimSpace(path), true
		case "SetCredentialEncrypted":
			c.encrypted = true
		case "LoadCredential":
			c.path = strings.TrimSpace(path)
		case "SetCredential", "ImportCredential":
		default:
			continue
		}
		u.credentials = append(u.credentials, c)
	}
}

// decrypts tells whether the unit has systemd decrypt the credential.
func (u *unit) decrypts(name string) bool {
	return u != nil && name != "" && slices.ContainsFunc(u.credentials, func(c credential) bool { return c.encrypted && c.name == name })
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
	for _, c := range i.unit.credentials {
		// ImportCredential= takes a glob, of which only a * at its end is in use.
		begin, glob := strings.CutSuffix(c.name, "*")
		if c.name == r.Credential || glob && strings.HasPrefix(r.Credential, begin) {
			return nil
		}
	}
	return &attest.SecretError{Reference: r, Err: fmt.Errorf("%s does not hand it over (%w); add LoadCredential=%s with: systemctl edit dpsd", unitName, fs.ErrNotExist, r.Credential)}
}

// systemd reports how the unit stands.
func (i *inspection) systemd() {
	r := Result{Name: Unit, Subject: unitName}
	u := i.unit
	switch {
	case i.Systemctl == nil:
		i.skip(r, "systemd does not run here")
	case u == nil && errors.Is(i.unitError, context.DeadlineExceeded):
		i.warn(r, "systemd did not answer within "+systemctlLimit.String(), "systemctl status")
	case u == nil:
		i.warn(r, i.unitError.Error(), "Install the package dpsd, or copy the unit to /etc/systemd/system.")
	}
	if u == nil {
		return
	}
	enabled, active := u.properties["UnitFileState"], u.properties["ActiveState"]
	detail := strings.Join([]string{u.properties["LoadState"], enabled, active + " (" + u.properties["SubState"] + ")"}, ", ")
	advice := ""
	switch {
	case u.properties["LoadState"] == "masked":
		advice = "systemctl unmask dpsd && systemctl enable --now --no-block dpsd"
	case enabled == "disabled":
		advice = "So that it starts at boot: systemctl enable --now --no-block dpsd"
	case active == "failed", active == "inactive", strings.HasPrefix(u.properties["SubState"], "auto-restart"):
		why := u.stopped(Question{File: i.File, Invalid: i.misconfigured, SocketUnknown: i.SocketUnknown})
		detail, advice = detail+": "+why.Detail, why.Advice
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
