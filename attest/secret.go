package attest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/tpm"
)

// maxSecret is the maximum size of a secret or an identity file, in bytes. A
// certificate with a long chain has about 10 KiB; a device file is unbounded.
const maxSecret = 64 << 10

// Errors in a reference or in the file that it names. The errors for missing and
// unreadable files are fs.ErrNotExist and fs.ErrPermission.
var (
	// ErrNotReference means that a text is not a reference. No error contains the text,
	// because it may be the secret itself.
	ErrNotReference = errors.New(`not a reference: write "file:/path" or "credential:NAME"; do not write the secret itself here`)
	// ErrNoReference means that a reference is the zero value.
	ErrNoReference = errors.New("no reference is set")
	// ErrEncrypted means that the file contains a credential encrypted by systemd-creds,
	// not its plaintext.
	ErrEncrypted = errors.New("the credential is still encrypted")
	// ErrEmpty means that the file contains only white space.
	ErrEmpty = errors.New("the file is empty")
	// ErrTPMKey means that a file contains a TPM key of the wrong type.
	ErrTPMKey = errors.New("the TPM key has the wrong type")
	// ErrSigner means that a reference is to a signer, which never reveals its key.
	ErrSigner = errors.New("a signer never reveals its key")
	// ErrNotPassword means that the file does not consist of one line of text.
	ErrNotPassword = errors.New("the file is not one line of text")
)

// Reference names the location of a secret. At most one field is set; the zero value
// refers to nothing.
type Reference struct {
	// File is an absolute path ("file:/etc/dpsd/keys/device.key").
	File string
	// Credential is the name of a systemd credential ("credential:dps-primary-key").
	Credential string
	// Signer is the absolute path of the socket of a signer, which holds a private key
	// ("signer:/run/dpsd-signer/device.sock").
	Signer string
}

// ParseReference parses "file:/path", "credential:NAME" or "signer:/path". For any other text
// it returns ErrNotReference. No error contains the text, because people paste keys here. A path
// must be absolute. A name may contain letters, digits and "._@-". systemd allows more
// characters, but a padded base64 key must not be accepted as a name.
func ParseReference(s string) (Reference, error) {
	if path, ok := strings.CutPrefix(s, "file:"); ok {
		path, err := parsePath("file:", path)
		return Reference{File: path}, err
	}
	if path, ok := strings.CutPrefix(s, "signer:"); ok {
		path, err := parsePath("signer:", path)
		if len(path) > maxSocket {
			path, err = "", fmt.Errorf(`the path after "signer:" has %d bytes; the path of a socket can have at most %d`, len(path), maxSocket)
		}
		return Reference{Signer: path}, err
	}
	if name, ok := strings.CutPrefix(s, "credential:"); ok {
		if !validCredentialName(name) {
			return Reference{}, errors.New(`the name after "credential:" must consist of 1 to 255 letters, digits or any of "._@-"; it is not a path`)
		}
		return Reference{Credential: name}, nil
	}
	return Reference{}, ErrNotReference
}

// maxSocket is the maximum length of the path of a socket, without its final NUL (unix(7)).
const maxSocket = 107

// parsePath returns the path after a prefix.
func parsePath(prefix, path string) (string, error) {
	switch {
	case !filepath.IsAbs(path):
		return "", fmt.Errorf("the path after %q must be absolute", prefix)
	case strings.HasPrefix(path, "//"):
		return "", fmt.Errorf("write %q, with one slash", prefix+"/path")
	case strings.ContainsFunc(path, isControl):
		return "", fmt.Errorf("the path after %q contains a control character", prefix)
	}
	return filepath.Clean(path), nil
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func validCredentialName(name string) bool {
	if name == "" || len(name) > 255 || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return !isLetterOrDigit(r) && !strings.ContainsRune("._@-", r) })
}

func isLetterOrDigit(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// String returns the reference as written in the configuration, or "" for the zero value.
func (r Reference) String() string {
	if r.File != "" {
		return "file:" + r.File
	}
	if r.Credential != "" {
		return "credential:" + r.Credential
	}
	if r.Signer != "" {
		return "signer:" + r.Signer
	}
	return ""
}

// IsZero reports whether r refers to nothing.
func (r Reference) IsZero() bool { return r == Reference{} }

// Secrets reads the secrets that references name. The zero value reads only files.
type Secrets struct {
	// Directories are searched for the file of a credential, in this order.
	Directories []string
	// Encrypted are directories that contain only encrypted credentials. Files in them
	// are never read; a name found there explains why it was not found elsewhere.
	Encrypted []string
	// TPM loads the keys in TSS2 files; nil stands for the TPM of this machine.
	TPM *tpm.Device
	// FilesOnly means that Prove checks only files, and uses neither a TPM nor a signer. If one
	// of them holds the key, the proof cannot be used.
	FilesOnly bool
	// Waiting is called with the name of a TPM or a signer before it is used, which may take
	// some time. It may be nil.
	Waiting func(what string)
}

// SystemSecrets returns the directories of systemd.exec(5). credentialsDirectory is the
// value of $CREDENTIALS_DIRECTORY, which is the only directory that the service searches.
// If it is empty, because a command runs outside the service, the directory of the running
// service and then the credential stores are searched.
func SystemSecrets(credentialsDirectory string) Secrets {
	s := Secrets{
		Directories: []string{"/run/credentials/dpsd.service", "/etc/credstore", "/run/credstore", "/usr/lib/credstore"},
		Encrypted:   []string{"/etc/credstore.encrypted", "/run/credstore.encrypted", "/usr/lib/credstore.encrypted"},
	}
	if credentialsDirectory != "" {
		s.Directories = []string{credentialsDirectory}
	}
	return s
}

// SecretError names the secret that cannot be used. Err wraps a sentinel of this
// package, a *CertificateError or an error of the file system.
type SecretError struct {
	// Reference is the reference in the configuration.
	Reference Reference
	// Path is the file that was read, or "" if there was none.
	Path string
	// Err is the cause.
	Err error
}

// Error names the reference, the file if the reference does not name it, and the cause.
func (e *SecretError) Error() string {
	where := e.Reference.String()
	if e.Reference.File == "" && e.Path != "" {
		where += " (" + e.Path + ")"
	}
	if where == "" {
		return e.Err.Error()
	}
	return where + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *SecretError) Unwrap() error { return e.Err }

// Paths returns the files to watch for r. A credential may appear in any of the
// directories. Paths returns no file for a signer, because a change of its socket does not mean
// that its key has changed.
func (s Secrets) Paths(r Reference) []string {
	if r.File != "" {
		return []string{r.File}
	}
	var paths []string
	if r.Credential != "" {
		for _, d := range s.Directories {
			paths = append(paths, filepath.Join(d, r.Credential))
		}
	}
	return paths
}

// Path returns the file that messages name for r. For a credential, this is the file in
// the first directory that contains one, or else the file in the first directory. Path
// returns "" if there is no directory.
func (s Secrets) Path(r Reference) string {
	paths := s.Paths(r)
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			return path
		}
	}
	if len(paths) > 0 {
		return paths[0]
	}
	return ""
}

// Read returns the contents of the file that r names, at most 64 KiB. All errors are
// *SecretError and wrap fs.ErrNotExist, fs.ErrPermission, ErrNoReference, ErrSigner, ErrEmpty,
// ErrEncrypted, an error of package input or another error of the file system.
func (s Secrets) Read(r Reference) ([]byte, error) {
	if r.IsZero() {
		return nil, &SecretError{Err: ErrNoReference}
	}
	if r.Signer != "" {
		return nil, &SecretError{Reference: r, Err: ErrSigner}
	}
	data, path, err := s.find(r)
	if err == nil {
		err = unlikeSecret(data)
	}
	if err != nil {
		return nil, &SecretError{Reference: r, Path: path, Err: about(r, err)}
	}
	return data, nil
}

// use passes the text of r to f, and then clears it. c is the expected content of the file.
func (s Secrets) use(r Reference, c content, f func(text []byte) error) error {
	data, err := s.Read(r)
	if secret, is := errors.AsType[*SecretError](err); is {
		secret.Err = about(r, c.advise(secret.Path, secret.Err))
		return secret
	}
	defer clear(data)
	if err := f(data); err != nil {
		return s.unusable(r, c, err)
	}
	return nil
}

// Password returns the contents of the file that r names without the newline that editors
// append. For the zero value of r it returns "". Its errors are those of Read and
// ErrNotPassword.
func (s Secrets) Password(r Reference) (text string, err error) {
	if r.IsZero() {
		return "", nil
	}
	err = s.use(r, password, func(data []byte) error {
		line := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		// RFC 7617 §2.
		if !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
			return ErrNotPassword
		}
		text = line
		return nil
	})
	return text, err
}

// find reads the file of r. A file that exists but cannot be read ends the search, because
// a file in a later directory is not the one that the service uses.
func (s Secrets) find(r Reference) (data []byte, path string, err error) {
	if r.Credential == "" {
		data, err = readFile(r.File)
		return data, r.File, err
	}
	for _, d := range s.Directories {
		path = filepath.Join(d, r.Credential)
		data, err = readFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, path, err
		}
	}
	for _, d := range s.Encrypted {
		path = filepath.Join(d, r.Credential)
		if _, err := os.Lstat(path); err == nil {
			return nil, path, fmt.Errorf("only an encrypted credential exists: %w", ErrEncrypted)
		}
	}
	if len(s.Directories) == 0 {
		return nil, "", fmt.Errorf("there is no directory to look for credentials in: %w", fs.ErrNotExist)
	}
	return nil, s.Path(r), fmt.Errorf("no such credential in %s: %w", strings.Join(s.Directories, ", "), fs.ErrNotExist)
}

// readFile reads a text of bounded size.
func readFile(path string) ([]byte, error) {
	data, err := input.Read(path, maxSecret)
	return data, input.Cause(err)
}

// unusable returns the error for a secret that was read but cannot be used. c is the
// expected content of the file.
func (s Secrets) unusable(r Reference, c content, err error) error {
	path := s.Path(r)
	return &SecretError{Reference: r, Path: path, Err: about(r, c.advise(path, err))}
}

// sealedPrefixes are the identifiers at the beginning of a credential encrypted by
// systemd-creds(1). An identifier has 16 bytes, so the first 21 base64 characters do not
// depend on the bytes that follow. systemd 257 passes such text to a service as if it were
// the secret if the file is in a credstore.encrypted directory and the unit has
// LoadCredential=.
var sealedPrefixes = []string{
	"Whxqht+dQJax1aZeCGLxm", // host key
	"BYRp2vb1QySABUnaD46i+", // null key
	"DHzAexF2RZGcSwvqCLwg/", // TPM
	"+vfrk0HjQSyhpDb5Wik2L", // TPM, signed PCR
	"k6iUCUh0RJCQyvL8k8q1U", // host and TPM
	"r0lQqEkTTrGnOEYwT/MMB", // host and TPM, signed PCR
	"VbntHThZTUOoMZ0uuzMqx", // host, scoped
	"70rBNnmpSA6n22iJf58WX", // host and TPM, scoped
	"rbxMo++2QgG6iBtvLkCV6", // host and TPM, signed PCR, scoped
}

// unlikeSecret returns the reason why data cannot be a secret, or nil.
func unlikeSecret(data []byte) error {
	text := bytes.TrimSpace(data)
	switch {
	case len(text) == 0:
		return ErrEmpty
	case slices.ContainsFunc(sealedPrefixes, func(p string) bool { return bytes.HasPrefix(text, []byte(p)) }):
		return ErrEncrypted
	}
	return nil
}
