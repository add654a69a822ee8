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

// systemctlLimit is the time limit for systemctl. A busy systemd answers within
// milliseconds, a hung one never.
const systemctlLimit = 5 * time.Second

// unit is the state of dpsd.service in systemd.
type unit struct {
	properties  map[string]string // output of systemctl show
	credentials []credential      // credentials that the unit provides
}

// credential is a credential that a unit provides (systemd.exec(5)).
type credential struct {
	name      string // name or pattern
	path      string // "" if systemd searches its stores
	encrypted bool   // systemd decrypts it
}

// seal returns the command that creates the file of an encrypted credential.
func (c credential) seal() string {
	return "systemd-creds encrypt --name=" + c.name + " KEY-FILE " + c.path
}

// errNotInstalled means that systemd cannot load the unit.
var errNotInstalled = errors.New("is not installed")

// askUnit queries systemd about the unit and reads its files. Its errors are errNotInstalled,
// context.DeadlineExceeded and those of systemctl.
func askUnit(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (*unit, error) {
	properties, err := show(ctx, systemctl, unitName,
		"--property=LoadState,UnitFileState,ActiveState,SubState,Result,NeedDaemonReload,FragmentPath,DropInPaths,ProtectHome,PrivateTmp,PrivateDevices,DevicePolicy,DeviceAllow",
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

// show returns properties of a unit. The lines of a property with several lines are joined
// with line feeds.
func show(ctx context.Context, systemctl func(ctx context.Context, args ...string) ([]byte, error), unit string, properties ...string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, systemctlLimit)
	defer cancel()
	out, err := systemctl(ctx, append([]string{"show", unit}, properties...)...)
	values := map[string]string{}
	for _, property := range unitfile.Settings(out) {
		values[property.Key] = strings.TrimPrefix(values[property.Key]+"\n"+property.Value, "\n")
	}
	return values, err
}

// maxUnitFile is the maximum size of a unit file, in bytes.
const maxUnitFile = 1 << 20

// read collects the credentials that a unit file provides (systemd.exec(5)).
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

// decrypts reports whether systemd decrypts the credential for the unit.
func (u *unit) decrypts(name string) bool {
	return u != nil && name != "" && slices.ContainsFunc(u.credentials, func(c credential) bool { return c.encrypted && c.name == name })
}

// running reports whether the service has a process, and therefore its credentials.
func (u *unit) running() bool {
	return u != nil && slices.Contains([]string{"active", "activating", "reloading"}, u.properties["ActiveState"])
}

// notLoaded returns an error if the unit does not provide a credential to the service. A
// command may find it in a store of systemd, but the service gets only those that its unit
// names.
func (i *inspection) notLoaded(r attest.Reference) error {
	if i.unit == nil || r.Credential == "" || i.unit.properties["LoadState"] != "loaded" {
		return nil
	}
	for _, c := range i.unit.credentials {
		// ImportCredential= accepts a glob. In practice it only ends with an asterisk.
		begin, glob := strings.CutSuffix(c.name, "*")
		if c.name == r.Credential || glob && strings.HasPrefix(r.Credential, begin) {
			return nil
		}
	}
	return &attest.SecretError{Reference: r, Err: fmt.Errorf("%s does not provide it (%w); add LoadCredential=%s with: systemctl edit dpsd", unitName, fs.ErrNotExist, r.Credential)}
}

// systemd reports the state of the unit.
func (i *inspection) systemd() {
	r := Result{Name: Unit, Subject: unitName}
	u := i.unit
	switch {
	case i.Systemctl == nil:
		i.skip(r, "systemd is not running")
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
		advice = "To start it at boot: systemctl enable --now --no-block dpsd"
	case active == "failed", active == "inactive", strings.HasPrefix(u.properties["SubState"], "auto-restart"):
		why := u.stopped(Question{File: i.File, Invalid: i.misconfigured, SocketUnknown: i.SocketUnknown})
		detail, advice = detail+": "+why.Detail, why.Advice
	case u.properties["NeedDaemonReload"] == "yes":
		detail += "; the unit file has changed on disk"
		advice = "systemctl daemon-reload && systemctl restart --no-block dpsd"
	}
	if advice != "" {
		i.warn(r, detail, advice)
		return
	}
	i.ok(r, detail)
}
