package manual

import (
	"fmt"
	"regexp"
	"strings"
)

// paragraphs splits a text at its empty lines.
func paragraphs(text string) [][]string {
	var all [][]string
	for part := range strings.SplitSeq(regexp.MustCompile(`\n[ \t]*\n`).ReplaceAllString(strings.Trim(text, "\n"), "\x00"), "\x00") {
		if part = strings.Trim(part, "\n"); part != "" {
			all = append(all, strings.Split(part, "\n"))
		}
	}
	return all
}

// entry matches a line of a list in a help text: it is indented, with at least two blanks
// between the term and its description.
var entry = regexp.MustCompile(`^ {2,}(\S+(?: \S+)*) {2,}(\S.*)$`)

// Help adds a help text or a comment, which consists of paragraphs, lists of terms and
// indented examples.
func (p *Page) Help(text string) {
	for _, lines := range paragraphs(text) {
		for len(lines) > 0 {
			n := 0
			for n < len(lines) && indented(lines[n]) == indented(lines[0]) {
				n++
			}
			switch {
			case !indented(lines[0]):
				p.Paragraph(Help(strings.Join(lines[:n], " ")))
			case entry.MatchString(lines[0]):
				p.entries(lines[:n])
			default:
				p.Code(strings.Join(outdented(lines[:n]), "\n"))
			}
			lines = lines[n:]
		}
	}
}

func indented(line string) bool { return strings.HasPrefix(line, "  ") }

// outdented removes the common indentation of the lines.
func outdented(lines []string) []string {
	least := len(lines[0])
	for _, line := range lines {
		if line != "" {
			least = min(least, len(line)-len(strings.TrimLeft(line, " ")))
		}
	}
	out := make([]string, 0, len(lines))
	for _, line := range lines {
		out = append(out, line[min(least, len(line)):])
	}
	return out
}

// entries adds a list. A line with more indentation continues the previous entry.
func (p *Page) entries(lines []string) {
	margin := len(lines[0]) - len(strings.TrimLeft(lines[0], " "))
	for i := 0; i < len(lines); i++ {
		m := entry.FindStringSubmatch(lines[i])
		if m == nil {
			p.Paragraph(Help(strings.TrimSpace(lines[i])))
			continue
		}
		said := m[2]
		for i+1 < len(lines) && strings.HasPrefix(lines[i+1], strings.Repeat(" ", margin+1)) {
			i++
			said += " " + strings.TrimSpace(lines[i])
		}
		p.Item(Help(said), Bold(m[1]))
	}
}

// Chapter is a part of a Markdown text between two second-level headings.
type Chapter struct{ Title, Text string }

// Chapters splits a Markdown text at its second-level headings. The text before the first
// one is a chapter without a title; its first-level heading is removed.
func Chapters(text string) []Chapter {
	parts := regexp.MustCompile(`(?m)^## `).Split(regexp.MustCompile(`(?m)\A# .*\n`).ReplaceAllString(text, ""), -1)
	chapters := make([]Chapter, 0, len(parts))
	chapters = append(chapters, Chapter{Text: parts[0]})
	for _, part := range parts[1:] {
		title, rest, _ := strings.Cut(part, "\n")
		chapters = append(chapters, Chapter{title, rest})
	}
	return chapters
}

// Markdown adds a Markdown text. It supports the syntax that this repository uses:
// paragraphs, lists with * and with numbers, tables of two columns, code and third-level
// headings. Anything else is an error.
func (p *Page) Markdown(text string) error {
	for len(text) > 0 {
		text = strings.TrimLeft(text, "\n")
		if rest, found := strings.CutPrefix(text, "```"); found {
			code, after, closed := strings.Cut(rest, "\n```")
			if !closed {
				return fmt.Errorf("unterminated code block: %.40q", rest)
			}
			_, code, _ = strings.Cut(code, "\n") // remove the language
			p.Code(code)
			text = after
			continue
		}
		block, rest, _ := strings.Cut(text, "\n\n")
		if err := p.block(strings.TrimRight(block, "\n")); err != nil {
			return err
		}
		text = rest
	}
	return nil
}

var numbered = regexp.MustCompile(`^([0-9]+\.) +(.*)`)

func (p *Page) block(block string) error {
	lines := strings.Split(block, "\n")
	for _, line := range lines {
		if strings.HasPrefix(line, "```") {
			return fmt.Errorf("missing empty line before the code: %.60q", block)
		}
	}
	switch first := lines[0]; {
	case block == "":
	case strings.HasPrefix(first, "### "):
		p.Subsection(Inline(first[4:]))
		if len(lines) > 1 {
			return fmt.Errorf("missing empty line after the heading: %.60q", block)
		}
	case strings.HasPrefix(first, "#"), strings.HasPrefix(first, ">"), strings.HasPrefix(first, "<"), strings.HasPrefix(first, "- "):
		return fmt.Errorf("unsupported Markdown: %.60q", block)
	case strings.HasPrefix(first, "| "):
		return p.table(lines)
	case strings.HasPrefix(first, "* "):
		for _, item := range items(lines, func(line string) bool { return strings.HasPrefix(line, "* ") }) {
			p.Point(`\(bu`, Inline(item[2:]))
		}
	case numbered.MatchString(first):
		for _, item := range items(lines, numbered.MatchString) {
			m := numbered.FindStringSubmatch(item)
			p.Point(Plain(m[1]), Inline(m[2]))
		}
	default:
		p.Paragraph(Inline(strings.Join(lines, " ")))
	}
	return nil
}

// items joins each item of a list with its continuation lines.
func items(lines []string, begins func(string) bool) []string {
	var all []string
	for _, line := range lines {
		if begins(line) {
			all = append(all, line)
		} else {
			all[len(all)-1] += " " + strings.TrimSpace(line)
		}
	}
	return all
}

// table adds a table of two columns as a list of terms, which fits any width.
func (p *Page) table(lines []string) error {
	for i, line := range lines {
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "| "), " |"), " | ")
		if len(cells) != 2 {
			return fmt.Errorf("a table of %d columns, want 2: %.60q", len(cells), line)
		}
		if i < 2 { // the header and its delimiter row
			continue
		}
		p.Item(Inline(cells[1]), Inline(cells[0]))
	}
	return nil
}
