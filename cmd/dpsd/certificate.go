package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
)

func certificateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certificate",
		Short: "Show the issued certificate, or request another one",
		Long: `Show the certificate that DPS has issued to this gateway, or request another
one. With the table [certificate] in dpsd.toml, dpsd requests a certificate
together with the assignment, and renews it.`,
		Example: `  dpsd certificate status
  dpsd certificate renew --wait`,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("missing subcommand: use dpsd certificate status or dpsd certificate renew")
		},
	}
	cmd.AddCommand(certificateStatusCommand(), certificateRenewCommand())
	return cmd
}

func certificateStatusCommand() *cobra.Command {
	var asJSON bool
	var expiresIn string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the issued certificate is valid, and for how long",
		Long: `Show the certificate that DPS has issued to this gateway: whether it is valid,
and for how long, when dpsd requests the next one, its issuer, and its files.
The dates are those of the whole chain.

If dpsd is not running, the command reads the state files. It works for every
user, although only the members of the group in [certificate] can read the files
of the certificate.

With --expires-in, the exit code is also 1 if the certificate expires within
that time. A percentage refers to the lifetime: 20% is the last fifth of it.

Exit codes: 0 if the certificate is valid; 1 if it has expired, expires within
--expires-in or cannot be used, or if its status is unknown; 3 if there is no
issued certificate.`,
		Example: `  dpsd certificate status
  dpsd certificate status --expires-in 20% || dpsd certificate renew
  dpsd certificate status --json | jq -r .notAfter`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			soon, err := parseMargin(expiresIn)
			if err != nil {
				return err
			}
			return certificateStatus(installationOf(cmd), asJSON, soon)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its schema is\n/usr/share/dpsd/certificate.schema.json")
	cmd.Flags().StringVar(&expiresIn, "expires-in", "", "exit with 1 if it expires within `TIME`: a duration\nsuch as 72h, or a percentage of its lifetime such\nas 20%")
	_ = cmd.RegisterFlagCompletionFunc("expires-in", cobra.NoFileCompletions)
	return cmd
}

// margin is the value of --expires-in: a duration, or a percentage of the lifetime.
type margin struct {
	text    string // "" for none
	span    time.Duration
	percent float64
}

func parseMargin(text string) (m margin, err error) {
	m.text = text
	if share, is := strings.CutSuffix(text, "%"); is {
		m.percent, err = strconv.ParseFloat(share, 64)
		if err == nil && m.percent > 0 && m.percent < 100 {
			return m, nil
		}
	} else if m.span, err = time.ParseDuration(text); text == "" || err == nil && m.span > 0 {
		return m, nil
	}
	return m, fmt.Errorf("--expires-in must be a positive duration such as 72h, or a percentage such as 20%%; it is %q", text)
}

// reached reports whether the remaining time of a certificate is within the margin.
func (m margin) reached(left, life time.Duration) bool {
	return m.text != "" && left <= max(m.span, time.Duration(m.percent/100*float64(life)))
}

// certificateNotYetValid is a state besides those of control.IssuedCertificate.
const certificateNotYetValid = "not-yet-valid"

// certificateReport is the output of certificate status --json. docs/certificate.schema.json
// describes it.
type certificateReport struct {
	Running bool      `json:"running"` // the daemon has answered; otherwise the state is that of the files
	Now     time.Time `json:"now"`
	control.IssuedCertificate
	RemainingSeconds *int64 `json:"remainingSeconds,omitempty"` // until NotAfter; 0 after it
	RemainingPercent *int64 `json:"remainingPercent,omitempty"` // of the lifetime, rounded down
	ExpiresSoon      bool   `json:"expiresSoon"`                // it expires within --expires-in
	CertificateFile  string `json:"certificateFile,omitempty"`  // the chain in PEM
	PrivateKeyFile   string `json:"privateKeyFile,omitempty"`

	soon margin
	left time.Duration
	life time.Duration
}

func certificateStatus(places installation, asJSON bool, soon margin) error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	s, running, err := places.status(ctx)
	if err != nil {
		return &exitError{exitFailed, err, "sudo dpsd check, which checks the files and the service"}
	}
	record, _ := store.Published(places.state, places.runtime) // without it, the files are unknown
	if s.IssuedCertificate == nil {                            // of a daemon without support for certificates
		s.IssuedCertificate = places.issued(record, s.Now)
	}
	report := reportOn(s, running, record.Certificate, soon)
	if err := report.show(terminalOn(os.Stdout), asJSON); err != nil {
		return failed(err)
	}
	if places.note != nil && !running {
		fmt.Fprintln(os.Stderr, "Using the default paths, because the configuration cannot be used:", places.note)
	}
	if code := report.code(); code != exitOK {
		return &exitError{code, nil, ""}
	}
	return nil
}

// reportOn returns the report on the certificate of a status. published is the certificate of
// the record, which names the files; nil for none.
func reportOn(s control.Status, running bool, published *store.Certificate, soon margin) certificateReport {
	r := certificateReport{Running: running, Now: s.Now, IssuedCertificate: control.IssuedCertificate{State: control.CertificateMissing}, soon: soon}
	if s.IssuedCertificate != nil {
		r.IssuedCertificate = *s.IssuedCertificate
	}
	if published != nil && r.SHA256 == published.SHA256 {
		r.CertificateFile, r.PrivateKeyFile = published.CertificateFile, published.PrivateKeyFile
	}
	if r.NotBefore == nil || r.NotAfter == nil {
		return r
	}
	r.life, r.left = r.NotAfter.Sub(*r.NotBefore), max(0, r.NotAfter.Sub(r.Now))
	seconds, percent := int64(r.left/time.Second), int64(100*r.left.Seconds()/max(1, r.life.Seconds()))
	r.RemainingSeconds, r.RemainingPercent = &seconds, &percent
	switch {
	case r.State != control.CertificateValid:
	case r.left == 0:
		r.State = control.CertificateExpired // since the daemon has posted its status
	case r.Now.Before(*r.NotBefore):
		r.State = certificateNotYetValid
	}
	r.ExpiresSoon = soon.reached(r.left, r.life)
	return r
}

// code returns the exit code.
func (r certificateReport) code() int {
	switch {
	case r.State == control.CertificateMissing:
		return exitNone
	case r.State != control.CertificateValid || r.ExpiresSoon:
		return exitFailed
	}
	return exitOK
}

// show prints the report. It escapes all text of the daemon and its files.
func (r certificateReport) show(out *terminal, asJSON bool) error {
	foreign.Strings(&r, foreign.MaxFault)
	if asJSON {
		return writeJSON(out, r)
	}
	return r.print(out)
}

// print prints the report for people.
func (r certificateReport) print(out *terminal) error {
	var b strings.Builder
	line := out.rows(&b)
	at := func(t *time.Time) string { return t.UTC().Format(time.RFC3339) }
	paint, head := red, map[string]string{
		control.CertificateMissing:    "there is no issued certificate",
		control.CertificateUnreadable: "the files of the issued certificate cannot be read",
		control.CertificateForeign:    "the issued certificate is for a different registration ID, device ID or hub",
	}[r.State]
	switch {
	case head != "":
	case r.NotAfter == nil || r.NotBefore == nil:
		head = r.State
	case r.State == control.CertificateExpired:
		head = fmt.Sprintf("expired at %s, %s ago", at(r.NotAfter), span(r.Now.Sub(*r.NotAfter)))
	case r.State == certificateNotYetValid:
		paint, head = yellow, fmt.Sprintf("not valid before %s, in %s", at(r.NotBefore), span(r.NotBefore.Sub(r.Now)))
	case r.ExpiresSoon:
		paint, head = yellow, fmt.Sprintf("expires at %s, in %s, which is within %s", at(r.NotAfter), span(r.left), r.soon.text)
	case r.State == control.CertificateValid:
		paint, head = green, fmt.Sprintf("valid until %s, for %s", at(r.NotAfter), span(r.left))
	}
	fmt.Fprintln(&b, out.paint(paint, head))
	if r.NotBefore != nil && r.NotAfter != nil {
		line("validity", "from %s to %s", at(r.NotBefore), at(r.NotAfter))
		line("remaining", "%s of %s (%d %%)", span(r.left), span(r.life), *r.RemainingPercent)
	}
	for _, text := range r.renewal() {
		line("renewal", "%s", text)
	}
	for _, detail := range []struct{ name, value string }{{"issuer", r.Issuer}, {"serial", r.Serial}, {"SHA-256", r.SHA256}} {
		if detail.value != "" {
			line(detail.name, "%s", detail.value)
		}
	}
	for _, file := range []struct{ name, path string }{{"certificate", r.CertificateFile}, {"private key", r.PrivateKeyFile}} {
		note := ""
		if errors.Is(unix.Access(file.path, unix.R_OK), unix.EACCES) {
			note = " (this user cannot read it)"
		}
		if file.path != "" {
			line(file.name, "%s%s", file.path, note)
		}
	}
	_, err := fmt.Fprint(out, b.String())
	return err
}

// renewal returns when dpsd requests the next certificate, and why.
func (r certificateReport) renewal() (lines []string) {
	switch {
	case !r.Running:
		return []string{notRunning + ", so it requests no certificate"}
	case r.Request == "":
		return []string{"none: dpsd.toml has no table [certificate]"}
	case r.Due != "":
		lines = append(lines, "due: "+r.Due)
	case r.RenewAt != nil:
		lines = append(lines, fmt.Sprintf("at %s, in %s", r.RenewAt.UTC().Format(time.RFC3339), span(r.RenewAt.Sub(r.Now))))
	}
	if next := r.NotBeforeNextRequest; r.Due != "" && next != nil && next.After(r.Now) {
		lines = append(lines, fmt.Sprintf("not before %s, in %s", next.UTC().Format(time.RFC3339), span(next.Sub(r.Now))))
	}
	return lines
}

// summary describes an issued certificate in one line of "dpsd status".
func summary(c control.IssuedCertificate, running bool, now time.Time) (text string, paint colour) {
	r := reportOn(control.Status{Now: now, IssuedCertificate: &c}, running, nil, margin{})
	at := func(t *time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case r.State == control.CertificateMissing:
		text, paint = "missing", yellow
		if r.Request == "required" {
			paint = red
		}
	case r.State == control.CertificateExpired && r.NotAfter != nil:
		text, paint = "expired at "+at(r.NotAfter), red
	case r.State == certificateNotYetValid:
		text, paint = "not valid before "+at(r.NotBefore), yellow
	case r.State == control.CertificateValid && r.NotAfter != nil:
		text = "valid until " + at(r.NotAfter)
	case r.State == control.CertificateForeign:
		text, paint = "for a different registration ID, device ID or hub", yellow
	case r.State == control.CertificateUnreadable:
		text, paint = "its files cannot be read", red
	default:
		text, paint = cmp.Or(r.State, "unknown"), yellow
	}
	switch {
	case !running:
	case r.Request == "":
		text += "; not renewed, because dpsd.toml has no table [certificate]"
	default:
		what := "; renewal "
		if r.State == control.CertificateMissing {
			what = "; request "
		}
		for _, next := range r.renewal() {
			text += what + next
		}
	}
	return text, paint
}
