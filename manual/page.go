// Package manual writes the manual pages in docs/man from what the programs
// say of themselves: the tree of commands, the annotated configuration, the
// description of the state files and the catalogue of faults. Only tests use
// it: they hold the pages to it, and rewrite them with -update.
//
// cobra/doc makes a page of each command. People look for one of the program,
// with exit status, files and environment, and three of the five pages are not
// about commands at all.
package manual

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// Text is text in the language of troff. Plain, Bold, Italic, Help and Inline
// make it, and it may be joined with +.
type Text string

// special are the characters that groff_char(7) would set as others, or that
// are troff's own.
var special = strings.NewReplacer(`\`, `\(rs`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`, "…", "...")

// Plain escapes text, so that it is set as it is and can be copied.
func Plain(s string) Text {
	var b strings.Builder
	for _, r := range special.Replace(s) {
		if r < 0x80 {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return Text(b.String())
}

// Bold is for what is typed as it is. No hyphen may part it: it is searched for
// and copied.
func Bold(s string) Text {
	return `\fB` + Text(regexp.MustCompile(`\S+`).ReplaceAllString(string(Plain(s)), `\%$0`)) + `\fR`
}

// Italic is for what stands for something else, and for emphasis.
func Italic(s string) Text { return `\fI` + Plain(s) + `\fR` }

const reference = `\b[a-z][a-z0-9._-]*\([1-9]\)`

var (
	helpMarks   = regexp.MustCompile(`--[a-z][a-z-]*|` + reference)
	inlineMarks = regexp.MustCompile("`[^`]+`" + `|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\([^)]+\)|` + reference)
)

// mark escapes s, and gives what a pattern finds to set.
func mark(s string, marks *regexp.Regexp, set func(string) Text) Text {
	var t Text
	at := 0
	for _, m := range marks.FindAllStringIndex(s, -1) {
		t += Plain(s[at:m[0]]) + set(s[m[0]:m[1]])
		at = m[1]
	}
	return t + Plain(s[at:])
}

// Help marks flags and manual pages in the words of a help text.
func Help(s string) Text {
	return mark(s, helpMarks, func(m string) Text {
		if strings.HasPrefix(m, "--") {
			return Bold(m)
		}
		return page(m)
	})
}

// Inline reads Markdown within a line: `code`, **strong**, *emphasis* and
// [links](to). Of a link within the repository only the words remain.
func Inline(s string) Text {
	return mark(s, inlineMarks, func(m string) Text {
		switch {
		case m[0] == '`':
			return Bold(strings.Trim(m, "`"))
		case strings.HasPrefix(m, "**"):
			return Bold(strings.Trim(m, "*"))
		case m[0] == '*':
			return Italic(strings.Trim(m, "*"))
		case m[0] == '[':
			words, to, _ := strings.Cut(strings.TrimSuffix(m[1:], ")"), "](")
			if strings.HasPrefix(to, "http") {
				return Inline(words) + " " + Italic(to)
			}
			return Inline(words)
		}
		return page(m)
	})
}

// page sets a reference such as dpsd(8).
func page(s string) Text {
	name, section, _ := strings.Cut(s, "(")
	return Bold(name) + Text("("+section)
}

// Page is a manual page that is being written, in the macros of man(7).
type Page struct {
	text  strings.Builder
	fresh bool // after a heading, where a paragraph macro would be one too many
}

// New begins a page. The page bears no date: it changes with its source, not
// with the day on which it is made.
func New(name string, section int, summary, source string) *Page {
	p := &Page{}
	p.put(`.\" Generated from ` + source + `; a test there rewrites it with -update.`)
	p.put(fmt.Sprintf(`.TH %s %d "" dpsd "dpsd manual"`, Plain(strings.ToUpper(name)), section))
	p.Section("Name")
	p.put(string(Plain(name) + ` \- ` + Plain(summary)))
	return p
}

func (p *Page) put(line string) { p.text.WriteString(line + "\n") }

// line puts text, which must not be taken for a request.
func (p *Page) line(t Text) {
	if strings.HasPrefix(string(t), ".") {
		t = `\&` + t
	}
	p.put(string(t))
}

// Section begins a section; its title is set in capitals.
func (p *Page) Section(title string) {
	p.put(".SH " + string(Plain(strings.ToUpper(title))))
	p.fresh = true
}

// Subsection begins a part of a section.
func (p *Page) Subsection(title Text) {
	p.put(".SS " + string(title))
	p.fresh = true
}

// Paragraph adds a paragraph.
func (p *Page) Paragraph(t Text) {
	if !p.fresh {
		p.put(".PP")
	}
	p.line(t)
	p.fresh = false
}

// Break adds text that begins on a line of its own, without a space above.
func (p *Page) Break(t Text) {
	if !p.fresh {
		p.put(".br")
	}
	p.line(t)
	p.fresh = false
}

// Item adds a term and what is said of it.
func (p *Page) Item(t, term Text) {
	p.put(".TP")
	p.line(term)
	p.line(t)
	p.fresh = false
}

// Terms adds terms that what follows, Indented, is said of.
func (p *Page) Terms(terms []Text) {
	if !p.fresh {
		p.put(".PP")
	}
	p.fresh = true
	for _, t := range terms {
		p.Break(t)
	}
}

// Point adds an item of a list with a mark such as \(bu.
func (p *Page) Point(mark, t Text) {
	p.put(fmt.Sprintf(".IP %s %d", mark, 3))
	p.line(t)
	p.fresh = false
}

// Indented moves what within adds to the right.
func (p *Page) Indented(within func()) {
	p.put(".RS")
	p.fresh = true
	within()
	p.put(".RE")
	p.fresh = false
}

// Code adds text that is set as it is.
func (p *Page) Code(text string) {
	if !p.fresh {
		p.put(".PP")
	}
	p.put(".RS 4")
	p.put(".EX")
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		p.line(Plain(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "    ")))
	}
	p.put(".EE")
	p.put(".RE")
	p.fresh = false
}

// String returns the page.
func (p *Page) String() string { return p.text.String() }

// Hold returns an error when the file is not text, or with update writes it.
func Hold(file, text string, update bool) error {
	if update {
		return os.WriteFile(file, []byte(text), 0o644) //nolint:gosec // a page for everybody
	}
	have, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) != text {
		return fmt.Errorf("%s is not what its source says now; run this test with -update, and read what changed", file)
	}
	return nil
}
