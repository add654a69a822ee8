package check

import (
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/clock"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// clock compares this gateway's time with known times of the past. A wrong time explains a
// failure but prevents nothing, so no other step depends on this one.
func (i *inspection) clock() {
	r := Result{Name: Clock, Subject: "this gateway"}
	now := i.Now().Round(0)
	past, what := i.BuiltAt, "dpsd was built"
	if i.Settings != nil {
		if record, err := store.Read(i.StateDirectory); err == nil && record.ProvisionedAt.After(past) {
			past, what = record.ProvisionedAt, "the record was written"
		}
		if last, found := (store.Runtime{Directory: i.RuntimeDirectory}).LoadConfirmation(); found && last.At.After(past) {
			past, what = last.At, "DPS last confirmed the record"
		}
	}
	said := now.UTC().Format(time.DateTime + " MST")
	switch {
	case past.IsZero():
		i.ok(r, said+"; there is no earlier time to compare it with")
	case now.Before(past.Add(-clock.Significant)):
		i.implausible = true
		i.fail(r, fault.New(fault.ClockImplausible, fault.StageConfiguration,
			fmt.Errorf("the clock shows %s, %s before %s (%s)", said, rough(past.Sub(now)), what, past.UTC().Format(time.DateTime+" MST"))))
	default:
		i.ok(r, said+", plausible: "+what+" on "+day(past))
	}
}

// authorities contains the root certificates of Azure's clouds; see classify.Cloud.
//
//go:embed roots/*.pem
var authorities embed.FS

// authority returns a certificate of authorities by its common name. A test parses all of
// them.
func authority(name string) *x509.Certificate {
	files, _ := authorities.ReadDir("roots")
	for _, file := range files {
		text, _ := authorities.ReadFile("roots/" + file.Name())
		block, _ := pem.Decode(text)
		if root, err := x509.ParseCertificate(block.Bytes); err == nil && root.Subject.CommonName == name {
			return root
		}
	}
	return nil
}

// roots checks that this gateway trusts the authorities of the cloud.
func (i *inspection) roots() {
	r := Result{Name: Roots, Subject: "the system's roots"}
	dialer := *i.Settings.Dialer
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
	// The roots are read once and used for every connection of this check. A resumed session
	// would check less than a full handshake.
	dialer.Roots, dialer.CAFile, dialer.Sessions = pool, "", nil
	i.dialer = &dialer

	cloud, azure := classify.CloudOf(dialer.Host)
	if !azure {
		cloud = classify.PublicCloud()
	}
	missing := missingRoots(pool, cloud)
	switch {
	case len(missing) == 0:
		i.ok(r, isOrAre(cloud.Roots)+" trusted")
	case !azure:
		i.skip(r, dialer.Host+" is not an Azure endpoint, which would also need "+strings.Join(missing, " and "))
	case len(missing) < len(cloud.Roots):
		i.warn(r, isOrAre(missing)+" not trusted; Azure may switch to a certificate issued under it at any time",
			"apt-get install --only-upgrade ca-certificates, or add it to ca_file.")
	default:
		f := fault.New(fault.TLSUntrusted, fault.StageTLS, fmt.Errorf("%s not trusted, so the certificates of %s cannot be verified", isOrAre(missing), cloud.Name))
		f.Circumstance = classify.Trust(dialer.Host)
		i.fail(r, f)
	}
}

// isOrAre returns a list of names followed by "is" or "are".
func isOrAre(names []string) string {
	if len(names) == 1 {
		return names[0] + " is"
	}
	return strings.Join(names, " and ") + " are"
}

// missingRoots returns the names of the cloud's authorities that are not in pool.
func missingRoots(pool *x509.CertPool, cloud classify.Cloud) (missing []string) {
	for _, name := range cloud.Roots {
		root := authority(name)
		// A certificate in the pool is its own chain. CurrentTime excludes errors about the time.
		if _, err := root.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: root.NotBefore.Add(time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			missing = append(missing, name)
		}
	}
	return missing
}

// record checks the published record.
func (i *inspection) record() {
	r := Result{Name: Record, Subject: store.Files(i.StateDirectory)[0]}
	var found store.Record
	err := i.Account.do(func() (err error) {
		found, err = store.Read(i.StateDirectory)
		return err
	})
	var damaged *store.DamagedError
	switch {
	case errors.Is(err, store.ErrNoRecord):
		i.noRecord(r)
	case errors.As(err, &damaged):
		advice := i.withoutRecord()
		if i.Account.do(func() error { return obstacle(i.StateDirectory) }) != nil {
			advice = "First fix the failed \"state\" step; until then, dpsd cannot replace the file."
		}
		i.warn(r, err.Error(), advice)
	case errors.Is(err, fs.ErrPermission) && i.otherUser():
		i.skip(r, i.asSeen(input.Cause(err)).Error())
	case errors.As(err, new(*store.NewerSchemaError)):
		i.fail(r, err)
	case err != nil:
		i.fail(r, &store.WriteError{Path: r.Subject, Err: input.Cause(err)})
	default:
		detail := fmt.Sprintf("intact: %s as %s, generation %d, assigned on %s", found.AssignedHub, found.DeviceID, found.Generation, day(found.ProvisionedAt))
		if i.registrationID != "" && found.ConfigFingerprint != store.Fingerprint(i.Settings.Dialer.Host, i.Settings.IDScope, i.registrationID, i.payload) {
			i.warn(r, detail+"; the configuration has changed since", "The next assignment replaces it: "+restartCommand)
			return
		}
		i.ok(r, detail)
	}
}

// withoutRecord describes what dpsd does if it starts without a record or with a damaged one.
func (i *inspection) withoutRecord() string {
	does := "dpsd registers again when it starts"
	if _, err := store.Read(i.RuntimeDirectory); err == nil {
		does = "dpsd restores the record from " + i.RuntimeDirectory + " when it starts"
	} else if i.Account.do(func() error { _, err := store.Previous(i.StateDirectory); return err }) == nil {
		does = "dpsd restores the previous record when it starts"
	}
	return does + ": " + restartCommand
}

// noRecord reports a missing record. It distinguishes, as far as possible, a record that was
// removed from one that was never written.
func (i *inspection) noRecord(r Result) {
	const atStart = ": " + restartCommand
	running, err := i.answer()
	switch identity := running.Identity; {
	case err == nil && identity != nil && identity.Durable:
		i.warn(r, fmt.Sprintf("the record was removed: the running dpsd is assigned to %s as %s and has written it", identity.AssignedHub, identity.DeviceID),
			"dpsd writes it again automatically within a minute. If it does not: dpsd reprovision; if the directory was removed, too: "+restartCommand)
		return
	case err == nil && identity != nil:
		i.warn(r, fmt.Sprintf("there is no record: the running dpsd is assigned to %s as %s but could not write it", identity.AssignedHub, identity.DeviceID),
			"dpsd writes it automatically as soon as the state directory is writable; see the results of the \"state\" and \"service\" steps")
		return
	case err == nil:
		i.ok(r, noRecordYet)
		return
	}
	if held, err := store.Read(i.RuntimeDirectory); err == nil {
		i.warn(r, fmt.Sprintf("there is no record here: the record of %s as %s is only in %s, which is cleared at the next boot", held.AssignedHub, held.DeviceID, i.RuntimeDirectory),
			"dpsd writes it when it starts, if the state directory is writable"+atStart)
		return
	}
	files := store.Files(i.StateDirectory)
	for _, trace := range []string{files[0] + ".prev", files[1]} {
		if _, err := os.Lstat(trace); err == nil {
			i.warn(r, "the record was removed: "+trace+" still exists", i.withoutRecord())
			return
		}
	}
	for _, attempt := range slices.Backward(store.Attempts(i.StateDirectory, i.RuntimeDirectory)) {
		if attempt.Outcome == "assigned" {
			i.warn(r, "the record was removed, or [state] directory has changed: this gateway was assigned on "+day(attempt.At),
				"dpsd registers again when it starts"+atStart)
			return
		}
	}
	i.ok(r, noRecordYet)
}

const noRecordYet = "there is no record yet; the first assignment writes it"

func parent(path string) string { return filepath.Dir(filepath.Clean(path)) }
