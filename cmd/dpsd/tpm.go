package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
)

func tpmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tpm",
		Short: "Create, test and list keys in the TPM of this gateway",
		Long: `Create, test and list keys in the TPM 2.0 of this gateway. The TPM encrypts each
key, and the result is a TSS2 file, which you use in dpsd.toml like any other
key file. Only this TPM can use the file, so a copy of the disk is useless on
another machine.

You can repeat each command: it never replaces a key that works, clears the TPM,
or takes ownership of it. The keys have no password and are not subject to the
lockout of the TPM. The TPM stores nothing, unless you use --persistent.

A systemd credential that is encrypted with the TPM needs none of these
commands, and is the simplest method for a symmetric key. The project's page
docs/hardware-keys.md explains how to choose a method.`,
		Example: `  sudo dpsd tpm status
  sudo dpsd tpm create-key --csr gw-1.csr
  sudo dpsd tpm test`,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			cmd.Flags().Visit(func(f *pflag.Flag) { // the value may be an empty variable in a script
				if err == nil && f.Value.Type() == "string" && f.Value.String() == "" {
					err = fmt.Errorf("--%s: the value is empty", f.Name)
				}
			})
			return err
		},
		RunE: func(*cobra.Command, []string) error {
			return errors.New("missing subcommand: use dpsd tpm status, create-key, import-key, seal, test or list")
		},
	}
	cmd.PersistentFlags().String("device", "", "use the TPM at `PATH` (default: device in [tpm] of\ndpsd.toml, or "+tpm.Path+")")
	_ = cmd.MarkPersistentFlagFilename("device") // fails only for a flag that does not exist
	cmd.AddCommand(tpmStatusCommand(), tpmCreateKeyCommand(), tpmImportKeyCommand(), tpmSealCommand(), tpmTestCommand(), tpmListCommand())
	return cmd
}

// tpmTool contains what all subcommands of "dpsd tpm" need.
type tpmTool struct {
	file   string         // path of dpsd.toml
	cfg    *config.Config // nil if it cannot be used
	note   error          // the reason why cfg is nil
	id     attest.RegistrationID
	device *tpm.Device
	// ignored means that the device is the default, because it is unknown whether dpsd.toml sets
	// a different one.
	ignored bool
	screen  *terminal // standard error
	name    string    // the subcommand and its arguments, for advice
	option  string    // " --device PATH" if the flag was given, for advice
}

// tpmToolOf returns the tool for a command line. It does not require a configuration. A
// configuration may also be incomplete: create-key and seal print the lines that complete it.
func tpmToolOf(cmd *cobra.Command) *tpmTool {
	t := &tpmTool{file: configOf(cmd), device: &tpm.Device{Path: tpm.Path}, screen: terminalOn(os.Stderr), name: "tpm " + cmd.Name()}
	if t.cfg, t.note = load(t.file); t.cfg != nil {
		t.id, t.device.Path = t.cfg.DPS.RegistrationID, t.cfg.TPM.Device
	} else if !errors.Is(t.note, fs.ErrNotExist) {
		path := ""
		if text, err := contents(t.file); err == nil {
			t.id, path = config.Incomplete(text)
		}
		t.device.Path, t.ignored = cmp.Or(path, tpm.Path), path == ""
	}
	if path := cmd.Flag("device").Value.String(); path != "" {
		t.device.Path, t.ignored, t.option = path, false, " --device "+input.Quote(path)
	}
	return t
}

// context returns the context of a subcommand.
func (t *tpmTool) context() (context.Context, context.CancelFunc) {
	return interruptible(0, syscall.SIGHUP, syscall.SIGQUIT)
}

// keys returns the TPMKeys for the configuration.
func (t *tpmTool) keys() (*setup.TPMKeys, error) {
	file, err := filepath.Abs(t.file)
	if err != nil {
		return nil, failed(err)
	}
	return &setup.TPMKeys{
		Device:   t.device,
		Place:    setup.PlaceFor(file, setup.Machine{UID: os.Geteuid(), Group: groupID, Writable: writable}),
		Progress: t.screen.progress,
	}, nil
}

// registrationID returns the registration ID of a flag or, if it is "", of dpsd.toml.
func (t *tpmTool) registrationID(flag string) (string, error) {
	switch {
	case flag != "":
		id, err := expanded(flag)
		if err != nil {
			return "", &exitError{exitUsage, fmt.Errorf("--registration-id: %w", err), ""}
		}
		return id, nil
	case t.cfg == nil && t.id == attest.RegistrationID{}:
		return "", &exitError{exitUsage, fmt.Errorf("--registration-id is required, because dpsd.toml cannot be used: %w", t.note), ""}
	}
	id, err := t.id.Resolve(attest.Host{}, attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY")))
	if err != nil {
		return "", &exitError{exitUsage, fmt.Errorf("--registration-id is required: %w", err), ""}
	}
	return id, nil
}

// failed adds the advice to the error of a subcommand.
func (t *tpmTool) failed(err error) error {
	if err == nil {
		return nil
	}
	t.screen.progress("")
	exit, is := errors.AsType[*exitError](err)
	if !is {
		advice, next := t.advice(err)
		if advice != "" {
			err = fmt.Errorf("%w\n%s", err, advice)
		}
		exit = &exitError{exitFailed, err, next}
	}
	return asRoot(exit, t.file, t.name+t.option)
}

// command returns a command of "dpsd tpm" for the same configuration and TPM.
func (t *tpmTool) command(rest string) string { return check.With(t.file, "dpsd "+rest+t.option) }

// advice returns a sentence and a command for an error; each may be "".
func (t *tpmTool) advice(err error) (sentence, command string) {
	status := t.command("tpm status")
	if errors.As(err, new(*setup.ExistsError)) {
		return "Another process has just written it, and nothing was changed.", t.command(t.name)
	}
	occupied, _ := errors.AsType[*setup.OccupiedError](err)
	switch {
	case occupied == nil:
	case occupied.Replaceable:
		return "If the TPM was cleared or replaced, the key is lost: create a new key, and enroll the gateway again. The previous file is kept as FILE.orig.",
			t.command(t.name + " --replace")
	case occupied.Err == nil:
		return "dpsd tpm never replaces it. Choose another NAME.", t.command("tpm list")
	}
	if errors.Is(err, tpm.ErrOwnerPassword) {
		return "dpsd does not use the password of the owner. Create a persistent parent key with the program that knows the password, and repeat this command.", t.command("tpm list")
	}
	e, is := errors.AsType[*tpm.Error](err)
	if !is {
		return "", ""
	}
	switch e.Kind {
	case tpm.Unavailable:
		switch {
		case errors.Is(err, fs.ErrNotExist) && t.ignored:
			return fmt.Sprintf("dpsd.toml cannot be used, so this command ignored any device that it sets: %v\nCorrect dpsd.toml, or use --device.", t.note), t.command("check --offline")
		case errors.Is(err, fs.ErrNotExist):
			return "Enable the TPM in the firmware settings of this machine. If it has a different path, set device in the table [tpm] of dpsd.toml.", ""
		case errors.Is(err, fs.ErrPermission):
			return "Only root and the members of the device's group are allowed to use the TPM.", ""
		}
		return "The TPM may become available later.", status
	case tpm.Busy:
		return "Another program is using the TPM, or the TPM is testing itself. Try again later.", ""
	case tpm.Slow:
		return "Try again later. If the TPM still does not answer, restart the machine.", ""
	case tpm.LockedOut:
		return "Wrong passwords from other programs have locked the TPM. It unlocks itself after some time. Do not clear it, because that destroys all of its keys.", status
	case tpm.Unusable:
		return "The TPM was cleared or replaced, or the file is from another machine. Create a new key, and enroll the gateway again.", ""
	case tpm.Unsupported:
		return "", status
	case tpm.Protected:
		return "dpsd uses only keys without a password.", ""
	case tpm.Policy:
		return "dpsd uses only keys without a policy.", ""
	case tpm.Damaged:
		return "Restore the file from a backup, or create a new key.", ""
	}
	return "", status
}

// tell prints a note, unless it is "".
func (t *tpmTool) tell(note string) {
	if note != "" {
		fmt.Fprintln(t.screen, printable(note))
	}
}

// indented indents each line of a text by two spaces.
func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n  ") + "\n"
}
