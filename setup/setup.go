// Package setup prepares the first configuration of a gateway: it asks for the values that the
// Azure portal shows, recognizes what people paste instead of them, and writes dpsd.toml and
// the credential. It also describes the gateway to the person who creates its enrollment.
//
// It asks through a Console, and touches only the files that the answers name. No text that it
// prints contains a key.
package setup

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/tpm"
)

// Answers are the values that identify a gateway.
type Answers struct {
	IDScope        string
	RegistrationID string
	// Endpoint is the host to register with, or "" for the default.
	Endpoint string
	// Credential is the proof of the identity. nil keeps that of the previous configuration.
	Credential *Credential
}

// Credential is the content of the files of a credential: a key, or a certificate and its key.
type Credential struct {
	// Key is a symmetric key of this gateway. It is derived from GroupKey, if that is set.
	Key []byte
	// GroupKey is the key of an enrollment group. It is never written.
	GroupKey []byte
	// Certificates and PrivateKey are PEM.
	Certificates, PrivateKey []byte
}

// Mistake describes an answer that cannot be used. It never repeats a secret.
type Mistake struct {
	// What says what is wrong, in a sentence without a full stop.
	What string
	// Advice says what to do, or is "".
	Advice string
}

// Error returns the problem and the advice.
func (m *Mistake) Error() string {
	if m.Advice == "" {
		return m.What
	}
	return m.What + "\n" + m.Advice
}

// The regular expressions of this package are compiled when they are used, not at each start of the
// daemon.

// azureKey matches a key that Azure has generated (64 bytes), or that is derived from one (32).
func azureKey() *regexp.Regexp { return regexp.MustCompile(`[A-Za-z0-9+/]{43}=|[A-Za-z0-9+/]{86}==`) }

// secret returns a *Mistake if a text that should not be secret looks like a secret.
func secret(text string) error {
	if text != "" && azureKey().FindString(text) == text || strings.Contains(text, "SharedAccessKey=") {
		return &Mistake{"this looks like a key, and it is now visible on the screen", "If anyone else may have seen it, create a new key in the portal."}
	}
	return nil
}

// guid matches the IDs of subscriptions, tenants and objects.
func guid() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
}

// whereIDScope says where the portal shows the ID scope.
const whereIDScope = `In the portal, copy "ID Scope" from the "Overview" page of the DPS instance.`

// ParseIDScope returns the ID scope in a text. The error is a *Mistake.
func ParseIDScope(text string) (string, error) {
	text = unquoted(text)
	if err := secret(text); err != nil {
		return "", err
	}
	what := ""
	switch lower := strings.ToLower(text); {
	case text == "":
		what = "the ID Scope is missing"
	case strings.Contains(lower, ".azure-devices-provisioning."):
		what = `this is the "Service endpoint" of a DPS instance, not its ID Scope`
	case strings.Contains(lower, ".azure-devices."):
		what = "this is the host name of an IoT hub, not the ID Scope of a DPS instance"
	case strings.HasPrefix(lower, "/subscriptions/"):
		what = "this is the resource ID of an Azure resource, not an ID Scope"
	case guid().MatchString(text):
		what = "this is the ID of a subscription, a tenant or an object, not an ID Scope"
	default:
		if wrong := config.Check("dps.id_scope", text); wrong != nil {
			what = wrong.Problem
		}
	}
	if what != "" {
		return "", &Mistake{what, whereIDScope}
	}
	return text, nil
}

// DoubtIDScope returns a reason why an ID scope may be wrong, or "". The format is not
// documented, but all ID scopes that Azure has created so far begin in the same way.
func DoubtIDScope(scope string) string {
	switch lower := strings.ToLower(scope); {
	case strings.HasPrefix(lower, "0ne"):
		return ""
	case strings.HasPrefix(lower, "one"):
		return "the ID Scope begins with the letter O; Azure's ID Scopes begin with the digit 0"
	}
	return "the ID Scope does not begin with 0ne; Azure's ID Scopes do"
}

// ParseRegistrationID returns the registration ID in a text, in lower case. note is a sentence
// about a change, or "". The error is a *Mistake.
func ParseRegistrationID(text string) (id, note string, err error) {
	text = unquoted(text)
	if err := secret(text); err != nil {
		return "", "", err
	}
	if err := attest.CheckRegistrationID(text); err != nil {
		what := err.Error()
		if text == "" {
			what = "the Registration ID is missing"
		}
		return "", "", &Mistake{what, ""}
	}
	if id = strings.ToLower(text); id != text {
		note = fmt.Sprintf("dpsd uses the Registration ID %s in lower case, because derived keys depend on case.", id)
	}
	return id, note, nil
}

// unquoted removes the white space and the quotes around a copied text.
func unquoted(text string) string { return strings.Trim(text, " \t\r\n\"'`“”„‘’,;") }

// Sizes of the usual keys, in bytes: a key derived for one device, and a key that Azure
// generates for an enrollment.
const (
	derivedKey   = 32
	generatedKey = 64
)

// Complete reports whether a key has the size of the keys that the portal shows or that are
// derived from them. A key of another size may be the first line of a key with line breaks.
func Complete(key []byte) bool { return len(key) == derivedKey || len(key) == generatedKey }

// Group reports whether a key can only be the key of an enrollment group, because it does not
// have the size of a derived key.
func Group(key []byte) bool { return len(key) != derivedKey }

// longestKey is the number of characters of the longest key.
const longestKey = 88

// Partial reports whether a text may be the beginning of a key, such as its first line.
func Partial(text []byte) bool {
	s := unquoted(string(text))
	if s == "" || len(s) >= longestKey || notInKey().MatchString(s) {
		return false
	}
	key, err := attest.DecodeKey([]byte(s))
	clear(key)
	return err != nil || !Complete(key)
}

// notInKey matches characters that a key cannot contain, and the marks of a terminal around a paste.
func notInKey() *regexp.Regexp { return regexp.MustCompile(`\x1b\[20[01]~|[^A-Za-z0-9+/=_-]`) }

// nameBefore matches the name of a key in front of it, as in JSON or in a shell.
func nameBefore() *regexp.Regexp {
	return regexp.MustCompile(`^[{\s"']*[A-Za-z][A-Za-z_ -]{0,30}["']?\s*[:=]`)
}

// ParseKey returns the symmetric key in a text that a person has pasted, or that a file
// contains. It removes quotes, line breaks and a name in front of the key; note is then a
// sentence about it. subject is "the text" or "the file". The error is a *Mistake.
func ParseKey(text []byte, subject string) (key []byte, note string, err error) {
	mistake := func(what, advice string) error { return &Mistake{subject + " contains " + what, advice} }
	s := strings.TrimSpace(string(text))
	switch {
	case s == "":
		return nil, "", &Mistake{"the key is missing", ""}
	case strings.Contains(s, "SharedAccessKeyName="):
		return nil, "", mistake("the connection string of a shared access policy, which allows anyone who has it to manage enrollments or devices",
			`Never store it on a gateway. Copy "Primary key" from the page of the enrollment.`)
	case strings.Contains(s, "SharedAccessKey="):
		return nil, "", mistake("the connection string of a device in an IoT hub, not the key of a DPS enrollment",
			`In the portal, open the DPS instance instead of the hub, then "Manage enrollments", then the enrollment, and copy "Primary key".`)
	case strings.HasPrefix(s, "SharedAccessSignature "):
		return nil, "", mistake("a SAS token, which expires, not a key", `Copy "Primary key" from the page of the enrollment.`)
	case pemfile.Has(text):
		return nil, "", mistake("a certificate or private key in PEM format, not a symmetric key", `Choose "X.509" as the attestation mechanism (--certificate and --private-key).`)
	}
	if len(azureKey().FindAllString(s, 2)) > 1 {
		return nil, "", mistake("more than one key", `Copy "Primary key" alone.`)
	}
	if what := pemfile.Recognize(text); what != "" {
		return nil, "", &Mistake{strings.Replace(what, "the file", subject, 1),
			`A symmetric key is text. For a certificate and its private key, choose "X.509" (--certificate and --private-key).`}
	}
	key, err = attest.DecodeKey([]byte(s))
	used := s
	if err != nil {
		for _, candidate := range []string{s, nameBefore().ReplaceAllString(s, "")} {
			candidate = notInKey().ReplaceAllString(candidate, "")
			cleaned, e := attest.DecodeKey([]byte(candidate))
			if e == nil && Complete(cleaned) {
				key, used, err = cleaned, candidate, nil
				note = "dpsd removed the quotes, line breaks or other characters around the key."
				break
			}
		}
	}
	if err == nil {
		if doubt := attest.DoubtOf([]byte(used), key, ""); doubt != nil && !doubt.Group {
			err = doubt
		}
	}
	if err != nil {
		clear(key)
		return nil, "", &Mistake{strings.Replace(err.Error(), "the file", subject, 1), `Copy "Primary key" from the page of the enrollment again.`}
	}
	return key, note, nil
}

// Encode returns the text of a key in a file.
func Encode(key []byte) []byte { return append(base64.StdEncoding.AppendEncode(nil, key), '\n') }

// maxFile is the maximum size of a file with a key, in bytes.
const maxFile = 64 << 10

// ReadKey returns the symmetric key in a file.
func ReadKey(path string) (key []byte, note string, err error) {
	if err := secret(path); err != nil {
		return nil, "", err
	}
	text, err := input.Read(path, maxFile)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, input.Cause(err))
	}
	defer clear(text)
	if key, note, err = ParseKey(text, "the file"); err != nil {
		return nil, "", inFile(path, err)
	}
	return key, note, nil
}

// inFile adds the path to a mistake.
func inFile(path string, err error) error {
	if m, is := errors.AsType[*Mistake](err); is {
		m.What = path + ": " + m.What
	}
	return err
}

// ReadCertificate returns the certificate and the private key in two files, which may be the
// same, and the common name of the certificate, which is the registration ID. Unless want is "",
// the common name must be equal to it, ignoring case. doubt is a reason why DPS may refuse the
// certificate, such as its dates, or nil. The error names the file and says what to do.
func ReadCertificate(certificate, privateKey, want string, now time.Time) (c *Credential, id string, doubt, err error) {
	x := attest.X509{Certificate: attest.Reference{File: certificate}, PrivateKey: attest.Reference{File: privateKey}}
	id, err = attest.RegistrationID{FromCertificate: &x}.Resolve(attest.Host{}, attest.Secrets{})
	if err != nil {
		return nil, "", nil, advised(err)
	}
	if want != "" && !strings.EqualFold(id, want) {
		return nil, "", nil, &Mistake{fmt.Sprintf("the common name of the certificate is %q, not the Registration ID %q; DPS requires them to be equal", id, want), ""}
	}
	// The key may be for the TPM of another machine, or this user may have no access to the TPM.
	// dpsd check tests the key.
	_, err = x.Prove(context.Background(), attest.Subject{RegistrationID: id}, attest.Secrets{FilesOnly: true}, now)
	if errors.As(err, new(*attest.CertificateError)) {
		doubt, err = err, nil
	}
	if err != nil {
		return nil, "", nil, advised(err)
	}
	text, err := input.Read(certificate, maxFile)
	if err != nil {
		return nil, "", nil, err
	}
	chain, err := pemfile.Certificates(text)
	clear(text) // a private key may be in the same file
	if err != nil {
		return nil, "", nil, err
	}
	c = &Credential{}
	for _, one := range chain {
		c.Certificates = append(c.Certificates, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw})...)
	}
	if text, err = input.Read(privateKey, maxFile); err != nil {
		return nil, "", nil, err
	}
	defer clear(text)
	if tpm.Is(text) {
		if c.PrivateKey, err = tpmKey(text); err != nil {
			return nil, "", nil, err
		}
		return c, id, doubt, nil
	}
	key, err := pemfile.PrivateKey(text)
	if err != nil {
		return nil, "", nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", nil, err
	}
	defer clear(der)
	c.PrivateKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return c, id, doubt, nil
}

// tpmKey returns the TSS2 key in a text, without the certificates in it.
func tpmKey(text []byte) ([]byte, error) {
	blocks, err := pemfile.Blocks(text)
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		if key := pem.EncodeToMemory(&pem.Block{Type: b.Type, Bytes: b.Bytes}); tpm.Is(key) {
			return key, nil
		}
	}
	return nil, pemfile.ErrNotPrivateKey // impossible if tpm.Is(text)
}

// advised returns an error with its remedy as a *Mistake.
func advised(err error) error {
	if known, is := errors.AsType[*input.Mistake](err); is {
		return &Mistake{err.Error(), known.Remedy()}
	}
	return err
}
