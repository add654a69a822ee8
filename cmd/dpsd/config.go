package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration, or convert one from Azure IoT Edge",
		Long: `Show the configuration in effect and the origin of each value, or convert the
configuration of Azure IoT Edge or the Azure IoT Identity Service.`,
		Example: `  dpsd config show
  dpsd config import-aziot /etc/aziot/config.toml`,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("missing subcommand: use dpsd config show or dpsd config import-aziot FILE")
		},
	}
	cmd.AddCommand(configShowCommand(), importAziotCommand())
	return cmd
}
