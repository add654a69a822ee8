package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// demoLimit ends a demonstration that does not finish.
const demoLimit = 30 * time.Second

func newDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show how dpsd provisions gateways with a simulator",
		Long: `Show how dpsd provisions gateways with a simulator: the daemon's supervisor
registers one gateway with a symmetric key over MQTT/TLS, and another with an
X.509 certificate over WebSocket. A third gateway receives a certificate from
DPS, and uses it to connect to its hub. The demo uses loopback only, and leaves
no files.`,
		Example: `  dpsd-sim demo`,
		RunE: func(c *cobra.Command, _ []string) error {
			survivePipes() // otherwise the directory of the demonstration would not be removed
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			ctx, cancel := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("the demonstration did not finish within %s", demoLimit))
			defer cancel()
			return demo(ctx, c.OutOrStdout())
		},
	}
}

func demo(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("", "dpsd-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	e, err := (&flags{dir: dir, mqtt: freePort, webSocket: freePort, quiet: true}).open()
	if err != nil {
		return err
	}
	defer e.close()
	// This is the behaviour of the service, but with one poll instead of two, because a
	// person watches the demonstration.
	polls := 1
	err = e.server.SetScenario(&simulator.Scenario{Settings: simulator.Settings{Polls: &polls, RetryAfter: "2"}})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "A simulated Device Provisioning Service, ID scope %s, listens on %s (MQTT/TLS) and %s (WebSocket/TLS).\n", e.IDScope, e.MQTT, e.WebSocket)
	for _, g := range []demoGateway{
		{id: "gateway-1", title: "with a symmetric key, over MQTT/TLS", protocol: transport.MQTT},
		{id: "gateway-2", title: "with an X.509 certificate, over WebSocket/TLS", protocol: transport.WebSocket, certified: true},
		{id: "gateway-3", title: "with a symmetric key, which receives a certificate from DPS", protocol: transport.MQTT, issued: true},
	} {
		if err := g.provision(ctx, out, e, dir); err != nil {
			return fmt.Errorf("%s: %w", g.id, err)
		}
	}
	return nil
}

// demoGateway is a gateway to be provisioned.
type demoGateway struct {
	id, title string
	protocol  transport.Protocol
	certified bool
	issued    bool // it requests a certificate, and uses it
}

// provision runs the daemon like the main function of dpsd until the assignment is on disk,
// and shows the notifications for systemd.
func (g demoGateway) provision(ctx context.Context, out io.Writer, e *endpoint, dir string) error {
	files, err := writeDevice(e.server, dir, g.id)
	if err != nil {
		return err
	}
	var credential attest.Credential = attest.SymmetricKey{Key: attest.Reference{File: files.key}}
	if g.certified {
		credential = attest.X509{
			Certificate: attest.Reference{File: files.certificate},
			PrivateKey:  attest.Reference{File: files.privateKey},
		}
	}
	state := filepath.Join(dir, g.id)
	d := &daemon.Daemon{
		Settings: daemon.Settings{
			IDScope:        e.IDScope,
			RegistrationID: attest.RegistrationID{Template: g.id},
			Credentials:    []attest.Credential{credential},
			Dialer: &transport.Dialer{
				Host: e.Endpoint, CAFile: e.CAFile,
				Protocols: []transport.Protocol{g.protocol}, MQTTPort: e.MQTTPort, WebSocketPort: e.WebSocketPort,
			},
		},
		Store:   store.Options{Directory: state, RuntimeDirectory: filepath.Join(dir, "run")},
		Version: "demo",
		Once:    true,
	}
	if g.issued {
		d.Settings.APIVersion = "2026-11-01"
		d.Settings.Certificate = &daemon.CertificateSettings{Required: true, KeyType: certificate.P384, RenewAt: 67}
	}
	fmt.Fprintf(out, "\n%s, %s. What systemctl status would show:\n\n", g.id, g.title)
	began := time.Now()
	d.Notify = func(message string) error {
		for line := range strings.Lines(message) {
			if strings.HasPrefix(line, "STATUS=") || strings.HasPrefix(line, "READY=") {
				fmt.Fprintf(out, "  %4.1f s  %s\n", time.Since(began).Seconds(), strings.TrimPrefix(strings.TrimSpace(line), "STATUS="))
			}
		}
		return nil
	}
	if err := d.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fmt.Fprint(out, "\nWhat other services read:\n\n")
	for _, name := range []string{"state.json", "state.env"} {
		text, err := os.ReadFile(filepath.Join(state, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  %s\n", name)
		for line := range strings.Lines(string(text)) {
			fmt.Fprintf(out, "    %s", shorten(line))
		}
	}
	if g.issued {
		return send(ctx, out, e, state)
	}
	return nil
}

// maxLine is the length of a line that the demonstration shows. The state of a registration with a
// certificate chain is longer.
const maxLine = 500

// shorten truncates a long line.
func shorten(line string) string {
	if len(line) <= maxLine {
		return line
	}
	return strings.ToValidUTF8(line[:maxLine], "") + "…\n"
}

// send sends a message to the assigned hub with the issued certificate, like a service that
// reads state.json.
func send(ctx context.Context, out io.Writer, e *endpoint, state string) error {
	record, err := store.Read(state)
	if err != nil {
		return err
	}
	if record.Certificate == nil {
		return errors.New("state.json names no certificate")
	}
	fmt.Fprint(out, "\nWhat a service does with the certificate:\n\n")
	began := time.Now()
	step := func(format string, args ...any) {
		fmt.Fprintf(out, "  %4.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	pair, err := tls.LoadX509KeyPair(record.Certificate.CertificateFile, record.Certificate.PrivateKeyFile)
	if err != nil {
		return err
	}
	step("Read the certificate of %s, valid until %s", pair.Leaf.Subject.CommonName, record.Certificate.NotAfter.Format(time.RFC3339))
	hub := transport.Dialer{
		Host: record.AssignedHub, CAFile: e.CAFile, Protocols: []transport.Protocol{transport.MQTT},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { // the name exists only in the simulation
			return (&net.Dialer{}).DialContext(ctx, network, e.MQTT)
		},
	}
	conn, err := hub.Dial(ctx, &pair)
	if err != nil {
		return err
	}
	client, err := mqttv3.Connect(ctx, conn, mqttv3.Options{
		ClientID: record.DeviceID, UserName: record.AssignedHub + "/" + record.DeviceID + "/?api-version=2021-04-12",
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close(ctx) }()
	step("Connected to %s as %s, without a password", record.AssignedHub, record.DeviceID)
	if err := client.Publish(ctx, "devices/"+record.DeviceID+"/messages/events/", []byte(`{"temperature":21}`), 1); err != nil {
		return err
	}
	step("Sent a message, which the hub has acknowledged")
	return nil
}
