package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/tpm"
)

func tpmStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether there is a TPM that dpsd can use",
		Long: `Show the TPM of this gateway: its manufacturer, the types of keys that it
supports, whether wrong passwords have locked it, whether its owner has a
password, and whether the service can use it. The command changes nothing.

The lockout affects only keys with a password, which dpsd does not create.

Exit codes: 0 if the TPM answers, and the service is allowed to use it, as far
as this user can determine; 1 otherwise.`,
		Example: `  sudo dpsd tpm status
  sudo dpsd tpm status --json | jq -r '.algorithms[]'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := tpmToolOf(cmd)
			return t.failed(t.status(asJSON))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its schema is\n/usr/share/dpsd/tpm.schema.json")
	return cmd
}

// tpmStatus is the output of tpm status --json. docs/tpm.schema.json describes it.
type tpmStatus struct {
	Device          string          `json:"device"`
	Available       bool            `json:"available"`
	Problem         string          `json:"problem,omitempty"` // the reason why it is not available
	Manufacturer    string          `json:"manufacturer,omitempty"`
	Vendor          string          `json:"vendor,omitempty"`
	Firmware        string          `json:"firmware,omitempty"`
	Algorithms      []tpm.Algorithm `json:"algorithms"`
	LockedOut       bool            `json:"lockedOut"`
	WrongPasswords  int             `json:"wrongPasswords"`
	LockoutLimit    int             `json:"lockoutLimit"`
	RecoverySeconds int64           `json:"recoverySeconds"`
	OwnerPassword   bool            `json:"ownerPassword"`
	ServiceProblem  string          `json:"serviceProblem,omitempty"` // the reason why the service is not allowed to use the TPM

	remedy string
	err    error
}

// status runs "dpsd tpm status".
func (t *tpmTool) status(asJSON bool) error {
	ctx, stop := t.context()
	defer stop()
	t.screen.progress("Querying the TPM")
	s := tpmStatusOf(ctx, t.device)
	t.screen.progress("")
	if account, err := check.LookUpAccount(ctx, serviceAccount, bootedSystemctl()); err == nil {
		s.ServiceProblem, s.remedy = check.ServiceTPM(ctx, account, t.device.Path, bootedSystemctl())
	}
	foreign.Strings(&s, foreign.MaxFault)
	out := terminalOn(os.Stdout)
	if err := s.show(out, asJSON); err != nil {
		return err
	}
	switch {
	case s.err != nil:
		return s.err
	case s.ServiceProblem != "":
		return &exitError{exitFailed, errors.New("the service is not allowed to use the TPM"), s.remedy}
	}
	return nil
}

// tpmStatusOf asks a TPM.
func tpmStatusOf(ctx context.Context, d *tpm.Device) tpmStatus {
	s := tpmStatus{Device: d.Path, Algorithms: []tpm.Algorithm{}}
	answer, err := d.Status(ctx)
	if err != nil {
		s.Problem, s.err = err.Error(), err
		return s
	}
	s.Available = true
	s.Manufacturer, s.Vendor, s.Firmware = answer.Manufacturer, answer.Vendor, answer.Firmware
	s.Algorithms = append(s.Algorithms, answer.Algorithms...)
	s.LockedOut, s.WrongPasswords, s.LockoutLimit = answer.LockedOut, answer.Failures, answer.Limit
	s.RecoverySeconds, s.OwnerPassword = int64(answer.Recovery/time.Second), answer.OwnerPassword
	return s
}

// show prints the status.
func (s *tpmStatus) show(out *terminal, asJSON bool) error {
	if asJSON {
		return writeJSON(out, s)
	}
	var b strings.Builder
	line := out.rows(&b)
	if !s.Available {
		fmt.Fprintln(&b, out.paint(red, "the TPM is not available"))
		line("device", "%s", s.Device)
	} else {
		fmt.Fprintln(&b, out.paint(green, "the TPM is available"))
		line("device", "%s", s.Device)
		line("TPM", "%s", strings.Join(strings.Fields(s.Manufacturer+" "+s.Vendor+" "+s.Firmware), " "))
		line("key types", "%s", joined(s.Algorithms))
		line("lockout", "%s", s.lockout())
		if s.OwnerPassword {
			line("owner", "has a password; new keys need a persistent parent key")
		} else {
			line("owner", "has no password")
		}
	}
	if s.ServiceProblem != "" {
		line("service", "%s", out.paint(red, s.ServiceProblem))
	}
	_, err := fmt.Fprint(out, b.String())
	return err
}

// lockout describes the protection against guessing passwords.
func (s *tpmStatus) lockout() string {
	text := fmt.Sprintf("not locked; %d of %d wrong passwords", s.WrongPasswords, s.LockoutLimit)
	if s.LockedOut {
		text = fmt.Sprintf("locked after %d wrong passwords; keys without a password still work", s.WrongPasswords)
	}
	if s.WrongPasswords > 0 && s.RecoverySeconds > 0 {
		text += "; the count decreases by one every " + span(time.Duration(s.RecoverySeconds)*time.Second)
	}
	return text
}

// joined returns a list of algorithms for people.
func joined(all []tpm.Algorithm) string {
	if len(all) == 0 {
		return "none that dpsd supports"
	}
	names := make([]string, 0, len(all))
	for _, a := range all {
		names = append(names, string(a))
	}
	return strings.Join(names, ", ")
}
