package check

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/session"
)

// usable is a credential with a proof for the service.
type usable struct {
	attest.Credential
	proof session.Proof
}

// credentials reads each credential and the proxy's password, like an attempt.
func (i *inspection) credentials(ctx context.Context) {
	results := make([]Result, 0, len(i.Settings.Credentials))
	for _, c := range i.Settings.Credentials {
		results = append(results, i.credential(ctx, c)...)
	}
	// If a credential cannot be used, dpsd uses the next one.
	if slices.ContainsFunc(i.usable, func(u usable) bool { return u.proof.Validity == nil }) {
		soften(results, "another credential is usable")
	}
	i.report(results...)
	if i.Settings.ProxyUser != "" && !i.Settings.ProxyPassword.IsZero() {
		r := Result{Name: Credential, Subject: "proxy_password " + i.Settings.ProxyPassword.String()}
		all := []attest.Reference{i.Settings.ProxyPassword}
		_, err := i.Secrets.Password(i.Settings.ProxyPassword)
		if err == nil {
			err = i.withheld(all)
		}
		i.report(i.judge(r, err, all, all, "usable")...)
	}
}

// soften changes failures to warnings if dpsd works in spite of them.
func soften(results []Result, because string) {
	for n := range results {
		if results[n].Status == Failed {
			results[n].Status = Warning
			results[n].Detail += " (" + because + ")"
		}
	}
}

func (i *inspection) credential(ctx context.Context, c attest.Credential) []Result {
	r := Result{Name: Credential, Subject: c.String()}
	identity := i.Settings.Identity(i.registrationID, i.Version)
	named, hasName := c.(interface {
		CommonName(attest.Secrets) (string, error)
	})
	if i.registrationID == "" && hasName {
		// Without the ID, only the common name cannot be checked.
		if cn, err := named.CommonName(i.Secrets); err == nil {
			identity.RegistrationID = cn
		}
	}
	secrets := i.Secrets
	secrets.Waiting = func(hardware string) { i.Progress("waiting for " + hardware) }
	proof, err := session.Prove(ctx, c, identity, secrets, i.Now())
	i.proofs = append(i.proofs, proof)
	if err == nil {
		err = i.withheld(c.References())
	}
	tested := ""
	if text := i.tpmKey(c); err == nil && text != nil {
		tested, err = i.works(ctx, text)
	}
	if err == nil {
		if i.registrationID != "" {
			i.usable = append(i.usable, usable{c, proof})
			i.disclosed.Add([]byte(sas.Signature(proof.Password)))
		}
		err = proof.Validity
	}
	detail := "usable"
	if proof.Certificate != nil {
		detail = fmt.Sprintf("certificate for %q, %d in the chain, valid until %s", proof.Certificate.Leaf.Subject.CommonName, len(proof.Certificate.Certificate), day(proof.Expires))
	}
	if tested != "" {
		detail += "; " + tested
	}
	var keys []attest.Reference // without certificates
	for _, k := range c.Type().Keys(c) {
		if k.Secret {
			keys = append(keys, *k.Reference)
		}
	}
	results := i.judge(r, err, c.References(), keys, detail)
	// The length alone does not justify a warning.
	if doubt := (*attest.Doubt)(nil); err == nil && errors.As(proof.Doubt, &doubt) && !doubt.Group {
		results = append(results, r.warning(doubt.Error(), doubt.Remedy()))
	}
	if proof.Certificate != nil && err == nil {
		results = append(results, i.chain(r, proof.Proof)...)
	}
	if detail, advice := c.Type().Warning(i.registrationID); err == nil && detail != "" {
		results = append(results, r.warning(detail, advice))
	}
	return results
}

// judge returns the results about references that were read: a failure if err is not nil, and
// a warning about each secret that other users can read.
func (i *inspection) judge(r Result, err error, all, secrets []attest.Reference, detail string) []Result {
	if err != nil {
		return []Result{i.unusable(r, err, all)}
	}
	results := []Result{r.ok(detail)}
	for _, reference := range secrets {
		if detail, advice := i.exposed(reference); detail != "" {
			results = append(results, r.warning(detail, advice))
		}
	}
	for _, path := range i.paths(all) {
		if where := i.hidden(path); where != "" {
			hidden := &hiddenError{path, where}
			results = append(results, r.warning(hidden.Error(), hidden.Remedy()))
		}
	}
	return results
}

// withheld returns the reason why the service cannot read secrets that this process has just
// read, or nil.
func (i *inspection) withheld(references []attest.Reference) error {
	for _, r := range references {
		if err := i.notLoaded(r); err != nil {
			return err
		}
	}
	return i.closedTo(i.paths(references))
}

// paths returns the files that references name.
func (i *inspection) paths(references []attest.Reference) []string {
	paths := make([]string, 0, len(references))
	for _, r := range references {
		if path := i.Secrets.Path(r); path != "" { // a signer has none
			paths = append(paths, path)
		}
	}
	return paths
}

// unusable returns a failure that names the fault and the user that cannot read the file.
func (i *inspection) unusable(r Result, err error, references []attest.Reference) Result {
	if errors.As(err, new(*ClosedError)) || errors.As(err, new(*hiddenError)) {
		return failed(r, fault.New(fault.CredentialUnreadable, fault.StageCredential, err))
	}
	if errors.As(err, new(*attest.CertificateError)) {
		code := fault.CertificateExpired
		if errors.Is(err, attest.ErrNotYetValid) {
			code = fault.ClockImplausible
		}
		return failed(r, fault.New(code, fault.StageCredential, err))
	}
	if errors.Is(err, attest.ErrEncrypted) {
		for _, reference := range references {
			if i.unit.decrypts(reference.Credential) && !i.unit.running() {
				return r.skipped("it is encrypted; systemd decrypts it when it starts dpsd.service")
			}
		}
	}
	r = failed(r, classify.Classify(i.asSeen(err)))
	if errors.Is(err, fs.ErrPermission) && i.otherUser() {
		r.Advice = "Run this command as root, so that it accesses files as the service does: sudo dpsd check"
	}
	return r
}

// exposed returns a warning if the mode of a secret allows users other than the service to
// read or change it. It ignores systemd credentials, whose modes systemd sets.
func (i *inspection) exposed(reference attest.Reference) (detail, advice string) {
	if reference.File == "" {
		return "", ""
	}
	info, err := os.Stat(reference.File)
	if err != nil {
		return "", ""
	}
	mode := info.Mode().Perm()
	var what string
	switch {
	case mode&0o002 != 0:
		what = "every user can change it"
	case mode&0o004 != 0:
		what = "every user can read it"
	case mode&0o020 != 0:
		what = "its group can change it"
	case mode&0o040 != 0 && i.Account.Name != "" && int(info.Sys().(*syscall.Stat_t).Gid) == i.Account.GID:
		what = "the members of the group " + i.Account.Name + ", who may request a registration, can read it"
	default:
		return "", ""
	}
	return fmt.Sprintf("%s has mode %04o: %s", reference.File, mode, what),
		fmt.Sprintf("chown root:dpsd-keys %[1]s && chmod 0640 %[1]s", reference.File)
}

// hidden returns the directory that the sandbox of the unit hides from the service, or "". It
// considers ProtectHome= and PrivateTmp= (systemd.exec(5)), which a drop-in may have changed.
func (i *inspection) hidden(path string) string {
	if i.unit == nil {
		return ""
	}
	for property, directories := range map[string][]string{
		"ProtectHome": {"/home", "/root", "/run/user"},
		"PrivateTmp":  {"/tmp", "/var/tmp"},
	} {
		if value := i.unit.properties[property]; value == "no" || value == "read-only" {
			continue
		}
		for _, directory := range directories {
			if strings.HasPrefix(path, directory+"/") {
				return directory
			}
		}
	}
	return ""
}

// chain checks what Prove does not check: the order of the certificates (RFC 5246 §7.4.2)
// and the remaining time.
func (i *inspection) chain(r Result, proof attest.Proof) []Result {
	var results []Result
	warn := func(detail, advice string) {
		results = append(results, r.warning(detail, advice))
	}
	previous := proof.Certificate.Leaf
	for n, der := range proof.Certificate.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			break // Prove has parsed all of them
		}
		if slices.Contains(proof.Unrelated, n+1) {
			warn(fmt.Sprintf("certificate %d of %d, %q, did not issue any certificate in the chain of the device certificate", n+2, len(proof.Certificate.Certificate), c.Subject.CommonName),
				"Remove it. If an intermediate certificate between it and the device certificate is missing, add that certificate instead.")
			continue
		}
		if err := previous.CheckSignatureFrom(c); err != nil {
			warn(fmt.Sprintf("certificate %d of %d, %q, did not issue the certificate before it", n+2, len(proof.Certificate.Certificate), c.Subject.CommonName),
				"Put the certificates in order: first the device certificate, then the certificate that issued it, and so on.")
			break
		}
		previous = c
	}
	if err := attest.ForClients(proof.Certificate.Leaf); err != nil {
		warn(err.Error(), fault.Fault{Err: err}.Advice())
	}
	if detail, advice := i.expiresSoon(proof); detail != "" {
		warn(detail, advice)
	}
	return results
}

// expiresSoon returns a warning if the certificate of the chain that expires first expires
// soon. The limit is shorter for certificates that are valid for only a day.
func (i *inspection) expiresSoon(proof attest.Proof) (detail, advice string) {
	first, err := x509.ParseCertificate(proof.Certificate.Certificate[proof.ExpiresFirst])
	if err != nil {
		return "", "" // Prove has parsed all of them
	}
	left := first.NotAfter.Sub(i.Now())
	if left >= min(30*24*time.Hour, first.NotAfter.Sub(first.NotBefore)/3) {
		return "", ""
	}
	what, advice := "the certificate", "Install a renewed certificate"
	if n := proof.ExpiresFirst; n > 0 {
		what = fmt.Sprintf("certificate %d of %d, %q,", n+1, len(proof.Certificate.Certificate), first.Subject.CommonName)
		advice = "Have the issuer renew that certificate, and install the new chain"
	}
	return fmt.Sprintf("%s expires in %s, on %s", what, rough(left), first.NotAfter.UTC().Format(time.DateTime+" MST")),
		advice + ": dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd"
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// rough returns an approximate duration for people.
func rough(d time.Duration) string {
	d = d.Abs()
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", int(d/time.Hour))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", int(d/time.Minute))
	}
	return fmt.Sprintf("%d seconds", int(d/time.Second))
}
