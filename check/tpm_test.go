package check_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/test/pair"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
	"github.com/dpsd-project/dpsd/transport"
)

// withTPM returns a gateway whose key of the issued certificate is in a TPM.
func withTPM(device string) (*check.Gateway, *tpmtest.TPM) {
	f := new(tpmtest.TPM)
	return &check.Gateway{
		Settings: &daemon.Settings{
			Dialer: &transport.Dialer{Host: "localhost"}, RegistrationID: attest.RegistrationID{Template: "gw-1"}, APIVersion: "2026-11-01",
			Certificate: &daemon.CertificateSettings{KeyType: certificate.P256, KeyStore: certificate.InTPM, RenewAt: 67},
		},
		Installed: true,
		Secrets:   attest.Secrets{TPM: &tpm.Device{Path: device, Open: f.Open}},
	}, f
}

func TestTheCheckReportsWhatTheServiceNeedsToUseTheTPM(t *testing.T) {
	const device = "/dev/null" // a device that every user can open
	sandbox := func(private, policy, allowed string) string {
		return running + "PrivateDevices=" + private + "\nDevicePolicy=" + policy + "\n" + allowed
	}
	for _, row := range []struct {
		says, device, unit string
		status             check.Status
		detail, advice     string
	}{
		{"a machine without a TPM", "/nowhere/tpmrm0", running, check.Failed, "does not exist", "firmware"},
		{"a unit without the drop-in", device, sandbox("yes", "closed", "DeviceAllow=/dev/tpmrm0 rw\n"), check.Failed, "PrivateDevices=yes", attest.DropIn},
		{"a drop-in for another device", device, sandbox("no", "closed", "DeviceAllow=/dev/tpmrm0 rw\nDeviceAllow=/dev/null r\n"), check.Failed, "DeviceAllow=/dev/null rw", attest.DropIn},
		{"a drop-in for this device", device, sandbox("no", "closed", "DeviceAllow=/dev/tpmrm0 rw\nDeviceAllow=/dev/null rw\n"), check.OK, "can use it", ""},
		{"a unit without a sandbox", device, sandbox("no", "auto", ""), check.OK, "can use it", ""},
		{"a machine without systemd", device, "", check.OK, "can use it", ""},
	} {
		t.Run(row.says, func(t *testing.T) {
			g, _ := withTPM(row.device)
			g.StateDirectory = t.TempDir()
			if row.unit != "" {
				g.Systemctl = systemd(t, "", row.unit)
			}
			r := run(t, g, check.TPM)
			if len(r) != 1 || r[0].Status != row.status || r[0].Subject != row.device || !strings.Contains(r[0].Detail, row.detail) || !strings.Contains(r[0].Advice, row.advice) {
				t.Fatalf("%+v", r)
			}
			if r[0].Status == check.Failed && r[0].Code != fault.TPMUnavailable {
				t.Errorf("the code is %s", r[0].Code)
			}
		})
	}
	t.Run("a service whose user lacks the group", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can check with the rights of another user")
		}
		file := filepath.Join(t.TempDir(), "tpmrm0")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		g, _ := withTPM(file)
		g.StateDirectory, g.Account = t.TempDir(), check.Account{Name: "nobody", UID: 65534, GID: 65534}
		if r := run(t, g, check.TPM)[0]; r.Status != check.Failed || !strings.Contains(r.Detail, "group tss") || r.Advice != attest.DropIn {
			t.Errorf("%+v", r)
		}
	})
}

func TestWithoutATPMKeyTheTPMIsNotChecked(t *testing.T) {
	g, f := withTPM("/dev/null")
	g.Settings.Certificate, g.StateDirectory = nil, t.TempDir()
	key := filepath.Join(t.TempDir(), "device.key")
	if err := os.WriteFile(key, []byte("c2VjcmV0IG9mIHRoaXMgZ2F0ZXdheSBhbmQgbm9uZSBlbHNl"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: key}}}
	g.Secrets.TPM.Open = nil
	g.Run(t.Context(), true, func(r check.Result) {
		if r.Name == check.TPM {
			t.Errorf("%+v", r)
		}
	})
	if f.Connections() != 0 {
		t.Error("the TPM was opened")
	}
}

func TestATPMKeyIsTestedAndRemovedFromTheTPM(t *testing.T) {
	g, f := withTPM("/dev/null")
	g.StateDirectory, g.Settings.Certificate = t.TempDir(), nil
	text, err := g.Secrets.TPM.Create(context.Background(), tpm.P256, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pair.Issue(pair.Certificate{NotBefore: beginning, NotAfter: beginning.Add(7 * day), TPMKey: text, KeyType: certificate.P256})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	x := attest.X509{Certificate: attest.Reference{File: filepath.Join(dir, "device.pem")}, PrivateKey: attest.Reference{File: filepath.Join(dir, "device.tss2")}}
	for name, data := range map[string][]byte{x.Certificate.File: p.Chain, x.PrivateKey.File: text} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.Settings.Credentials, g.Now = []attest.Credential{x}, withPair(t, pair.Certificate{}).Now
	if r := run(t, g, check.Credential)[0]; r.Status != check.OK || !strings.Contains(r.Detail, "the TPM loads the key in ") || !strings.Contains(r.Detail, "with TLS 1.2 and 1.3") {
		t.Errorf("%+v", r)
	}
	if run(t, g, check.TPM)[0].Status != check.OK || f.Loaded() != 0 {
		t.Errorf("%d keys are loaded", f.Loaded())
	}
	f.Reset()
	if r := run(t, g, check.Credential)[0]; r.Status != check.Failed || r.Code != fault.TPMKeyUnusable || !strings.Contains(r.Advice, "enroll the gateway again") {
		t.Errorf("%+v", r)
	}
	f.Absent = true
	if r := run(t, g, check.Credential)[0]; r.Status != check.Failed || r.Code != fault.TPMUnavailable {
		t.Errorf("%+v", r)
	}
}

func TestTheTPMKeyOfAnIssuedCertificateIsTested(t *testing.T) {
	var f tpmtest.TPM
	device := &tpm.Device{Path: "/dev/null", Open: f.Open}
	text, err := device.Create(context.Background(), tpm.P384, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	g := withPair(t, pair.Certificate{TPMKey: text})
	g.Secrets.TPM, g.Settings.Certificate.KeyStore = device, certificate.InTPM
	expect(t, g, pairOK+"; the TPM loads the key in … works with TLS 1.2 and 1.3", datesOK, filesOK)
	g.Settings.Certificate.KeyStore = certificate.InFile
	all := results(t, g)
	if !slices.ContainsFunc(all, func(r check.Result) bool { return strings.Contains(r.Detail, `its key is not in the key_store "file"`) }) {
		t.Errorf("%+v", all)
	}
	f.Reset()
	expect(t, g, "failed certificate tpm-key-unusable: … cannot decrypt the key … → dpsd certificate renew --wait", datesOK, filesOK)
	if f.Loaded() != 0 {
		t.Errorf("%d keys are loaded", f.Loaded())
	}
}
