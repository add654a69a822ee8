// Package manual generates the manual pages in docs/man from the command trees, the
// annotated configuration, the description of the state files and the catalogue of faults.
// Only tests use it: they compare the pages with its output, and rewrite them with -update.
//
// cobra/doc generates a page for each command. Users expect one page for the program, with
// exit status, files and environment, and three of the five pages are not about commands.
package manual

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
)

// Text is text in the troff language. Plain, Bold, Italic, Help and Inline return it, and +
// concatenates it.
type Text string

// special escapes the characters that groff replaces, see groff_char(7), and those with a
// meaning in troff.
var special = strings.NewReplacer(`\`, `\(rs`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`, "…", "...")

// Plain escapes text so that it is printed unchanged and can be copied.
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

// Bold is for literal text. It is not hyphenated, so that readers can search for it and
// copy it.
func Bold(s string) Text {
	return `\fB` + Text(regexp.MustCompile(`\S+`).ReplaceAllString(string(Plain(s)), `\%$0`)) + `\fR`
}

// Italic is for placeholders and for emphasis.
func Italic(s string) Text { return `\fI` + Plain(s) + `\fR` }

const reference = `\b[a-z][a-z0-9._-]*\([1-9]\)`

var (
	helpMarks   = regexp.MustCompile(`--[a-z][a-z-]*|` + reference)
	inlineMarks = regexp.MustCompile("`[^`]+`" + `|\*\*[^*]+\*\*|\*[^*\s][^*]*\*|\[[^\]]+\]\([^)]+\)|` + reference)
)

// mark escapes s and applies set to the matches of a pattern.
func mark(s string, marks *regexp.Regexp, set func(string) Text) Text {
	var t Text
	at := 0
	for _, m := range marks.FindAllStringIndex(s, -1) {
		t += Plain(s[at:m[0]]) + set(s[m[0]:m[1]])
		at = m[1]
	}
	return t + Plain(s[at:])
}

// Help marks up the flags and references to manual pages in a help text.
func Help(s string) Text {
	return mark(s, helpMarks, func(m string) Text {
		if strings.HasPrefix(m, "--") {
			return Bold(m)
		}
		return page(m)
	})
}

// Inline converts inline Markdown: `code`, **strong**, *emphasis* and [links](to). It keeps
// only the text of a link within the repository.
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

// page marks up a reference such as dpsd(8).
func page(s string) Text {
	name, section, _ := strings.Cut(s, "(")
	return Bold(name) + Text("("+section)
}

// Page is a manual page under construction, in the macros of man(7).
type Page struct {
	text  strings.Builder
	fresh bool // after a heading, where no paragraph macro is needed
}

// New returns a page with its heading. It has no date, so that the page changes only with
// its source.
func New(name string, section int, summary, source string) *Page {
	p := &Page{}
	p.put(`.\" Generated from ` + source + `; a test there rewrites it with -update.`)
	p.put(fmt.Sprintf(`.TH %s %d "" dpsd "dpsd manual"`, Plain(strings.ToUpper(name)), section))
	p.Section("Name")
	p.put(string(Plain(name) + ` \- ` + Plain(summary)))
	return p
}

func (p *Page) put(line string) { p.text.WriteString(line + "\n") }

// line adds text, escaped so that it is not interpreted as a request.
func (p *Page) line(t Text) {
	if strings.HasPrefix(string(t), ".") {
		t = `\&` + t
	}
	p.put(string(t))
}

// Section begins a section; it prints the title in capitals.
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

// Break adds text on a new line, without a space above.
func (p *Page) Break(t Text) {
	if !p.fresh {
		p.put(".br")
	}
	p.line(t)
	p.fresh = false
}

// Item adds a term and its description.
func (p *Page) Item(t, term Text) {
	p.put(".TP")
	p.line(term)
	p.line(t)
	p.fresh = false
}

// Terms adds terms whose description follows with Indented.
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

// Indented indents the text that within adds.
func (p *Page) Indented(within func()) {
	p.put(".RS")
	p.fresh = true
	within()
	p.put(".RE")
	p.fresh = false
}

// Code adds literal text.
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

// Hold returns an error if the contents of the file differ from text, or writes the file if
// update is set.
func Hold(file, text string, update bool) error {
	if update {
		return os.WriteFile(file, []byte(text), 0o644) //nolint:gosec // the page is public
	}
	have, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(have) != text {
		return fmt.Errorf("%s differs from its source; run this test with -update and check the differences", file)
	}
	return nil
}
