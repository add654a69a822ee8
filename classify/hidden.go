package classify

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

// homes are hidden from dpsd.service, ProtectHome= in systemd.exec(5). What is below them
// looks like a file that does not exist or may not be read.
var homes = []string{"/home/", "/root/", "/run/user/"}

// inHome completes a fault of a file that cannot be read: in a home, its mode is not what
// matters.
func inHome(f fault.Fault) fault.Fault {
	if !slices.Contains([]fault.Code{fault.InputUnreadable, fault.CredentialUnreadable, fault.CAUnreadable}, f.Code) ||
		!errors.Is(f.Err, fs.ErrNotExist) && !errors.Is(f.Err, fs.ErrPermission) {
		return f
	}
	path := pathOf(f.Err)
	if slices.ContainsFunc(homes, func(home string) bool { return strings.HasPrefix(path, home) }) {
		f.Circumstance = fault.Hidden
	}
	return f
}

// pathOf finds the file that an error is about; "" for none.
func pathOf(err error) string {
	var (
		secret   *attest.SecretError
		identity *attest.IdentityError
		payload  *PayloadError
		ca       *transport.Error
	)
	switch {
	case errors.As(err, &secret):
		return cmp.Or(secret.Reference.File, secret.Path)
	case errors.As(err, &identity):
		return identity.Path
	case errors.As(err, &payload):
		return payload.Path
	case errors.As(err, &ca):
		return ca.Address
	}
	return ""
}
