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

// homes are directories that are hidden from dpsd.service, see ProtectHome= in
// systemd.exec(5). Files below them appear missing or unreadable.
var homes = []string{"/home/", "/root/", "/run/user/"}

// inHome sets the circumstance of a fault about an unreadable file if the file is in a
// home, where its mode does not matter.
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

// pathOf returns the path of the file that caused an error, or "".
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
