package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/aziot"
	"github.com/dpsd-project/dpsd/input"
)

func importAziotCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import-aziot FILE [DROP-IN]...",
		Short: "Convert the config.toml of Azure IoT Edge",
		Long: `Convert the config.toml of Azure IoT Edge or the Azure IoT Identity Service to
a dpsd.toml on standard output. Notes on standard error, and comments in the
result, list what the command leaves out, and what you have to do.

The proxy may also be in drop-ins of aziot-identityd and aziot-edged. If FILE is
etc/aziot/config.toml below the root of this gateway, or below the mounted root
of another gateway, the command also reads the drop-ins in etc/systemd/system
below the same root. List any other drop-ins after FILE on the command line. The
command reads the files that a drop-in names with EnvironmentFile=. If the
drop-in is a copy in a different directory, a note shows the line to add to
dpsd.toml instead.

The result refers to keys and passwords but does not contain them. The notes
contain the commands that copy them, without displaying them, to the place
where dpsd reads them.

The exit status is 1 if the gateway's identity cannot be converted
(manual provisioning, a TPM or a PKCS#11 token, a certificate that aziot
issues), and 78 if FILE is invalid or DROP-IN is not a systemd drop-in; in that
case nothing is written to standard output.

docs/migration.md describes the complete migration, step by step.`,
		Example: `  dpsd config import-aziot /etc/aziot/config.toml >dpsd.toml
  dpsd config import-aziot config.toml override.conf >dpsd.toml
  install -m 0644 dpsd.toml /etc/dpsd/    # after following the notes`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]cobra.Completion{"toml", "conf"}, cobra.ShellCompDirectiveFilterFileExt),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := input.Open(args[0])
			if err != nil {
				return failed(err)
			}
			defer f.Close()
			var dropIns []aziot.DropIn
			names := aziotDropIns(args[0])
			for _, name := range args[1:] {
				if !slices.Contains(names, absolute(name)) {
					names = append(names, name)
				}
			}
			for _, name := range names {
				d, err := input.Open(name)
				if err != nil {
					return failed(err)
				}
				defer d.Close()
				dropIns = append(dropIns, aziot.DropIn{Name: name, Text: d, Files: environmentFiles(name)})
			}
			result, err := aziot.Import(args[0], f, dropIns...)
			if errors.As(err, &config.Errors{}) {
				return &exitError{exitConfiguration, err, ""}
			}
			if err != nil {
				return failed(err)
			}
			for _, n := range result.Notes {
				fmt.Fprintln(cmd.ErrOrStderr(), n)
				if n.Command != "" {
					fmt.Fprintln(cmd.ErrOrStderr(), "   ", n.Command)
				}
			}
			if result.TOML == "" {
				return failed(errors.New("this gateway's identity cannot be converted; man dpsd.toml contains a minimal configuration to start from"))
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), result.TOML)
			return failed(err)
		},
	}
}

// aziotDropIns returns the drop-ins of the machine that the file belongs to. It returns none
// for a copy of the file.
func aziotDropIns(file string) (found []string) {
	root, in := strings.CutSuffix(absolute(file), "/etc/aziot/config.toml")
	if !in {
		return nil
	}
	for _, unit := range []string{"aziot-identityd", "aziot-edged"} {
		// Glob finds nothing if the name of the root is a malformed pattern.
		files, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system", unit+".service.d", "*.conf"))
		found = append(found, files...)
	}
	return found
}

// environmentFiles returns a function that reads the files of EnvironmentFile= on the machine
// that a drop-in belongs to. It returns nil for a copy of the drop-in.
func environmentFiles(dropIn string) func(pattern string) ([]aziot.EnvironmentFile, error) {
	for _, place := range []string{"/etc", "/run", "/usr/lib", "/lib"} {
		root, _, in := strings.Cut(absolute(dropIn), place+"/systemd/system/")
		if !in {
			continue
		}
		return func(pattern string) (files []aziot.EnvironmentFile, err error) {
			names := []string{filepath.Join(root, filepath.Clean(pattern))}
			if strings.ContainsAny(pattern, `*?[`) {
				if names, err = filepath.Glob(names[0]); err == nil && names == nil {
					err = fs.ErrNotExist
				}
			}
			for _, name := range names {
				const largest = 1 << 20 // bytes
				text, failed := input.Read(name, largest)
				if failed != nil {
					err = failed
					continue
				}
				files = append(files, aziot.EnvironmentFile{Name: name, Text: text})
			}
			return files, err
		}
	}
	return nil
}
