package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func tpmListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the persistent keys in the TPM, and the TPM keys in dpsd.toml",
		Long: `List the persistent keys in the TPM, and the TSS2 files in dpsd.toml with their
state: works, fails, or unknown if the TPM is not available. If the key of the
issued certificate is in the TPM, the list includes it. The command changes
nothing.

A persistent key may belong to another program. dpsd never removes one.

Exit codes: 0 if all TPM keys in dpsd.toml work, or if there are none; 1 if a
key does not work, or if the TPM is not available.`,
		Example: `  sudo dpsd tpm list
  sudo dpsd tpm list --json | jq -r '.keys[].state'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := tpmToolOf(cmd)
			return t.failed(t.list(asJSON))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its schema is\n/usr/share/dpsd/tpm.schema.json")
	return cmd
}

// tpmObject is a persistent key. docs/tpm.schema.json describes it.
type tpmObject struct {
	Handle  string `json:"handle"`
	Kind    string `json:"kind"`
	Storage bool   `json:"storage"`
}

// tpmListReport is the output of tpm list --json.
type tpmListReport struct {
	Device     string      `json:"device"`
	Problem    string      `json:"problem,omitempty"` // the reason why the persistent keys are unknown
	Persistent []tpmObject `json:"persistent"`
	Keys       []*tpmFile  `json:"keys"`
}

// list runs "dpsd tpm list".
func (t *tpmTool) list(asJSON bool) error {
	ctx, stop := t.context()
	defer stop()
	report := tpmListReport{Device: t.device.Path, Persistent: []tpmObject{}, Keys: []*tpmFile{}}
	t.screen.progress("Querying the TPM")
	objects, err := t.device.List(ctx)
	if err != nil {
		report.Problem = err.Error()
	}
	for _, o := range objects {
		report.Persistent = append(report.Persistent, tpmObject{o.Handle.String(), o.Kind, o.Storage})
	}
	found, unread := t.configured()
	report.Keys = append(report.Keys, found...)
	t.testAll(ctx, report.Keys)
	out := terminalOn(os.Stdout)
	if failed := show(out, asJSON, &report, func(b *strings.Builder) { report.print(b, out) }); failed != nil {
		return failed
	}
	switch {
	case err != nil:
		return err
	case unread != nil && !errors.Is(unread, fs.ErrNotExist):
		return unread
	}
	return broken(report.Keys)
}

// print prints the report for people.
func (r *tpmListReport) print(b *strings.Builder, out *terminal) {
	fmt.Fprintln(b, out.paint(bold, "persistent keys in the TPM at "+r.Device))
	for _, o := range r.Persistent {
		use := ""
		if o.Storage {
			use = ", can be the parent of TPM keys"
		}
		fmt.Fprintf(b, "  %s  %s%s\n", o.Handle, o.Kind, use)
	}
	switch {
	case r.Problem != "":
		fmt.Fprintf(b, "  unknown: %s\n", r.Problem)
	case len(r.Persistent) == 0:
		b.WriteString("  none\n")
	}
	fmt.Fprintln(b, out.paint(bold, "TPM keys in dpsd.toml"))
	for _, k := range r.Keys {
		paint := map[string]colour{tpmKeyWorks: green, tpmKeyFails: red, tpmKeyUnknown: yellow}[k.State]
		text := k.State
		if k.Algorithm != "" {
			text += fmt.Sprintf(" (%s, %s)", k.Algorithm, parentOf(k))
		}
		fmt.Fprintf(b, "  %s: %s\n", k.File, out.paint(paint, text))
		if k.Problem != "" {
			fmt.Fprintf(b, "    %s\n", k.Problem)
		}
	}
	if len(r.Keys) == 0 {
		b.WriteString("  none\n")
	}
}

// parentOf names the parent of a key.
func parentOf(k *tpmFile) string {
	if strings.HasPrefix(k.Parent, "0x81") {
		return "persistent parent " + k.Parent
	}
	return "derived parent"
}
