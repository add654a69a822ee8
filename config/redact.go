package config

import (
	"strings"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/late"
	"github.com/dpsd-project/dpsd/redact"
)

var (
	// Keys and tables that may be repeated even when they are unknown: no key in base64
	// and hardly a password looks like them.
	plainHeader = late.Regexp(`^([ \t]*\[\[?[ \t]*)([a-z]{1,20})([ \t]*\]\]?[ \t]*)(#.*)?$`)
	assignment  = late.Regexp(`^([ \t]*)([a-z]+(?:_[a-z]+)*)([ \t]*=[ \t]*)(.*)$`)
	// wholeValue is a value that ends on its line, and the comment behind it.
	wholeValue = late.Regexp(`^("(?:[^"\\]|\\.)*"|'[^']*'|\[[^#\]]*\]|[^\s#"'\[\]]+)([ \t]*)(#.*)?$`)
	// elements are lines of an array that goes over several.
	elements   = late.Regexp(`^([ \t,\[\]]|"mqtt"|"websocket")*(#.*)?$`)
	plainValue = late.Regexp(`^(true|false|[0-9]{1,6})$`)
	// comments of a commented-out line begin so.
	commented = late.Regexp(`^([ \t]*#[# \t]*)(.*)$`)
)

// Redact returns the text of a configuration for others to read, valid or not, and what
// it has taken out. It goes by the line, and what it does not recognise is masked: a
// value stays where Parse would take it for its key, so that references stay and a
// secret in their place does not. In comments, what looks like a secret is masked.
func Redact(data []byte) (text string, taken []string) { return redacted(data, attest.Types()) }

func redacted(data []byte, types []attest.Type) (text string, taken []string) {
	r := redactor{tables: tables(new(Config), types)}
	var b strings.Builder
	for line := range strings.Lines(strings.ToValidUTF8(string(data), "\uFFFD")) {
		end := line[len(strings.TrimRight(line, "\r\n")):]
		b.WriteString(r.line(strings.TrimSuffix(line, end)) + end)
	}
	return b.String(), r.taken
}

// redactor remembers where in a configuration it is.
type redactor struct {
	tables tableList
	table  table
	quote  string // the end of a string of several lines; "" outside of one
	taken  []string
}

func (r *redactor) line(line string) string {
	if r.quote != "" {
		if strings.Contains(line, r.quote) {
			r.quote = ""
		}
		return r.mask(line)
	}
	table, signs, rest := r.table, "", line
	if m := commented().FindStringSubmatch(line); m != nil {
		signs, rest = m[1], m[2]
	}
	header, m := plainHeader().FindStringSubmatch(rest), assignment().FindStringSubmatch(rest)
	switch {
	case header != nil:
		if signs == "" {
			r.table = r.tables.find(header[2])
		}
		return signs + header[1] + header[2] + header[3] + redact.Prose(header[4])
	case m == nil && signs == "" && !elements().MatchString(line):
		return r.mask(line)
	case m == nil:
		return redact.Prose(line)
	case signs != "":
		table = r.tableOf(m[2]) // it need not be commented out in its own table
	}
	for _, quote := range []string{`"""`, `'''`} {
		if text, found := strings.CutPrefix(m[4], quote); found && !strings.Contains(text, quote) && signs == "" {
			r.quote = quote
		}
	}
	key, value := table.find(m[2]), wholeValue().FindStringSubmatch(m[4])
	begin := signs + m[1] + m[2] + m[3]
	switch {
	case key != nil && m[4] == "[":
		return line // its elements follow
	case value == nil:
		return begin + r.mask(m[4])
	case key == nil || !takes(*key, value[1]):
		value[1] = r.mask(value[1])
	}
	return begin + value[1] + value[2] + redact.Prose(value[3])
}

// tableOf is the present table when it has the key, or another one that has.
func (r *redactor) tableOf(key string) table {
	for _, t := range append(tableList{r.table}, r.tables...) {
		if t.find(key) != nil {
			return t
		}
	}
	return table{}
}

// takes tells whether Parse takes the value for the key.
func takes(k key, value string) bool {
	doc, problem := document.Parse("", []byte("key = "+value+"\n"), nil)
	return plainValue().MatchString(value) || problem == nil && len(doc.Values) == 1 && k.check(doc.Values["key"]) == nil
}

// mask takes a text out. Its words may stand elsewhere by themselves.
func (r *redactor) mask(text string) string {
	r.taken = append(r.taken, strings.FieldsFunc(text, func(c rune) bool { return strings.ContainsRune(" \t\"',#[]{}", c) })...)
	indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
	return indent + `"` + redact.Mark + `"`
}
