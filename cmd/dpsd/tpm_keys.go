package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
)

func tpmTestCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test [NAME]...",
		Short: "Test TPM keys: sign, verify, and show which TLS versions work",
		Long: `Test keys in TSS2 files: load each key into the TPM, sign with it, and verify
the signatures without the TPM. The command shows which versions of TLS and
which signature schemes work, and how long the TPM takes. It changes nothing.

Without NAME, the command tests the TPM keys that dpsd.toml names. NAME is a
path, or the name of a file in the directory keys next to dpsd.toml.

TLS 1.3 requires that the salt of an RSA-PSS signature is as long as the hash,
but many TPMs use a longer salt. In such a TPM, an RSA key works only with
TLS 1.2, which DPS supports.

Exit codes: 0 if all keys work; 1 if a key does not work, or if there is none.`,
		Example: `  sudo dpsd tpm test
  sudo dpsd tpm test spare.tss2 --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			t := tpmToolOf(cmd)
			return t.failed(t.test(args, asJSON))
		},
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its schema is\n/usr/share/dpsd/tpm.schema.json")
	return cmd
}

// tpmFile is the state of a file with a TPM key. docs/tpm.schema.json describes it.
type tpmFile struct {
	File             string        `json:"file"`
	Reference        string        `json:"reference,omitempty"` // in dpsd.toml
	State            string        `json:"state"`
	Problem          string        `json:"problem,omitempty"`
	Algorithm        tpm.Algorithm `json:"algorithm,omitempty"`
	Parent           string        `json:"parent,omitempty"`
	TLSVersions      []string      `json:"tlsVersions,omitempty"`
	SignatureSchemes []string      `json:"signatureSchemes,omitempty"`
	PSSSalt          *int          `json:"pssSaltBytes,omitempty"`
	LoadMilliseconds *float64      `json:"loadMilliseconds,omitempty"`
	UseMilliseconds  *float64      `json:"useMilliseconds,omitempty"`

	text []byte // of the file, until it is tested
	err  error
}

// States of a file with a TPM key.
const (
	tpmKeyWorks   = "works"
	tpmKeyFails   = "fails"
	tpmKeyUnknown = "unknown" // the TPM is not available, or does not answer
)

// read reads the file of a key that was named on the command line.
func (k *tpmFile) read() {
	text, err := input.Read(k.File, maxRequest)
	if err == nil && !tpm.Is(text) {
		err = errors.New("it is not a TPM key")
	}
	k.text = text
	if err != nil {
		k.fail(fmt.Errorf("%s: %w", k.File, input.Cause(err)))
	}
}

// fail sets the error and the state.
func (k *tpmFile) fail(err error) {
	k.err, k.Problem, k.State = err, err.Error(), tpmKeyFails
	if e, is := errors.AsType[*tpm.Error](err); is {
		switch e.Kind {
		case tpm.Unavailable, tpm.Busy, tpm.Slow, tpm.LockedOut:
			k.State = tpmKeyUnknown
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		k.State = tpmKeyUnknown
	}
}

// test tests the key.
func (k *tpmFile) test(ctx context.Context, d *tpm.Device) {
	if k.err != nil {
		return
	}
	f, err := tpm.Parse(k.text)
	if err != nil {
		k.fail(err)
		return
	}
	k.Algorithm, k.Parent = f.Algorithm, f.Parent.String()
	r, err := d.Test(ctx, f)
	if err != nil {
		k.fail(err)
		return
	}
	k.State = tpmKeyWorks
	load, use := milliseconds(r.Load), milliseconds(r.Use)
	k.LoadMilliseconds, k.UseMilliseconds = &load, &use
	for _, s := range r.Schemes {
		k.SignatureSchemes = append(k.SignatureSchemes, s.String())
	}
	for _, v := range []struct {
		works bool
		name  string
	}{{r.TLS12, "1.2"}, {r.TLS13, "1.3"}} {
		if v.works {
			k.TLSVersions = append(k.TLSVersions, v.name)
		}
	}
	if r.Salt >= 0 {
		k.PSSSalt = &r.Salt
	}
}

// milliseconds returns a duration in milliseconds, rounded to a tenth.
func milliseconds(d time.Duration) float64 { return float64(d.Round(100*time.Microsecond)) / 1e6 }

// print prints the result for people.
func (k *tpmFile) print(b *strings.Builder, out *terminal) {
	line := out.rows(b)
	paint := map[string]colour{tpmKeyWorks: green, tpmKeyFails: red, tpmKeyUnknown: yellow}[k.State]
	fmt.Fprintf(b, "%s: %s\n", k.File, out.paint(paint, k.State))
	if k.Problem != "" {
		line("problem", "%s", k.Problem)
	}
	if k.Reference != "" && k.Reference != "file:"+k.File {
		line("reference", "%s", k.Reference)
	}
	if k.Algorithm != "" {
		line("key type", "%s", k.Algorithm)
		line("parent", "%s", k.describeParent())
	}
	if k.State != tpmKeyWorks {
		return
	}
	if k.Algorithm == tpm.HMAC {
		line("use", "tokens for DPS")
	} else {
		line("TLS", "%s", strings.Join(k.TLSVersions, ", "))
		line("schemes", "%s", strings.Join(k.SignatureSchemes, ", "))
	}
	if salt := k.PSSSalt; salt != nil {
		note := "as TLS requires"
		if *salt != sha256Bytes {
			note = fmt.Sprintf("but TLS requires %d, so dpsd uses this key only with TLS 1.2 and PKCS #1", sha256Bytes)
		}
		line("PSS salt", "%d bytes, %s", *salt, note)
	}
	line("duration", "load %.1f ms, use %.1f ms", *k.LoadMilliseconds, *k.UseMilliseconds)
}

// sha256Bytes is the length of a SHA-256 hash.
const sha256Bytes = 32

// describeParent describes the parent of the key.
func (k *tpmFile) describeParent() string {
	switch {
	case strings.HasPrefix(k.Parent, "0x81"):
		return "the persistent key " + k.Parent
	case k.Parent == tpm.Owner.String():
		return "derived from the seed of the owner for each use"
	}
	return "derived from the hierarchy " + k.Parent + " for each use"
}

// configured returns the TPM keys in dpsd.toml, and that of the issued certificate.
func (t *tpmTool) configured() (all []*tpmFile, err error) {
	if t.cfg == nil {
		return nil, invalid(t.file, t.note)
	}
	secrets := attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY"))
	for _, c := range t.cfg.Credentials {
		for _, key := range c.Type().Keys(c) {
			if !key.Secret || key.Reference.Signer != "" {
				continue
			}
			k := &tpmFile{File: secrets.Path(*key.Reference), Reference: key.Reference.String()}
			text, err := secrets.Read(*key.Reference)
			switch {
			case err != nil && strings.HasSuffix(k.File, ".tss2"), errors.Is(err, fs.ErrPermission):
				k.fail(err)
			case err != nil || !tpm.Is(text):
				clear(text)
				continue
			}
			k.text = text
			all = append(all, k)
		}
	}
	if k := issuedTPMKey(t.cfg.State.Directory, filepath.Dir(t.cfg.Control.Socket)); k != nil {
		all = append(all, k)
	}
	return all, nil
}

// issuedTPMKey returns the key of the issued certificate, or nil if it is not in the TPM.
func issuedTPMKey(state, runtime string) *tpmFile {
	record, _ := store.Published(state, runtime) // without a record, there is no certificate
	if record.Certificate == nil {
		return nil
	}
	k := &tpmFile{File: record.Certificate.PrivateKeyFile}
	// The user of the service can write the record, so a path elsewhere is ignored.
	path, below := strings.CutPrefix(k.File, filepath.Clean(state)+"/")
	if !below {
		return nil
	}
	f, err := input.OpenBeneath(state, path)
	if err == nil {
		defer f.Close()
		k.text, err = io.ReadAll(io.LimitReader(f, maxRequest))
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		k.fail(err)
	case err != nil || !tpm.Is(k.text):
		clear(k.text)
		return nil
	}
	return k
}

// tpmTestReport is the output of tpm test --json.
type tpmTestReport struct {
	Device string     `json:"device"`
	Keys   []*tpmFile `json:"keys"`
}

// test runs "dpsd tpm test".
func (t *tpmTool) test(names []string, asJSON bool) error {
	ctx, stop := t.context()
	defer stop()
	report := tpmTestReport{Device: t.device.Path, Keys: []*tpmFile{}}
	if len(names) == 0 {
		found, err := t.configured()
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return &exitError{exitFailed, fmt.Errorf("%s does not use a TPM key", t.file), check.With(t.file, "dpsd tpm create-key --help")}
		}
		report.Keys = found
	}
	keys, err := t.keys()
	if err != nil {
		return err
	}
	for _, name := range names {
		path, err := keys.Place.TPMKeyPath(name)
		if err != nil {
			return &exitError{exitUsage, err, ""}
		}
		k := &tpmFile{File: path}
		k.read()
		report.Keys = append(report.Keys, k)
	}
	t.testAll(ctx, report.Keys)
	out := terminalOn(os.Stdout)
	if err := show(out, asJSON, &report, func(b *strings.Builder) {
		for _, k := range report.Keys {
			k.print(b, out)
		}
	}); err != nil {
		return err
	}
	return broken(report.Keys)
}

// testAll tests keys, one after the other.
func (t *tpmTool) testAll(ctx context.Context, keys []*tpmFile) {
	for _, k := range keys {
		t.screen.progress("Testing " + k.File)
		k.test(ctx, t.device)
		clear(k.text)
	}
	t.screen.progress("")
}

// show prints a report as JSON or for people.
func show(out *terminal, asJSON bool, report any, print func(b *strings.Builder)) error {
	foreign.Strings(report, foreign.MaxFault)
	if asJSON {
		return writeJSON(out, report)
	}
	var b strings.Builder
	print(&b)
	_, err := fmt.Fprint(out, b.String())
	return err
}

// broken returns the error of the first key that does not work, or nil.
func broken(keys []*tpmFile) error {
	for _, k := range keys {
		if k.err != nil {
			return k.err
		}
	}
	return nil
}
