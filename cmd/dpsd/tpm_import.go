package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
)

func tpmImportKeyCommand() *cobra.Command {
	var o tpmKeyOptions
	cmd := &cobra.Command{
		Use:   "import-key FILE [NAME]",
		Short: "Encrypt an existing private key with the TPM",
		Long: `Encrypt an existing private key with the TPM, and write the TSS2 file NAME. The
certificate of the key remains valid. FILE is a PEM file without a passphrase,
or - for standard input. NAME is a path, or the name of a file in the directory
keys next to dpsd.toml; the default is device.tss2.

The command does not change FILE. Anyone who has a copy of FILE can impersonate
the gateway, so delete FILE and all copies when the gateway works with the new
file. On flash memory, a deleted file can remain readable; for a new gateway,
prefer create-key.

If NAME already contains this key, the command changes nothing.`,
		Example: `  sudo dpsd tpm import-key /etc/dpsd/keys/device-key.pem
  sudo dpsd tpm import-key - device.tss2 <gw-1-key.pem`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			t := tpmToolOf(cmd)
			return t.failed(t.importKey(o, args[0], args[1:]))
		},
	}
	o.add(cmd)
	return cmd
}

// importKey runs "dpsd tpm import-key".
func (t *tpmTool) importKey(o tpmKeyOptions, source string, args []string) error {
	ctx, stop := t.context()
	defer stop()
	t.name += " " + input.Quote(source)
	keys, path, err := o.target(t, args, setup.TPMKeyName)
	if err != nil {
		return err
	}
	text, err := readPrivateKey(source)
	if err != nil {
		return err
	}
	defer clear(text)
	if tpm.Is(text) {
		return &exitError{exitFailed, fmt.Errorf("%s is already a TPM key", source), t.command("tpm test " + input.Quote(absolute(source)))}
	}
	key, err := pemfile.PrivateKey(text)
	if err != nil {
		err = input.About(source, err)
		remedy := ""
		if m, is := errors.AsType[*input.Mistake](err); is {
			remedy = m.Remedy()
		}
		return &exitError{exitFailed, fmt.Errorf("%s: %w", source, err), remedy}
	}
	imported, err := keys.Import(ctx, path, key)
	if err != nil {
		return err
	}
	t.screen.progress("")
	out := terminalOn(os.Stdout)
	o.print(out, imported)
	_, err = fmt.Fprintf(out, "\nSet in dpsd.toml:\n\n%s\nThen run: %s\n%s",
		indented(imported.Use(t.certificateOf(source, path))), check.With(t.file, "sudo dpsd check"), original(source, "private key"))
	return err
}

// original returns what to do with the file that a key was read from.
func original(source, what string) string {
	if source == "-" {
		return "\nDelete every copy of the " + what + " that you passed to this command.\n"
	}
	return fmt.Sprintf("\n%s still contains the unencrypted %s. When the\ngateway works with the new file, delete it and all copies, including backups:\n\n  shred --remove %s\n\nOn flash memory, a deleted file can remain readable.\n", printable(source), what, input.Quote(source))
}

// readPrivateKey reads a file, or standard input if the name is "-".
func readPrivateKey(source string) ([]byte, error) {
	if source == "-" {
		if terminalOn(os.Stdin).attended {
			return nil, &exitError{exitUsage, errors.New("standard input is a terminal, which would display the key; use a file or a pipe"), ""}
		}
		return io.ReadAll(io.LimitReader(os.Stdin, maxRequest))
	}
	text, err := input.Read(source, maxRequest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source, input.Cause(err))
	}
	return text, nil
}

// certificateOf returns the path of the certificate that dpsd.toml names for a private key, or
// the default path.
func (t *tpmTool) certificateOf(source, path string) string {
	if t.cfg != nil {
		for _, c := range t.cfg.Credentials {
			if x, is := c.(attest.X509); is && x.PrivateKey.File == absolute(source) && x.Certificate.File != "" {
				return x.Certificate.File
			}
		}
	}
	return filepath.Join(filepath.Dir(path), "device.pem")
}
