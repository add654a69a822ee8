package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/simulator/serviceapi"
)

// defaultService is the address of the service API of serve.
const defaultService = "localhost:8080"

// connectionFile contains the connection string of the service API while it runs.
const connectionFile = "service-connection-string"

// headerTimeout is how long a client of the service API may take to send the header of a
// request.
const headerTimeout = 10 * time.Second

// serviceFlags holds the flags of the service API.
type serviceFlags struct {
	address   string
	byDefault bool // the address is not from the command line
}

func (f *serviceFlags) add(c *cobra.Command, address string) {
	c.Flags().StringVar(&f.address, "service", address, "address `ADDR` for the service API, in the same form\n")
	withoutFiles(c, "service")
	c.PreRun = func(c *cobra.Command, _ []string) { f.byDefault = !c.Flags().Changed("service") }
}

// openService serves the service API. If the default port is in use, the simulator runs
// without the API.
func (e *endpoint) openService(f serviceFlags) error {
	if f.address == "" {
		return nil
	}
	all, err := listeners(f.address)
	if f.byDefault && errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintf(os.Stderr, "dpsd-sim: there is no service API, because the address %s is in use: choose another one with --service\n", f.address)
		return nil
	}
	if err != nil {
		return err
	}
	api, err := serviceapi.New(e.server, time.Now)
	if err != nil {
		return err
	}
	e.service = &http.Server{Handler: api, ReadHeaderTimeout: headerTimeout, ErrorLog: log.New(io.Discard, "", 0)}
	certificate := &tls.Config{Certificates: []tls.Certificate{e.server.Certificate()}, MinVersion: tls.VersionTLS12}
	for _, l := range all {
		go func() {
			if err := e.service.Serve(serviceapi.Listener(l, certificate)); !errors.Is(err, http.ErrServerClosed) {
				fmt.Fprintf(os.Stderr, "dpsd-sim: %v\n", err)
			}
		}()
	}
	address := all[0].Addr().(*net.TCPAddr)
	e.Service, e.ServicePort = address.String(), address.Port
	host := net.JoinHostPort(serverName, strconv.Itoa(address.Port))
	if address.Port == 443 { // some SDKs do not accept a port
		host = serverName
	}
	e.connection = serviceapi.ConnectionString(e.server, host)
	dir := filepath.Dir(e.CAFile)
	e.ConnectionFile = filepath.Join(dir, connectionFile)
	return renameio.WriteFile(e.ConnectionFile, []byte(e.connection+"\n"), 0o600, renameio.WithTempDir(dir))
}

// closeService ends the service API.
func (e *endpoint) closeService() {
	if e.service != nil {
		_ = e.service.Close()
		_ = os.Remove(e.ConnectionFile)
	}
}
