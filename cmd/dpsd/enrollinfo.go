package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/setup"
)

func enrollInfoCommand() *cobra.Command {
	var id string
	var asCSV, asJSON, asQR bool
	cmd := &cobra.Command{
		Use:   "enroll-info",
		Short: "Show what to enter in the Azure portal",
		Long: `Show what to enter in the Azure portal to create an enrollment for this gateway:
the Registration ID and, for a certificate, its thumbprints and issuer. The
output contains no key.

--json prints an individual enrollment on one line, in the format of the DPS
service API. To combine the lines of up to ten gateways into one bulk operation,
use "jq -s '{mode: "create", enrollments: .}'". For a symmetric key, DPS
generates the keys. --csv prints a header line and a line of values. --qr prints
the Registration ID as a QR code for a phone; the terminal must support colours
or have a dark background.

With --registration-id, the command needs no configuration, and describes an
enrollment with a symmetric key.`,
		Example: `  sudo dpsd enroll-info
  dpsd enroll-info --registration-id %m --qr
  for gw in $GATEWAYS; do ssh "$gw" sudo dpsd enroll-info --json; done`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := enrollInfo(configOf(cmd), id)
			if err != nil {
				return asRoot(err, configOf(cmd), "enroll-info")
			}
			out := terminalOn(os.Stdout)
			switch {
			case asCSV:
				_, err = io.WriteString(out, e.CSV())
			case asJSON:
				var text []byte
				if text, err = e.JSON(); err == nil {
					_, err = out.Write(text)
				}
			case asQR:
				err = printQR(out, e.RegistrationID)
			default:
				err = e.print(out)
			}
			return failed(err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "registration-id", "", "use this registration `ID` instead of that in the\nconfiguration; %m is the machine ID, and %H the\nhost name")
	f.BoolVar(&asCSV, "csv", false, "print CSV")
	f.BoolVar(&asJSON, "json", false, "print JSON for the service API")
	f.BoolVar(&asQR, "qr", false, "print the Registration ID as a QR code")
	_ = cmd.RegisterFlagCompletionFunc("registration-id", cobra.NoFileCompletions)
	cmd.MarkFlagsMutuallyExclusive("csv", "json", "qr")
	return cmd
}

// enrolling is an enrollment and the additional values that people read.
type enrolling struct {
	setup.Enrollment
	idScope string
	others  int // number of further credentials
}

// enrollInfo returns the enrollment for the first credential of a configuration or, if id is
// set, for a symmetric key.
func enrollInfo(file, id string) (e *enrolling, err error) {
	e = &enrolling{}
	if id != "" {
		if e.RegistrationID, err = expanded(id); err != nil {
			return e, &exitError{exitUsage, fmt.Errorf("--registration-id: %w", err), ""}
		}
		return e, nil
	}
	cfg, err := load(file)
	if err != nil {
		return e, invalid(file, err)
	}
	e.idScope, e.others = cfg.DPS.IDScope, len(cfg.Credentials)-1
	secrets := attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY"))
	if e.RegistrationID, err = cfg.DPS.RegistrationID.Resolve(attest.Host{}, secrets); err != nil {
		return e, failed(err)
	}
	if x, is := cfg.Credentials[0].(attest.X509); is {
		if e.Chain, err = x.Chain(secrets); err != nil {
			return e, failed(err)
		}
	}
	return e, nil
}

// print prints the enrollment for people, in the terms of the portal.
func (e *enrolling) print(out *terminal) error {
	var b strings.Builder
	line := func(name, value string) {
		fmt.Fprintf(&b, "%s %s\n", out.paint(bold, fmt.Sprintf("%-24s", name)), printable(value))
	}
	b.WriteString("In the portal, open the DPS instance, then Manage enrollments, then Individual\nenrollments, and add an enrollment with these values.\n\n")
	if e.idScope != "" {
		line("ID Scope", e.idScope+" (of the DPS instance)")
	}
	line("Registration ID", e.RegistrationID)
	if len(e.Chain) == 0 {
		line("Attestation mechanism", "Symmetric key")
		b.WriteString("\nThe portal generates the keys. A gateway in an enrollment group does not need an\nentry of its own.\n")
	} else {
		line("Attestation mechanism", "X.509 client certificates")
		for n, c := range e.Chain {
			e.certificate(line, n, c)
		}
		b.WriteString("\nUpload the first certificate in the file. For an enrollment group, upload the\ncertificate of the issuer instead.\n")
	}
	if e.others > 0 {
		fmt.Fprintf(&b, "dpsd.toml contains %d more credentials, which dpsd uses if DPS refuses this one.\n", e.others)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// certificate prints the certificate at an index of the chain.
func (e *enrolling) certificate(line func(name, value string), n int, c *x509.Certificate) {
	name := "Primary certificate"
	if n > 0 {
		name = "Intermediate certificate"
	}
	one, two := setup.Thumbprints(c)
	line(name, c.Subject.String())
	line("  SHA-1 thumbprint", one)
	line("  SHA-256 thumbprint", two)
	line("  Issuer", c.Issuer.String())
	line("  Valid until", c.NotAfter.UTC().Format(time.RFC3339))
}

// printQR prints a text as a QR code. If possible, it sets the colours, so that those of the
// terminal do not matter.
func printQR(out *terminal, text string) error {
	code, err := setup.QR(text)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(code, "\n")
	if width := utf8.RuneCountInString(first); out.attended && width > out.columns {
		return fmt.Errorf("the QR code needs a terminal with at least %d columns, but this one has %d", width, out.columns)
	}
	for row := range strings.Lines(code) {
		if row = strings.TrimSuffix(row, "\n"); out.coloured {
			row = "\x1b[97;40m" + row + "\x1b[0m"
		}
		if _, err := fmt.Fprintln(out, row); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out, text)
	return err
}
