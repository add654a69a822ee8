package simulator

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// The files of a simulator's directory.
const (
	fileCA          = "ca.pem"
	fileCAKey       = "ca.key"
	fileScope       = "id-scope"
	fileGroupKey    = "group-key"
	fileDeviceCA    = "device-ca.pem"
	fileDeviceCAKey = "device-ca.key"
	fileEnrollments = "enrollments.toml"
)

const defaultEnrollments = `# Who may register. Paths are relative to this file.
# An individual enrollment goes before the groups.

[[group]]
name = "keys"
type = "symmetric-key"
primary_key_file = "group-key"

[[group]]
name = "certificates"
type = "x509"
ca_file = "device-ca.pem"
`

// loadMaterial reads a directory that was used before, or makes one. A
// directory in which a part is missing is refused rather than mended: keys
// that devices were given must not change unnoticed.
func loadMaterial(dir string, now time.Time) (*material, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // ca.pem and endpoint.json are for others to read
		return nil, err
	}
	scope, err := os.ReadFile(filepath.Join(dir, fileScope))
	if errors.Is(err, fs.ErrNotExist) {
		return createMaterial(dir, now)
	}
	if err != nil {
		return nil, err
	}
	m := &material{scope: strings.TrimSpace(string(scope))}
	if !isIDScope(m.scope) {
		return nil, fmt.Errorf("%s: %q is not an ID scope", filepath.Join(dir, fileScope), m.scope)
	}
	text, err := os.ReadFile(filepath.Join(dir, fileGroupKey))
	if err != nil {
		return nil, err
	}
	if m.groupKey, err = decodeKey(string(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileGroupKey), err)
	}
	if m.server, err = loadAuthority(dir, fileCA, fileCAKey); err != nil {
		return nil, err
	}
	m.device, err = loadAuthority(dir, fileDeviceCA, fileDeviceCAKey)
	return m, err
}

func loadAuthority(dir, certFile, keyFile string) (*authority, error) {
	certificate, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", filepath.Join(dir, certFile), keyFile, err)
	}
	return a, nil
}

// createMaterial writes the scope last: its presence says that the rest is there.
func createMaterial(dir string, now time.Time) (*material, error) {
	m, err := newMaterial(randomBytes, now)
	if err != nil {
		return nil, err
	}
	caKey, err := keyPEM(m.server.key)
	if err != nil {
		return nil, err
	}
	deviceKey, err := keyPEM(m.device.key)
	if err != nil {
		return nil, err
	}
	type file struct {
		name string
		text []byte
		mode fs.FileMode
	}
	files := []file{
		{fileCA, certificatePEM(m.server.certificate.Raw), 0o644},
		{fileCAKey, caKey, 0o600},
		{fileGroupKey, []byte(base64.StdEncoding.EncodeToString(m.groupKey) + "\n"), 0o600},
		{fileDeviceCA, certificatePEM(m.device.certificate.Raw), 0o644},
		{fileDeviceCAKey, deviceKey, 0o600},
	}
	// Enrollments that were put there beforehand are the user's.
	if _, err := os.Stat(filepath.Join(dir, fileEnrollments)); errors.Is(err, fs.ErrNotExist) {
		files = append(files, file{fileEnrollments, []byte(defaultEnrollments), 0o644})
	}
	files = append(files, file{fileScope, []byte(m.scope + "\n"), 0o644})
	for _, f := range files {
		if err := renameio.WriteFile(filepath.Join(dir, f.name), f.text, f.mode); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func loadEnrollments(path string) (*Enrollments, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return ParseEnrollments(path, bytes.NewReader(text))
}
