package attest

import (
	"errors"
	"os"

	"github.com/dpsd-project/dpsd/input"
)

// content describes the expected content of a file. The advice about a file with other
// content uses it.
type content struct {
	text    string // description for people
	setting string // key in dpsd.toml that names the file
	name    string // usual name of the file
}

var (
	symmetricKey = content{"the device's key in base64", "key", "device.key"}
	certificates = content{"the certificate chain in PEM", "certificate", "device.pem"}
	privateKey   = content{"the private key in PEM", "private_key", "device-key.pem"}
	password     = content{"the password", "proxy_password", "proxy-password"}
)

// advise adds the command that writes the right content to the error of a file, unless
// the error has a better remedy or the file system is the cause.
func (c content) advise(path string, err error) error {
	m := &input.Mistake{What: err.Error(), Then: c.paste(), Err: err}
	var known *input.Mistake
	switch {
	case errors.As(err, &known):
		if known.Remedy() == "" {
			known.Command, known.Then = keep+"cat >FILE", c.paste()
		}
		return err
	case errors.Is(err, ErrEmpty):
		m.Command = "cat >FILE"
	case errors.Is(err, input.ErrTooLarge):
		m.Command = "mv FILE FILE.orig && cp -p --attributes-only FILE.orig FILE && cat >FILE"
	case errors.Is(err, input.ErrNotRegular):
		m.Command, m.Then = c.replace(path)
	case errors.Is(err, ErrNotBase64), errors.Is(err, ErrKeyLength), errors.Is(err, ErrNotPassword):
		m.Command = keep + "cat >FILE"
	default:
		return err
	}
	return m
}

func (c content) paste() string { return "paste " + c.text + " and press Ctrl+D" }

// replace returns the advice for a path that does not name a regular file. The command
// removes neither a device nor a directory that is not empty.
func (c content) replace(path string) (command, then string) {
	const install = "install -o root -g dpsd-keys -m 0640 /dev/stdin "
	if entries, err := os.ReadDir(path); len(entries) > 0 || errors.Is(err, os.ErrPermission) {
		return "ls -lA FILE", "refer to the right file in it: " + c.setting + ` = "file:` + path + `/NAME"`
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.IsDir():
		return "rmdir FILE && " + install + "FILE", c.paste()
	case err == nil && info.Mode()&os.ModeDevice != 0:
		file := "/etc/dpsd/keys/" + c.name
		return install + file, c.paste() + "; then set " + c.setting + ` = "file:` + file + `" in dpsd.toml`
	}
	return "mv FILE FILE.orig && " + install + "FILE", c.paste()
}
