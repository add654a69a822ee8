package check

import (
	"context"
	"crypto/x509"
	_ "embed" // the roots
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/clock"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// clock holds this gateway's time against times that have been. A wrong one explains
// a failure and forbids nothing, so no other step depends on this one.
func (i *inspection) clock() {
	r := Result{Name: Clock, Subject: "this gateway"}
	now := i.now().Round(0)
	past, what := i.BuiltAt, "when dpsd was built"
	if i.Settings != nil {
		if record, err := store.Read(i.StateDirectory); err == nil && record.ProvisionedAt.After(past) {
			past, what = record.ProvisionedAt, "when the record was written"
		}
		if last, found := (store.Runtime{Directory: i.RuntimeDirectory}).LoadConfirmation(); found && last.At.After(past) {
			past, what = last.At, "when the service last confirmed the record"
		}
	}
	said := now.UTC().Format(time.DateTime + " MST")
	switch {
	case past.IsZero():
		i.ok(r, said+"; there is nothing to hold it against")
	case now.Before(past.Add(-clock.Significant)):
		i.implausible = true
		i.fail(r, fault.New(fault.ClockImplausible, fault.StageConfiguration,
			fmt.Errorf("it is %s here, %s before %s, %s", said, rough(past.Sub(now)), what, past.UTC().Format(time.DateTime+" MST"))))
	default:
		i.ok(r, said+", after "+day(past)+", "+what)
	}
}

// The authorities that Microsoft tells devices to trust: the service changes from one
// to the other without asking.
var (
	//go:embed roots/digicert-global-root-g2.pem
	digicertRoot []byte
	//go:embed roots/microsoft-rsa-root-2017.pem
	microsoftRoot []byte
)

// roots looks for the authorities of the cloud among those that are trusted here.
func (i *inspection) roots() {
	r := Result{Name: Roots}
	if i.Settings == nil {
		i.skip(r, "the configuration is invalid")
		return
	}
	dialer := *i.Settings.Dialer
	r.Subject = "the system's"
	var paths []string
	if dialer.CAFile != "" {
		r.Subject += " and " + dialer.CAFile
		paths = append(paths, dialer.CAFile)
	}
	pool, err := dialer.RootPool()
	if err == nil {
		err = i.closedTo(paths)
	}
	if err != nil {
		i.fail(r, transport.Errors{{Stage: transport.StageCA, Address: dialer.CAFile, Err: i.asSeen(err)}})
		return
	}
	// Read once, used for every connection of this check.
	dialer.Roots, dialer.CAFile = pool, ""
	i.dialer = &dialer

	missing, all := missingRoots(pool)
	switch {
	case len(missing) == 0:
		i.ok(r, strings.Join(all, " and ")+" are trusted")
	case !daemon.Azure(dialer.Host):
		i.skip(r, dialer.Host+" is no name of Azure's; "+strings.Join(missing, " and ")+" would be missing for one")
	case len(missing) < len(all):
		i.warn(r, strings.Join(missing, " and ")+" is not trusted here; Azure may show a certificate of it any day",
			"apt-get install --only-upgrade ca-certificates, or add it to ca_file.")
	default:
		i.fail(r, fault.New(fault.TLSUntrusted, fault.StageTLS, errors.New(strings.Join(missing, " and ")+" are not trusted here")))
	}
}

// missingRoots returns the names of the cloud's authorities that pool lacks, and of
// all.
func missingRoots(pool *x509.CertPool) (missing, all []string) {
	for _, text := range [][]byte{digicertRoot, microsoftRoot} {
		block, _ := pem.Decode(text)
		root, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue // a test parses them
		}
		all = append(all, root.Subject.CommonName)
		// A certificate that is in the pool is its own chain; the time is not the question.
		if _, err := root.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: root.NotBefore.Add(time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			missing = append(missing, root.Subject.CommonName)
		}
	}
	return missing, all
}

// record looks at what is published.
func (i *inspection) record(ctx context.Context) {
	r := Result{Name: Record, Subject: store.Files(i.StateDirectory)[0]}
	var found store.Record
	err := i.Account.do(func() (err error) {
		found, err = store.Read(i.StateDirectory)
		return err
	})
	var damaged *store.DamagedError
	switch {
	case errors.Is(err, store.ErrNoRecord):
		if s, err := i.ask(ctx); err == nil && s.Identity != nil {
			i.warn(r, fmt.Sprintf("there is none, but the running dpsd is assigned to %s as %s: it was removed", s.Identity.AssignedHub, s.Identity.DeviceID),
				"dpsd writes it again after: dpsd reprovision; if the directory was removed, too: "+restartCommand)
			return
		}
		i.ok(r, "none: this gateway was not assigned yet, or the record was removed")
	case errors.As(err, &damaged):
		i.warn(r, err.Error(), "dpsd puts the record before it in its place when it starts: systemctl restart --no-block dpsd")
	case errors.Is(err, fs.ErrPermission) && i.stranger():
		i.skip(r, i.asSeen(cause(err)).Error())
	case errors.As(err, new(*store.NewerSchemaError)):
		i.fail(r, err)
	case err != nil:
		i.fail(r, &store.WriteError{Path: r.Subject, Err: cause(err)})
	default:
		detail := fmt.Sprintf("whole: %s as %s, generation %d of %s", found.AssignedHub, found.DeviceID, found.Generation, day(found.ProvisionedAt))
		if i.registrationID != "" && found.ConfigFingerprint != store.Fingerprint(i.Settings.Dialer.Host, i.Settings.IDScope, i.registrationID, i.payload) {
			i.warn(r, detail+"; it belongs to another configuration", "It is replaced by the next assignment: systemctl restart --no-block dpsd")
			return
		}
		i.ok(r, detail)
	}
}

func parent(path string) string { return filepath.Dir(filepath.Clean(path)) }
