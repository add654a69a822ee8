package simulator

import (
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/simulator/enroll"
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
	fileIssuingRoot = "issuing-root.pem"
	fileIssuingCA   = "issuing-ca.pem"
	fileIssuingKey  = "issuing-ca.key"
	fileRootKey     = "issuing-root.key"
	fileAssignments = "assignments.json"
	fileServiceKey  = "service-key"
	fileModules     = "modules.json"
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

// loadMaterial reads an existing directory, or creates one. If part of an existing
// directory is missing, loadMaterial returns an error instead of replacing the part: keys
// that devices have received must not change unnoticed.
func loadMaterial(dir string, now time.Time) (*material, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // ca.pem and endpoint.json are for others to read
		return nil, err
	}
	var m *material
	scope, err := os.ReadFile(filepath.Join(dir, fileScope))
	if errors.Is(err, fs.ErrNotExist) {
		m, err = createMaterial(dir, now)
	} else if err == nil {
		m, err = readMaterial(dir, string(scope))
	}
	if err == nil {
		m.serviceKey, err = loadServiceKey(dir)
	}
	if err == nil {
		var is *issuing
		is, err = loadIssuing(dir, now)
		m.issuer = &issuer{current: is, save: func(is *issuing) error { return writeIssuing(dir, is) }}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; the directory was used before (it contains %s): restore the file, or use another directory", err, fileScope)
	}
	return m, err
}

// loadServiceKey reads the key of the service API, or creates it if it does not exist.
func loadServiceKey(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, fileServiceKey))
	if errors.Is(err, fs.ErrNotExist) {
		key := randomBytes("service-key", 64)
		w := directory{path: dir}
		w.write(fileServiceKey, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600)
		return key, w.err
	}
	if err != nil {
		return nil, err
	}
	key, err := enroll.DecodeKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileServiceKey), err)
	}
	return key, nil
}

func readMaterial(dir, scope string) (*material, error) {
	m := &material{scope: strings.TrimSpace(scope)}
	if !isIDScope(m.scope) {
		return nil, fmt.Errorf("%s: %q is not an ID scope", filepath.Join(dir, fileScope), m.scope)
	}
	text, err := os.ReadFile(filepath.Join(dir, fileGroupKey))
	if err != nil {
		return nil, err
	}
	if m.groupKey, err = enroll.DecodeKey(string(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileGroupKey), err)
	}
	if m.server, err = loadAuthority(dir, fileCA, fileCAKey); err == nil {
		m.device, err = loadAuthority(dir, fileDeviceCA, fileDeviceCAKey)
	}
	return m, err
}

// loadIssuing reads the issuing authority, or creates it if it does not exist. The root
// is written last: if it exists, the other files exist.
func loadIssuing(dir string, now time.Time) (*issuing, error) {
	text, err := os.ReadFile(filepath.Join(dir, fileIssuingRoot))
	if errors.Is(err, fs.ErrNotExist) {
		return createIssuing(dir, now)
	}
	if err != nil {
		return nil, err
	}
	root, err := enroll.Certificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, fileIssuingRoot), err)
	}
	ca, err := loadAuthority(dir, fileIssuingCA, fileIssuingKey)
	if err != nil {
		return nil, err
	}
	if err := ca.certificate.CheckSignatureFrom(root[0]); err != nil {
		return nil, fmt.Errorf("%s: not signed by %s: %w", filepath.Join(dir, fileIssuingCA), fileIssuingRoot, err)
	}
	i := &issuing{root: &authority{certificate: root[0]}, ca: ca}
	if _, err := os.Stat(filepath.Join(dir, fileRootKey)); !errors.Is(err, fs.ErrNotExist) { // earlier versions did not keep it
		i.root, err = loadAuthority(dir, fileIssuingRoot, fileRootKey)
		return i, err
	}
	return i, nil
}

func createIssuing(dir string, now time.Time) (*issuing, error) {
	i, err := newIssuing(now)
	if err != nil {
		return nil, err
	}
	return i, writeIssuing(dir, i)
}

func writeIssuing(dir string, i *issuing) error {
	w := directory{path: dir}
	w.authority(i.ca, fileIssuingCA, fileIssuingKey)
	w.authority(i.root, fileIssuingRoot, fileRootKey)
	return w.err
}

// directory writes files into a directory until the first error.
type directory struct {
	path string
	err  error
}

func (d *directory) write(name string, text []byte, mode fs.FileMode) {
	if d.err == nil {
		d.err = renameio.WriteFile(filepath.Join(d.path, name), text, mode, renameio.WithTempDir(d.path))
	}
}

func (d *directory) authority(a *authority, certificate, key string) {
	text, err := keyPEM(a.key)
	d.err = errors.Join(d.err, err)
	d.write(key, text, 0o600)
	d.write(certificate, certificatePEM(a.certificate.Raw), 0o644)
}

func loadAuthority(dir, certFile, keyFile string) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if errors.As(err, new(*fs.PathError)) {
		return nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if err == nil && !ok {
		err = errors.New("the private key is not an EC key")
	}
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", filepath.Join(dir, certFile), keyFile, err)
	}
	return &authority{pair.Leaf, key}, nil
}

// createMaterial writes the scope last: if it exists, the other files exist.
func createMaterial(dir string, now time.Time) (*material, error) {
	m, err := newMaterial(randomBytes, now)
	if err != nil {
		return nil, err
	}
	w := directory{path: dir}
	w.authority(m.server, fileCA, fileCAKey)
	w.authority(m.device, fileDeviceCA, fileDeviceCAKey)
	w.write(fileGroupKey, []byte(base64.StdEncoding.EncodeToString(m.groupKey)+"\n"), 0o600)
	// Existing enrollments belong to the user.
	if _, err := os.Stat(filepath.Join(dir, fileEnrollments)); errors.Is(err, fs.ErrNotExist) {
		w.write(fileEnrollments, []byte(defaultEnrollments), 0o644)
	}
	w.write(fileScope, []byte(m.scope+"\n"), 0o644)
	return m, w.err
}
