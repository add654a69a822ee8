package attest

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// machineIDFile is where systemd keeps the machine ID (machine-id(5)).
const machineIDFile = "/etc/machine-id"

// Bounds of a registration ID (DPS page "Terminology"); a common name ends earlier
// (RFC 5280, ub-common-name).
const (
	maxRegistrationID = 128
	maxCommonName     = 64
	machineIDLength   = 32
)

var (
	// ErrRegistrationID says that a text cannot be a registration ID.
	ErrRegistrationID = errors.New("not a valid registration ID")
	// ErrTemplate says that a template has a verb that is not known.
	ErrTemplate = errors.New("not a valid template of a registration ID")
	// ErrNoMachineID says that /etc/machine-id is missing, empty, malformed, all zeros or
	// says "uninitialized", as in an image before its first boot.
	ErrNoMachineID = errors.New("this machine has no machine ID yet")
	// ErrNoHostname says that the host name is not set, or means "localhost", under which
	// every gateway of a fleet would be the same device.
	ErrNoHostname = errors.New("this machine has no host name of its own")
	// ErrNoSource says that a RegistrationID is the zero value.
	ErrNoSource = errors.New("no source of the registration ID is set")
)

// RegistrationID tells how the registration ID is found. Exactly one field is set.
type RegistrationID struct {
	// Template is the ID itself, in which %H stands for the host name, %m for the
	// machine ID and %% for a percent sign.
	Template string
	// File names a file whose first line is the ID.
	File string
	// FromCertificate takes the common name of this certificate.
	FromCertificate *X509
}

// Host supplies what templates stand for. A nil field asks the system: os.Hostname and
// /etc/machine-id.
type Host struct {
	// Hostname returns the host name.
	Hostname func() (string, error)
	// MachineID returns the machine ID, 32 hexadecimal digits.
	MachineID func() (string, error)
}

// IdentityError says that there is no registration ID at present.
type IdentityError struct {
	// Source is what was asked: "%H", "%m", "registration_id", "registration_id_file"
	// or "certificate".
	Source string
	// Path is the file that was read, if there was one.
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

// Remedy says how this machine gets a machine ID. systemd-machine-id-setup(1) keeps what
// it takes for a valid one, which may be zeros. "" leaves the advice to others.
func (e *IdentityError) Remedy() string {
	if !errors.Is(e.Err, ErrNoMachineID) || errors.As(e.Err, new(*os.PathError)) && !errors.Is(e.Err, os.ErrNotExist) {
		return ""
	}
	return "Make a new machine ID: rm -f /etc/machine-id && systemd-machine-id-setup. dpsd looks at it every 10 seconds."
}

// CheckRegistrationID checks that s can be a registration ID: 1 to 128 letters, digits,
// or any of "-._:", beginning with a letter or digit and ending with a letter, digit or
// "-". The error wraps ErrRegistrationID and says what is wrong.
func CheckRegistrationID(s string) error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrRegistrationID, fmt.Sprintf(format, a...))
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > maxRegistrationID {
		return bad("it has %d characters, at most %d are allowed", len(s), maxRegistrationID)
	}
	for _, r := range s {
		if !isLetterOrDigit(r) && !strings.ContainsRune("-._:", r) {
			return bad(`%q is not allowed; letters, digits and "-._:" are`, r)
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

// ParseTemplate checks that s can give a valid registration ID: its verbs are %H, %m and
// %%, and its own characters are those of a registration ID. A percent sign is not one
// of them, so %% is refused with that reason. Errors wrap ErrTemplate (a verb) or
// ErrRegistrationID (a character, the length). What the host name brings in is judged by
// Resolve.
func ParseTemplate(s string) error {
	// Stand-ins that are valid anywhere, of the shortest length the verb can have.
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
			return "", fmt.Errorf("%w: it ends within a %% verb", ErrTemplate)
		}
		value, err := "%", error(nil)
		switch verb := rest[0]; verb {
		case '%':
		case 'H':
			value, err = hostname()
		case 'm':
			value, err = machineID()
		default:
			err = fmt.Errorf("%w: %%%c is unknown; %%H (host name) and %%m (machine ID) are known", ErrTemplate, verb)
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
		err = fmt.Errorf("it is called %q", name)
	}
	if err != nil {
		return "", &IdentityError{Source: "%H", Err: fmt.Errorf("%w: %w", ErrNoHostname, err)}
	}
	return name, nil
}

// local reports whether a host name is one of those that mean every machine itself
// (RFC 6761 §6.3), as systemd recognizes them.
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
		err = fmt.Errorf("it says %q", id)
	case id == strings.Repeat("0", machineIDLength):
		// An ID that machine-id(5) excludes, and that images share.
		err = fmt.Errorf("it is all zeros, which means %q", "uninitialized")
	case len(id) != machineIDLength || strings.Trim(id, "0123456789abcdefABCDEF") != "":
		// After a power cut the file may hold NUL bytes.
		err = fmt.Errorf("it does not have %d hexadecimal digits", machineIDLength)
	default:
		return id, nil
	}
	return "", &IdentityError{Source: "%m", Path: path, Err: fmt.Errorf("%w: %w", ErrNoMachineID, err)}
}

// readID reads a registration ID from the first line of a file. Serial numbers of the
// device tree end with a NUL byte.
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
		return "", fmt.Errorf("the common name has %d characters, at most %d are allowed: %w", len(cn), maxCommonName, ErrRegistrationID)
	}
	return cn, nil
}

// Varies reports whether the ID can become another one without a change of the
// configuration.
func (r RegistrationID) Varies() bool {
	return r.Template == "" || strings.Contains(r.Template, "%")
}

// String tells the source: the template, or which file or certificate is read.
func (r RegistrationID) String() string {
	if r.File != "" {
		return "first line of " + r.File
	}
	if r.FromCertificate != nil {
		return "common name of " + r.FromCertificate.Certificate.String()
	}
	return r.Template
}

// Paths returns the files the ID is read from, for watching them. The host name has no
// such file.
func (r RegistrationID) Paths(s Secrets) []string {
	if r.File != "" {
		return []string{r.File}
	}
	if r.FromCertificate != nil {
		return s.Paths(r.FromCertificate.Certificate)
	}
	// A template with an error in it has no verbs worth watching for.
	uses := false
	_, err := expand(r.Template, literal(""), func() (string, error) { uses = true; return "", nil })
	if uses && err == nil {
		return []string{machineIDFile}
	}
	return nil
}
