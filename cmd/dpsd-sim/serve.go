package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The addresses of serve. 443, the service's own port for WebSocket, is
// reserved to root.
const (
	defaultMQTT      = "127.0.0.1:8883"
	defaultWebSocket = "127.0.0.1:8443"
)

func newServe() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "serve --dir DIR",
		Short: "Serve devices until SIGTERM",
		Long: `Serve listens for devices until it gets SIGTERM or SIGINT, and then ends with 0.

It is ready when it has printed its first line. The addresses in use are in
that line and in DIR/endpoint.json.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.dir == "" {
				return &usageError{errors.New("--dir is needed")}
			}
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
			defer signal.Stop(stop)
			e, err := f.open()
			if err != nil {
				return err
			}
			defer e.close()
			line := "ready:"
			if e.MQTT != "" {
				line += " mqtt " + e.MQTT + ","
			}
			if e.WebSocket != "" {
				line += " websocket " + e.WebSocket + ","
			}
			fmt.Fprintf(c.OutOrStdout(), "%s id scope %s, ca %s\n", line, e.IDScope, e.CAFile)
			<-stop
			return nil
		},
	}
	f.add(c, defaultMQTT, defaultWebSocket)
	return c
}
