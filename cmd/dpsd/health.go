package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
)

func healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Test whether dpsd is ready, for container health checks",
		Long: `Exit with 0 if dpsd is running and ready, and otherwise with 1. Use this command
for container health checks, and with service managers other than systemd.

dpsd is ready when it sends READY=1 to systemd: by default, after DPS has
answered "assigned" and the record is on disk. It then stays ready, even if DPS
or the network fails. Until then, dpsd retries automatically, so do not restart
it because it is not ready.

Exit codes: 0 if dpsd is ready; 1 if it is not ready or not running.`,
		Example: `  dpsd health
  docker exec dpsd dpsd health`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return health(cmd, installationOf(cmd))
		},
	}
}

func health(cmd *cobra.Command, places installation) error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	s, running, err := places.status(ctx)
	next := check.With(places.file, "dpsd status")
	switch {
	case err != nil:
		return &exitError{exitFailed, err, next}
	case running && s.Ready:
		_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(s.Text))
		return failed(err)
	}
	return &exitError{exitFailed, fmt.Errorf("not ready%s", cmp.Or(places.obstacle(s), ": "+printable(s.Text))), next}
}
