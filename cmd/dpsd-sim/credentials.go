package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

func newCredentials() *cobra.Command {
	var dir, id string
	c := &cobra.Command{
		Use:                   "credentials --dir DIR --registration-id ID",
		Short:                 "Create the key and certificate of a device",
		DisableFlagsInUseLine: true,
		Long: `Credentials creates in DIR the files that a device of the two default groups
needs: ID.key, its derived symmetric key in base64, and ID.pem and ID-key.pem, a
new certificate and its private key.`,
		Example:           `  dpsd-sim credentials --dir sim --registration-id press-7`,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args:              usageArgs(commandline.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if dir == "" || id == "" {
				return usageError("--dir and --registration-id are needed")
			}
			// The enrollments do not matter here, and may be under repair.
			s, err := simulator.New(simulator.Options{Directory: dir, Enrollments: &enroll.Enrollments{}})
			if err != nil {
				return err
			}
			defer s.Close()
			files, err := writeCredentials(s, dir, id)
			for _, f := range files.all() {
				fmt.Fprintln(c.OutOrStdout(), f)
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "", dirUsage)
	c.Flags().StringVar(&id, "registration-id", "", "registration `ID` of the device")
	_ = c.MarkFlagDirname("dir") // fails only for a flag that is not there
	withoutFiles(c, "registration-id")
	return c
}

// credentialFiles are the paths of a device's credentials, "" for one there is not.
type credentialFiles struct{ key, certificate, privateKey string }

func (f credentialFiles) all() []string {
	return slices.DeleteFunc([]string{f.key, f.certificate, f.privateKey}, func(s string) bool { return s == "" })
}

// writeCredentials writes a device's files. An ID too long for a common name
// gets a key and an error.
func writeCredentials(s *simulator.Server, dir, id string) (credentialFiles, error) {
	var f credentialFiles
	if !enroll.IsRegistrationID(id) {
		return f, usageError("%q is not a registration ID", id)
	}
	if id == "ca" || id == "device-ca" {
		return f, usageError("the files of a device %q would be those of the simulator", id)
	}
	write := func(path *string, name string, text []byte, mode fs.FileMode) error {
		*path = filepath.Join(dir, name)
		return renameio.WriteFile(*path, text, mode, renameio.WithTempDir(filepath.Dir(*path)))
	}
	if err := write(&f.key, id+".key", []byte(s.DeviceKey(id)+"\n"), 0o600); err != nil {
		return f, err
	}
	certificate, key, err := s.DeviceCertificate(id)
	if err != nil {
		return f, err
	}
	if err := write(&f.certificate, id+".pem", certificate, 0o644); err != nil {
		return f, err
	}
	return f, write(&f.privateKey, id+"-key.pem", key, 0o600)
}
