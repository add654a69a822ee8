package system

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks returns the code blocks of a language in a section of a document. If the heading is empty,
// the section is the introduction.
func blocks(t *testing.T, document, heading, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../../" + document)
	if err != nil {
		t.Fatal(err)
	}
	section, found := string(text), true
	if heading != "" {
		_, section, found = strings.Cut(section, "\n## "+heading+"\n")
	}
	if !found {
		t.Fatalf("%s has no section %q", document, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var all []string
	for _, match := range regexp.MustCompile("(?ms)^( *)```"+language+"\n(.*?)^ *```$").FindAllStringSubmatch(section, -1) {
		all = append(all, strings.ReplaceAll("\n"+match[2], "\n"+match[1], "\n")[1:])
	}
	if all == nil {
		t.Fatalf("section %q of %s has no block of %q", heading, document, language)
	}
	return all
}

// fleet is one configuration for all gateways.
const fleet = `[dps]
id_scope = "%s"
%s

[[credential]]
type = "symmetric-key"
key  = "credential:dps-primary-key"

[transport]
websocket_port = 8443
ca_file        = "/etc/dpsd/ca.pem"
`

// sealed creates an image with the commands of docs/image.md, for the service in the directory. It
// returns the directories of its root file system.
func sealed(t *testing.T, s suite, dps *service, name string) string {
	t.Helper()
	g := newGateway(t, s)
	configuration := fmt.Sprintf(fleet, dps.read("id-scope"), name)
	if err := os.WriteFile(filepath.Join(g.dir, "dpsd.toml"), []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	g.write("/etc/dpsd/ca.pem", dps.read("ca.pem")+"\n", 0o644)
	script := "cd \"$1\"; cp \"$parts\"/current/dpsd_*.deb .\n" +
		blocks(t, "docs/image.md", "Put dpsd into it", "sh")[0] + blocks(t, "docs/image.md", "Seal it", "sh")[0]
	g.offline(script)
	return filepath.Join(g.dir, "upper") + ":" + g.lower
}

func TestTwoCopiesOfAnImageAreTwoDevices(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		factory := booted(t, s) // all gateways use a copy of its service
		dps := factory.service(prompt)
		lower := sealed(t, s, dps, `registration_id = "gw-%m"`)

		var devices []string
		for range 2 {
			g := gatewayOver(t, s, lower)
			g.boot()
			g.untilShown("dpsd.service", "StatusText", "credential-unreadable") // it waits for its key
			id := "gw-" + g.run("cat /etc/machine-id")

			g.write("/root/group-key", dps.read("group-key")+"\n", 0o600)
			g.run("id=" + id + "\n" + blocks(t, "docs/image.md", "Give it its key", "sh")[0] +
				"install -d -m 700 /etc/credstore && install -m 600 device-key /etc/credstore/dps-primary-key")
			own := g.copyOf(dps)
			own.start()
			g.run("systemctl restart dpsd")
			if device := g.run(`. /var/lib/dpsd/state.env; echo "$DPSD_DEVICE_ID"`); device != id {
				t.Errorf("the device is %q, want %q", device, id)
			}
			devices = append(devices, id)
			g.cut()
		}
		if devices[0] == devices[1] {
			t.Errorf("both are %s", devices[0])
		}
		t.Logf("%s: %s, %s", s.name, devices[0], devices[1])
	})
}

// copyOf returns a service with the same keys in the network of this gateway.
func (g *gateway) copyOf(s *service) *service {
	g.t.Helper()
	own := &service{g: g, dir: filepath.Join(g.dir, "service")}
	if out, err := exec.Command("cp", "-a", s.dir, own.dir).CombinedOutput(); err != nil {
		g.t.Fatalf("%v: %s", err, out)
	}
	return own
}

func TestASerialNumberAndAKeyFromTheFirmware(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		factory := booted(t, s)
		dps := factory.service(prompt)
		g := gatewayOver(t, s, sealed(t, s, dps, `registration_id_file = "/etc/gateway/serial"`))
		key := filepath.Join(g.dir, "key")
		if err := os.WriteFile(key, []byte(dps.key("sn-0001")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		g.boot("--load-credential=dps-primary-key:" + key) // as firmware or a virtual machine would
		g.copyOf(dps).start()
		g.untilShown("dpsd.service", "StatusText", "input-unreadable")
		g.write("/etc/gateway/serial", "sn-0001\n", 0o644) // and dpsd continues immediately
		g.untilShown("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as sn-0001")
		g.run("test ! -e /etc/credstore/dps-primary-key")
	})
}

// Image builders that run nothing in the image use dpkg from outside: DPKG_ROOT, dpkg(1). test/deb
// tests the content of the image.
func TestAnImageMadeFromOutsideIsAGateway(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := newGateway(t, s)
		g.offline(`dpkg --root="$root" --force-script-chrootless --log=/dev/null -i "$parts"/current/dpsd_*.deb`)
		g.boot()
		g.expect("dpsd.service", "UnitFileState", "enabled")
		if owner := g.run("stat -c '%a %U:%G' /etc/dpsd/keys"); owner != "750 root:dpsd-keys" {
			t.Errorf("/etc/dpsd/keys is %s", owner)
		}
		provisioned(g, issued)
		g.expectPairs("in an image made from outside", 1)
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
	})
}
