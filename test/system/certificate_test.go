package system

import (
	"path/filepath"
	"strings"
	"testing"
)

// certified configures the gateway to authenticate with a certificate. Certificate and key are
// systemd credentials.
func certified(g *gateway) *service {
	g.t.Helper()
	dps := g.service(prompt)
	g.configure(dps, "")
	g.write("/etc/dpsd/dpsd.toml", strings.NewReplacer(
		`type = "symmetric-key"`, `type = "x509"`,
		`key  = "credential:dps-primary-key"`, "certificate = \"credential:dps-certificate\"\nprivate_key = \"credential:dps-private-key\"",
	).Replace(dps.configuration("")), 0o644)
	g.run("rm /etc/credstore/dps-primary-key")
	g.write("/etc/credstore/dps-certificate", dps.read(registrationID+".pem")+"\n", 0o644)
	g.write("/etc/credstore/dps-private-key", dps.read(registrationID+"-key.pem")+"\n", 0o600)
	return dps
}

func TestACertificateAndItsKeyAreCredentials(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		certified(g)
		g.run("systemctl start dpsd")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
		if out, status := g.try("dpsd check"); status != 0 {
			t.Errorf("dpsd check ends with %d:\n%s", status, out)
		}
		for _, name := range []string{"dps-certificate", "dps-private-key"} {
			path := filepath.Join("/run/credentials/dpsd.service", name)
			g.run("test -s " + path)
			if out, status := g.try(stranger + "cat " + path); status == 0 {
				t.Errorf("everybody can read %s: %s", path, out)
			}
		}
	})
}

func TestAnEncryptedPrivateKeyIsUsedWithAPlainCertificate(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		certified(g)
		g.run(`mkdir -p -m 700 /etc/credstore.encrypted
systemd-creds encrypt --with-key=host --name=dps-private-key /etc/credstore/dps-private-key /etc/credstore.encrypted/dps-private-key
rm /etc/credstore/dps-private-key`)
		g.dropIn("[Service]\nLoadCredentialEncrypted=dps-private-key:/etc/credstore.encrypted/dps-private-key\n")
		g.run("systemctl start dpsd")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
	})
}

func TestAMissingPrivateKeyIsNamed(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		certified(g)
		g.run("mv /etc/credstore/dps-private-key /root/; systemctl start --no-block dpsd")
		g.untilShown("dpsd.service", "StatusText", "credential-unreadable")
		g.untilShown("dpsd.service", "StatusText", "dps-private-key")
		g.expect("dpsd.service", "NRestarts", "0")
		g.run("mv /root/dps-private-key /etc/credstore/; systemctl restart dpsd")
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
	})
}
