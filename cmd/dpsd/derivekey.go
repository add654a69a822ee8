package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
)

func deriveKeyCommand() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "derive-key --registration-id ID",
		Short: "Derive a device key from the key of an enrollment group",
		Long: `Derive the key of one device from the key of its enrollment group. The command
reads the group key (base64, as the portal shows it) from standard input, and
not from an argument, because other users could see it there. It writes the
device key (base64) to standard output.

Anyone with the group key can act as any device in the group, so run the command
where you store the group key, and copy only the device key to the gateway.`,
		Example: `  systemd-ask-password key: | dpsd derive-key --registration-id gw-0001
  dpsd derive-key --registration-id gw-0001 <group.key >gw-0001.key`,
		ValidArgsFunction: cobra.NoFileCompletions,
		// An argument may be the key, which cobra's own message would contain.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errors.New("dpsd reads the group key from standard input, never from an argument; if the argument was a key, it is now in the shell's history")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == "" {
				return errors.New("--registration-id is required")
			}
			if err := attest.CheckRegistrationID(id); err != nil {
				return fmt.Errorf("--registration-id: %w", err)
			}
			if terminalOn(os.Stdin).attended {
				return &exitError{exitUsage, errors.New("standard input is a terminal, which would display the group key; use a pipe"), "systemd-ask-password key: | dpsd derive-key --registration-id " + id}
			}
			return deriveKey(cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr(), id)
		},
	}
	cmd.Flags().StringVar(&id, "registration-id", "", "registration `ID` that the device will register with")
	_ = cmd.RegisterFlagCompletionFunc("registration-id", cobra.NoFileCompletions) // fails only for a flag that does not exist
	return cmd
}

// maxKeyText is the maximum size of the input, in bytes. 64 bytes have 88 characters in base64.
const maxKeyText = 4096

// deriveKey reads a group key and writes the device key of id. Its errors contain no part of
// the input.
func deriveKey(in io.Reader, out, note io.Writer, id string) error {
	text, err := io.ReadAll(io.LimitReader(in, maxKeyText+1))
	defer clear(text)
	if err != nil {
		return failed(fmt.Errorf("read the group key: %w", err))
	}
	var group []byte
	key, err := input.Text(text)
	switch {
	case len(text) > maxKeyText:
		err = attest.ErrKeyLength
	case err == nil:
		group, err = attest.DecodeKey(key)
	}
	defer clear(group)
	if err != nil {
		next := "the primary or secondary key of the enrollment group, exactly as the portal shows it"
		if mistake := (*input.Mistake)(nil); errors.As(err, &mistake) && mistake.Command != "" {
			next = mistake.Remedy() + ", where FILE contains the group key"
		}
		return failed(fmt.Errorf("standard input: %w\nTry %s", err, next))
	}
	if d := attest.DoubtOf(text, group, id); d != nil && !d.Group {
		fmt.Fprintf(note, "dpsd: warning: %v; if that is a mistake, correct it and derive the device's key again:\n%s\n", d, d.Remedy())
	}
	if strings.ToLower(id) != id {
		// The service compares IDs case-insensitively, but the key depends on the case.
		fmt.Fprintf(note, "dpsd: warning: %s contains upper-case letters: this key works only if the gateway registers with exactly this ID;\n"+
			"DPS ignores case, so use %s both in dpsd.toml and here\n", id, strings.ToLower(id))
	}
	_, err = fmt.Fprintln(out, base64.StdEncoding.EncodeToString(attest.DeriveKey(group, id)))
	return failed(err)
}
