package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// The default addresses of serve. Only root may use port 443, the service's own port for
// WebSocket.
const (
	defaultMQTT      = "localhost:8883"
	defaultWebSocket = "localhost:8443"
	defaultService   = "localhost:8080"
)

func newServe() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "serve --dir DIR [flags]",
		Short: "Serve devices until SIGTERM",
		Long: `Serve listens for devices until it receives SIGTERM or SIGINT, and then exits
with 0.

It prints a line when it is ready. That line and DIR/endpoint.json contain the
addresses that it listens on.

On SIGHUP, it reloads the enrollments. If the file is invalid, it reports the
line and column of the error, and keeps the previous enrollments.`,
		Example: `  dpsd-sim serve --dir sim
  dpsd-sim serve --dir sim --mqtt '' --websocket :443`,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.dir == "" {
				return usageError("--dir is required")
			}
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
			defer signal.Stop(stop)
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGHUP)
			defer signal.Stop(again)
			survivePipes()
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
			if e.Page != "" {
				line += " page " + e.Page + ","
			}
			// A pipe that nobody reads must not keep serve from ending.
			out := newPrinter(c.OutOrStdout(), "")
			defer out.close()
			out.print(fmt.Sprintf("%s id scope %s, ca %s", line, e.IDScope, e.CAFile))
			for {
				select {
				case <-stop:
					return nil
				case <-again:
					if err := e.server.ReloadEnrollments(); err != nil {
						e.printer.print(err.Error())
						e.printer.print("keeping the previous enrollments")
						continue
					}
					out.print(e.enrollments + ": enrollments reloaded")
				}
			}
		},
	}
	f.add(c, defaultMQTT, defaultWebSocket, serveHub, defaultService)
	return c
}

// survivePipes keeps the program running when the reader of its output or its errors has
// exited, which otherwise ends a Go program by SIGPIPE. It catches the signal instead of
// ignoring it, because a program that exec starts would inherit an ignored signal.
func survivePipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
