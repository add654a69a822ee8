package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/simulator/page"
)

// headerTimeout is how long a browser may take to send the header of a request.
const headerTimeout = 10 * time.Second

// pageFlags holds the flags of the page.
type pageFlags struct {
	service     string
	byDefault   bool // service was not set on the command line
	allowFaults bool
}

func (f *pageFlags) add(c *cobra.Command, service string) {
	f.byDefault = service != ""
	c.Flags().StringVar(&f.service, "service", service, "address `ADDR` to listen on for the page, which\nhas no authentication, and for the service API,\nin the same form")
	c.Flags().BoolVar(&f.allowFaults, "allow-faults", false, "let the page inject faults")
	withoutFiles(c, "service")
	c.PreRun = func(c *cobra.Command, _ []string) { f.byDefault = !c.Flags().Changed("service") }
}

// openPage serves the page and the service API. If the default port is in use, the simulator
// runs without both.
func (e *endpoint) openPage(f pageFlags, feed *page.Feed) error {
	if f.service == "" {
		return nil
	}
	all, err := listeners(f.service)
	if f.byDefault && errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintf(os.Stderr, "dpsd-sim: the page and the service API are not available, because the address %s is in use: choose a different address with --service\n", f.service)
		return nil
	}
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(f.service)
	if err != nil {
		return err
	}
	served := &page.Page{
		Feed: feed, Hosts: []string{host},
		Modules: func(registrationID string) (ids []string) {
			for _, m := range e.server.Modules(registrationID) {
				ids = append(ids, m.ModuleID)
			}
			return ids
		},
		Endpoint: page.Endpoint{
			Host: e.Endpoint, MQTTPort: e.MQTTPort, WebSocketPort: e.WebSocketPort, IDScope: e.IDScope, Directory: filepath.Dir(e.CAFile), HTTPS: true,
		},
	}
	if f.allowFaults {
		served.Faults = e.server
	}
	address := all[0].Addr().(*net.TCPAddr)
	handler, err := e.addService(address.Port, served.Handler())
	if err != nil {
		return err
	}
	e.page = &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, ErrorLog: log.New(io.Discard, "", 0)}
	for _, l := range all {
		go func() {
			if err := e.page.Serve(e.overTLS(l)); !errors.Is(err, http.ErrServerClosed) {
				fmt.Fprintf(os.Stderr, "dpsd-sim: %v\n", err)
			}
		}()
	}
	name := serverName
	if host != serverName && !address.IP.IsUnspecified() {
		name = address.IP.String()
	}
	e.Page = fmt.Sprintf("http://%s/", net.JoinHostPort(name, fmt.Sprint(address.Port)))
	return nil
}
