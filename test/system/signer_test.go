package system

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	signerPackage = there + "/current/dpsd-signer-pkcs11_*.deb"
	signerUnit    = "dpsd-signer-pkcs11@device"
	signerService = signerUnit + ".service"
	signerSocket  = "/run/dpsd-signer/device.sock"
	assigned      = "Assigned to dpsd-sim.azure-devices.net as gw-1"
)

// withSigner returns a running gateway whose key is in a token, and its service. It runs the
// commands of docs/signer.md with the given type of key, and uses the credential of that page. It
// does not start dpsd.
func withSigner(t *testing.T, s suite, kind string) (*gateway, *service) {
	t.Helper()
	g := withDpsd(t, s)
	g.timed("the installation of the signer", apt+signerPackage)
	return g, g.signing(kind)
}

// signing configures a gateway on which the signer is installed.
func (g *gateway) signing(kind string) *service {
	t := g.t
	t.Helper()
	for _, commands := range blocks(t, "docs/signer.md", "PKCS#11 tokens", "sh") {
		g.run(strings.NewReplacer("EC:prime256v1", kind, "gateway-1", registrationID).Replace(commands))
	}

	dps := g.service(prompt)
	g.configure(dps, "")
	g.run("rm /etc/credstore/dps-primary-key")
	g.write("/etc/dpsd/keys/device.pem", dps.certify(g.run("cat "+registrationID+".csr")), 0o644)
	example := blocks(t, "docs/signer.md", "", "toml")[0]
	_, credential, _ := strings.Cut(dps.configuration(""), "[[credential]]")
	credential, _, _ = strings.Cut(credential, "\n\n")
	g.write("/etc/dpsd/dpsd.toml", strings.Replace(dps.configuration(""), "[[credential]]"+credential+"\n", example, 1), 0o644)
	return dps
}

// certify issues a certificate for a request, as the authority of the default group.
func (s *service) certify(request string) string {
	s.g.t.Helper()
	authority, err := tls.LoadX509KeyPair(filepath.Join(s.dir, "device-ca.pem"), filepath.Join(s.dir, "device-ca.key"))
	if err != nil {
		s.g.t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(request))
	if block == nil {
		s.g.t.Fatalf("this is not a certificate request:\n%s", request)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		s.g.t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		s.g.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: csr.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Leaf, csr.PublicKey, authority.PrivateKey)
	if err != nil {
		s.g.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// token lists the files of the token, the content of the keys, and the public key. SoftHSM writes
// to the other files at each login.
const token = "cd /var/lib/softhsm/tokens; find -printf '%M %u:%g %p\\n' | sort; sha256sum */*-*.object\n" +
	"pkcs11-tool --module /usr/lib/softhsm/libsofthsm2.so --login --pin 648219 --list-objects"

func TestAKeyInATokenRegistersTheGateway(t *testing.T) {
	for name, kind := range map[string]string{"EC": "EC:prime256v1", "RSA": "rsa:2048"} {
		t.Run(name, func(t *testing.T) {
			inBoth(t, func(t *testing.T, s suite) {
				g, dps := withSigner(t, s, kind)
				if name == "RSA" {
					g.encryptPIN()
				}
				before := g.run(token)
				g.contains("dpsd check --offline", `ok       credential            x509 file:/etc/dpsd/keys/device.pem: certificate for "gw-1"`)
				g.run("systemctl start dpsd")
				g.expect("dpsd.service", "StatusText", assigned)
				g.contains("dpsd check", "ok       connect (mqtt)        x509 file:/etc/dpsd/keys/device.pem: accepted")

				g.reboot()
				dps.start()
				dps.until(1)
				g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
				if after := g.run(token); after != before {
					t.Errorf("the token is\n%s\nbefore\n%s", after, before)
				}
				if out, status := g.try("{ journalctl --output=export; find /run/dpsd /var/lib/dpsd /var/lib/dpsd-signer -type f -exec cat {} +; } | grep -a 648219"); status != 1 {
					t.Errorf("the PIN is in the log or in a file of the services (the exit status of grep is %d):\n%s", status, out)
				}
			})
		})
	}
}

// encryptPIN replaces the PIN with an encrypted one, as the manual page describes.
func (g *gateway) encryptPIN() {
	g.t.Helper()
	page, err := os.ReadFile("../../pkcs11/dpsd-signer-pkcs11.8")
	if err != nil {
		g.t.Fatal(err)
	}
	const setting = "LoadCredentialEncrypted=pin:/etc/dpsd-signer/NAME.pin.cred"
	_, commands, _ := strings.Cut(string(page), "To encrypt the PIN with the TPM or the key of the host, run\n.IP\n.EX\n")
	command, _, _ := strings.Cut(commands, "\n")
	if !strings.Contains(string(page), setting) || !strings.HasPrefix(command, "systemd-ask-password -n | ") {
		g.t.Fatalf("the manual page does not contain %s and the command: %s", setting, command)
	}
	g.run("rm /etc/credstore/dpsd-signer-device.pin\n" +
		strings.NewReplacer("systemd-ask-password -n", "printf 648219", "NAME", "device").Replace(command))
	g.write("/etc/systemd/system/"+signerService+".d/pin.conf", "[Service]\n"+strings.Replace(setting, "NAME", "device", 1)+"\n", 0o644)
	g.run("systemctl daemon-reload")
}

// ask is a command that sends a request to the signer, and prints the answer.
const ask = `perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Peer => "` + signerSocket + `") or die "$!\n"; print $s "{\"version\":1,\"request\":\"schemes\"}\n"; $s->flush; print scalar <$s>'`

func TestOnlyTheServiceCanUseTheSigner(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, _ := withSigner(t, s, "EC:prime256v1")
		g.run("systemctl start dpsd")
		if mode := g.run("stat -c '%a %U:%G' " + signerSocket + " /run/dpsd-signer"); mode != "660 root:dpsd-keys\n755 root:root" {
			t.Errorf("the socket and its directory are %q", mode)
		}
		for _, who := range []string{"", reader} {
			if answer := g.run(who + ask); !strings.Contains(answer, `"ecdsa-sha256"`) {
				t.Errorf("%sthe signer answers %s", who, answer)
			}
		}
		for _, who := range []string{stranger, member, certificateReader, "setpriv --reuid=dpsd-signer --regid=dpsd-signer --groups=softhsm "} {
			if answer, status := g.try(who + ask); status == 0 || !strings.Contains(answer, "Permission denied") {
				t.Errorf("%sthe signer answers %s", who, answer)
			}
		}
	})
}

func TestTheSignerRunsAsItsOwnUserInItsOwnSandbox(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, _ := withSigner(t, s, "EC:prime256v1")
		g.write("/etc/dpsd/dpsd.toml", strings.Replace(g.run("cat /etc/dpsd/dpsd.toml"), "[transport]", issued+"\n[transport]", 1), 0o644)
		g.run(`install -o root -g dpsd-keys -m 0640 /dev/null /etc/dpsd/keys/other.key
echo there >/etc/credstore/proxy-password; chmod 600 /etc/credstore/proxy-password; systemctl start dpsd`)
		g.run(ask)
		process := g.show(signerService, "MainPID")
		if user := g.run("ps -o user:32=,group:32=,supgrp:64= -p " + process); !slices.Equal(strings.Fields(user), []string{"dpsd-signer", "dpsd-signer", "dpsd-signer,softhsm"}) {
			t.Errorf("the signer runs with user and groups %q", user)
		}
		out, status := g.try("systemd-analyze security --no-pager --threshold=10 " + signerService)
		_, figure, _ := strings.Cut(out, "Overall exposure level")
		t.Logf("systemd %d: exposure%s", s.systemd, strings.TrimRight(figure, "\n"))
		if status != 0 {
			t.Errorf("more than 1.0:\n%s", out)
		}
		for _, limit := range []string{"MemoryMax", "TasksMax"} {
			if g.show(signerService, limit) == "infinity" {
				t.Errorf("%s is not set", limit)
			}
		}
		g.expect(signerService, "LimitCORE", "0")

		// Root can read each of these secrets.
		secrets := []string{"/etc/dpsd/keys/other.key", "/var/lib/dpsd/certificate/current/key.pem", "/etc/credstore/proxy-password",
			"/run/credentials/dpsd.service/proxy-password", "/etc/credstore/dpsd-signer-device.pin"}
		g.write("/usr/local/bin/secrets", "#!/bin/sh\nfor file in "+strings.Join(secrets, " ")+"; do cat $file >/dev/null && echo read $file; done; echo end\n", 0o755)
		if read := g.run("/usr/local/bin/secrets | grep -c ^read"); read != strconv.Itoa(len(secrets)) {
			t.Errorf("root can read %s of %d secrets", read, len(secrets))
		}
		g.signerRuns("/usr/local/bin/secrets")
		g.run("systemctl start " + signerService)
		g.until("the last line", "journalctl -b -t secrets -o cat | grep -qx end")
		if read, status := g.try("journalctl -b -t secrets -o cat | grep ^read"); status == 0 {
			t.Errorf("inside the sandbox, the signer can %s", read)
		}
		if denied := g.run("journalctl -b -t secrets -o cat | grep -c '^cat: /'"); denied != strconv.Itoa(len(secrets)) {
			t.Errorf("%s of %d secrets are denied", denied, len(secrets))
		}

		g.run("echo there | tee /home/someone /root/secret /tmp/of-another /etc/credstore/probe >/dev/null; chmod 600 /etc/credstore/probe")
		g.signerRuns(there + "/probe")
		g.probed(signerService, "read the machine ID", "read the trusted roots", "a Unix socket")
	})
}

// signerRuns makes another program the process of the signer.
func (g *gateway) signerRuns(program string) {
	g.t.Helper()
	g.run("systemctl stop " + signerService)
	g.write("/etc/systemd/system/"+signerService+".d/test.conf", "[Service]\nType=oneshot\nExecStart=\nExecStart="+program+"\n", 0o644)
	g.run("systemctl daemon-reload")
}

// held starts dpsd while hold blocks a file of the token. It returns when the library hangs during
// a request of dpsd.
func (g *gateway) held() (release func()) {
	g.t.Helper()
	release = g.hold(g.run("echo /var/lib/softhsm/tokens/*/token.object"))
	g.run("systemctl start --no-block dpsd")
	// The signer has two sockets for the log, and one from systemd. Before systemd executes the
	// program, its process has sockets of systemd.
	g.until("the signer has accepted a connection", "process=/proc/$(systemctl show --value -p MainPID "+signerService+"); "+
		"test $(readlink $process/exe) = /usr/bin/dpsd-signer-pkcs11 && test $(ls -l $process/fd | grep -c socket:) -ge 4")
	g.untilShown("dpsd.service", "StatusText", "Waiting for the signer "+signerSocket)
	return release
}

// recovers waits for a registration. It checks that dpsd has reported only these faults since the
// last boot, and that systemd has not restarted dpsd after a failure.
func (g *gateway) recovers(dps *service, registrations int, faults ...string) {
	g.t.Helper()
	dps.until(registrations)
	g.untilShown("dpsd.service", "StatusText", assigned)
	g.run("systemctl -q is-active dpsd.service " + signerUnit + ".socket")
	g.expect("dpsd.service", "NRestarts", "0")
	var reported []string
	for _, e := range g.journal("-b DPSD_EVENT=fault") {
		// systemd gives a socket to its group a moment after it has created it, and dpsd may connect in this moment.
		if text := e.text("DPSD_FAULT") + ": " + e.text("DPSD_CAUSE"); !slices.Contains(reported, text) && !strings.Contains(text, "connect: permission denied") {
			reported = append(reported, text)
		}
	}
	g.t.Logf("systemd %d: faults %q", g.suite.systemd, reported)
	if len(reported) != len(faults) {
		g.t.Errorf("the faults are %q, want %q", reported, faults)
		return
	}
	for i, words := range faults {
		if !strings.HasPrefix(reported[i], "signer-failed: ") || !strings.Contains(reported[i], words) {
			g.t.Errorf("the faults are %q, want %q", reported, faults)
		}
	}
}

func TestASignerThatIsKilledDuringARequestCausesAFaultAndIsUsedAgain(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSigner(t, s, "EC:prime256v1")
		release := g.held()
		g.run("systemctl kill --signal=KILL " + signerService)
		g.until("the signer is killed", "journalctl -b -u "+signerService+" -o cat | grep -q status=9/KILL")
		release()
		g.recovers(dps, 1, "closed the connection")
	})
}

func TestASignerWhoseLibraryHangsExitsAndIsUsedAgain(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSigner(t, s, "EC:prime256v1")
		release := g.held()
		g.event("fault")
		release()
		g.recovers(dps, 1, "the token did not answer within 25s")
	})
}

func TestASignerThatIsStoppedCausesAFaultAndIsUsedOnceItContinues(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSigner(t, s, "EC:prime256v1")
		g.run(ask + "; systemctl kill --signal=STOP " + signerService + "; systemctl start --no-block dpsd")
		g.event("fault")
		g.run("systemctl kill --signal=CONT " + signerService)
		g.recovers(dps, 1, "no answer within 30s")
	})
}

// Without Restart=, systemd would stop the socket of a service that cannot be started.
func TestASignerThatCouldNotBeStartedIsUsedOnceItCanBeStarted(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSigner(t, s, "EC:prime256v1")
		const dropIn = "/etc/systemd/system/" + signerService + ".d/test.conf"
		g.write(dropIn, "[Service]\nSupplementaryGroups=nonexistent\nRestartSec=1s\n", 0o644)
		g.run("systemctl daemon-reload; systemctl start --no-block dpsd")
		g.until("systemd has started the signer again, or has stopped the socket",
			"systemctl -q is-failed "+signerUnit+".socket || test $(systemctl show --value -p NRestarts "+signerService+") -ge 1")
		g.until("the group is the reason", "test $(systemctl show --value -p ExecMainStatus "+signerService+") = 216") // 0 while the next start begins
		if state := g.show(signerUnit+".socket", "ActiveState"); state != "active" {
			t.Fatalf("the socket is %s: %s", state, g.show(signerUnit+".socket", "Result"))
		}
		g.run("rm " + dropIn + "; systemctl daemon-reload")
		g.recovers(dps, 1) // without a fault, because dpsd waits long enough
	})
}

func TestAnUpgradeReplacesTheSignerWhileItSigns(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g, dps := withSigner(t, s, "EC:prime256v1")
		g.timed("the downgrade", "apt-get -qq -y --allow-downgrades install "+there+"/previous/dpsd-signer-pkcs11_*.deb")
		g.run("systemctl start dpsd")
		for i, replace := range []string{apt + signerPackage, "apt-get -qq -y --reinstall install " + signerPackage} {
			g.run(ask + "; systemctl restart --no-block dpsd")
			g.timed("the replacement", replace)
			g.recovers(dps, i+2)
		}
		g.until("the old signer has exited", "! systemctl -q is-active "+signerService)
		g.run(ask + "\ncmp /proc/$(systemctl show --value -p MainPID " + signerService + ")/exe /usr/bin/dpsd-signer-pkcs11")

		g.timed("the removal", "apt-get -qq -y remove dpsd-signer-pkcs11; test ! -e "+signerSocket)
		g.run("systemctl restart --no-block dpsd")
		g.event("fault")
		g.timed("the next installation", apt+signerPackage)
		g.recovers(dps, 4, "the socket does not exist")
	})
}

// The test runs the commands of docs/signer.md unchanged.
func TestAPurgeOfTheSignerKeepsTheKeys(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.run("mkdir -p /etc/credstore /etc/systemd/system/sockets.target.wants")
		before := lines(g.run(listing))
		g.run(apt + signerPackage)
		g.signing("EC:prime256v1")
		g.run("systemctl start dpsd")
		keys := g.run(token)
		g.write("/var/lib/dpsd-signer/pin-refused-other-1", "", 0o600)

		g.run("systemctl stop dpsd; rm -r /etc/dpsd/dpsd.toml /etc/dpsd/ca.pem /etc/dpsd/keys/device.pem /root/gw-1.* /run/dpsd; find /var/lib/dpsd -mindepth 1 -delete")
		g.timed("the purge", "apt-get -qq -y purge dpsd-signer-pkcs11")
		g.run("test -s /etc/credstore/dpsd-signer-device.pin; test -s /etc/systemd/system/" + signerService + ".d/softhsm.conf")
		g.run(blocks(t, "docs/signer.md", "Remove the signer", "sh")[0])
		for _, left := range lines(g.run(listing)) {
			if !slices.Contains(before, left) && !slices.Contains(own, left) && !strings.HasPrefix(left, "/var/lib/softhsm/tokens/") {
				t.Errorf("left: %s", left)
			}
		}
		if now := g.run(token); now != keys {
			t.Errorf("after the purge, the token is\n%s\nbefore\n%s", now, keys)
		}

		g.run(apt + signerPackage)
		g.write("/var/lib/dpsd-signer/tpm2_pkcs11/tpm2_pkcs11.sqlite3", "keys\n", 0o600)
		g.run("chown -R dpsd-signer: /var/lib/dpsd-signer; apt-get -qq -y purge dpsd-signer-pkcs11")
		if owner := g.run("stat -c %U /var/lib/dpsd-signer/tpm2_pkcs11/tpm2_pkcs11.sqlite3"); owner != "dpsd-signer" {
			t.Errorf("after the purge, the keys of a library belong to %s", owner)
		}
	})
}
