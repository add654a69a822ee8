package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
)

// tpmKeyOptions are the flags of the subcommands that create keys.
type tpmKeyOptions struct {
	replace, persistent bool
	registrationID      string
}

// add adds the common flags.
func (o *tpmKeyOptions) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.persistent, "persistent", false, "store the parent of the key in the TPM, so that\nthe key loads faster; without this flag, the TPM\nstores nothing")
	f.BoolVar(&o.replace, "replace", false, "replace a file that this TPM cannot use, and keep\nthe previous file as FILE.orig")
	// NAME is usually a new file, but can be the path of any file.
	cmd.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
}

// target returns the TPMKeys, and the path of the key that args name. usual is the default name.
func (o *tpmKeyOptions) target(t *tpmTool, args []string, usual string) (*setup.TPMKeys, string, error) {
	keys, err := t.keys()
	if err != nil {
		return nil, "", err
	}
	keys.Replace, keys.Persistent = o.replace, o.persistent
	name := usual
	if len(args) > 0 {
		name = args[0]
		t.name += " " + input.Quote(name)
	}
	path, err := keys.Place.TPMKeyPath(name)
	if err != nil {
		return nil, "", &exitError{exitUsage, err, ""}
	}
	return keys, path, nil
}

func tpmCreateKeyCommand() *cobra.Command {
	var o tpmKeyOptions
	var keyType, csr string
	cmd := &cobra.Command{
		Use:   "create-key [NAME]",
		Short: "Create a private key in the TPM",
		Long: `Create a private key in the TPM, and write its TSS2 file. The key never leaves
the TPM, so nobody can copy it. NAME is a path, or the name of a file in the
directory keys next to dpsd.toml; the default is device.tss2.

The command prints the public key, and what to do next. With --csr, it writes a
certificate request for your certificate authority instead. The common name of
the request is the registration ID.

If the file exists and its key works, the command changes nothing, and prints
the same output. It never replaces a key that works.`,
		Example: `  sudo dpsd tpm create-key --csr gw-1.csr
  sudo dpsd tpm create-key spare.tss2 --type ec-p384 --csr -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.registrationID != "" && csr == "" {
				return errors.New("--registration-id requires --csr")
			}
			if keyType != "" && !slices.Contains(setup.KeyTypes(), tpm.Algorithm(keyType)) {
				return fmt.Errorf("--type: unknown type %q; use one of %s", keyType, joined(setup.KeyTypes()))
			}
			t := tpmToolOf(cmd)
			return t.failed(t.createKey(o, args, tpm.Algorithm(keyType), csr))
		},
	}
	o.add(cmd)
	f := cmd.Flags()
	f.StringVar(&keyType, "type", "", "create a key of this `TYPE`: "+strings.Replace(joined(setup.KeyTypes()), "rsa-2048, ", "\nrsa-2048, ", 1)+"\n(default: the first one that the TPM supports)")
	f.StringVar(&csr, "csr", "", "write a certificate request to `FILE`, or to\nstandard output (-)")
	f.StringVar(&o.registrationID, "registration-id", "", "use this registration `ID` as the common name\n(default: from dpsd.toml)")
	_ = cmd.RegisterFlagCompletionFunc("type", func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		for _, a := range setup.KeyTypes() {
			names = append(names, string(a))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.MarkFlagFilename("csr", "csr", "pem")
	_ = cmd.RegisterFlagCompletionFunc("registration-id", cobra.NoFileCompletions)
	return cmd
}

// createKey runs "dpsd tpm create-key".
func (t *tpmTool) createKey(o tpmKeyOptions, args []string, a tpm.Algorithm, csr string) error {
	ctx, stop := t.context()
	defer stop()
	keys, path, err := o.target(t, args, setup.TPMKeyName)
	if err != nil {
		return err
	}
	id := ""
	if csr != "" {
		if id, err = t.registrationID(o.registrationID); err != nil {
			return err
		}
	}
	key, err := keys.Create(ctx, path, a)
	if err != nil {
		return err
	}
	var request []byte
	if csr != "" {
		if request, err = keys.Request(ctx, key.File, id); err != nil {
			return fmt.Errorf("%s is ready, but the certificate request cannot be created: %w", path, err)
		}
	}
	t.screen.progress("")
	out := terminalOn(os.Stdout)
	notes := io.Writer(out)
	if csr == "-" {
		notes = t.screen // standard output is the certificate request alone
	}
	o.print(notes, key)
	public, err := x509.MarshalPKIXPublicKey(key.File.Public())
	if err != nil {
		return err
	}
	switch csr {
	case "-":
		_, err = out.Write(request)
	case "":
		_, err = notes.Write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
	default:
		err = writeRequest(ctx, csr, request, notes)
	}
	if err != nil {
		return err
	}
	certificate := filepath.Join(filepath.Dir(path), "device.pem")
	next := "To create a certificate request for this key, repeat this command with --csr FILE.\n"
	if csr != "" {
		next = "Send the certificate request to your certificate authority.\nThe common name is " + printable(id) + ".\n"
	}
	_, err = fmt.Fprintf(notes, "\n%sSave the certificate, followed by its intermediates, as\n%s, and set in dpsd.toml:\n\n%s\nThen run: %s\n",
		next, printable(certificate), indented(key.Use(certificate)), check.With(t.file, "sudo dpsd check"))
	return err
}

// print reports where a key is, and that it works.
func (o *tpmKeyOptions) print(out io.Writer, key *setup.TPMKey) {
	switch {
	case key.Existed:
		fmt.Fprintf(out, "%s already contains a key that works (%s); nothing was changed\n", printable(key.Path), key.File.Algorithm)
	default:
		fmt.Fprintf(out, "wrote %s (%s); the key works\n", printable(key.Path), key.File.Algorithm)
	}
	if key.Copy != "" {
		fmt.Fprintf(out, "kept the previous file as %s\n", printable(key.Copy))
	}
	switch {
	case key.File.Parent.Persistent():
		fmt.Fprintf(out, "its parent is the persistent key %v\n", key.File.Parent)
	case o.persistent:
		fmt.Fprintln(out, "its parent is not persistent; for a persistent parent, choose another NAME")
	}
}

// writeRequest writes a certificate request. It keeps an existing one for the same key and name.
func writeRequest(ctx context.Context, path string, request []byte, notes io.Writer) error {
	_, err := setup.Write(ctx, []setup.File{{Path: absolute(path), Text: request, Mode: 0o644, Group: -1}}, false)
	switch {
	case err == nil:
		fmt.Fprintf(notes, "wrote %s\n", printable(path))
		return nil
	case !errors.As(err, new(*setup.ExistsError)):
		return err
	}
	text, err := input.Read(path, maxRequest)
	if err != nil {
		return fmt.Errorf("%s: %w", path, input.Cause(err))
	}
	if !sameRequest(text, request) {
		return &exitError{exitFailed, fmt.Errorf("%s is not a certificate request for this key and registration ID, and was not changed: %w", path, fs.ErrExist), ""}
	}
	fmt.Fprintf(notes, "%s already contains a request for this key\n", printable(path))
	return nil
}

// maxRequest is the maximum size of a certificate request, in bytes.
const maxRequest = 64 << 10

// sameRequest reports whether two certificate requests are for the same key and name. Their
// signatures differ, because those of EC keys are random.
func sameRequest(a, b []byte) bool {
	var parsed [2]*x509.CertificateRequest
	for n, text := range [][]byte{a, b} {
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE REQUEST" {
			return false
		}
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || r.CheckSignature() != nil {
			return false
		}
		parsed[n] = r
	}
	public, is := parsed[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return is && public.Equal(parsed[1].PublicKey) && bytes.Equal(parsed[0].RawSubject, parsed[1].RawSubject)
}
