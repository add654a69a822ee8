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

// endpoint is the name of the real service; in a gateway it is that of the
// simulated one.
const endpoint = "global.azure-devices-provisioning.net"

// simulatedHub is the hub that dpsd-sim assigns; dpsd check connects to it.
const simulatedHub = "dpsd-sim.azure-devices.net"

// service is the simulated Device Provisioning Service, in the network of a
// gateway. Its files are on this machine, out of the gateway's reach.
type service struct {
	g     *gateway
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// prompt is a service that answers at once.
const prompt = "[settings]\npolls = 0\n"

// service starts one that keeps to a scenario.
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

// read gives one of the service's files, without the line's end.
func (s *service) read(name string) string {
	s.g.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.g.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// start lets it listen, and returns when it does.
func (s *service) start() {
	s.g.t.Helper()
	s.cmd = exec.Command("nsenter", "--target", strconv.Itoa(s.g.leader), "--net", "--", "../../bin/dpsd-sim", "serve", "--dir", s.dir,
		"--scenario", filepath.Join(s.dir, "scenario.toml"), "--packet-log", filepath.Join(s.dir, "packets"))
	s.ended = startReady(s.g.t, s.cmd)
	s.g.t.Cleanup(s.stop)
}

// stop ends it: the gateway is refused from now on.
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

// key gives the key of a device of the default group, base64.
func (s *service) key(registrationID string) string {
	s.g.t.Helper()
	out, err := exec.Command("../../bin/dpsd-sim", "credentials", "--dir", s.dir, "--registration-id", registrationID).CombinedOutput()
	if err != nil {
		s.g.t.Fatalf("%v: %s", err, out)
	}
	return s.read(registrationID + ".key")
}

// registrations counts the register requests, each from its packet log.
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

// registrationID is what gateways are called here.
const registrationID = "gw-1"

// configuration is a dpsd.toml for the service. changes are lines for the tables
// that they name.
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

// configure makes the gateway one of the service's. Its key is a credential of
// systemd's. more are further tables of dpsd.toml.
func (g *gateway) configure(s *service, more string) {
	g.t.Helper()
	g.write("/etc/dpsd/ca.pem", s.read("ca.pem")+"\n", 0o644)
	g.run("mkdir -p -m 700 /etc/credstore")
	g.write("/etc/credstore/dps-primary-key", s.key(registrationID)+"\n", 0o600)
	g.write("/etc/dpsd/dpsd.toml", s.configuration(more), 0o644)
}

// provisioned is a gateway with dpsd installed and its record on the disk, and
// its service.
func provisioned(g *gateway, more string) *service {
	g.t.Helper()
	s := g.service(prompt)
	g.configure(s, more)
	g.run("systemctl start dpsd")
	return s
}

// dropIn adds to dpsd.service what an administrator would.
func (g *gateway) dropIn(text string) {
	g.t.Helper()
	g.write("/etc/systemd/system/dpsd.service.d/test.conf", text, 0o644)
	g.run("systemctl daemon-reload")
}
