package manual

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Program returns the page of a program. It contains the help texts of its commands and
// prose, a Markdown text. The first chapter of the prose, or the text before it, follows
// the description.
func Program(root *cobra.Command, section int, source, prose string) (string, error) {
	p := New(root.Name(), section, root.Short, source)
	p.Section("Synopsis")
	for _, c := range commands(root) {
		if c.Runnable() && !c.HasSubCommands() {
			p.Break(usage(c))
		}
	}
	p.Section("Description")
	p.Help(long(root))
	chapters := Chapters(prose)
	if err := p.Markdown(chapters[0].Text); err != nil {
		return "", err
	}
	p.Section("Options")
	p.Paragraph("These options apply to every command.")
	p.flags(root.PersistentFlags())
	p.Item("Show help for the command.", Bold("-h")+", "+Bold("--help"))
	if root.LocalNonPersistentFlags().HasAvailableFlags() {
		p.Paragraph("Without a command, " + Plain(root.Name()) + " also accepts:")
		p.flags(root.LocalNonPersistentFlags())
	}
	p.Section("Commands")
	for _, c := range commands(root) {
		p.command(c)
	}
	for _, chapter := range chapters[1:] {
		p.Section(chapter.Title)
		if err := p.Markdown(chapter.Text); err != nil {
			return "", fmt.Errorf("%s: %w", chapter.Title, err)
		}
	}
	return p.String(), nil
}

// commands returns the subcommands of c, each followed by its own subcommands, without
// cobra's help.
func commands(c *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			all = append(append(all, sub), commands(sub)...)
		}
	}
	return all
}

func long(c *cobra.Command) string {
	if c.Long == "" {
		return c.Short + "."
	}
	return c.Long
}

// usage marks up the usage line of a command.
func usage(c *cobra.Command) Text {
	line, _ := strings.CutPrefix(strings.ReplaceAll(c.UseLine(), "[flags]", "[OPTION]..."), c.CommandPath())
	t := mark(line, regexp.MustCompile(`--[a-z-]+|[A-Z]{2,}|\b[a-z]{2,}\b`), func(m string) Text {
		if m == strings.ToUpper(m) && m[0] != '-' {
			return Italic(m)
		}
		return Bold(m)
	})
	return Bold(c.CommandPath()) + t
}

func (p *Page) command(c *cobra.Command) {
	p.Subsection(usage(c))
	p.Help(long(c))
	p.flags(c.LocalNonPersistentFlags())
	if c.Example != "" {
		p.Paragraph("For example:")
		p.Code(strings.Join(outdented(strings.Split(strings.Trim(c.Example, "\n"), "\n")), "\n"))
	}
}

func (p *Page) flags(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, _ := pflag.UnquoteUsage(f)
		term := Bold("--" + f.Name)
		if f.Shorthand != "" {
			term = Bold("-"+f.Shorthand) + ", " + term
		}
		if value != "" {
			term += " " + Italic(value)
		}
		usage := strings.Join(strings.Fields(f.Usage), " ")
		before, rest, found := strings.Cut(strings.ToUpper(usage[:1])+usage[1:], "`")
		t := Help(before)
		if found {
			placeholder, after, _ := strings.Cut(rest, "`")
			t += Italic(placeholder) + Help(after)
		}
		if shown := f.DefValue; shown != "" && shown != "0" && shown != "0s" && shown != "false" && shown != "[]" {
			t += " (default " + Bold(shown) + ")"
		}
		p.Item(t+".", term)
	})
}

// widest is the maximum width of a help text, in columns.
const widest = 80

// aside matches a placeholder after a sentence that does not contain it. The help shows it
// without its back quotes.
var aside = regexp.MustCompile("[;,.]\\s*`[^`]*`")

// Complaints returns what is missing in a program's commands. Each command needs a
// description, an example, a help text that fits a terminal, complete sentences for its
// flags, and completions for its arguments and flags.
func Complaints(root *cobra.Command) []string {
	var all []string
	complain := func(c *cobra.Command, format string, args ...any) {
		all = append(all, c.CommandPath()+": "+fmt.Sprintf(format, args...))
	}
	for _, c := range append(commands(root), root) {
		if c.Long == "" {
			complain(c, "no description (Long)")
		}
		if c.Example == "" {
			complain(c, "no example (Example)")
		}
		for line := range strings.Lines(long(c) + "\n\n" + c.UsageString()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > widest {
				complain(c, "a line of the help has %d columns: %q", n, line)
			}
		}
		if c.Runnable() && !c.HasSubCommands() && c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 {
			complain(c, "no completion for its arguments (ValidArgsFunction; cobra.NoFileCompletions for none)")
		}
		c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			_, function := c.GetFlagCompletionFunc(f.Name)
			_, file := f.Annotations[cobra.BashCompFilenameExt]
			_, directory := f.Annotations[cobra.BashCompSubdirsInDir]
			if aside.MatchString(f.Usage) {
				complain(c, "the placeholder of --%s is not part of the sentence: %q", f.Name, f.Usage)
			}
			if f.NoOptDefVal == "" && !function && !file && !directory {
				complain(c, "no completion for --%s (MarkFlagFilename, MarkFlagDirname or RegisterFlagCompletionFunc)", f.Name)
			}
		})
	}
	return all
}

// exitStatus matches the declaration of an exit status in a program.
var exitStatus = regexp.MustCompile(`(?m)^\texit[A-Z]\w+ += ([0-9]+)`)

// Undescribed returns the exit statuses that Go files declare as constants exitNAME but no
// table of the prose describes.
func Undescribed(prose string, files ...string) ([]string, error) {
	var all []string
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		declared := exitStatus.FindAllSubmatch(source, -1)
		if len(declared) == 0 {
			return nil, fmt.Errorf("%s declares no exit status", file)
		}
		for _, m := range declared {
			if !strings.Contains(prose, "\n| `"+string(m[1])+"` |") {
				all = append(all, string(m[1]))
			}
		}
	}
	return all, nil
}
