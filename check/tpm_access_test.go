package check

import (
	"context"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
)

func TestOnlyAUnitWhoseSandboxAllowsTheTPMCanUseIt(t *testing.T) {
	const device = "/dev/tpmrm0"
	for _, c := range []struct {
		expect     string
		properties map[string]string
		admits     bool
	}{
		{"the unit of the package hides devices", map[string]string{"PrivateDevices": "yes", "DevicePolicy": "closed"}, false},
		{"a unit with PrivateDevices hides the TPM although it is allowed", map[string]string{"PrivateDevices": "yes", "DevicePolicy": "closed", "DeviceAllow": device + " rw"}, false},
		{"the drop-in allows the TPM", map[string]string{"PrivateDevices": "no", "DevicePolicy": "closed", "DeviceAllow": device + " rw"}, true},
		{"one of several devices", map[string]string{"PrivateDevices": "no", "DevicePolicy": "closed", "DeviceAllow": "/dev/null rw\n" + device + " rw"}, true},
		{"another device", map[string]string{"PrivateDevices": "no", "DevicePolicy": "closed", "DeviceAllow": "/dev/tpm0 rw"}, false},
		{"a list without the device", map[string]string{"PrivateDevices": "no", "DevicePolicy": "auto", "DeviceAllow": "/dev/null rw"}, false},
		{"read-only access", map[string]string{"PrivateDevices": "no", "DevicePolicy": "closed", "DeviceAllow": device + " r"}, false},
		{"no device at all", map[string]string{"PrivateDevices": "no", "DevicePolicy": "closed"}, false},
		{"a unit without a sandbox for devices", map[string]string{"PrivateDevices": "no", "DevicePolicy": "auto"}, true},
	} {
		c.properties["LoadState"] = "loaded"
		if why := (&unit{properties: c.properties}).deniesDevice(device); (why == "") != c.admits {
			t.Errorf("%s: %q", c.expect, why)
		}
	}
}

func TestTheReasonWhyTheServiceCannotUseTheTPMComesWithACommand(t *testing.T) {
	device := filepath.Join(t.TempDir(), "tpmrm0")
	if err := errors.Join(os.WriteFile(device, nil, 0o600), os.Chmod(filepath.Dir(device), 0o755), os.Chmod(filepath.Dir(filepath.Dir(device)), 0o755)); err != nil {
		t.Fatal(err)
	}
	unit := func(text string) func(context.Context, ...string) ([]byte, error) {
		return func(context.Context, ...string) ([]byte, error) { return []byte(text), nil }
	}
	const packaged = "LoadState=loaded\nPrivateDevices=yes\nDevicePolicy=closed\nDeviceAllow=\n"
	open := "LoadState=loaded\nPrivateDevices=no\nDevicePolicy=closed\nDeviceAllow=" + device + " rw\n"
	self := Account{Name: "dpsd", UID: os.Geteuid()}
	stranger := Account{Name: "dpsd", UID: 4711, GID: 4711}
	for _, c := range []struct {
		expect    string
		account   Account
		device    string
		systemctl func(context.Context, ...string) ([]byte, error)
		problem   string // a part of it; "" for none
	}{
		{"the unit of the package", self, device, unit(packaged), "PrivateDevices=yes, which hides the device"},
		{"the drop-in", self, device, unit(open), ""},
		{"the drop-in, and a user without access", stranger, device, unit(open), "the user dpsd is not allowed to use the device"},
		{"without systemd", self, device, nil, ""},
		{"without systemd, and a user without access", stranger, device, nil, "the user dpsd is not allowed to use the device"},
		{"a unit that is not installed", self, device, unit("LoadState=not-found\nPrivateDevices=yes\n"), ""},
		{"systemd does not answer", self, device, func(context.Context, ...string) ([]byte, error) { return nil, errors.New("hung") }, ""},
		{"no TPM", stranger, device + "1", unit(packaged), ""},
	} {
		if os.Geteuid() != 0 && c.account.UID == stranger.UID {
			c.problem = "" // unknown
		}
		command := attest.DropIn
		if _, err := user.LookupGroup(tpmGroup); err != nil && c.problem != "" {
			c.problem, command = "the group tss does not exist", "apt install tpm-udev"
		}
		problem, remedy := ServiceTPM(t.Context(), c.account, c.device, c.systemctl)
		switch {
		case c.problem == "" && problem+remedy != "", c.problem != "" && (!strings.Contains(problem, c.problem) || !strings.Contains(remedy, command)):
			t.Errorf("%s: %q, %q; want %q", c.expect, problem, remedy, c.problem)
		}
	}
}
