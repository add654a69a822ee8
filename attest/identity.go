package attest

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// machineIDFile is the file in which systemd stores the machine ID (machine-id(5)).
const machineIDFile = "/etc/machine-id"

// Maximum lengths of a registration ID (DPS page "Terminology") and of a common name,
// which is shorter (RFC 5280, ub-common-name).
const (
	maxRegistrationID = 128
	maxCommonName     = 64
	machineIDLength   = 32
)

var (
	// ErrRegistrationID means that a text is not a valid registration ID.
	ErrRegistrationID = errors.New("not a valid registration ID")
	// ErrTemplate means that a template contains an unknown verb.
	ErrTemplate = errors.New("not a valid template of a registration ID")
	// ErrNoMachineID means that /etc/machine-id is missing, empty, malformed, all zeros or
	// "uninitialized", as in an image before its first boot.
	ErrNoMachineID = errors.New("this machine has no machine ID yet")
	// ErrNoHostname means that the host name is not set or is equivalent to "localhost",
	// which would make every gateway of a fleet the same device.
	ErrNoHostname = errors.New("this machine has no host name of its own")
	// ErrNoSource means that a RegistrationID is the zero value.
	ErrNoSource = errors.New("no source of the registration ID is set")
)

// RegistrationID is the source of the registration ID. Exactly one field is set.
type RegistrationID struct {
	// Template is the ID itself. It may contain the verbs %H (host name), %m (machine
	// ID) and %% (percent sign).
	Template string
	// File is the path of a file whose first line is the ID.
	File string
	// FromCertificate is a certificate whose common name is the ID.
	FromCertificate *X509
}

// Host supplies the values of the verbs in templates. If a field is nil, the value comes
// from the system: os.Hostname or /etc/machine-id.
type Host struct {
	// Hostname returns the host name.
	Hostname func() (string, error)
	// MachineID returns the machine ID, 32 hexadecimal digits.
	MachineID func() (string, error)
}

// IdentityError means that the registration ID cannot be determined at present.
type IdentityError struct {
	// Source is the source that failed: "%H", "%m", "registration_id",
	// "registration_id_file" or "certificate".
	Source string
	// Path is the file that was read, or "".
	Path string
	// Err wraps a sentinel of this package, a *SecretError or an error of the file system.
	Err error
}

// Error names the source, the file and the cause.
func (e *IdentityError) Error() string {
	text := "registration ID from " + e.Source
	// A *SecretError names its file itself.
	if e.Path != "" && !errors.As(e.Err, new(*SecretError)) {
		text += " (" + e.Path + ")"
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *IdentityError) Unwrap() error { return e.Err }

// Remedy says how to create a machine ID. systemd-machine-id-setup(1) keeps a machine ID
// that it considers valid, which may be all zeros. Remedy returns "" for other sources.
func (e *IdentityError) Remedy() string {
	if !errors.Is(e.Err, ErrNoMachineID) || errors.As(e.Err, new(*os.PathError)) && !errors.Is(e.Err, os.ErrNotExist) {
		return ""
	}
	return "Create a new machine ID: rm -f /etc/machine-id && systemd-machine-id-setup. dpsd checks it every 10 seconds."
}

// CheckRegistrationID checks that s is a valid registration ID: 1 to 128 letters, digits,
// or any of "-._:", beginning with a letter or digit and ending with a letter, digit or
// "-". The error wraps ErrRegistrationID and gives the reason.
func CheckRegistrationID(s string) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrRegistrationID, fmt.Sprintf(format, a...))
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > maxRegistrationID {
		return bad("it has %d characters; at most %d are allowed", len(s), maxRegistrationID)
	}
	for _, r := range s {
		if !isLetterOrDigit(r) && !strings.ContainsRune("-._:", r) {
			return bad(`%q is not allowed; use letters, digits and "-._:"`, r)
		}
	}
	if first := rune(s[0]); !isLetterOrDigit(first) {
		return bad("it must begin with a letter or digit, not %q", first)
	}
	if last := rune(s[len(s)-1]); !isLetterOrDigit(last) && last != '-' {
		return bad(`it must end with a letter, digit or "-", not %q`, last)
	}
	return nil
}

// ParseTemplate checks that s can produce a valid registration ID: its verbs are %H, %m
// and %%, and its literal characters are valid in a registration ID. A percent sign is
// not, so ParseTemplate rejects %% for that reason. Errors wrap ErrTemplate (a verb) or
// ErrRegistrationID (a character, the length). Resolve checks the host name.
func ParseTemplate(s string) error {
	// The values are valid at any position and have the minimum length for the verb.
	example, err := expand(s, literal("h"), literal(strings.Repeat("0", machineIDLength)))
	if err != nil {
		return err
	}
	return CheckRegistrationID(example)
}

func literal(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// expand replaces the verbs of a template: %H, %m, and %% for a percent sign.
func expand(template string, hostname, machineID func() (string, error)) (string, error) {
	var b strings.Builder
	for {
		text, rest, found := strings.Cut(template, "%")
		b.WriteString(text)
		if !found {
			return b.String(), nil
		}
		if rest == "" {
			return "", fmt.Errorf("%w: it ends with an incomplete %% verb", ErrTemplate)
		}
		value, err := "%", error(nil)
		switch verb := rest[0]; verb {
		case '%':
		case 'H':
			value, err = hostname()
		case 'm':
			value, err = machineID()
		default:
			err = fmt.Errorf("%w: %%%c is unknown; the verbs are %%H (host name) and %%m (machine ID)", ErrTemplate, verb)
		}
		if err != nil {
			return "", err
		}
		b.WriteString(value)
		template = rest[1:]
	}
}

// Resolve finds the registration ID. All errors are *IdentityError.
func (r RegistrationID) Resolve(h Host, s Secrets) (id string, err error) {
	from := &IdentityError{Source: "registration_id"}
	switch {
	case r.Template != "":
		id, err = expand(r.Template, h.hostname, h.machineID)
	case r.File != "":
		from.Source, from.Path = "registration_id_file", r.File
		id, err = readID(r.File)
	case r.FromCertificate != nil:
		from.Source, from.Path = "certificate", s.Path(r.FromCertificate.Certificate)
		id, err = r.fromCertificate(s)
	default:
		err = ErrNoSource
	}
	if err == nil {
		err = CheckRegistrationID(id)
	}
	if err == nil {
		return id, nil
	}
	if !errors.As(err, &from) {
		from.Err = err
	}
	return "", from
}

func (h Host) hostname() (string, error) {
	ask := h.Hostname
	if ask == nil {
		ask = os.Hostname
	}
	name, err := ask()
	if err == nil && (name == "" || name == "(none)" || local(name)) {
		err = fmt.Errorf("the host name is %q", name)
	}
	if err != nil {
		return "", &IdentityError{Source: "%H", Err: fmt.Errorf("%w: %w", ErrNoHostname, err)}
	}
	return name, nil
}

// local reports whether a host name refers to the local machine (RFC 6761 §6.3). It
// recognizes the same names as systemd.
func local(name string) bool {
	name = strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), "."), ".localdomain")
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

func (h Host) machineID() (id string, err error) {
	path := ""
	if h.MachineID != nil {
		id, err = h.MachineID()
	} else {
		var data []byte
		path = machineIDFile
		data, err = readFile(path)
		id = strings.TrimSpace(string(data))
	}
	switch {
	case err != nil:
	case id == "":
		err = errors.New("it is empty")
	case id == "uninitialized":
		err = fmt.Errorf("it contains %q", id)
	case id == strings.Repeat("0", machineIDLength):
		// machine-id(5) excludes this ID, which some images contain.
		err = fmt.Errorf("it is all zeros, which means %q", "uninitialized")
	case len(id) != machineIDLength || strings.Trim(id, "0123456789abcdefABCDEF") != "":
		// After a power failure the file may contain NUL bytes.
		err = fmt.Errorf("it does not have %d hexadecimal digits", machineIDLength)
	default:
		return id, nil
	}
	return "", &IdentityError{Source: "%m", Path: path, Err: fmt.Errorf("%w: %w", ErrNoMachineID, err)}
}

// readID reads a registration ID from the first line of a file. It ignores NUL bytes at
// the end, because serial numbers in the device tree end with one.
func readID(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		id := strings.Trim(line, " \t\r\n\x00")
		switch {
		case id == "":
			continue
		case number == 1:
			return id, nil
		}
		return "", fmt.Errorf("%w: the first line is blank, and line %d is not: remove the lines above it", ErrRegistrationID, number)
	}
	return "", fmt.Errorf("the first line: %w", ErrEmpty)
}

func (r RegistrationID) fromCertificate(s Secrets) (string, error) {
	cn, err := r.FromCertificate.CommonName(s)
	if err != nil {
		return "", err
	}
	if err := CheckRegistrationID(cn); err != nil {
		return "", fmt.Errorf("the common name %q is %w", cn, err)
	}
	if len(cn) > maxCommonName {
		return "", fmt.Errorf("the common name has %d characters; at most %d are allowed: %w", len(cn), maxCommonName, ErrRegistrationID)
	}
	return cn, nil
}

// Varies reports whether the ID can change without a change to the configuration.
func (r RegistrationID) Varies() bool {
	return r.Template == "" || strings.Contains(r.Template, "%")
}

// String describes the source: the template, or the file or certificate that is read.
func (r RegistrationID) String() string {
	if r.File != "" {
		return "first line of " + r.File
	}
	if r.FromCertificate != nil {
		return "common name of " + r.FromCertificate.Certificate.String()
	}
	return r.Template
}

// Paths returns the files that the ID is read from, so that they can be watched. The host
// name has no such file.
func (r RegistrationID) Paths(s Secrets) []string {
	if r.File != "" {
		return []string{r.File}
	}
	if r.FromCertificate != nil {
		return s.Paths(r.FromCertificate.Certificate)
	}
	// The verbs of an invalid template do not matter.
	uses := false
	_, err := expand(r.Template, literal(""), func() (string, error) { uses = true; return "", nil })
	if uses && err == nil {
		return []string{machineIDFile}
	}
	return nil
}
