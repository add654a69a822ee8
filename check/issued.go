package check

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
)

const (
	renewCommand = "dpsd certificate renew --wait"
	// maxPairFile is the maximum size of a file of a pair, in bytes.
	maxPairFile = 256 << 10
	// early is how long before the start of its validity dpsd accepts a certificate.
	early = time.Hour
)

// pair is the published pair of an issued certificate and its key.
type pair struct {
	store.Pair
	directory string // relative to the state directory; "" if none is published
	chain     certificate.Chain
	key       crypto.PublicKey
	tpmKey    []byte // the TSS2 file of the key; nil if the key is not in the TPM
}

// damagedError means that the files of a pair are not as dpsd wrote them. dpsd does not use
// such a pair when it starts.
type damagedError struct{ error }

// mismatchError means that the files are as dpsd wrote them, but do not belong together.
type mismatchError struct{ error }

// issued checks the certificate that DPS issues. It reports nothing if none is requested and
// none is published.
func (i *inspection) issued(ctx context.Context) {
	if i.useless(i.StateDirectory) != nil {
		if i.Settings.Certificate != nil {
			i.skipAll("the state directory cannot be used", Certificate, CertificateDates, CertificateFiles)
		}
		return
	}
	r := Result{Name: Certificate, Subject: filepath.Join(i.StateDirectory, "certificate", "current")}
	record, _ := store.Published(i.StateDirectory, i.RuntimeDirectory) // the step "record" reports the error
	var p pair
	err := i.Account.do(func() (err error) {
		p, err = readPair(i.StateDirectory)
		return err
	})
	none := p.directory == "" && errors.Is(err, fs.ErrNotExist)
	denied := errors.Is(err, fs.ErrPermission)
	if i.Settings.Certificate == nil && record.Certificate == nil && (none || denied && p.directory == "") {
		return
	}
	switch {
	case none:
		i.noPair(r, record)
		i.skip(Result{Name: CertificateDates}, "there is no issued certificate")
	case denied && i.otherUser():
		i.skipAll(i.asSeen(err).Error(), Certificate, CertificateDates, CertificateFiles)
		return
	case errors.As(err, new(mismatchError)):
		i.report(i.unusablePair(r, fault.CertificateRejected, err, renewCommand))
		i.skip(Result{Name: CertificateDates}, "the issued certificate cannot be used")
	case errors.As(err, new(damagedError)), errors.Is(err, fs.ErrNotExist):
		i.warn(r, err.Error(), "dpsd requests another certificate when it starts: "+restartCommand)
		i.skip(Result{Name: CertificateDates}, "the issued certificate is damaged")
	case err != nil:
		i.report(i.unusablePair(r, fault.CertificateUnreadable, err, i.readable(err)))
		i.skip(Result{Name: CertificateDates}, "the issued certificate cannot be read")
	default:
		i.report(i.describePair(ctx, r, p, record)...)
		i.report(i.dates(Result{Name: CertificateDates, Subject: r.Subject}, p))
	}
	i.certificateFiles(p.directory)
}

// readPair reads the published pair as the service does at its start, and checks that its
// files belong together.
func readPair(directory string) (p pair, err error) {
	if p.directory, err = store.PublishedPair(directory); err != nil {
		if errors.As(err, new(*fs.PathError)) && !errors.Is(err, syscall.EINVAL) {
			return p, err
		}
		return p, damagedError{err}
	}
	var files [3][]byte // as many as names
	names := [...]string{"key.pem", "chain.pem", "certificate.json"}
	for n, name := range names {
		if files[n], err = readBeneath(directory, filepath.Join(p.directory, name)); err != nil {
			return p, err
		}
	}
	about := func(name string, err error) error {
		return fmt.Errorf("%s: %w", filepath.Join(directory, p.directory, name), err)
	}
	if err := json.Unmarshal(files[2], &p.Pair); err != nil {
		return p, damagedError{about(names[2], err)}
	}
	for n, sum := range []string{p.KeySHA256, p.ChainSHA256} {
		if have := sha256.Sum256(files[n]); hex.EncodeToString(have[:]) != sum {
			return p, damagedError{about(names[n], errors.New("the file has changed: its SHA-256 differs from that in "+names[2]))}
		}
	}
	if err := p.readKey(files[0]); err != nil {
		return p, mismatchError{about(names[0], err)}
	}
	if p.chain, err = pemfile.Certificates(files[1]); err == nil {
		err = p.fits()
	}
	if err != nil {
		return p, mismatchError{about(names[1], err)}
	}
	return p, nil
}

// readKey reads the public key of key.pem.
func (p *pair) readKey(text []byte) error {
	if tpm.Is(text) {
		f, err := tpm.Parse(text)
		if err != nil {
			return err
		}
		p.key, p.tpmKey = f.Public(), text
		return nil
	}
	key, err := certificate.ParseKey(text)
	if err != nil {
		return err
	}
	p.key = key.Public()
	return nil
}

// readBeneath reads a file below the state directory. Its error names the file.
func readBeneath(directory, path string) ([]byte, error) {
	f, err := input.OpenBeneath(directory, path)
	if err != nil {
		if !errors.As(err, new(*fs.PathError)) {
			err = &fs.PathError{Op: "open", Path: filepath.Join(directory, path), Err: err}
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPairFile+1))
	if err == nil && len(data) > maxPairFile {
		err = damagedError{&fs.PathError{Op: "read", Path: f.Name(), Err: input.ErrTooLarge}}
	}
	return data, err
}

// fits returns an error unless the key belongs to the first certificate, which is for the
// registration ID, and each certificate is signed by the next.
func (p pair) fits() error {
	public, ok := p.key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(p.chain[0].PublicKey) {
		return errors.New("the certificate is for a different key than key.pem")
	}
	if cn := p.chain[0].Subject.CommonName; cn != p.RegistrationID {
		return fmt.Errorf("the certificate is for %q, not for the registration ID %q", cn, p.RegistrationID)
	}
	for n, c := range p.chain[1:] {
		if err := p.chain[n].CheckSignatureFrom(c); err != nil {
			return fmt.Errorf("certificate %d of %d, %q, did not issue the certificate before it: %w", n+2, len(p.chain), c.Subject.CommonName, err)
		}
	}
	return nil
}

// noPair reports that no pair is published.
func (i *inspection) noPair(r Result, record store.Record) {
	if record.Certificate != nil {
		i.warn(r, "the issued certificate was removed, but the record still describes it", "dpsd requests another one when it starts: "+restartCommand)
		return
	}
	if unsupported := i.withoutCSR(); unsupported != "" {
		i.report(i.unusablePair(r, fault.ConfigurationInvalid, errors.New(unsupported), i.withCSR()))
		return
	}
	running, err := i.answer()
	if c := running.IssuedCertificate; err == nil && c != nil && c.Failed > 0 {
		i.warn(r, fmt.Sprintf("there is no issued certificate; failed requests since dpsd started: %d", c.Failed), renewCommand+", which shows the reason")
		return
	}
	i.ok(r, "there is no issued certificate yet; dpsd requests one with its next registration, using api-version "+i.Settings.APIVersion)
}

// firstCSR is the first API version with certificate requests. Versions begin with a date.
const firstCSR = "2025-07-01"

// withoutCSR returns the reason why DPS would ignore a certificate request, or "".
func (i *inspection) withoutCSR() string {
	if i.Settings.Certificate == nil || i.Settings.APIVersion >= firstCSR {
		return ""
	}
	return "api_version " + i.Settings.APIVersion + " does not support certificate requests"
}

func (i *inspection) withCSR() string {
	return corrected("Remove api_version from dpsd.toml", i.applying())
}

// unusablePair returns a failure with its own advice.
func (i *inspection) unusablePair(r Result, code fault.Code, err error, advice string) Result {
	r.Status, r.Code, r.Detail, r.Advice = Failed, code, err.Error(), advice
	return r
}

// readable returns the advice about a file that exists but cannot be read.
func (i *inspection) readable(err error) string {
	path := filepath.Join(i.StateDirectory, "certificate")
	if at, is := errors.AsType[*fs.PathError](err); is {
		path = at.Path
	}
	switch {
	case errors.Is(err, fs.ErrPermission) && i.Account.Name != "":
		return "chown -h " + i.Account.Name + " " + path + " && " + restartCommand
	case errors.Is(err, fs.ErrPermission):
		return "Make it readable by the user that dpsd runs as, then run: " + restartCommand
	}
	return "Restore the file, or move it away so that dpsd requests another certificate with a new key: mv " + path + " " + path + ".aside && " + restartCommand
}

// describePair reports what a pair is for, and warns if dpsd does not renew the pair or
// replaces it early.
func (i *inspection) describePair(ctx context.Context, r Result, p pair, record store.Record) []Result {
	detail := fmt.Sprintf("for %q with a key of type %s, issued by %q; the key belongs to the certificate", p.RegistrationID, p.KeyType, p.Issuer)
	if n := len(p.chain); n > 1 {
		detail += fmt.Sprintf(", and each of the %d certificates is signed by the next", n)
	}
	const next = "dpsd requests another one with its next registration: dpsd reprovision"
	wanted := i.Settings.Certificate
	if p.tpmKey != nil {
		works, err := i.works(ctx, p.tpmKey)
		if err != nil {
			f := classify.Classify(err)
			advice := f.Advice()
			if f.Code == fault.TPMKeyUnusable {
				advice = renewCommand + ", which creates another key"
			}
			return []Result{i.unusablePair(r, f.Code, err, advice)}
		}
		detail += "; " + works
	}
	results := []Result{r.ok(detail)}
	warn := func(detail, advice string) { results = append(results, r.warning(detail, advice)) }
	switch other := record.AssignedHub != "" && (p.AssignedHub != record.AssignedHub || p.DeviceID != record.DeviceID); {
	case wanted == nil:
		warn("dpsd does not renew it, because dpsd.toml has no table [certificate]", corrected("Add the table", i.applying()))
	case i.withoutCSR() != "":
		results = append(results, i.unusablePair(r, fault.ConfigurationInvalid, errors.New(i.withoutCSR()), i.withCSR()))
	case i.registrationID != "" && p.RegistrationID != i.registrationID:
		warn(fmt.Sprintf("it is for the registration ID %q, not for %q", p.RegistrationID, i.registrationID), next)
	case other:
		warn(fmt.Sprintf("it was issued for %s at %s, but the gateway is assigned to %s as %s", p.DeviceID, p.AssignedHub, record.AssignedHub, record.DeviceID), next)
	case p.KeyType != string(wanted.KeyType):
		warn(fmt.Sprintf("its key has the type %s, but dpsd.toml requires %s", p.KeyType, wanted.KeyType), next)
	case wanted.KeyStore == certificate.InTPM != (p.KeyStore == string(certificate.InTPM)):
		warn(fmt.Sprintf("its key is not in the key_store %q that dpsd.toml requires", cmp.Or(wanted.KeyStore, certificate.InFile)), next)
	case record.Certificate == nil || record.Certificate.SHA256 != p.SHA256:
		warn("state.json describes a different certificate", "dpsd corrects that when it starts: "+restartCommand)
	}
	return results
}

// dates checks whether the whole chain is valid, and whether its renewal is overdue.
func (i *inspection) dates(r Result, p pair) Result {
	now := i.Now()
	begin, end, first := p.chain.Validity()
	which := "the certificate"
	if first > 0 {
		which = fmt.Sprintf("certificate %d of %d, %q,", first+1, len(p.chain), p.chain[first].Subject.CommonName)
	}
	at := func(t time.Time) string { return t.UTC().Format(time.DateTime + " MST") }
	advice := renewCommand
	if i.Settings.Certificate == nil {
		advice = corrected("Add the table [certificate] to dpsd.toml", i.applying())
	}
	switch {
	case now.Before(begin.Add(-early)):
		return i.unusablePair(r, fault.ClockImplausible, fmt.Errorf("the certificate is not valid before %s, and this gateway's clock shows %s", at(begin), at(now)),
			fault.Describe(fault.ClockImplausible).Advice)
	case now.Before(begin):
		return r.warning(fmt.Sprintf("the certificate is not valid before %s, in %s", at(begin), rough(begin.Sub(now))),
			"Check this gateway's clock, or wait.")
	case !now.Before(end):
		return i.unusablePair(r, fault.CertificateExpired, fmt.Errorf("%s expired %s ago, on %s", which, rough(now.Sub(end)), at(end)), advice)
	}
	detail := fmt.Sprintf("valid until %s, for %s", at(end), rough(end.Sub(now)))
	if first > 0 {
		detail += "; " + which + " expires first"
	}
	if i.Settings.Certificate == nil {
		return r.ok(detail)
	}
	life := end.Sub(begin)
	due := begin.Add(life / 100 * time.Duration(i.Settings.Certificate.RenewAt))
	if now.After(due.Add(life / 20)) {
		return r.warning(fmt.Sprintf("%s; the renewal has been due since %s", detail, at(due)), renewCommand+", which shows the reason")
	}
	return r.ok(detail + "; dpsd renews it by " + at(due))
}
