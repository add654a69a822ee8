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
	var dir, id, enrollments string
	c := &cobra.Command{
		Use:                   "credentials --dir DIR --registration-id ID [--enrollments FILE]",
		Short:                 "Create the key and certificate of a device",
		DisableFlagsInUseLine: true,
		Long: `Credentials creates the files that a device needs to register, in DIR: ID.key,
the device's symmetric key in base64; ID.pem, a new certificate; and ID-key.pem,
the certificate's private key. It prints their paths.

The enrollments determine the key and the certificate. The key is the primary
key of the device's individual enrollment, or is derived from the key of the
first enrollment group that has one. The certificate is issued by the
certificate authority that the individual enrollment or a group trusts. This
requires the authority's private key: NAME.key beside its certificate NAME.pem.

If the enrollments allow only a key or only a certificate, credentials creates
only that, and prints the reason to standard error.`,
		Example: `  dpsd-sim credentials --dir sim --registration-id press-7`,
		RunE: func(c *cobra.Command, _ []string) error {
			if dir == "" || id == "" {
				return usageError("--dir and --registration-id are required")
			}
			o := simulator.Options{Directory: dir}
			if enrollments != "" {
				var err error
				if o.Enrollments, err = enroll.ReadFile(enrollments); err != nil {
					return err
				}
			}
			s, err := simulator.New(o)
			if err != nil {
				return err
			}
			defer s.Close()
			d, err := writeDevice(s, dir, id)
			for _, f := range []string{d.key, d.certificate, d.privateKey} {
				if f != "" {
					fmt.Fprintln(c.OutOrStdout(), f)
				}
			}
			if err != nil {
				return err
			}
			if d.NoKey != nil {
				fmt.Fprintf(c.ErrOrStderr(), "dpsd-sim: no key: %v\n", d.NoKey)
			}
			if d.NoCertificate != nil {
				fmt.Fprintf(c.ErrOrStderr(), "dpsd-sim: no certificate: %v\n", d.NoCertificate)
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", "", dirUsage)
	c.Flags().StringVar(&id, "registration-id", "", "registration `ID` of the device")
	c.Flags().StringVar(&enrollments, "enrollments", "", enrollmentsUsage)
	// Errors occur only for flags that do not exist.
	_ = c.MarkFlagDirname("dir")
	_ = c.MarkFlagFilename("enrollments", "toml")
	withoutFiles(c, "registration-id")
	return c
}

// device holds the files of a device. A file that it cannot have is "", for a reason.
type device struct {
	simulator.Credentials

	key, certificate, privateKey string
}

// writeDevice creates a device's credentials and writes their files.
func writeDevice(s *simulator.Server, dir, id string) (device, error) {
	if !enroll.IsRegistrationID(id) {
		return device{}, usageError("%q is not a registration ID", id)
	}
	if slices.Contains([]string{"ca", "device-ca", "issuing-ca", "issuing-root"}, id) {
		return device{}, usageError("the files of device %q would overwrite those of the simulator", id)
	}
	c, err := s.Credentials(id)
	if err != nil {
		return device{}, err
	}
	d := device{Credentials: c}
	write := func(name string, text []byte, mode fs.FileMode) (string, error) {
		return filepath.Join(dir, name), renameio.WriteFile(filepath.Join(dir, name), text, mode, renameio.WithTempDir(dir))
	}
	if c.NoKey == nil {
		if d.key, err = write(id+".key", []byte(c.Key+"\n"), 0o600); err != nil {
			return d, err
		}
	}
	if c.NoCertificate == nil {
		if d.certificate, err = write(id+".pem", c.Certificate, 0o644); err != nil {
			return d, err
		}
		d.privateKey, err = write(id+"-key.pem", c.PrivateKey, 0o600)
	}
	return d, err
}
