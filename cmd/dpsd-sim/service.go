package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/simulator/serviceapi"
)

// connectionFile contains the connection string of the service API while it runs.
const connectionFile = "service-connection-string"

// addService prepares the service API at a port, and writes its connection string. It returns
// a handler that passes requests for other paths on.
func (e *endpoint) addService(port int, others http.Handler) (http.Handler, error) {
	api, err := serviceapi.New(e.server, time.Now)
	if err != nil {
		return nil, err
	}
	host := net.JoinHostPort(serverName, strconv.Itoa(port))
	if port == 443 { // some SDKs do not accept a port
		host = serverName
	}
	e.connection = serviceapi.ConnectionString(e.server, host)
	dir := filepath.Dir(e.CAFile)
	e.ServicePort, e.ConnectionFile = port, filepath.Join(dir, connectionFile)
	if err := renameio.WriteFile(e.ConnectionFile, []byte(e.connection+"\n"), 0o600, renameio.WithTempDir(dir)); err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if serviceapi.Serves(r) {
			api.ServeHTTP(w, r)
			return
		}
		others.ServeHTTP(w, r)
	}), nil
}

// overTLS lets clients use TLS at a listener. A browser need not use it.
func (e *endpoint) overTLS(l net.Listener) net.Listener {
	return serviceapi.Listener(l, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.server.Certificate(), nil },
	})
}

// closeService removes the connection string.
func (e *endpoint) closeService() {
	if e.ConnectionFile != "" {
		_ = os.Remove(e.ConnectionFile)
	}
}
