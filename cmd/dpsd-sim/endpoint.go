package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/page"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// endpointFile is the file that contains the addresses at which the simulator listens.
const endpointFile = "endpoint.json"

// serverName is the host name to connect to. The certificate of the server contains it.
const serverName = "localhost"

// The hubs that serve and exec assign if the enrollments name none. Clients connect to a hub's own
// ports, 8883 and 443, so it is this machine. dpsd requires a host name, and the SDKs for Java and C,
// whose samples exec runs, a name with a dot.
const (
	serveHub = serverName
	execHub  = "127.0.0.1"
)

// freePort selects a port that the kernel chooses, at both loopback addresses.
const freePort = serverName + ":0"

// flags holds the flags that serve and exec share.
type flags struct {
	dir, mqtt, webSocket, enrollments, scenario, packetLog, hub string

	page        pageFlags
	names       []string // of the server's certificate
	seed        uint64
	fast, quiet bool
	replaceable map[string]bool // addresses that a free port may replace
}

// Descriptions of flags that several commands have.
const (
	dirUsage         = "directory `DIR` for keys, certificates and\nenrollments; created on first use"
	enrollmentsUsage = "`FILE` that lists the devices that may register\n(default DIR/enrollments.toml)"
)

func (f *flags) add(c *cobra.Command, mqtt, webSocket, hub, service string) {
	c.Flags().StringVar(&f.dir, "dir", "", dirUsage)
	c.Flags().StringVar(&f.mqtt, "mqtt", mqtt, "address `ADDR` to listen on for MQTT over TLS:\nlocalhost is both loopback addresses, port 0 is\na free port, and an empty ADDR disables MQTT\n")
	c.Flags().StringVar(&f.webSocket, "websocket", webSocket, "address `ADDR` to listen on for MQTT over\nWebSocket and for HTTPS, in the same form\n")
	c.Flags().StringVar(&f.enrollments, "enrollments", "", enrollmentsUsage)
	c.Flags().StringVar(&f.scenario, "scenario", "", "`FILE` with settings and faults")
	c.Flags().StringVar(&f.packetLog, "packet-log", "", "`FILE` for the packet log, with one JSON object\nper line")
	c.Flags().StringVar(&f.hub, "hub", hub, "host `NAME` of the hub to which devices are\nassigned if the enrollments name none\n")
	c.Flags().StringArrayVar(&f.names, "san", nil, "additional host name or IP address `NAME` in the\nserver's certificate; may be repeated")
	c.Flags().Uint64Var(&f.seed, "seed", 0, "`NUMBER` that makes operation and tracking IDs\nrepeatable")
	f.page.add(c, service)
	c.Flags().BoolVar(&f.fast, "fast", false, "answer without delay, and assign with the first\nanswer; without it, the simulator answers after\n300 ms and requires a poll after 3 s, like the\nservice")
	c.Flags().BoolVar(&f.quiet, "quiet", false, "do not print a line to standard error for each\nrefusal and each message to a hub")
	// Errors occur only for flags that do not exist.
	_ = c.MarkFlagDirname("dir")
	_ = c.MarkFlagFilename("enrollments", "toml")
	_ = c.MarkFlagFilename("scenario", "toml")
	_ = c.MarkFlagFilename("packet-log")
	withoutFiles(c, "mqtt", "websocket", "hub", "san", "seed")
}

// withoutFiles keeps the shell from suggesting files as values of these flags.
func withoutFiles(c *cobra.Command, flags ...string) {
	for _, name := range flags {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions) // fails only for a flag that does not exist
	}
}

// endpoint is a listening simulator.
type endpoint struct {
	Endpoint      string `json:"endpoint"`
	MQTTPort      int    `json:"mqttPort,omitempty"`
	WebSocketPort int    `json:"webSocketPort,omitempty"`
	MQTT          string `json:"mqtt,omitempty"`      // address in use
	WebSocket     string `json:"webSocket,omitempty"` // address in use
	Page          string `json:"page,omitempty"`      // URL
	ServicePort   int    `json:"servicePort,omitempty"`
	IDScope       string `json:"idScope"`
	CAFile        string `json:"caFile"`
	Process       int    `json:"pid"`
	// ConnectionFile is the file with the connection string of the service API.
	ConnectionFile string `json:"serviceConnectionFile,omitempty"`

	server      *simulator.Server
	page        *http.Server
	log         *os.File
	lock        *os.File // the directory; nil before it is locked
	printer     *printer // of errors, refusals and telemetry; nil before it is open
	file        string
	enrollments string // the file
	connection  string // of the service API
}

// open starts a simulator. Call close to end it.
func (f *flags) open() (e *endpoint, err error) {
	if f.mqtt == "" && f.webSocket == "" {
		return nil, usageError("--mqtt and --websocket are both empty: nothing to listen on")
	}
	dir, err := filepath.Abs(f.dir)
	if err != nil {
		return nil, err
	}
	names := f.names
	for _, name := range names {
		if net.ParseIP(name) == nil && !enroll.IsHostName(strings.TrimPrefix(name, "*.")) {
			return nil, usageError("--san: %q is neither a host name nor an IP address", name)
		}
	}
	if f.hub != "" {
		if !enroll.IsHostName(f.hub) {
			return nil, usageError("--hub: %q is not a host name", f.hub)
		}
		names = append(slices.Clone(names), f.hub)
	}
	o := simulator.Options{Directory: dir, Seed: f.seed, DefaultHub: f.hub, Names: names, DiscardLog: true}
	if o.Scenario, err = f.readScenario(); err != nil {
		return nil, err
	}
	if f.enrollments != "" {
		if o.Enrollments, err = enroll.ReadFile(f.enrollments); err != nil {
			return nil, err
		}
		o.EnrollmentsFile = f.enrollments
	}
	e = &endpoint{
		Endpoint: serverName,
		CAFile:   filepath.Join(dir, "ca.pem"),
		Process:  os.Getpid(),
		file:     filepath.Join(dir, endpointFile),

		enrollments: cmp.Or(f.enrollments, filepath.Join(dir, "enrollments.toml")),
	}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.lock, err = lockDirectory(dir); err != nil {
		return e, err
	}
	e.printer = newPrinter(os.Stderr, "dpsd-sim: ")
	o.OnError = func(err error) { e.printer.print(err.Error()) }
	if !f.quiet {
		o.OnRefusal = func(r simulator.Refusal) { e.printer.print(r.String()) }
		o.OnTelemetry = func(t hub.Telemetry) { e.printer.print(describeTelemetry(t)) }
	}
	if f.packetLog != "" {
		if e.log, err = os.Create(f.packetLog); err != nil {
			return e, err
		}
		o.PacketLog = e.log
	}
	feed := &page.Feed{}
	if f.page.service != "" {
		o.Observe = feed.Add
	}
	if e.server, err = simulator.New(o); err != nil {
		return e, err
	}
	e.IDScope = e.server.IDScope()
	// A simulator that ended abnormally has left its addresses.
	if err := os.Remove(e.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return e, err
	}
	if e.MQTT, e.MQTTPort, err = f.listen(f.mqtt, "DPS_MQTT_PORT", e.server.AcceptMQTT); err != nil {
		return e, err
	}
	if e.WebSocket, e.WebSocketPort, err = f.listen(f.webSocket, "DPS_WEBSOCKET_PORT", e.server.AcceptWebSocket); err != nil {
		return e, err
	}
	if err := e.openPage(f.page, feed); err != nil {
		return e, err
	}
	return e, e.write()
}

// readScenario reads the scenario. Settings that it does not contain are those of the live
// service or, with --fast, without any wait.
func (f *flags) readScenario() (*simulator.Scenario, error) {
	settings := scenario.Live()
	if f.fast {
		settings = scenario.Fast()
	}
	if f.scenario == "" {
		return &simulator.Scenario{Settings: settings}, nil
	}
	text, err := os.ReadFile(f.scenario)
	if err != nil {
		return nil, err
	}
	return settings.Parse(f.scenario, bytes.NewReader(text))
}

// listen returns the address and the port that it listens on, or neither for an empty address.
// "localhost" means both loopback addresses, and the returned address is then the IPv4 one. If
// the address may be replaced and is not available, listen uses a free port, and prints the
// variable that contains it.
func (f *flags) listen(address, variable string, accept func(net.Listener) error) (string, int, error) {
	if address == "" {
		return "", 0, nil
	}
	all, err := listeners(address)
	if f.replaceable[address] && (errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EADDRINUSE)) {
		reason := err
		if all, err = listeners(freePort); err == nil {
			fmt.Fprintf(os.Stderr, "dpsd-sim: %v: using port %d instead, which only clients that read %s can find\n", reason, all[0].Addr().(*net.TCPAddr).Port, variable)
		}
	}
	if err != nil {
		return "", 0, err
	}
	for _, l := range all {
		go func() {
			if err := accept(l); err != nil {
				fmt.Fprintf(os.Stderr, "dpsd-sim: %v\n", err)
			}
		}()
	}
	first := all[0].Addr()
	return first.String(), first.(*net.TCPAddr).Port, nil
}

func listeners(address string) ([]net.Listener, error) {
	host, service, err := net.SplitHostPort(address)
	if err == nil && host == serverName {
		port, err := net.LookupPort("tcp", service)
		if err != nil {
			return nil, err
		}
		return simulator.ListenLoopback(port)
	}
	l, err := net.Listen("tcp", address)
	return []net.Listener{l}, err
}

func (e *endpoint) write() error {
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(e.file, append(text, '\n'), 0o644, renameio.WithTempDir(filepath.Dir(e.file)))
}

// close ends all connections and removes endpoint.json.
func (e *endpoint) close() {
	if e.page != nil {
		_ = e.page.Close() // also ends the views of browsers
	}
	e.closeService()
	if e.server != nil {
		e.server.Close()
		_ = os.Remove(e.file)
	}
	if e.printer != nil {
		e.printer.close()
	}
	if e.log != nil {
		_ = e.log.Close()
	}
	if e.lock != nil {
		_ = e.lock.Close()
	}
}

// lockDirectory creates the directory if necessary, and locks it until the returned file is closed
// or the process ends. Two simulators would overwrite each other's addresses and assignments.
func lockDirectory(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // ca.pem and endpoint.json are for others to read
		return nil, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		_ = lock.Close()
		return nil, fmt.Errorf("another simulator uses the directory %s: stop it, or choose another directory with --dir", dir)
	}
	return lock, nil // a file system without locks does not prevent anything else
}
