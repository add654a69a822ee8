package check

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/user"

	"github.com/dpsd-project/dpsd/attest"
)

// ServiceTPM returns why dpsd.service, which runs as an account, is not allowed to use the device
// of a TPM, and the command that corrects this. Both are "" if it is allowed to, if there is no
// TPM, or if the answer is unknown. If systemctl is nil, ServiceTPM does not query the unit. It
// does not open the device.
func ServiceTPM(ctx context.Context, a Account, device string, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (problem, command string) {
	info, err := os.Stat(device)
	if errors.Is(err, fs.ErrNotExist) {
		return "", ""
	}
	if systemctl != nil {
		u, _ := askUnit(ctx, systemctl) // without an answer, it is unknown whether the unit denies the device
		problem = u.deniesDevice(device)
	}
	// Only root and the user of the service can determine this.
	if problem == "" && err == nil && (a.impersonates() || os.Geteuid() == a.UID) {
		if err := a.do(func() error { return accessible(device, info) }); errors.Is(err, fs.ErrPermission) {
			problem = "the user " + a.Name + " is not allowed to use the device, which belongs to the group " + groupName(gidOf(info))
		}
	}
	if problem == "" {
		return "", ""
	}
	if _, err := user.LookupGroup(tpmGroup); err != nil {
		return "the group " + tpmGroup + " does not exist", "apt install tpm-udev && udevadm trigger " + device + "; then " + attest.DropIn
	}
	return problem, attest.DropIn
}
