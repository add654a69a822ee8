package attest

import (
	"bytes"
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
	var secret *SecretError
	if e.Path != "" && !errors.As(e.Err, &secret) {
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
		if !isIDRune(r) {
			return bad(`%q is not allowed; letters, digits and "-._:" are`, r)
		}
	}
	if first := s[0]; !isLetterOrDigit(first) {
		return bad("it must begin with a letter or digit, not %q", first)
	}
	if last := s[len(s)-1]; !isLetterOrDigit(last) && last != '-' {
		return bad(`it must end with a letter, digit or "-", not %q`, last)
	}
	return nil
}

func isIDRune(r rune) bool {
	return r < 0x80 && (isLetterOrDigit(byte(r)) || strings.ContainsRune("-._:", r))
}

// ParseTemplate checks that s can give a valid registration ID: its verbs are %H, %m and
// %%, and its own characters are those of a registration ID. A percent sign is not one
// of them, so %% is refused with that reason. Errors wrap ErrTemplate (a verb) or
// ErrRegistrationID (a character, the length). What the host name brings in is judged by
// Resolve.
func ParseTemplate(s string) error {
	// Stand-ins that are valid anywhere, of the shortest length the verb can have.
	example, err := expand(s, func(verb byte) (string, error) {
		switch verb {
		case 'H':
			return "h", nil
		case 'm':
			return strings.Repeat("0", machineIDLength), nil
		}
		return "", fmt.Errorf("%w: %%%c is unknown; %%H (host name) and %%m (machine ID) are known", ErrTemplate, verb)
	})
	if err != nil {
		return err
	}
	return CheckRegistrationID(example)
}

// expand replaces the verbs of a template; %% is a percent sign.
func expand(template string, value func(verb byte) (string, error)) (string, error) {
	var b strings.Builder
	for i := 0; i < len(template); i++ {
		if template[i] != '%' {
			b.WriteByte(template[i])
			continue
		}
		i++
		if i == len(template) {
			return "", fmt.Errorf("%w: it ends within a %% verb", ErrTemplate)
		}
		if template[i] == '%' {
			b.WriteByte('%')
			continue
		}
		v, err := value(template[i])
		if err != nil {
			return "", err
		}
		b.WriteString(v)
	}
	return b.String(), nil
}

// Resolve finds the registration ID. All errors are *IdentityError.
func (r RegistrationID) Resolve(h Host, s Secrets) (string, error) {
	switch {
	case r.Template != "":
		return r.fromTemplate(h)
	case r.File != "":
		return r.fromFile()
	case r.FromCertificate != nil:
		return r.fromCertificate(s)
	}
	return "", &IdentityError{Source: "registration_id", Err: ErrNoSource}
}

func (r RegistrationID) fromTemplate(h Host) (string, error) {
	id, err := expand(r.Template, func(verb byte) (string, error) {
		switch verb {
		case 'H':
			name, err := h.hostname()
			if err != nil {
				return "", &IdentityError{Source: "%H", Err: err}
			}
			return name, nil
		case 'm':
			id, path, err := h.machineID()
			if err != nil {
				return "", &IdentityError{Source: "%m", Path: path, Err: err}
			}
			return id, nil
		}
		return "", fmt.Errorf("%w: %%%c is unknown", ErrTemplate, verb)
	})
	if err == nil {
		err = CheckRegistrationID(id)
	}
	if err == nil {
		return id, nil
	}
	var identity *IdentityError
	if errors.As(err, &identity) {
		return "", identity
	}
	return "", &IdentityError{Source: "registration_id", Err: err}
}

func (h Host) hostname() (string, error) {
	ask := h.Hostname
	if ask == nil {
		ask = os.Hostname
	}
	name, err := ask()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoHostname, err)
	}
	if name == "" || name == "(none)" || local(name) {
		return "", fmt.Errorf("%w: it is called %q", ErrNoHostname, name)
	}
	return name, nil
}

// local reports whether a host name is one of those that mean every machine itself
// (RFC 6761 §6.3), as systemd recognizes them.
func local(name string) bool {
	name = strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), "."), ".localdomain")
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

func (h Host) machineID() (id, path string, err error) {
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
		return "", path, fmt.Errorf("%w: %w", ErrNoMachineID, err)
	case id == "":
		return "", path, fmt.Errorf("%w: it is empty", ErrNoMachineID)
	case id == "uninitialized":
		return "", path, fmt.Errorf("%w: it says %q", ErrNoMachineID, id)
	case len(id) != machineIDLength || strings.Trim(id, "0123456789abcdefABCDEF") != "":
		// After a power cut the file may hold NUL bytes.
		return "", path, fmt.Errorf("%w: it does not have %d hexadecimal digits", ErrNoMachineID, machineIDLength)
	case strings.Trim(id, "0") == "":
		// An ID that machine-id(5) excludes, and that images share.
		return "", path, fmt.Errorf("%w: it is all zeros, which means %q", ErrNoMachineID, "uninitialized")
	}
	return id, path, nil
}

// fromFile takes the first line. Serial numbers of the device tree end with a NUL byte.
func (r RegistrationID) fromFile() (string, error) {
	fail := func(err error) (string, error) {
		return "", &IdentityError{Source: "registration_id_file", Path: r.File, Err: err}
	}
	data, err := readFile(r.File)
	if err != nil {
		return fail(err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	id := strings.Trim(string(line), " \t\r\x00")
	if id == "" {
		if n := lineWithText(data); n > 0 {
			return fail(fmt.Errorf("%w: the first line is blank, and line %d is not: remove the lines above it", ErrRegistrationID, n))
		}
		return fail(fmt.Errorf("the first line: %w", ErrEmpty))
	}
	if err := CheckRegistrationID(id); err != nil {
		return fail(err)
	}
	return id, nil
}

// lineWithText returns the number of the first line that is not blank, 0 for none.
func lineWithText(data []byte) int {
	for i, line := range strings.Split(string(data), "\n") {
		if strings.Trim(line, " \t\r\x00") != "" {
			return i + 1
		}
	}
	return 0
}

func (r RegistrationID) fromCertificate(s Secrets) (string, error) {
	fail := func(err error) (string, error) {
		return "", &IdentityError{Source: "certificate", Path: s.Path(r.FromCertificate.Certificate), Err: err}
	}
	cn, err := r.FromCertificate.CommonName(s)
	if err != nil {
		return fail(err)
	}
	if err := CheckRegistrationID(cn); err != nil {
		return fail(fmt.Errorf("the common name %q is %w", cn, err))
	}
	if len(cn) > maxCommonName {
		return fail(fmt.Errorf("the common name has %d characters, at most %d are allowed: %w", len(cn), maxCommonName, ErrRegistrationID))
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
	switch {
	case r.Template != "":
		return r.Template
	case r.File != "":
		return "first line of " + r.File
	case r.FromCertificate != nil:
		return "common name of " + r.FromCertificate.Certificate.String()
	}
	return ""
}

// Paths returns the files the ID is read from, for watching them. The host name has no
// such file.
func (r RegistrationID) Paths(s Secrets) []string {
	switch {
	case r.Template != "":
		if usesMachineID(r.Template) {
			return []string{machineIDFile}
		}
	case r.File != "":
		return []string{r.File}
	case r.FromCertificate != nil:
		return s.Paths(r.FromCertificate.Certificate)
	}
	return nil
}

func usesMachineID(template string) bool {
	uses := false
	// A template with an error in it has no verbs worth watching for.
	_, err := expand(template, func(verb byte) (string, error) {
		uses = uses || verb == 'm'
		return "", nil
	})
	return uses && err == nil
}
