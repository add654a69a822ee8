package deb

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// emulators run programs of other architectures. ARM1176 is the processor of the first Raspberry
// Pi, ARMv6: it stops a program for ARMv7 with SIGILL.
var emulators = map[string][]string{
	"arm64":   {"qemu-aarch64-static"},
	"armhf":   {"qemu-arm-static", "-cpu", "arm1176"},
	"riscv64": {"qemu-riscv64-static"},
}

// TestEveryArchitectureProvisions extracts the programs from each package and provisions a
// gateway with them: dpsd with a simulator on this machine, with a certificate, over WebSocket,
// and dpsd-sim with its own demo.
func TestEveryArchitectureProvisions(t *testing.T) {
	dist(t)
	for arch, emulator := range emulators {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			need(t, false, emulator[0])
			t.Run("dpsd", func(t *testing.T) {
				t.Parallel()
				program := filepath.Join(unpack(t, artefact(t, "dpsd", arch, ".deb")), "usr/bin/dpsd")
				provision(t, append(emulator, program))
			})
			t.Run("dpsd-sim", func(t *testing.T) {
				t.Parallel()
				program := filepath.Join(unpack(t, artefact(t, "dpsd-sim", arch, ".deb")), "usr/bin/dpsd-sim")
				if out := emulate(t, append(emulator, program, "demo")); !strings.Contains(out, "READY=1") || !strings.Contains(out, "DPSD_ASSIGNED_HUB=") {
					t.Errorf("dpsd-sim demo has not provisioned a gateway:\n%s", out)
				}
			})
		})
	}
}

// provision runs dpsd once with a simulator, and checks the published record.
func provision(t *testing.T, dpsd []string) {
	t.Helper()
	const gateway = "gw-foreign"
	sim := simulator.Start(t, simulator.Options{})
	certificate, key, err := sim.DeviceCertificate(gateway)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	configuration := fmt.Sprintf(`
[dps]
id_scope = %q
endpoint = "localhost"

[[credential]]
type        = "x509"
certificate = "file:%[2]s/device.pem"
private_key = "file:%[2]s/device-key.pem"

[transport]
protocols      = ["websocket"]
websocket_port = %[3]d
ca_file        = "%[2]s/ca.pem"
proxy          = "none"

[state]
directory = "%[2]s/state"

[control]
socket = "%[2]s/run/dpsd.sock"
`, sim.IDScope(), dir, sim.WebSocketPort)
	for name, text := range map[string][]byte{
		"dpsd.toml": []byte(configuration), "ca.pem": sim.CA(), "device.pem": certificate, "device-key.pem": key,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"state", "run"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	emulate(t, append(dpsd, "run", "--config", filepath.Join(dir, "dpsd.toml"), "--once", "--timeout", "2m"))
	text, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ DeviceID, AssignedHub string }
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	if record.DeviceID != gateway || record.AssignedHub == "" {
		t.Errorf("the record is of %q in %q, want %s and a hub", record.DeviceID, record.AssignedHub, gateway)
	}
}

// emulate runs a program that must succeed, and returns its output.
func emulate(t *testing.T, command []string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), err, out)
	}
	return string(out)
}
