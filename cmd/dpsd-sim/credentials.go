package main

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

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
		Example: `  dpsd-sim credentials --dir sim --registration-id press-7`,
		RunE: func(c *cobra.Command, _ []string) error {
			if dir == "" || id == "" {
				return usageError("--dir and --registration-id are required")
			}
			// The command does not use the enrollments, which may be invalid at the moment.
			s, err := simulator.New(simulator.Options{Directory: dir, Enrollments: &enroll.Enrollments{}})
			if err != nil {
				return err
			}
			defer s.Close()
			files, err := writeCredentials(s, dir, id)
			for _, f := range files {
				fmt.Fprintln(c.OutOrStdout(), f)
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "", dirUsage)
	c.Flags().StringVar(&id, "registration-id", "", "registration `ID` of the device")
	_ = c.MarkFlagDirname("dir") // fails only for a flag that does not exist
	withoutFiles(c, "registration-id")
	return c
}

// writeCredentials writes a device's files and returns the paths of key, certificate and
// private key. For an ID that is too long for a common name it writes the key and returns an error.
func writeCredentials(s *simulator.Server, dir, id string) (files []string, err error) {
	if !enroll.IsRegistrationID(id) {
		return nil, usageError("%q is not a registration ID", id)
	}
	if slices.Contains([]string{"ca", "device-ca", "issuing-ca", "issuing-root"}, id) {
		return nil, usageError("the files of device %q would overwrite those of the simulator", id)
	}
	write := func(name string, text []byte, mode fs.FileMode) error {
		files = append(files, filepath.Join(dir, name))
		return renameio.WriteFile(filepath.Join(dir, name), text, mode, renameio.WithTempDir(dir))
	}
	if err := write(id+".key", []byte(s.DeviceKey(id)+"\n"), 0o600); err != nil {
		return files, err
	}
	certificate, key, err := s.DeviceCertificate(id)
	if err != nil {
		return files, err
	}
	if err := write(id+".pem", certificate, 0o644); err != nil {
		return files, err
	}
	return files, write(id+"-key.pem", key, 0o600)
}
