package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/tpm"
)

// tpmGroup is the group that Debian's package tpm-udev gives access to the device.
const tpmGroup = "tss"

// tpm checks whether there is a TPM, and whether the service is allowed to use it. It reports
// nothing if the configuration does not need a TPM. Other steps test the keys.
func (i *inspection) tpm() {
	if !i.needsTPM() {
		return
	}
	device := i.Secrets.Device()
	r := Result{Name: TPM, Subject: device}
	unavailable := func(err error, advice string) {
		i.report(i.unusablePair(r, fault.TPMUnavailable, err, advice))
	}
	info, err := os.Stat(device)
	if errors.Is(err, fs.ErrNotExist) {
		unavailable(errors.New("the device does not exist"), "Check that the TPM is enabled in the firmware settings, and that the kernel has a driver for it: ls /sys/class/tpm")
		return
	}
	if err == nil && info.Mode()&fs.ModeCharDevice != 0 {
		if why := i.unit.deniesDevice(device); why != "" && i.Installed {
			unavailable(errors.New(why), attest.DropIn)
			return
		}
	}
	if err == nil {
		err = i.Account.do(func() error { return accessible(device, info) })
	}
	switch {
	case err == nil:
		i.ok(r, "dpsd can use it")
	case errors.Is(err, fs.ErrPermission) && i.otherUser():
		i.skip(r, i.asSeen(input.Cause(err)).Error())
	case errors.Is(err, fs.ErrPermission):
		unavailable(fmt.Errorf("mode %04o, group %s: the user that dpsd runs as is not allowed to use it, and needs the group %s", info.Mode().Perm(), groupName(gidOf(info)), tpmGroup), attest.DropIn)
	default:
		unavailable(err, fault.Describe(fault.TPMUnavailable).Advice)
	}
}

// accessible returns an error if this thread is not allowed to read and write the device. It does
// not open the device, which another program may be using exclusively.
func accessible(device string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // of a software TPM
	}
	// AT_EACCESS: with the user of the thread.
	err := unix.Faccessat(unix.AT_FDCWD, device, unix.R_OK|unix.W_OK, unix.AT_EACCESS)
	if err != nil {
		return &fs.PathError{Op: "access", Path: device, Err: err}
	}
	return nil
}

// needsTPM reports whether a credential or the issued certificate has a TPM key.
func (i *inspection) needsTPM() bool {
	if c := i.Settings.Certificate; c != nil && c.KeyStore == certificate.InTPM {
		return true
	}
	for _, c := range i.Settings.Credentials {
		if i.tpmKey(c) != nil {
			return true
		}
	}
	return false
}

// tpmKey returns the text of the TSS2 file of a credential, or nil if it has none.
func (i *inspection) tpmKey(c attest.Credential) []byte {
	for _, k := range c.Type().Keys(c) {
		if !k.Secret || k.Reference.Signer != "" {
			continue
		}
		text, err := i.Secrets.Read(*k.Reference)
		if err == nil && tpm.Is(text) {
			return text
		}
		clear(text)
	}
	return nil
}

// works tests a TPM key, and describes the result.
func (i *inspection) works(ctx context.Context, text []byte) (string, error) {
	i.Progress("testing a TPM key")
	result, err := i.Secrets.TestKey(ctx, text)
	if err != nil {
		return "", err
	}
	took := fmt.Sprintf("the TPM loads the key in %s and uses it in %s", result.Load.Round(time.Millisecond), result.Use.Round(time.Millisecond))
	switch {
	case result.TLS12 && result.TLS13:
		took += "; the key works with TLS 1.2 and 1.3"
	case result.TLS12:
		took += "; the key works only with TLS 1.2"
	case result.TLS13:
		took += "; the key works only with TLS 1.3"
	}
	return took, nil
}

// deniesDevice returns why the sandbox of the unit denies access to a device, or "".
func (u *unit) deniesDevice(device string) string {
	if u == nil || u.properties["LoadState"] != "loaded" {
		return ""
	}
	switch allowed := u.properties["DeviceAllow"]; {
	case u.properties["PrivateDevices"] == "yes":
		return unitName + " has PrivateDevices=yes, which hides the device"
	case u.properties["DevicePolicy"] == "auto" && allowed == "":
		return ""
	case !strings.Contains("\n"+allowed+"\n", "\n"+device+" rw"):
		return fmt.Sprintf("%s lacks DeviceAllow=%s rw, so the service cannot open the device", unitName, device)
	}
	return ""
}
