package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/setup"
)

// tpmSealOptions are the flags of "dpsd tpm seal".
type tpmSealOptions struct {
	tpmKeyOptions
	keyFile, groupKeyFile string
}

func tpmSealCommand() *cobra.Command {
	var o tpmSealOptions
	cmd := &cobra.Command{
		Use:   "seal [NAME]",
		Short: "Encrypt the symmetric key of this gateway with the TPM",
		Long: `Encrypt the symmetric key of this gateway with the TPM, and write the TSS2 file
NAME. The TPM then signs the tokens for DPS, and never returns the key. NAME is
a path, or the name of a file in the directory keys next to dpsd.toml; the
default is symmetric-key.tss2.

By default, the command asks for the key on the terminal, without displaying it.
With --key-file, it reads the key from FILE. With --group-key-file, it reads the
key of an enrollment group, derives the key of this gateway from it, and
encrypts only the derived key. If FILE is -, it reads standard input. It never
accepts a key as an argument.

If NAME already contains this key, the command changes nothing.`,
		Example: `  sudo dpsd tpm seal
  sudo dpsd tpm seal --key-file /etc/dpsd/keys/device.key
  sudo dpsd tpm seal --group-key-file group.key`,
		// An argument may be the key, which cobra's own message would contain.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("dpsd tpm seal takes one NAME; it reads the key from a terminal or a file, never from an argument")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t := tpmToolOf(cmd)
			return t.failed(t.seal(o, args))
		},
	}
	o.add(cmd)
	f := cmd.Flags()
	f.StringVar(&o.keyFile, "key-file", "", "read the key from `FILE`")
	f.StringVar(&o.groupKeyFile, "group-key-file", "", "derive the key from the key of the enrollment\ngroup in `FILE`")
	f.StringVar(&o.registrationID, "registration-id", "", "derive the key for this registration `ID`\n(default: from dpsd.toml)")
	_ = cmd.MarkFlagFilename("key-file")
	_ = cmd.MarkFlagFilename("group-key-file")
	_ = cmd.RegisterFlagCompletionFunc("registration-id", cobra.NoFileCompletions)
	cmd.MarkFlagsMutuallyExclusive("key-file", "group-key-file")
	return cmd
}

// seal runs "dpsd tpm seal".
func (t *tpmTool) seal(o tpmSealOptions, args []string) error {
	ctx, stop := t.context()
	defer stop()
	keys, path, err := o.target(t, args, setup.TPMSealName)
	if err != nil {
		return err
	}
	key, source, err := t.symmetricKey(ctx, o)
	if err != nil {
		return err
	}
	defer clear(key)
	sealed, err := keys.Seal(ctx, path, key)
	if err != nil {
		return err
	}
	t.screen.progress("")
	out := terminalOn(os.Stdout)
	o.print(out, sealed)
	text := fmt.Sprintf("\nSet in dpsd.toml:\n\n%s\nThen run: %s\n", indented(sealed.Use("")), check.With(t.file, "sudo dpsd check"))
	if source != "" {
		text += original(source, "key")
	}
	_, err = io.WriteString(out, text)
	return err
}

// symmetricKey returns the key of this gateway, and the file that it was read from, or "".
func (t *tpmTool) symmetricKey(ctx context.Context, o tpmSealOptions) (key []byte, source string, err error) {
	switch {
	case o.groupKeyFile != "":
		id, err := t.registrationID(o.registrationID)
		if err != nil {
			return nil, "", err
		}
		if id, _, err = setup.ParseRegistrationID(id); err != nil {
			return nil, "", &exitError{exitUsage, fmt.Errorf("--registration-id: %w", err), ""}
		}
		if o.groupKeyFile == "-" && terminalOn(os.Stdin).attended { // without the flag, seal asks for another key
			return nil, "", &exitError{exitUsage, errors.New("--group-key-file: standard input is a terminal, which would display the key; use a file or a pipe"), ""}
		}
		group, err := readSymmetricKey("tpm seal", o.groupKeyFile, t.tell)
		if err != nil {
			return nil, "", fmt.Errorf("--group-key-file: %w", err)
		}
		defer clear(group)
		if !setup.Group(group) {
			t.tell("dpsd: warning: the key has 44 characters, like a derived key; use --key-file for a derived key")
		}
		return attest.DeriveKey(group, id), o.groupKeyFile, nil
	case o.registrationID != "":
		return nil, "", &exitError{exitUsage, errors.New("--registration-id requires --group-key-file"), ""}
	case o.keyFile != "":
		if key, err = readSymmetricKey("tpm seal", o.keyFile, t.tell); err != nil {
			return nil, "", fmt.Errorf("--key-file: %w", err)
		}
		source = o.keyFile
	default:
		if !terminalOn(os.Stdin).attended || !t.screen.attended {
			return nil, "", &exitError{exitUsage, errors.New("there is no terminal on which to ask for the key; use --key-file FILE, or --key-file - for standard input"), ""}
		}
		console := newConsole(ctx, os.Stdin, t.screen)
		defer func() { err = errors.Join(err, console.show()) }()
		console.Say("Copy the primary key from the page of the enrollment in the Azure portal.\nFor an enrollment group, use --group-key-file instead.")
		if key, err = (&setup.Dialogue{Console: console}).AskKey(); err != nil {
			return nil, "", err
		}
	}
	if setup.Group(key) {
		t.tell("The key does not have the length of a derived key. If it is the key of an enrollment group, it must not be on a gateway: use --group-key-file.")
	}
	return key, source, nil
}
