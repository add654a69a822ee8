package manual_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
)

// replaced is a word or phrase that texts for readers must not use.
type replaced struct {
	pattern *regexp.Regexp
	better  string
}

// glossary returns the replaced words and phrases. A phrase may continue on the next line.
func glossary() (all []replaced) {
	for _, row := range [][2]string{
		{`told`, "logged, reported, sent"},
		{`mend(?:s|ed|ing)?`, "repair"},
		{`farewell`, "disconnect"},
		{`standing|faults? (?:that )?stands?`, "unresolved, current"},
		{`the last (?:identity|assignment counts)`, "the previous identity"},
		{`by (?:itself|themselves)`, "automatically"},
		{`(?:is|are|was|were|be) another one`, "has changed"},
		{`whoever|(?-i:Who)`, "the user, anyone who"},
		{`what is published`, "the published record"},
		{`lanes?`, "retry class"},
		{`troubles?`, "failures"},
		{`at once`, "immediately"},

		{`at rest`, "when idle"},
		{`confirms? it behind`, "in the background"},
		{`(?:what is )?made of them`, "derivatives"},
		{`what it tells`, "log entries"},
		{`steps of the clock`, "clock changes"},
		{`(?:was|were) to end by`, "the deadline was"},
		{`nobody took`, "the log reader stalled"},
		{`holds something`, "is not valid"},
		{`lets? (?:the|a) port out`, "allows outbound connections to this port"},
		{`does, and end`, "show help"},
		{`keeps? this gateway from`, "why this gateway is not"},
		{`as whom`, "the user that dpsd runs as"},
		{`belongs? into`, "must not contain"},
		{`afresh`, "again"},
		{`somebody|what nobody needs`, "anyone, or the name of the actor"},
		{`rooms?|tellers?|scribes?`, "package, log, recorder"},
	} {
		pattern := `(?i)\b(?:` + strings.ReplaceAll(row[0], " ", `[\s#]+`) + `)\b`
		all = append(all, replaced{regexp.MustCompile(pattern), row[1]})
	}
	return all
}

// fixed matches text that the glossary does not apply to: code in Markdown and in manual
// pages, and members of the status document.
var fixed = regexp.MustCompile("`[^`\n]*`" + `|\\f[BI].*?\\fR|\\\([a-z]{2}|"(?:standing|lane)"`)

// violations returns the lines of a text with a word that the glossary replaces.
func violations(text string) (all []string) {
	text = fixed.ReplaceAllString(text, " ")
	for _, word := range glossary() {
		for _, at := range word.pattern.FindAllStringIndex(text, -1) {
			begin := strings.LastIndex(text[:at[0]], "\n") + 1
			end := at[1] + strings.Index(text[at[1]:]+"\n", "\n")
			all = append(all, text[begin:end]+": use: "+word.better)
		}
	}
	return all
}

// The manual pages contain every help text.
func TestNoTextContainsAWordThatTheGlossaryReplaces(t *testing.T) {
	texts := map[string]string{}
	for _, pattern := range []string{
		"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "docs/*.json", "docs/man/*", "config/dpsd.toml", "pkcs11/*.8",
		"packaging/deb/README.md", "packaging/image/README.md", "packaging/image/examples/*", "packaging/yocto/README.md", "packaging/buildroot/README.md", "packaging/prometheus/*.yml", "packaging/systemd/dpsd*", "packaging/systemd/examples/*",
	} {
		files, err := filepath.Glob("../" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(text)
		}
	}
	// Quoted output of tests is not checked.
	promises := "../docs/promises.md"
	texts[promises] = regexp.MustCompile(`"[^"\n]*"`).ReplaceAllString(texts[promises], "")
	for _, e := range event.Catalogue() {
		texts["event "+e.Name] = e.Sentence + "\n" + e.Meaning
	}
	for _, e := range fault.Catalogue() {
		texts["fault "+string(e.Code)] = e.Summary + "\n" + e.Advice + "\n" + e.Instead
	}
	for name, text := range texts {
		for _, found := range violations(text) {
			t.Errorf("%s: %s", name, found)
		}
	}
}

func TestTheGlossaryFindsReplacedWordsButNoNames(t *testing.T) {
	for _, text := range []string{
		"is ready at once with the last identity and confirms it behind",
		"is ready at\n# once",
		"at rest 5 MB stay in memory",
		"for Debian 12, 13 and what is made of them",
		"What it tells goes to the journal with fields",
		"Who comes from Azure IoT Edge converts its configuration",
		"Steps of the clock are not seen: {error}",
		"The last assignment counts: {hub} as {device}",
		"Hung while {stage}: it was to end by {deadline}",
		"{lost} log entries were lost since {since}: nobody took them",
		"DPS is told farewell",
		"The proxy wants to be told who we are",
		"HTTPS_PROXY holds something that is no address of a proxy.",
		"Check that a firewall lets the port out",
		"Say what the command does, and end.",
		"Find out what keeps this gateway from being provisioned",
		"the user as whom dpsd runs has to read it",
		"a user or a password does not belong into the address",
		"tries again by itself",
		"the assignment is another one",
		"the fault that stands",
		"it was not mended",
		"the lane of a fault",
		"look at what is published",
		"one hour of trouble",
		"somebody changed it",
	} {
		if len(violations(text)) == 0 {
			t.Errorf("no violation found in %q", text)
		}
	}
	for _, text := range []string{
		"| `dpsd_fault_standing` | gauge |", "dpsd_fault_standing == 1", `"standing": {`, "the log field `lane`",
		"a user who has read it", "as \\fB\\%lane\\fR", "for another one, use --config",
	} {
		if found := violations(text); !slices.Equal(found, nil) {
			t.Errorf("%q: %q", text, found)
		}
	}
}
