// Package unitfile reads systemd files: units and their drop-ins (systemd.syntax(7)), and
// files of environment variables (systemd.exec(5)).
package unitfile

import (
	"regexp"
	"strings"
)

// Setting is an assignment to a key.
type Setting struct {
	Section    string // such as "[Service]"; "" in a file of environment variables
	Key, Value string
	Line       int // first line, counted from 1
}

// Settings returns the assignments of a unit or a drop-in.
func Settings(text []byte) (all []Setting) {
	section, lines := "", strings.Split(string(text), "\n")
	for n := 0; n < len(lines); n++ {
		first, line := n+1, strings.TrimSpace(lines[n])
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		for strings.HasSuffix(line, `\`) && n+1 < len(lines) {
			n++
			line = strings.TrimSuffix(line, `\`) + " " + strings.TrimSpace(lines[n])
		}
		key, value, found := strings.Cut(line, "=")
		switch {
		case line[0] == '[':
			section = line
		case found:
			all = append(all, Setting{section, strings.TrimSpace(key), strings.TrimSpace(value), first})
		}
	}
	return all
}

// The expressions below are compiled at each use, because they are rarely used.

// quoted matches a part of a value in quotes. The closing quote may be missing.
const quoted = `"((?:[^"\\]|\\.)*\\?)"?|'((?:[^'\\]|\\.)*\\?)'?`

// Words splits a value at the blanks outside of quotes and removes the quotes.
func Words(value string) []string {
	words := regexp.MustCompile(`(?s)(?:`+quoted+`|\\.|[^ \t"'])+`).FindAllString(value, -1)
	part, escaped := regexp.MustCompile(`(?s)`+quoted+`|(\\.|[^"'])`), regexp.MustCompile(`(?s)\\(.)`)
	for i, word := range words {
		words[i] = escaped.ReplaceAllString(part.ReplaceAllString(word, "$1$2$3"), "$1")
	}
	return words
}

// Variables returns the assignments of a file named by EnvironmentFile=. Each assignment is
// one line, unless its value is in quotes or a backslash precedes the end of the line.
func Variables(text []byte) (all []Setting) {
	var (
		inQuotes = regexp.MustCompile(`(?s)^[ \t]*(?:'([^']*)'?|"((?:[^"\\]|\\.)*\\?)"?)`)
		plain    = regexp.MustCompile(`(?s)^[ \t]*((?:[^\\\r\n]|\\.)*?)(?:[ \t]|\\[\r\n])*(?:[\r\n]|\\?\z)`)
		escaped  = regexp.MustCompile("\\\\([\"\\\\`$\n])") // in double quotes
		anything = regexp.MustCompile(`(?s)\\(.)`)
		unescape = func(escape *regexp.Regexp, text string) string {
			return escape.ReplaceAllStringFunc(text, func(pair string) string { return strings.Trim(pair[1:], "\r\n") })
		}
	)
	for rest, number := string(text), 1; rest != ""; {
		line := rest
		if end := strings.IndexAny(rest, "\r\n"); end >= 0 {
			line = rest[:end]
		}
		key, _, found := strings.Cut(line, "=")
		name := strings.Trim(key, " \t")
		next := rest[min(len(line)+1, len(rest)):]
		if found && !strings.HasPrefix(name, "#") && !strings.HasPrefix(name, ";") {
			value := ""
			next = rest[len(key)+1:]
			for m := inQuotes.FindStringSubmatch(next); m != nil; m = inQuotes.FindStringSubmatch(next) {
				value, next = value+m[1]+unescape(escaped, m[2]), next[len(m[0]):]
			}
			m := plain.FindStringSubmatch(next)
			value, next = value+unescape(anything, m[1]), next[len(m[0]):]
			all = append(all, Setting{Key: name, Value: value, Line: number})
		}
		number += strings.Count(rest[:len(rest)-len(next)], "\n")
		rest = next
	}
	return all
}
