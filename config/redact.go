package config

import (
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
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
func Redact(data []byte) (text string, taken []string) {
	r := redactor{known: names()}
	var b strings.Builder
	for line := range strings.Lines(strings.ToValidUTF8(string(data), "\uFFFD")) {
		end := line[len(strings.TrimRight(line, "\r\n")):]
		b.WriteString(r.line(strings.TrimSuffix(line, end)) + end)
	}
	return b.String(), r.taken
}

// redactor remembers where in a configuration it is.
type redactor struct {
	known map[string][]string
	table string
	quote string // the end of a string of several lines; "" outside of one
	taken []string
}

func (r *redactor) line(line string) string {
	if r.quote != "" {
		if strings.Contains(line, r.quote) {
			r.quote = ""
		}
		return r.mask(line)
	}
	if m := plainHeader().FindStringSubmatch(line); m != nil {
		r.table = m[2]
		return m[1] + m[2] + m[3] + redact.Prose(m[4])
	}
	if m := commented().FindStringSubmatch(line); m != nil {
		if plainHeader().MatchString(m[2]) || assignment().MatchString(m[2]) {
			// A commented-out line of another table does not end this one.
			inside := redactor{known: r.known, table: r.table}
			if a := assignment().FindStringSubmatch(m[2]); a != nil {
				inside.table = r.tableOf(a[2])
			}
			kept := inside.line(m[2])
			r.taken = append(r.taken, inside.taken...)
			return m[1] + kept
		}
		return redact.Prose(line)
	}
	if elements().MatchString(line) {
		return redact.Prose(line)
	}
	m := assignment().FindStringSubmatch(line)
	if m == nil {
		return r.mask(line)
	}
	for _, quote := range []string{`"""`, `'''`} {
		if rest, found := strings.CutPrefix(m[4], quote); found && !strings.Contains(rest, quote) {
			r.quote = quote
		}
	}
	if m[4] == "[" && slices.Contains(r.known[r.table], m[2]) {
		return line // its elements follow
	}
	v := wholeValue().FindStringSubmatch(m[4])
	switch {
	case v == nil:
		return m[1] + m[2] + m[3] + r.mask(m[4])
	case r.takes(m[2], v[1]):
		return m[1] + m[2] + m[3] + v[1] + v[2] + redact.Prose(v[3])
	}
	return m[1] + m[2] + m[3] + r.mask(v[1]) + v[2] + redact.Prose(v[3])
}

// tableOf is the present table when it has the key, or another one that has.
func (r *redactor) tableOf(key string) string {
	if slices.Contains(r.known[r.table], key) {
		return r.table
	}
	for _, table := range tableOrder {
		if slices.Contains(r.known[table], key) {
			return table
		}
	}
	return ""
}

// takes tells whether Parse takes the value for the key of the present table.
func (r *redactor) takes(name, value string) bool {
	if !slices.Contains(r.known[r.table], name) {
		return false
	}
	if plainValue().MatchString(value) {
		return true
	}
	doc, problem := readDocument([]byte(name + " = " + value + "\n"))
	if problem != nil || len(doc.values) != 1 {
		return false
	}
	var c Config
	check := checker{document: doc, known: r.known, bad: map[path]bool{}, meant: map[path]bool{}}
	if r.table == "credential" {
		if name == "type" {
			return doc.values[name] == typeSymmetricKey || doc.values[name] == typeX509
		}
		var reference attest.Reference
		check.reference(&reference)(path("").key(name), doc.values[name])
	} else {
		keys := check.tables(&c)[r.table]
		at := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
		keys[at].take(path("").key(name), doc.values[name])
	}
	return len(check.errs) == 0
}

// mask takes a text out. Its words may stand elsewhere by themselves.
func (r *redactor) mask(text string) string {
	r.taken = append(r.taken, strings.FieldsFunc(text, func(c rune) bool { return strings.ContainsRune(" \t\"',#[]{}", c) })...)
	indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
	return indent + `"` + redact.Mark + `"`
}
