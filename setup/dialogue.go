package setup

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Console asks a person.
type Console interface {
	// Say prints a text of one or more lines.
	Say(text string)
	// Ask prints a prompt and returns the next line.
	Ask(prompt string) (string, error)
	// AskSecret is like Ask, but what the person types does not appear on the screen. It
	// discards input that has already arrived, unless rest is true: then the input may
	// continue the previous line.
	AskSecret(prompt string, rest bool) ([]byte, error)
}

// Dialogue asks for the answers that are missing.
type Dialogue struct {
	Console Console
	// Given are the answers that are already known. Ask does not ask for them.
	Given Answers
	// Previous is the configuration that the answers replace, or nil. Its values are the
	// defaults of the questions.
	Previous *Previous
	// Identities are the registration IDs to offer.
	Identities []Identity
	Now        time.Time
}

// intro is printed before the first question.
const intro = `This command sets up dpsd, which registers this gateway with the Azure IoT Hub
Device Provisioning Service (DPS). Open your DPS instance in the Azure portal to
find the answers. Nothing is written until the last question. Ctrl+C cancels.`

// Ask asks for the missing answers.
func (d *Dialogue) Ask() (Answers, error) {
	a := d.Given
	d.Console.Say(intro)
	if a.IDScope == "" {
		scope, err := d.idScope()
		if err != nil {
			return a, err
		}
		a.IDScope = scope
	}
	if a.Credential != nil {
		id, err := d.registrationID(false)
		a.RegistrationID = id
		return a, err
	}
	group, x509, err := d.enrollment()
	if err != nil {
		return a, err
	}
	if x509 {
		a.Credential, a.RegistrationID, err = d.certificate(a.RegistrationID)
		return a, err
	}
	if a.RegistrationID == "" {
		if a.RegistrationID, err = d.registrationID(group); err != nil {
			return a, err
		}
	}
	a.Credential, err = d.key(a.RegistrationID, group)
	return a, err
}

// again prints what is wrong with an answer. It returns errors of the console.
func (d *Dialogue) again(err error) error {
	if !errors.As(err, new(*Mistake)) {
		return err
	}
	d.Console.Say("   " + strings.ReplaceAll(sentence(err.Error()), "\n", "\n   "))
	return nil
}

// sentence returns a text whose first line is a sentence.
func sentence(text string) string {
	first, rest, more := strings.Cut(text, "\n")
	if first != "" && !strings.HasSuffix(first, ".") {
		first += "."
	}
	first = strings.ToUpper(first[:1]) + first[1:]
	if more {
		return first + "\n" + rest
	}
	return first
}

func (d *Dialogue) idScope() (string, error) {
	d.Console.Say("\nID Scope\n   " + `Copy it from the "Overview" page of the DPS instance. It begins with 0ne.`)
	previous := d.Previous.idScope()
	for {
		text, err := d.askOr("ID Scope", previous)
		if err != nil {
			return "", err
		}
		scope, err := ParseIDScope(text)
		if err != nil {
			if err := d.again(err); err != nil {
				return "", err
			}
			continue
		}
		if doubt := DoubtIDScope(scope); doubt != "" {
			d.Console.Say("   " + sentence(doubt))
			yes, err := d.Confirm("Use it anyway?", false)
			if err != nil {
				return "", err
			}
			if !yes {
				continue
			}
		}
		return scope, nil
	}
}

// enrollment asks for the kind of the enrollment and its attestation mechanism.
func (d *Dialogue) enrollment() (group, x509 bool, err error) {
	d.Console.Say("\nEnrollment\n   " + `The "Manage enrollments" page has two tabs. Which one lists your enrollment?`)
	kind, err := d.choose(1, "Individual enrollments: the enrollment is only for this gateway",
		"Enrollment groups: many gateways share the enrollment")
	if err != nil {
		return false, false, err
	}
	d.Console.Say("\nAttestation mechanism\n   The page of the enrollment shows the mechanism. dpsd does not support TPM.")
	usual := 1
	if d.Previous.x509() {
		usual = 2
	}
	mechanism, err := d.choose(usual, "Symmetric key: a key that you copy from the portal",
		"X.509: a certificate and its private key, in files on this gateway")
	return kind == 2, mechanism == 2, err
}

func (d *Dialogue) registrationID(group bool) (string, error) {
	about := `Copy it from the page of the enrollment. If there is no enrollment yet, choose
   an ID here, and create an enrollment with it.`
	if group {
		about = `This is the name of this gateway in DPS. Choose an ID that no other gateway in
   the enrollment group has.`
	}
	d.Console.Say("\nRegistration ID\n   " + about)
	for n, i := range d.Identities {
		d.Console.Say(fmt.Sprintf("   %d  %s\n      %s", n+1, i.ID, i.About))
	}
	prompt := "Registration ID"
	if len(d.Identities) > 0 {
		prompt = "Registration ID, or a number"
	}
	for {
		text, err := d.askOr(prompt, d.Previous.registrationID())
		if err != nil {
			return "", err
		}
		for n, i := range d.Identities {
			if strings.TrimSpace(text) == fmt.Sprint(n+1) {
				return i.ID, nil
			}
		}
		id, note, err := ParseRegistrationID(text)
		if err == nil {
			d.note(note)
			return id, nil
		}
		if err := d.again(err); err != nil {
			return "", err
		}
	}
}

// note prints a note, unless it is "".
func (d *Dialogue) note(text string) {
	if text != "" {
		d.Console.Say("   " + text)
	}
}

// key asks for a symmetric key.
func (d *Dialogue) key(id string, group bool) (*Credential, error) {
	about := `Copy it with the button next to it on the page of the enrollment.`
	if group {
		about = `Copy it from the page of the enrollment group. dpsd derives the key of this
   gateway from it, and stores only the derived key. You can also paste a key that
   has already been derived.`
	}
	d.Console.Say("\nPrimary key\n   " + about)
	ways := []string{"Paste it here; it does not appear on the screen", "Read it from a file"}
	usual := 1
	if d.Previous.keepsKey(id) {
		ways = append(ways, "Keep the current key")
		usual = 3
	}
	way, err := d.choose(usual, ways...)
	if err != nil || way == 3 {
		return nil, err
	}
	for {
		var key []byte
		var note string
		if way == 1 {
			key, note, err = d.paste()
		} else {
			key, note, err = d.fromFile()
		}
		if err == nil {
			d.note(note)
			return d.deviceKey(key, id, group)
		}
		if err := d.again(err); err != nil {
			return nil, err
		}
	}
}

// AskKey asks until the answer is a symmetric key. It does not show the key.
func (d *Dialogue) AskKey() ([]byte, error) {
	for {
		key, note, err := d.paste()
		if err == nil {
			d.note(note)
			return key, nil
		}
		if err := d.again(err); err != nil {
			return nil, err
		}
	}
}

// paste asks for a key and does not show it. A key with line breaks arrives in several lines.
func (d *Dialogue) paste() (key []byte, note string, err error) {
	text, err := d.Console.AskSecret("   Primary key (not shown): ", false)
	if err != nil {
		return nil, "", err
	}
	defer func() { clear(text) }()
	for Partial(text) {
		d.Console.Say(fmt.Sprintf("   A key from the portal has 44 or 88 characters. You have entered %d so far.", len(text)))
		rest, err := d.Console.AskSecret("   Rest of the key, or Enter if there is none: ", true)
		if err != nil {
			return nil, "", err
		}
		if len(rest) == 0 {
			break
		}
		joined := append(append([]byte{}, text...), rest...)
		clear(text)
		clear(rest)
		text = joined
	}
	return ParseKey(text, "the text")
}

func (d *Dialogue) fromFile() (key []byte, note string, err error) {
	path, err := d.path("File")
	if err != nil {
		return nil, "", err
	}
	key, note, err = ReadKey(path)
	return key, note, mistaken(err)
}

// mistaken turns an error of a file into a *Mistake, so that the question is asked again.
func mistaken(err error) error {
	if err == nil || errors.As(err, new(*Mistake)) {
		return err
	}
	return &Mistake{err.Error(), ""}
}

// path asks for the name of a file and returns its absolute path. The error of an empty
// answer is a *Mistake.
func (d *Dialogue) path(prompt string) (string, error) {
	text, err := d.Console.Ask("   " + prompt + ": ")
	if err != nil {
		return "", err
	}
	if text = strings.TrimPrefix(unquoted(text), "file:"); text == "" {
		return "", &Mistake{"the file name is missing", ""}
	}
	if err := secret(text); err != nil {
		return "", err
	}
	absolute, err := filepath.Abs(text)
	return absolute, mistaken(err)
}

// deviceKey returns the credential for a key, which may be a group key.
func (d *Dialogue) deviceKey(key []byte, id string, group bool) (*Credential, error) {
	if group && !Group(key) {
		d.Console.Say("   The key has 44 characters, like a derived key. Which key is it?")
		which, err := d.choose(1, "The key derived for the Registration ID "+id, "The Primary or Secondary key of the enrollment group")
		if err != nil {
			return nil, err
		}
		group = which == 2
	}
	if group {
		d.Console.Say("   dpsd derives the key of " + id + " from it, and does not store the group key.")
		return &Credential{GroupKey: key}, nil
	}
	return &Credential{Key: key}, nil
}

// certificate asks for a certificate and its key. want is the registration ID, or "".
func (d *Dialogue) certificate(want string) (*Credential, string, error) {
	d.Console.Say("\nCertificate and private key\n" + `   The files must be in PEM format. The first certificate must be that of this
   gateway, and its common name (CN) the Registration ID. Intermediate certificates
   follow.`)
	if id := d.Previous.registrationID(); d.Previous.x509() && (want == "" || want == id) {
		which, err := d.choose(1, "Keep the current certificate of "+id, "Use other files")
		if err != nil || which == 1 {
			return nil, id, err
		}
	}
	for {
		c, id, err := d.certificateFiles(want)
		if err == nil {
			return c, id, nil
		}
		if err := d.again(err); err != nil {
			return nil, "", err
		}
	}
}

func (d *Dialogue) certificateFiles(want string) (*Credential, string, error) {
	certificate, err := d.path("Certificate file")
	if err != nil {
		return nil, "", err
	}
	text, err := d.Console.Ask("   Private key file, or Enter if it is in the same file: ")
	if err != nil {
		return nil, "", err
	}
	key := certificate
	if text = strings.TrimPrefix(unquoted(text), "file:"); text != "" {
		if key, err = filepath.Abs(text); err != nil {
			return nil, "", mistaken(err)
		}
	}
	c, id, doubt, err := ReadCertificate(certificate, key, want, d.Now)
	if err != nil {
		return nil, "", mistaken(err)
	}
	if doubt != nil {
		d.Console.Say("   " + sentence(doubt.Error()))
		yes, err := d.Confirm("Use it anyway?", false)
		if err != nil {
			return nil, "", err
		}
		if !yes {
			return nil, "", &Mistake{"choose another certificate", ""}
		}
	}
	d.Console.Say("   The Registration ID is " + id + ".")
	return c, id, nil
}

// askOr asks for a text. An empty answer is the usual text, if there is one.
func (d *Dialogue) askOr(prompt, usual string) (string, error) {
	if usual != "" {
		prompt += " [" + usual + "]"
	}
	text, err := d.Console.Ask("   " + prompt + ": ")
	if err == nil && strings.TrimSpace(text) == "" {
		text = usual
	}
	return text, err
}

// choose prints options and returns the number of one.
func (d *Dialogue) choose(usual int, options ...string) (int, error) {
	for n, option := range options {
		d.Console.Say(fmt.Sprintf("   %d  %s", n+1, option))
	}
	for {
		text, err := d.askOr("Number", fmt.Sprint(usual))
		if err != nil {
			return 0, err
		}
		for n := range options {
			if strings.TrimSpace(text) == fmt.Sprint(n+1) {
				return n + 1, nil
			}
		}
		d.Console.Say(fmt.Sprintf("   Enter a number from 1 to %d.", len(options)))
	}
}

// Confirm asks a yes-or-no question.
func (d *Dialogue) Confirm(question string, usual bool) (bool, error) {
	hint := " [y/N] "
	if usual {
		hint = " [Y/n] "
	}
	for {
		text, err := d.Console.Ask("   " + question + hint)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(strings.TrimSpace(text)) {
		case "":
			return usual, nil
		case "y", "yes":
			return true, nil
		case "n", "no":
			return false, nil
		}
	}
}
