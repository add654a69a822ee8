package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// gateway is the host of a container of dpsd.
type gateway struct {
	*lab
	place place
}

// newGateway starts a simulator, and returns a host with the configuration and the key of a
// device, which are read-only, and an empty state.
func newGateway(t *testing.T) *gateway {
	t.Helper()
	built(t, "dpsd")
	l := newLab(t, serviceNames...)
	data := volume(t)
	sim := l.start(t, place{volumes: map[string]string{"/data": data}})
	sim.awaitReady(t, healthCheck(t))
	output(t, sim.exec("dpsd-sim", "credentials", "--dir", "/data", "--registration-id", "gateway-1"))
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	etc, secrets := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(etc+"/ca.pem", read("ca.pem"))
	write(secrets+"/dps-primary-key", read("gateway-1.key"))
	write(etc+"/dpsd.toml", fmt.Sprintf(`
[dps]
id_scope        = %q
registration_id = "gateway-1"

[[credential]]
type = "symmetric-key"
key  = "credential:dps-primary-key"

[transport]
protocols = ["mqtt"]
ca_file   = "/etc/dpsd/ca.pem"
`, strings.TrimSpace(read("id-scope"))))
	return &gateway{l, place{
		image:     "dpsd",
		namespace: l.client,
		volumes:   map[string]string{"/etc/dpsd": etc, "/var/lib/dpsd": volumeOf(t, "dpsd", "var/lib/dpsd"), "/run/secrets": secrets, "/etc/hosts": l.hosts},
		readOnly:  []string{"/etc/dpsd", "/run/secrets", "/etc/hosts"},
		tmpfs:     []string{"/run/dpsd"},
	}}
}

// generation returns the generation of the record in the state.
func (g *gateway) generation(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.place.volumes["/var/lib/dpsd"], "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Generation int }
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	return record.Generation
}

func contain(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not contain %q:\n%s", what, want, text)
		}
	}
}

func TestAContainerOfDpsdRegistersWithoutPrivilegesAndBecomesHealthy(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	c := g.start(t, g.place)
	c.awaitReady(t, healthCheckOf(t, "dpsd"))

	t.Run("as an ordinary user, without capabilities, as process 1", func(t *testing.T) {
		var state struct{ Pid int }
		if err := json.Unmarshal([]byte(run(t, "runc", "--root", c.state, "state", c.id)), &state); err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", state.Pid))
		if err != nil {
			t.Fatal(err)
		}
		contain(t, "the status", string(status), "Uid:\t65532\t65532\t65532\t65532\n", "Gid:\t65532\t65532\t65532\t65532\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n")
		contain(t, "dpsd status", output(t, c.exec("dpsd", "status", "--json")), `"pid": 1,`)
	})
	t.Run("the commands work in the container", func(t *testing.T) {
		contain(t, "dpsd check", output(t, c.exec("dpsd", "check")),
			"ok       credential            symmetric-key credential:dps-primary-key: usable",
			"ok       roots                 the system's roots and /etc/dpsd/ca.pem: DigiCert Global Root G2 and Microsoft RSA Root Certificate Authority 2017 are trusted",
			"ok       service-manager       notification: none; watchdog: none; credentials: /run/secrets; log: json",
			"ok       connect (mqtt)")
		contain(t, "dpsd reprovision", output(t, c.exec("dpsd", "reprovision", "--wait")), "")
	})
	t.Run("another container reads the state, which is read-only for it", func(t *testing.T) {
		consumer := g.place
		consumer.volumes = map[string]string{"/var/lib/dpsd": g.place.volumes["/var/lib/dpsd"]}
		consumer.readOnly = []string{"/var/lib/dpsd"}
		reader := g.start(t, consumer, "wait", "--timeout", "30s")
		if code := reader.wait(t); code != 0 {
			t.Errorf("exit code %d: %s", code, reader.out.String())
		}
	})
	t.Run("SIGTERM ends it with 0, and a new container continues with the state", func(t *testing.T) {
		before := g.generation(t)
		if code := c.end(t, imageConfig(t, "dpsd").StopSignal); code != 0 {
			t.Errorf("exit code %d:\n%s", code, c.out.String())
		}
		again := g.start(t, g.place)
		again.awaitReady(t, healthCheckOf(t, "dpsd"))
		if now := g.generation(t); now != before {
			t.Errorf("the generation is %d, and was %d", now, before)
		}
	})
}

func TestAContainerOfDpsdIsNotHealthyBeforeItIsAssigned(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.name(t) // the service has no name
	c := g.start(t, g.place)
	check := healthCheckOf(t, "dpsd")
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end) && !strings.Contains(string(out), "resolver-missing"); time.Sleep(20 * time.Millisecond) {
		var err error
		if out, err = c.exec(check...).CombinedOutput(); err == nil {
			t.Fatalf("it is healthy: %s", out)
		}
	}
	contain(t, "the health check", string(out), "dpsd: not ready: resolver-missing: ")
}

func TestWithoutATmpfsTheHealthCheckAsksForOne(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.place.tmpfs = nil
	c := g.start(t, g.place)
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end) && !strings.Contains(string(out), "mount a tmpfs"); time.Sleep(20 * time.Millisecond) {
		var err error
		if out, err = c.exec(healthCheckOf(t, "dpsd")...).CombinedOutput(); err == nil {
			t.Fatalf("it is healthy: %s", out)
		}
	}
	contain(t, "the health check", string(out), "dpsd: not ready: dpsd is running (process 1), but has no control socket, because it cannot create files in /run/dpsd: read-only file system\n", "mount a tmpfs there")
	// The record is complete nevertheless.
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(g.place.volumes["/var/lib/dpsd"], "state.json")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("there is no record:\n%s", c.out.String())
		}
	}
}

// This is how Podman starts a container with --sdnotify=container (Notify=true in a Quadlet).
func TestREADYOfAContainerReachesTheServiceManagerOfTheHost(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.place.notify = filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: g.place.notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := g.start(t, g.place)
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for buffer := make([]byte, 4096); ; {
		n, err := l.Read(buffer)
		if err != nil {
			t.Fatalf("%v\n%s", err, c.out.String())
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			break
		}
	}
	contain(t, "the health check", output(t, c.exec(healthCheckOf(t, "dpsd")...)), "Assigned to dpsd-sim.azure-devices.net as gateway-1\n")
}

func TestAContainerOfDpsdPrintsTheVersion(t *testing.T) {
	_, version := built(t, "dpsd")
	c := newLab(t).start(t, place{image: "dpsd"}, "--version")
	if code := c.wait(t); code != 0 || !strings.HasPrefix(c.out.String(), "dpsd "+version+" linux/") {
		t.Errorf("exit code %d: %s", code, c.out.String())
	}
}
