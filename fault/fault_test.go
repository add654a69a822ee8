package fault_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/fault"
)

var update = flag.Bool("update", false, "rewrite the pages that are generated from the catalogue")

func TestEveryEntryIsComplete(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[fault.Code]bool{}
	for _, e := range fault.Catalogue() {
		if !form.MatchString(string(e.Code)) {
			t.Errorf("%q: a code is lower-case words joined by hyphens", e.Code)
		}
		if seen[e.Code] {
			t.Errorf("%s occurs twice", e.Code)
		}
		seen[e.Code] = true
		if (e.When == "") != (e.Instead == "") {
			t.Errorf("%s: advice for a circumstance needs both texts, got %q and %q", e.Code, e.When, e.Instead)
		}
		for _, text := range []string{e.Summary, e.Advice, cmp.Or(e.Instead, "none")} {
			if text == "" || strings.ContainsAny(text, "\n\t") {
				t.Errorf("%s: summary and advice are one line each, got %q", e.Code, text)
			}
		}
		if e.Class == "" {
			t.Errorf("%s has no class", e.Code)
		}
	}
}

func TestEveryDeclaredCodeIsInTheCatalogue(t *testing.T) {
	source, err := os.ReadFile("fault.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t\w+\s+Code = "([^"]+)"`).FindAllSubmatch(source, -1)
	if len(declared) != len(fault.Catalogue()) {
		t.Errorf("%d codes are declared, %d are in the catalogue", len(declared), len(fault.Catalogue()))
	}
	for _, m := range declared {
		if code := fault.Code(m[1]); fault.Describe(code).Code != code {
			t.Errorf("%s is declared but not in the catalogue", code)
		}
	}
}

func TestTheAdviceDependsOnTheCircumstance(t *testing.T) {
	f := fault.New(fault.TCPRefused, fault.StageTCP, errors.New("connection refused"))
	if got := f.Advice(); strings.Contains(got, "443") {
		t.Errorf("the advice for a refused connection without a circumstance must not be port 443: %q", got)
	}
	f.Circumstance = fault.OnlyMQTT
	if got := f.Advice(); !strings.Contains(got, "443") {
		t.Errorf("when only port 8883 was tried, port 443 is worth a try: %q", got)
	}
	f.Code = fault.NoReply
	if got := f.Advice(); got != fault.Describe(fault.NoReply).Advice {
		t.Errorf("a circumstance that a code does not use must change nothing: %q", got)
	}
}

// The most frequent cause comes first.
func TestTheMostFrequentCauseComesFirstInTheAdvice(t *testing.T) {
	for code, words := range map[fault.Code][]string{
		fault.ConnackUnavailable: {"id_scope", "busy"},
		fault.Unauthorized:       {"group's", "upper-case", "with the enrollment", "clock"},
		fault.ConnackRefused:     {"group's", "upper-case", "key or certificate", "clock"},
	} {
		advice, last := fault.Describe(code).Advice, -1
		for _, word := range words {
			at := strings.Index(advice, word)
			if at <= last {
				t.Errorf("%s: %q does not follow in %q", code, word, advice)
			}
			last = at
		}
	}
}

func TestAFaultsTextIsItsCodeAndCause(t *testing.T) {
	f := fault.New(fault.Unauthorized, fault.StageRegister, errors.New("register: status 401, errorCode 401002"))
	if got, want := f.Error(), "unauthorized: register: status 401, errorCode 401002"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := fault.New(fault.NoReply, "", nil).Error(); got != "no-reply" {
		t.Errorf("a fault without a cause is its code, got %q", got)
	}
	if f.Class != fault.Credential {
		t.Errorf("a 401 is of class credential, got %s", f.Class)
	}
	wrapped := fault.New(fault.InputUnreadable, fault.StageIdentity, fmt.Errorf("read: %w", fs.ErrNotExist))
	if !errors.Is(wrapped, fs.ErrNotExist) {
		t.Error("the cause of a fault is reachable by errors.Is")
	}
}

// remedied is an error with a remedy.
type remedied struct{ remedy string }

func (e *remedied) Error() string  { return "what happened" }
func (e *remedied) Remedy() string { return e.remedy }

func TestTheRemedyOfACauseTakesPrecedenceOverTheCatalogue(t *testing.T) {
	general := fault.Describe(fault.CredentialInvalid).Advice
	for remedy, want := range map[string]string{"do this": "do this", "": general} {
		f := fault.New(fault.CredentialInvalid, fault.StageCredential, fmt.Errorf("file:/k: %w", &remedied{remedy}))
		if got := f.Advice(); got != want {
			t.Errorf("with the remedy %q the advice is %q", remedy, got)
		}
	}
	if got := fault.New(fault.CredentialInvalid, fault.StageCredential, errors.New("x")).Advice(); got != general {
		t.Errorf("without a remedy the advice is %q", got)
	}
}

// The page is generated, so that the manual and the program always agree.
func TestTheFaultsPageIsTheCatalogue(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Faults\n\nEvery failure that dpsd can report. The code appears in the log (`fault`) and in `STATUS=`.\n" +
		"This page is generated from the catalogue in `fault/`: `go test ./fault -update`.\n\n" +
		"The class sets the delay before the next attempt: see [retries.md](retries.md).\n\n" +
		"| code | class | meaning | what to do |\n| --- | --- | --- | --- |\n")
	for _, e := range fault.Catalogue() {
		advice := e.Advice
		if e.When != "" {
			advice += " When " + string(e.When) + ": " + e.Instead
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", e.Code, e.Class, e.Summary, advice)
	}
	generated(t, "../docs/faults.md", b.String())
}

// The manual's generator and other programs read the catalogue, so it must not have other
// dependencies.
func TestImportsStayInTheStandardLibrary(t *testing.T) {
	for _, file := range []string{"fault.go", "catalogue.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range parsed.Imports {
			if strings.Contains(imp.Path.Value, ".") {
				t.Errorf("%s imports %s", file, imp.Path.Value)
			}
		}
	}
}
