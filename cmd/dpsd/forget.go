package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/store"
)

func forgetCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "forget",
		Short: "Remove this gateway's identity, for repair or resale",
		Long: `Remove this gateway's identity before you repair or sell the gateway: the
record, previous and damaged records, state.env, the issued certificates with
their keys, the last confirmation, and the recorded attempts, from the state
directory and the runtime directory. First stop the service, and the sockets of
local services, whose connections would start it again.

The command does not remove the configuration, the keys, or anything that does
not belong to dpsd; it lists them at the end.`,
		Example: `  ` + stopCommand + ` && dpsd forget
  dpsd forget --yes    # without asking for confirmation, for scripts`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configOf(cmd)
			cfg, err := load(file)
			if err != nil {
				return invalid(file, err)
			}
			f := forgetter{out: cmd.OutOrStdout(), cfg: cfg, file: file}
			switch {
			case yes:
			case !terminalOn(os.Stdin).attended:
				return &exitError{exitUsage, errors.New("cannot ask for confirmation without a terminal; --yes removes the identity without asking"), "dpsd forget --yes"}
			case !f.asks(cmd.InOrStdin(), cmd.ErrOrStderr()):
				return failed(errors.New("nothing was removed"))
			}
			return f.forget()
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	return cmd
}

// stopCommand also stops the sockets of local services, because a connection would start dpsd again.
const stopCommand = "systemctl stop 'dpsd-hub@*.socket' dpsd"

// forgetter removes the identity in the directories of a configuration.
type forgetter struct {
	out  io.Writer
	cfg  *config.Config
	file string
}

// asks prints what would be removed and reports whether the user agrees.
func (f forgetter) asks(in io.Reader, out io.Writer) bool {
	what := "the identity of this gateway"
	if rec, err := store.Read(f.cfg.State.Directory); err == nil {
		what += fmt.Sprintf(" (%s at %s)", printable(rec.DeviceID), printable(rec.AssignedHub))
		if rec.Certificate != nil {
			what += ", and its issued certificate and key,"
		}
	}
	fmt.Fprintf(out, "Remove %s from %s and %s? Type yes: ", what, f.cfg.State.Directory, filepath.Dir(f.cfg.Control.Socket))
	answer := make([]byte, 64)
	n, _ := in.Read(answer) // a terminal returns a line; end of file means no
	return strings.EqualFold(strings.TrimSpace(string(answer[:n])), "yes")
}

func (f forgetter) forget() error {
	done, err := store.Forget(store.Options{Directory: f.cfg.State.Directory, RuntimeDirectory: filepath.Dir(f.cfg.Control.Socket)})
	for _, path := range done.Removed {
		fmt.Fprintln(f.out, "removed", path)
	}
	var locked *store.LockedError
	switch {
	case errors.As(err, &locked) && locked.PID != 0:
		return &exitError{exitFailed, fmt.Errorf("dpsd is running (pid %d), and nothing was removed; stop it first", locked.PID), stopCommand}
	case err != nil && errors.As(err, &locked):
		return &exitError{exitFailed, fmt.Errorf("dpsd is running, and nothing was removed: %w", err), stopCommand}
	case errors.Is(err, os.ErrPermission):
		return &exitError{exitFailed, err, "sudo dpsd forget"}
	case err != nil:
		return &exitError{exitFailed, fmt.Errorf("the identity was only partly removed: %w; correct that, and run the command again", err), "dpsd forget"}
	}
	if len(done.Removed) == 0 {
		fmt.Fprintln(f.out, "nothing to remove: there is no record in", f.cfg.State.Directory)
	}
	f.left(done)
	return nil
}

// left lists what still identifies the gateway.
func (f forgetter) left(done store.Forgotten) {
	fmt.Fprintln(f.out, "Not removed; review each item before you repair or sell the gateway:")
	item := func(what, why string) { fmt.Fprintf(f.out, "  %s: %s\n", what, why) }
	item(f.file, "the configuration")
	var keys []attest.Reference
	for _, c := range f.cfg.Credentials {
		keys = append(keys, c.References()...)
	}
	for _, r := range append(keys, f.cfg.Transport.ProxyPassword) {
		if r.IsZero() {
			continue
		}
		why := "a key, certificate or password"
		if r.Signer != "" {
			why = "the socket of the signer that holds the private key"
		}
		if r.Credential != "" {
			why += ", in /etc/credstore, /etc/credstore.encrypted or wherever else the unit loads it from"
		}
		item(r.String(), why)
	}
	if f.cfg.DPS.RegistrationID.File != "" {
		item(f.cfg.DPS.RegistrationID.File, "the source of the registration ID")
	}
	if f.cfg.DPS.PayloadFile != "" {
		item(f.cfg.DPS.PayloadFile, "the payload sent with each registration")
	}
	if done.Kept != "" {
		item(done.Kept, "the wait that DPS has asked for, which applies until the next boot removes it")
	}
	for _, m := range done.Modules {
		item(printable(fmt.Sprintf("the module %s of %s at %s", m.ModuleID, m.DeviceID, m.AssignedHub)), "stays at the hub until you delete it there, for example in the Azure portal")
	}
	item("/etc/machine-id", "must be empty in an image of this disk for other gateways (machine-id(5))")
	item("the journal", "contains the device ID and the hub: journalctl --rotate && journalctl --vacuum-time=1s")
	item("the enrollment", "until you disable it in DPS, the keys above remain valid")
}
