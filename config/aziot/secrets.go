package aziot

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/input"
)

const toCredstore = " | install -D -m 0600 /dev/stdin /etc/credstore/"

func (a *importer) symmetricKey(at document.Path, value any) {
	if s, is := value.(string); is {
		form := `symmetric_key = { value = "…" }`
		if strings.HasPrefix(s, "file:") || strings.HasPrefix(s, "pkcs11:") {
			form = `symmetric_key = { uri = "…" }`
		}
		a.Report(at, document.Error{Problem: "must be a table, not a string", Remedy: "write it as " + form})
		return
	}
	table, ok := a.isTable(at, value)
	if !ok {
		return
	}
	a.set["credential.type"], a.set["credential.key"] = attest.SymmetricKey{}.Type().Name, "credential:"+importedKey
	if inline := table["value"]; inline != nil {
		a.inlineKey(at.Key("value"), inline)
		return
	}
	switch file, scheme := a.location(at, table); {
	case scheme == "pkcs11":
		a.cannot(at, "the key is in a PKCS#11 token, which does not export it; put the key of the enrollment where dpsd can read it, or enroll a certificate")
	case file != "":
		// keyd uses the bytes of the file unchanged; dpsd reads the text that the portal shows.
		a.todo(at, "base64 -w0 "+input.Quote(file)+toCredstore+importedKey,
			"the file contains the bytes of the key, but dpsd reads base64 text; put that into /etc/credstore/%s", importedKey)
	}
}

// inlineKey converts a key that is in the file itself. It may be a string of several lines.
func (a *importer) inlineKey(at document.Path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	s = strings.Join(strings.Fields(s), "")
	padding := strings.Repeat("=", (4-len(s)%4)%4) // aziot accepts a key without padding
	if _, err := attest.DecodeKey([]byte(s + padding)); err != nil {
		a.Report(at, document.Error{Problem: err.Error()})
		return
	}
	o := a.origin(at)
	command := extract(o, `value *= *.\([A-Za-z0-9+/=]*\)`, s, padding, importedKey)
	if command == "" {
		command = extractLines(o, s, padding)
	}
	a.todo(at, command, "put the key, the base64 text, into /etc/credstore/%s; remove it here when you have removed aziot", importedKey)
}

// extract returns a command that extracts a secret from its line with a basic regular
// expression and writes it to a credential. It returns "" if the command would write another
// text.
func extract(o origin, expression, secret, more, name string) string {
	line, _, _ := bytes.Cut(o.text, []byte("\n"))
	if !gives(expression, o, line, secret) {
		return ""
	}
	return fmt.Sprintf("sed -n '%ds,.*%s.*,\\1%s,p' %s%s%s", o.line, expression, more, input.Quote(o.file), toCredstore, name)
}

// gives reports whether sed extracts the secret from a line of a file with a basic regular
// expression.
func gives(expression string, o origin, line []byte, secret string) bool {
	// In the expressions of this file, only the parentheses are written differently.
	extended := strings.NewReplacer(`\(`, `(`, `\)`, `)`).Replace(expression)
	match := regexp.MustCompile(`^.*` + extended + `.*\s*$`).FindSubmatch(line)
	return o.line > 0 && !strings.ContainsFunc(o.file, unicode.IsControl) && match != nil && string(match[1]) == secret
}

// extractLines is extract for a key in a string of several lines. The command joins the lines
// first.
func extractLines(o origin, secret, more string) string {
	const longest = 20 // lines
	expression := `value=["\x27]*\([A-Za-z0-9+/=]*\)["\x27]["\x27]["\x27]`
	dropped := regexp.MustCompile(`[\\\r\n\t ]`) // characters that tr removes
	var joined []byte
	for n, line := range bytes.Split(o.text, []byte("\n")) {
		if n == longest {
			break
		}
		joined = append(joined, dropped.ReplaceAll(line, nil)...)
		if n > 0 && gives(expression, o, joined, secret) {
			return fmt.Sprintf(`sed -n '%d,%dp' %s | tr -d '\\\r\n\t ' | sed -n 's,.*%s.*,\1%s,p'%s%s`,
				o.line, o.line+n, input.Quote(o.file), expression, more, toCredstore, importedKey)
		}
	}
	return ""
}

func (a *importer) certificate(at document.Path, value any) {
	if table, ok := value.(map[string]any); ok && table["uri"] == nil {
		method, _ := table["method"].(string)
		how := map[string]string{"est": "by EST", "local_ca": "by a local CA", "self_signed": "by aziot-certd itself"}[method]
		if how == "" {
			how = "by aziot-certd"
		}
		a.cannot(at, "the certificate is issued %s, which dpsd does not support; put it and its key into files, and write their file: URIs here and in identity_pk", how)
		return
	}
	if file, _ := a.location(at, value); file != "" {
		a.set["credential.type"], a.set["credential.certificate"] = attest.X509{}.Type().Name, "credential:"+importedCertificate
		a.copyFile(at, file, "the certificate, with the leaf first,", importedCertificate)
	} else if !a.Bad[at] && !a.Bad[at.Key("uri")] {
		a.cannot(at, "the certificate is not in a file")
	}
}

func (a *importer) privateKey(at document.Path, value any) {
	switch file, scheme := a.location(at, value); {
	case scheme == "pkcs11":
		a.cannot(at, "the key is in a PKCS#11 token; dpsd needs one in a file")
	case file != "":
		a.set["credential.private_key"] = "credential:" + importedPrivateKey
		a.copyFile(at, file, "the private key", importedPrivateKey)
	}
}

// copyFile adds a command that copies a file, which only aziotks or aziotcs may read, to a
// credential.
func (a *importer) copyFile(at document.Path, file, what, name string) {
	a.todo(at, "install -D -m 0600 "+input.Quote(file)+" /etc/credstore/"+name,
		"put %s into /etc/credstore/%s; whenever the file is renewed, repeat this and restart dpsd", what, name)
}
