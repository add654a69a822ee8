package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/store"
)

// installation contains the paths of a daemon on this machine. The commands that use it also
// work without a readable and valid configuration, so that the published record is available
// nevertheless.
type installation struct {
	file           string // path of the configuration
	state, runtime string // directories
	socket         string
	note           error  // reason why the default paths are used instead of the configured ones
	closed         error  // reason why the service, unlike this user, cannot read the configuration
	request        string // [certificate] request; "" if it is unknown
	socketUnknown  bool   // the configuration sets the socket but cannot be used; socket is the default
}

func installationOf(cmd *cobra.Command) installation {
	return installationIn(configOf(cmd))
}

// installationIn returns the installation of a configuration.
func installationIn(file string) installation {
	places := installation{file: file, state: config.Default().State.Directory}
	cfg, err := load(file)
	if err == nil {
		places.state, places.socket, places.request = cfg.State.Directory, cfg.Control.Socket, cfg.Certificate.Request
		places.closed = closed(file)
	} else {
		socket, known := socketOf(file)
		places.note, places.socket, places.socketUnknown = err, socket, !known
	}
	places.runtime = filepath.Dir(places.socket)
	return places
}

func (i installation) client() control.Client { return control.Client{Socket: i.socket} }

// status returns the status of the running daemon or, if it does not run, the status
// according to the files. The error means that the status is unknown.
func (i installation) status(ctx context.Context) (s control.Status, running bool, err error) {
	s, err = i.client().Status(ctx)
	if err == nil {
		return s, true, nil
	}
	if errors.Is(err, fs.ErrPermission) || !errors.Is(err, control.ErrNotRunning) {
		return s, false, err
	}
	s, err = i.onFile()
	_, unreachable := check.Unreachable(i.state, i.runtime)
	if unreachable || i.socketUnknown && i.whyStopped(ctx).Reason == check.SocketUnknown {
		s.Text = strings.Replace(s.Text, notRunning, "dpsd cannot be reached", 1)
		s.Phase.Name = phaseUnknown
	}
	return s, false, err
}

// whyStopped returns the reason why dpsd does not answer. It queries systemd only about the
// installed configuration, which dpsd.service uses.
func (i installation) whyStopped(ctx context.Context) check.Stop {
	if s, found := check.Unreachable(i.state, i.runtime); found {
		return s
	}
	q := check.Question{File: i.file, Invalid: i.note, SocketUnknown: i.socketUnknown}
	if i.closed != nil {
		q.Invalid = i.closed
	}
	if i.file == check.InstalledFile {
		q.Systemctl = bootedSystemctl()
	}
	return check.WhyStopped(ctx, q)
}

// notRunning is the beginning of the text for a daemon that does not run.
const notRunning = "dpsd is not running"

// Phases if the daemon does not answer.
const (
	phaseStopped = "stopped" // no daemon runs
	phaseUnknown = "unknown" // it may run, but the path of its socket is unknown
)

// onFile returns the status according to the files alone.
func (i installation) onFile() (control.Status, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	s := control.Status{
		Now: now, Health: control.Unprovisioned, Text: notRunning, Faults: []control.Fault{}, Consumers: []control.Consumer{},
		Phase: control.Phase{Name: phaseStopped, Since: now},
	}
	rec, err := store.Published(i.state, i.runtime)
	if errors.Is(err, store.ErrNoRecord) {
		s.IssuedCertificate = i.issued(rec, now)
		return s, nil
	}
	if err != nil {
		return s, err
	}
	_, diskErr := store.Read(i.state)
	s.Health = control.Cached
	s.Identity = &control.Identity{
		AssignedHub: rec.AssignedHub, DeviceID: rec.DeviceID, RegistrationID: rec.RegistrationID,
		IDScope: rec.IDScope, Endpoint: rec.Endpoint, ConnectionProfile: rec.ConnectionProfile,
		Generation: rec.Generation, ProvisionedAt: rec.ProvisionedAt, Durable: diskErr == nil,
	}
	s.IssuedCertificate = i.issued(rec, now)
	if c, found := (store.Runtime{Directory: i.runtime}).LoadConfirmation(); found && c.Generation == rec.Generation {
		s.Text += "; DPS last confirmed the identity at " + c.At.UTC().Format(time.RFC3339)
	}
	return s, nil
}

// issued returns the issued certificate according to a record and, as far as this user may
// see them, the files. It returns nil if none is configured and none is published.
func (i installation) issued(rec store.Record, now time.Time) *control.IssuedCertificate {
	c := rec.Certificate
	missing := &control.IssuedCertificate{State: control.CertificateMissing, Request: i.request}
	switch {
	case c == nil && i.request == "":
		return nil
	case c == nil:
		return missing
	}
	found := &control.IssuedCertificate{
		State: control.CertificateValid, Request: i.request, NotBefore: &c.NotBefore, NotAfter: &c.NotAfter, Serial: c.Serial, SHA256: c.SHA256, Issuer: c.Issuer,
	}
	if !now.Before(c.NotAfter) {
		found.State = control.CertificateExpired
	}
	for _, file := range []string{c.CertificateFile, c.PrivateKeyFile} {
		// The user of the service can write the record, so a path elsewhere is ignored.
		path, below := strings.CutPrefix(file, filepath.Clean(i.state)+"/")
		if !below {
			continue
		}
		switch info, err := input.StatBeneath(i.state, path); {
		case errors.Is(err, fs.ErrNotExist):
			return missing
		case errors.Is(err, fs.ErrPermission): // only the members of the group may see it
		case err != nil || !info.Mode().IsRegular():
			found.State = control.CertificateUnreadable
		}
	}
	return found
}
