package system

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// endpoint is the name of the real service. In a gateway it resolves to the simulated service.
const endpoint = "global.azure-devices-provisioning.net"

// simulatedHub is the hub that dpsd-sim assigns; dpsd check connects to it.
const simulatedHub = "dpsd-sim.azure-devices.net"

// service is the simulated Device Provisioning Service in the network of a gateway. Its files are
// on this machine, and the gateway cannot access them.
type service struct {
	g     *gateway
	dir   string
	args  []string // further arguments of dpsd-sim from the next start on
	cmd   *exec.Cmd
	ended chan struct{}
}

// prompt is a scenario in which the service answers immediately.
const prompt = "[settings]\npolls = 0\n"

// service starts a service with a scenario.
func (g *gateway) service(scenario string) *service {
	g.t.Helper()
	s := &service{g: g, dir: filepath.Join(g.dir, "service")}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		g.t.Fatal(err)
	}
	s.write("scenario.toml", scenario)
	s.start()
	return s
}

func (s *service) write(name, text string) {
	s.g.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.g.t.Fatal(err)
	}
}

// read returns the content of one of the service's files without the final newline.
func (s *service) read(name string) string {
	s.g.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.g.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// start starts the service, and returns when it listens. It stops a former one, which is still
// in the network of the gateway before a reboot.
func (s *service) start() {
	s.g.t.Helper()
	if s.cmd != nil {
		s.stop()
	}
	s.cmd = exec.Command("nsenter", append([]string{"--target", strconv.Itoa(s.g.leader), "--net", "--", "../../bin/dpsd-sim", "serve", "--dir", s.dir, "--hub", simulatedHub,
		"--scenario", filepath.Join(s.dir, "scenario.toml"), "--packet-log", filepath.Join(s.dir, "packets")}, s.args...)...)
	s.ended = startReady(s.g.t, s.cmd)
	s.g.t.Cleanup(s.stop)
}

// stop stops the service: from then on, connections of the gateway are refused.
func (s *service) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.ended
}

// enroll replaces the enrollments.
func (s *service) enroll(text string) {
	s.g.t.Helper()
	s.write("enrollments.toml", text)
	s.stop()
	s.start()
}

// key returns the base64 key of a device of the default group.
func (s *service) key(registrationID string) string {
	s.g.t.Helper()
	out, err := exec.Command("../../bin/dpsd-sim", "credentials", "--dir", s.dir, "--registration-id", registrationID).CombinedOutput()
	if err != nil {
		s.g.t.Fatalf("%v: %s", err, out)
	}
	return s.read(registrationID + ".key")
}

// registrations counts the register requests in its packet log.
func (s *service) registrations() (n int) {
	s.g.t.Helper()
	for line := range strings.Lines(s.read("packets")) {
		var packet struct{ Topic string }
		if err := json.Unmarshal([]byte(line), &packet); err != nil {
			s.g.t.Fatalf("%v: %s", err, line)
		}
		if strings.HasPrefix(packet.Topic, "$dps/registrations/PUT/iotdps-register/") {
			n++
		}
	}
	return n
}

// until waits for a number of register requests.
func (s *service) until(n int) {
	s.g.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for s.registrations() < n {
		select {
		case <-tick.C:
		case <-late:
			s.g.t.Fatalf("%d registrations within %s, want %d", s.registrations(), patience, n)
		}
	}
}

// registrationID is the registration ID of the gateways.
const registrationID = "gw-1"

// configuration returns a dpsd.toml for the service. more are lines for the tables that they
// name.
func (s *service) configuration(more string) string {
	return fmt.Sprintf(`[dps]
id_scope        = "%s"
registration_id = "%s"

[[credential]]
type = "symmetric-key"
key  = "credential:dps-primary-key"

[transport]
websocket_port = 8443
ca_file        = "/etc/dpsd/ca.pem"

%s`, s.read("id-scope"), registrationID, more)
}

// configure configures the gateway for the service. Its key is a systemd credential. more are
// further tables of dpsd.toml.
func (g *gateway) configure(s *service, more string) {
	g.t.Helper()
	g.write("/etc/dpsd/ca.pem", s.read("ca.pem")+"\n", 0o644)
	g.run("mkdir -p -m 700 /etc/credstore")
	g.write("/etc/credstore/dps-primary-key", s.key(registrationID)+"\n", 0o600)
	g.write("/etc/dpsd/dpsd.toml", s.configuration(more), 0o644)
}

// provisioned installs dpsd in a gateway, waits for its record on the disk, and returns its
// service.
func provisioned(g *gateway, more string) *service {
	g.t.Helper()
	s := g.service(prompt)
	g.configure(s, more)
	g.run("systemctl start dpsd")
	return s
}

// dropIn adds a drop-in to dpsd.service, as an administrator would.
func (g *gateway) dropIn(text string) {
	g.t.Helper()
	g.write("/etc/systemd/system/dpsd.service.d/test.conf", text, 0o644)
	g.run("systemctl daemon-reload")
}
