package main

import (
	"fmt"
	"strings"
)

// stanza is a Files or License stanza of a machine-readable debian/copyright,
// https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
type stanza struct {
	files     []string // empty in a License stanza
	copyright []string
	license   string // SPDX identifier
	text      string // license text
	comment   string
}

// parse parses the stanzas after the header. It sets the license text of Files stanzas that
// refer to a License stanza.
func parse(text string) ([]stanza, error) {
	var files []stanza
	texts := map[string]string{}
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		fields, err := fieldsOf(paragraph)
		switch {
		case err != nil:
			return nil, err
		case i == 0: // the header
			continue
		}
		name, words, _ := strings.Cut(fields["License"], "\n")
		s := stanza{files: strings.Fields(fields["Files"]), copyright: lines(fields["Copyright"]), license: name, text: words, comment: fields["Comment"]}
		switch {
		case name == "":
			return nil, fmt.Errorf("no License in the stanza %q", paragraph)
		case len(s.files) == 0:
			texts[name] = words
		case len(s.copyright) == 0:
			return nil, fmt.Errorf("no Copyright in the stanza of %s", s.files[0])
		default:
			files = append(files, s)
		}
	}
	for i := range files {
		if files[i].text == "" {
			files[i].text = texts[files[i].license]
		}
		if files[i].text == "" {
			return nil, fmt.Errorf("there is no text of %s, for %s", files[i].license, files[i].files[0])
		}
	}
	return files, nil
}

// fieldsOf parses a paragraph in the syntax of deb822(5).
func fieldsOf(paragraph string) (map[string]string, error) {
	fields := map[string]string{}
	name := ""
	for line := range strings.Lines(paragraph) {
		line = strings.TrimRight(line, "\n")
		if more, is := strings.CutPrefix(line, " "); is && name != "" {
			if more == "." {
				more = ""
			}
			fields[name] += "\n" + more
			continue
		}
		key, value, is := strings.Cut(line, ":")
		if !is {
			return nil, fmt.Errorf("neither a field nor its continuation: %q", line)
		}
		name = key
		fields[name] = strings.TrimSpace(value)
	}
	return fields, nil
}

func lines(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == '\n' })
}

// pattern returns the Files pattern of a module: the directory of "go mod vendor" for it.
// The pattern of the program itself is "*".
func pattern(module string) string {
	if module == "" {
		return "*"
	}
	return "vendor/" + module + "/*"
}

// about returns the stanza of a module.
func about(module string, files []stanza) (stanza, bool) {
	for _, s := range files {
		for _, f := range s.files {
			if f == pattern(module) {
				return s, true
			}
		}
	}
	return stanza{}, false
}
