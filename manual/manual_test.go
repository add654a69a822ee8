package manual_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/manual"
)

func TestText(t *testing.T) {
	for _, row := range []struct {
		say  string
		got  manual.Text
		want string
	}{
		{"hyphens and quotes are those that are typed", manual.Plain("--a 'b' `c` ~^"), `\-\-a \(aqb\(aq \(gac\(ga \(ti\(ha`},
		{"a backslash is no escape", manual.Plain(`a\fBb`), `a\(rsfBb`},
		{"other characters are named by number", manual.Plain("é"), `\[u00E9]`},
		{"an ellipsis is three dots, as every terminal has", manual.Plain("a…"), `a...`},
		{"a flag in a help text is bold", manual.Help("with --once: x"), `with \fB\%\-\-once\fR: x`},
		{"a page in a help text is bold", manual.Help("see dpsd.toml(5)."), `see \fB\%dpsd.toml\fR(5).`},
		{"code and emphasis in Markdown", manual.Inline("`a *b*` and *c* **d**"), `\fB\%a \%*b*\fR and \fIc\fR \fB\%d\fR`},
		{"of a link within the repository the words remain", manual.Inline("[`x`](y.md)"), `\fB\%x\fR`},
		{"of a link to elsewhere the address too", manual.Inline("[x](https://a.example/)"), `x \fIhttps://a.example/\fR`},
		{"a lone asterisk is one", manual.Inline("2 * 3 * 4"), `2 * 3 * 4`},
		{"brackets are not a link", manual.Inline("[state] (x)"), `[state] (x)`},
	} {
		if string(row.got) != row.want {
			t.Errorf("%s: got %s, want %s", row.say, row.got, row.want)
		}
	}
}

// body returns the part of a page after its NAME section.
func body(p *manual.Page) string {
	_, after, _ := strings.Cut(p.String(), ".SH X\n")
	return after
}

func TestMarkdown(t *testing.T) {
	for _, row := range []struct{ say, text, want string }{
		{"paragraphs are filled", "a\nb\n\nc\n", "a b\n.PP\nc\n"},
		{"a dot at the beginning is no request", ".a\n", "\\&.a\n"},
		{"a list", "* a\n  b\n* c\n", ".IP \\(bu 3\na b\n.IP \\(bu 3\nc\n"},
		{"a list with numbers", "1. a\n2. b\n", ".IP 1. 3\na\n.IP 2. 3\nb\n"},
		{"a table is a list of terms", "| h | i |\n| --- | --- |\n| a | b |\n", ".TP\na\nb\n"},
		{"code is set as it is", "```sh\n.a\n\n  b\n```\n", ".RS 4\n.EX\n\\&.a\n\n  b\n.EE\n.RE\n"},
		{"a heading", "### a\n\nb\n", ".SS a\nb\n"},
	} {
		p := manual.New("x", 1, "x", "x")
		p.Section("X")
		if err := p.Markdown(row.text); err != nil {
			t.Errorf("%s: %v", row.say, err)
		}
		if got := body(p); got != row.want {
			t.Errorf("%s: got\n%swant\n%s", row.say, got, row.want)
		}
	}
	for say, text := range map[string]string{
		"code without an end":         "```\na\n",
		"code right below its text":   "a\n```\nb\n```\n",
		"a table of three columns":    "| a | b | c |\n| --- | --- | --- |\n",
		"text right below a heading":  "### a\nb\n",
		"a heading of the first rank": "# a\n",
		"a quotation":                 "> a\n",
		"a list with another mark":    "- a\n",
		"HTML":                        "<p>a</p>\n",
	} {
		if err := manual.New("x", 1, "x", "x").Markdown(text); err == nil {
			t.Errorf("%s must be an error", say)
		}
	}
}

func TestHelpText(t *testing.T) {
	p := manual.New("x", 1, "x", "x")
	p.Section("X")
	p.Help("One\ntwo:\n  a    first\n       goes on\n  b c  second\n\nThen\n\n  ls -l\n")
	want := "One two:\n.TP\n\\fB\\%a\\fR\nfirst goes on\n.TP\n\\fB\\%b \\%c\\fR\nsecond\n.PP\nThen\n.PP\n.RS 4\n.EX\nls \\-l\n.EE\n.RE\n"
	if got := body(p); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// tree returns a program with a subcommand of a subcommand.
func tree() *cobra.Command {
	run := func(*cobra.Command, []string) error { return nil }
	root := &cobra.Command{Use: "tool", Short: "a tool", Long: "It works.", Example: "  tool", RunE: run, Args: cobra.NoArgs}
	root.PersistentFlags().Bool("loud", false, "say more")
	group := &cobra.Command{Use: "group", Short: "Group", Long: "Group.", Example: "  tool group leaf"}
	leaf := &cobra.Command{Use: "leaf FILE", Short: "Leaf", Long: "Leaf.", Example: "  tool group leaf x", RunE: run, ValidArgsFunction: cobra.NoFileCompletions}
	leaf.Flags().String("mode", "fast", "how it is `DONE`,\nin one word")
	_ = leaf.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]cobra.Completion{"fast", "slow"}, cobra.ShellCompDirectiveNoFileComp))
	group.AddCommand(leaf)
	root.AddCommand(group)
	return root
}

func TestProgram(t *testing.T) {
	page, err := manual.Program(tree(), 8, "a tree", "# Title\n\nMore.\n\n## Files\n\nNone.\n")
	if err != nil {
		t.Fatal(err)
	}
	for say, want := range map[string]string{
		"the NAME is the short text":                "tool \\- a tool\n",
		"the SYNOPSIS has what can be run":          ".SH SYNOPSIS\n\\fB\\%tool \\%group \\%leaf\\fR \\fIFILE\\fR [\\fIOPTION\\fR]...\n.SH",
		"the prose follows the description":         ".SH DESCRIPTION\nIt works.\n.PP\nMore.\n",
		"a flag of every command is an option":      "\\fB\\%\\-\\-loud\\fR\nSay more.\n",
		"a flag has value, text and default":        "\\fB\\%\\-\\-mode\\fR \\fIDONE\\fR\nHow it is \\fIDONE\\fR, in one word (default \\fB\\%fast\\fR).\n",
		"an example is code":                        ".EX\ntool group leaf x\n.EE\n",
		"a chapter of the prose is a section":       ".SH FILES\nNone.\n",
		"a heading of the first rank is not for it": ".TH TOOL 8 \"\" dpsd",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s: %q is not in\n%s", say, want, page)
		}
	}
	if strings.Contains(page, "Title") {
		t.Error("the title of the prose is in the page")
	}
	if _, err := manual.Program(tree(), 8, "a tree", "## Files\n\n> a\n"); err == nil || !strings.Contains(err.Error(), "Files") {
		t.Errorf("the error names the chapter, got %v", err)
	}
}

func TestComplaints(t *testing.T) {
	if got := manual.Complaints(tree()); len(got) > 0 {
		t.Fatalf("a complete tree has no complaints, got %q", got)
	}
	for say, row := range map[string]struct {
		spoil func(leaf *cobra.Command)
		want  string
	}{
		"no description":     {func(c *cobra.Command) { c.Long = "" }, "tool group leaf: no description"},
		"no example":         {func(c *cobra.Command) { c.Example = "" }, "tool group leaf: no example"},
		"a wide description": {func(c *cobra.Command) { c.Long = strings.Repeat("x", 81) }, "tool group leaf: a line of the help has 81 columns"},
		"a wide flag":        {func(c *cobra.Command) { c.Flags().Bool("wide", false, strings.Repeat("x", 81)) }, "tool group leaf: a line of the help has"},
		"a placeholder beside its sentence": {func(c *cobra.Command) { c.Flags().Bool("x", false, "what to do: this or\nthat; `WHAT`") },
			"tool group leaf: the placeholder of --x is not part of the sentence"},
		"a flag without completion":    {func(c *cobra.Command) { c.Flags().String("x", "", "x") }, "tool group leaf: no completion for --x"},
		"arguments without completion": {func(c *cobra.Command) { c.ValidArgsFunction = nil }, "tool group leaf: no completion for its arguments"},
	} {
		root := tree()
		leaf, _, err := root.Find([]string{"group", "leaf"})
		if err != nil {
			t.Fatal(err)
		}
		row.spoil(leaf)
		if got := manual.Complaints(root); !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, row.want) }) {
			t.Errorf("%s: got %q, want a complaint that begins with %q", say, got, row.want)
		}
	}
}

func TestUndescribed(t *testing.T) {
	dir := t.TempDir()
	file, none := filepath.Join(dir, "a.go"), filepath.Join(dir, "none.go")
	for path, text := range map[string]string{file: "const (\n\texitDone   = 0 // done\n\texitFailed = 1\n)\n", none: "package x\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := manual.Undescribed("\n| `0` | Done. |\n", file); err != nil || !slices.Equal(left, []string{"1"}) {
		t.Errorf("the undescribed status is 1, got %v, %v", left, err)
	}
	if _, err := manual.Undescribed("", none); err == nil {
		t.Error("a file without an exit status must be an error, since the names of the constants have changed")
	}
}

func TestCompare(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page")
	if err := manual.Compare(file, "a", false); err == nil || !strings.Contains(err.Error(), "-update") {
		t.Errorf("a missing page must be an error with a remedy, got %v", err)
	}
	if err := manual.Compare(file, "a", true); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "a" {
		t.Errorf("update must write the page: %v, %q", err, text)
	}
	if err := manual.Compare(file, "a", false); err != nil {
		t.Errorf("a current page must not be an error, got %v", err)
	}
	if err := manual.Compare(file, "b", false); err == nil {
		t.Error("an outdated page must be an error")
	}
}
