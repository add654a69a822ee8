package attest

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// This file explains why a text is not a valid symmetric key. It is used only if a key is
// invalid or the service rejects it.

// decode decodes a key in standard base64 with padding.
func decode(text []byte) ([]byte, error) {
	key := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(key, text)
	if err != nil {
		return nil, ErrNotBase64
	}
	if n < minKey || n > maxKey {
		return nil, fmt.Errorf("%w, not %d", ErrKeyLength, n)
	}
	return key[:n], nil
}

func isKey(text string) bool {
	_, err := decode([]byte(text))
	return err == nil
}

// keep precedes the commands below, which make a key from the copy.
const keep = "cp -p FILE FILE.orig && "

const (
	hexToKey     = "<FILE.orig tr a-f A-F | basenc --base16 -d -i | base64 -w 0 >FILE"
	bytesToKey   = "base64 -w 0 FILE.orig >FILE"
	base64ToKey  = "base64 -d FILE.orig >FILE"
	base64ToHex  = "base64 -d FILE.orig | tr a-f A-F | basenc --base16 -d -i | base64 -w 0 >FILE"
	withoutMarks = "tr -cd 'A-Za-z0-9+/=' <FILE.orig >FILE"
	firstLine    = "head -n 1 FILE.orig >FILE"
	fromURL      = "tr -- -_ +/ <FILE.orig >FILE"
	ofConnection = `sed -n 's/.*SharedAccessKey=\([^;]*\).*/\1/p' FILE.orig >FILE`
	withoutName  = "sed 's/^[^:=]*[:=]//' FILE.orig | tr -cd 'A-Za-z0-9+/=' >FILE"
)

// asX509 is the advice if the file belongs to an X.509 credential.
const asX509 = `set type = "x509", certificate and private_key in this [[credential]]`

// explainKey returns an error that says what a text is that is not a key. err is the reason
// why it is not a key.
func explainKey(text []byte, err error) error {
	found := func(what, command, then string) error {
		if command != "" {
			command = keep + command
		}
		return &input.Mistake{What: what, Command: command, Then: then, Err: err}
	}
	s := string(bytes.TrimSpace(text))
	compact := strings.Join(strings.Fields(s), "")
	_, named, _ := strings.Cut(s, ":")
	if before, after, ok := strings.Cut(s, "="); ok && !strings.Contains(before, ":") {
		named = after
	}
	first, _, several := strings.Cut(s, "\n")
	switch {
	case pemfile.Has(text):
		return found("the file contains PEM, not a symmetric key", "", asX509)
	case pemfile.Recognize(text) != "":
		return found(pemfile.Recognize(text)+"; a symmetric key is base64 text", "", asX509)
	case strings.HasPrefix(s, "SharedAccessSignature "):
		return found("the file contains a SAS token, not a key", "", "put the primary key of the enrollment into it")
	case strings.Contains(s, "SharedAccessKey="):
		return found("the file contains a connection string, not just its key", ofConnection, "check that it is the key of the DPS enrollment and not that of a device in a hub")
	case several && isKey(strings.TrimSpace(first)):
		return found("the file contains more lines after the key", firstLine, "")
	case hexadecimal(s):
		return found(fmt.Sprintf("the key is %d hexadecimal digits, not base64", digits(s)), hexToKey, "")
	case isKey(withoutQuotes(s)):
		return found("the key has quotes, blanks or other characters around it or in it", withoutMarks, "")
	case isKey(withoutQuotes(named)):
		return found("the file contains a name before the key", withoutName, "")
	case isKey(strings.NewReplacer("-", "+", "_", "/").Replace(compact)):
		return found("the key is in base64url (- and _ in place of + and /)", fromURL, "")
	case padding(compact) != "":
		return found(fmt.Sprintf("%q is missing at the end of the key", padding(compact)), "{ tr -d '\\r\\n ' <FILE.orig; printf "+padding(compact)+"; } >FILE", "")
	case binary(text):
		return found(fmt.Sprintf("the key is %d bytes, not base64 text", len(text)), bytesToKey, "")
	}
	if raw, e := base64.StdEncoding.DecodeString(compact); e == nil {
		if m := nested(raw); m != nil {
			m.Err = err
			return m
		}
	}
	if len(compact)%4 != 0 && withoutQuotes(compact) == compact {
		return found(fmt.Sprintf("the key is cut off: it has %d characters, but the length of base64 text is a multiple of 4", len(compact)), "", "")
	}
	return err
}

// nested explains a key whose bytes are text, or returns nil if they are not.
func nested(key []byte) *input.Mistake {
	switch text := string(bytes.TrimSpace(key)); {
	case hexadecimal(text):
		return &input.Mistake{What: fmt.Sprintf("the key is base64 of %d hexadecimal digits, not of the key's bytes", digits(text)), Command: keep + base64ToHex}
	case isKey(text):
		return &input.Mistake{What: "the key is encoded in base64 twice", Command: keep + base64ToKey}
	}
	return nil
}

// hexadecimal reports whether a text consists of hexadecimal digits and has the length of a
// key. The probability that this is true of a key in base64 is at most 10⁻¹⁴.
func hexadecimal(text string) bool {
	n := digits(text)
	return n >= 2*minKey && n <= 2*maxKey && n%2 == 0 && strings.Trim(text, "0123456789abcdefABCDEF: -\r\n") == ""
}

// digits counts the characters of a text, except those that group hexadecimal digits.
func digits(text string) int {
	return len(strings.NewReplacer(":", "", " ", "", "-", "", "\r", "", "\n", "").Replace(text))
}

// withoutQuotes removes the characters that are in neither of the two base64 alphabets.
func withoutQuotes(text string) string {
	return strings.Map(func(r rune) rune {
		if isLetterOrDigit(r) || strings.ContainsRune("+/=-_", r) {
			return r
		}
		return -1
	}, text)
}

// padding returns the padding that is missing at the end of a key.
func padding(text string) string {
	for _, p := range []string{"=", "=="} {
		if isKey(text + p) {
			return p
		}
	}
	return ""
}

// binary reports whether data has the length of a key and is not text.
func binary(data []byte) bool {
	return len(data) >= minKey && len(data) <= maxKey &&
		bytes.ContainsFunc(data, func(r rune) bool { return unicode.IsControl(r) && !unicode.IsSpace(r) || r == unicode.ReplacementChar })
}

// Doubt is a reason why a symmetric key may be wrong. The service may accept the key
// nevertheless; if it does not, the doubt explains the rejection.
type Doubt struct {
	// Mistake says what the key appears to be.
	*input.Mistake
	// Group means that the only evidence is the length, which enrollment group keys share
	// with many keys of individual enrollments.
	Group bool
}

// Unwrap returns the mistake.
func (d *Doubt) Unwrap() error { return d.Mistake }

// Remedy returns the command. For a possible group key it also names other reasons.
func (d *Doubt) Remedy() string {
	if !d.Group {
		return d.Mistake.Remedy()
	}
	return "If this is the key of the enrollment group, replace it with the device's key: " + d.Mistake.Remedy() +
		". If not, check that the registration ID has no upper-case letters; then check the key against the enrollment, and the gateway's clock."
}

// groupKey is the length of the keys that Azure generates for enrollments, in bytes. A
// derived key has 32 bytes.
const groupKey = 64

// DoubtOf returns a reason why a usable key may be wrong, or nil. text is the text from
// which DecodeKey decoded key.
func DoubtOf(text, key []byte, registrationID string) *Doubt {
	s := string(bytes.TrimSpace(text))
	if hexadecimal(s) {
		return &Doubt{Mistake: &input.Mistake{What: fmt.Sprintf("the key is %d hexadecimal digits, which are valid base64 but probably not meant as such", digits(s)), Command: keep + hexToKey}}
	}
	if m := nested(key); m != nil {
		return &Doubt{Mistake: m}
	}
	if len(key) == groupKey {
		return &Doubt{Group: true, Mistake: &input.Mistake{
			What:    "the key has 64 bytes, like the key of an enrollment group, from which the device's key is derived",
			Command: "key=$(dpsd derive-key --registration-id " + registrationID + ` <FILE) && echo "$key" >FILE`,
		}}
	}
	return nil
}

// doubtOf does what DoubtOf does, for a text that may not be a key.
func doubtOf(text []byte, registrationID string) *Doubt {
	key, err := decode(bytes.TrimSpace(text))
	if err != nil {
		return nil
	}
	defer clear(key)
	return DoubtOf(text, key, registrationID)
}

// about adds the file's name to a mistake.
func about(r Reference, err error) error {
	if m, is := errors.AsType[*input.Mistake](err); is {
		m.File, m.Credential = r.File, r.Credential
	}
	return err
}
