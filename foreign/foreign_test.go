package foreign_test

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/foreign"
)

func TestCharactersWithoutAVisibleFormAreEscaped(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"text of every language stays":       {"Grüße, 東京 שלום 🙂", "Grüße, 東京 שלום 🙂"},
		"an escape sequence":                 {"a\x1b[2Jb", `a\x1b[2Jb`},
		"the same as one C1 character":       {"a\u009b2Jb", `a\u009b2Jb`},
		"DEL":                                {"a\x7fb", `a\x7fb`},
		"NUL":                                {"a\x00b", `a\x00b`},
		"a carriage return":                  {"a\rb", `a\rb`},
		"a line feed and a tab":              {"a\nb\tc", `a\nb\tc`},
		"separators of lines and paragraphs": {"a\u2028b\u2029c\u0085d", `a\u2028b\u2029c\u0085d`},
		"an override of the direction":       {"a\u202eb\u2066c\u200fd", `a\u202eb\u2066c\u200fd`},
		"a byte-order mark":                  {"\ufeffa", `\ufeffa`},
		"a tag character":                    {"a\U000e0041", `a\U000e0041`},
		"bytes that are not UTF-8":           {"a\xff\xc3(b", `a\xff\xc3(b`},
		"the replacement character":         {"a\ufffd", `a\ufffd`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := foreign.Line(tt.text, foreign.MaxText); got != tt.want {
				t.Errorf("%q became %q, want %q", tt.text, got, tt.want)
			}
		})
	}
	if got := foreign.Lines("a\n\tb\x1b", 99); got != "a\n\tb\\x1b" {
		t.Errorf("several lines became %q", got)
	}
}

func TestATextThatIsTooLongEndsWithItsLength(t *testing.T) {
	for text, want := range map[string]string{
		strings.Repeat("a", 40): strings.Repeat("a", 40),
		strings.Repeat("a", 41): strings.Repeat("a", 26) + "… (41 bytes)",
		strings.Repeat("é", 30): strings.Repeat("é", 13) + "… (60 bytes)",
		// Escape sequences are not truncated.
		strings.Repeat("\x1b", 40): strings.Repeat(`\x1b`, 6) + "… (40 bytes)",
	} {
		if got := foreign.Line(text, 40); got != want || len(got) > 40 {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestStringsReachesEveryStringOfADocument(t *testing.T) {
	type inner struct{ Text string }
	document := struct {
		Text    string
		Inner   inner
		Pointer *inner
		Absent  *inner
		List    []inner
		Number  int
		At      time.Time
	}{"\x1b", inner{"\x1b"}, &inner{"\x1b"}, nil, []inner{{"\x1b"}, {strings.Repeat("a", 50)}}, 7, time.Unix(7, 0)}
	foreign.Strings(&document, 40)
	const want = `\x1b`
	if document.Text != want || document.Inner.Text != want || document.Pointer.Text != want || document.List[0].Text != want || len(document.List[1].Text) > 40 {
		t.Errorf("it became %+v", document)
	}
	if document.Number != 7 || !document.At.Equal(time.Unix(7, 0)) {
		t.Error("a value that is not a string has changed")
	}
}

func FuzzLine(f *testing.F) {
	f.Add("a\x1b[2J\u202e\u2028\xff", 20)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = 32 + limit&0xfff
		got := foreign.Line(text, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Fatalf("%q became %q, limit %d", text, got, limit)
		}
		if again := foreign.Line(got, limit); again != got {
			t.Fatalf("%q became %q, and that %q", text, got, again)
		}
	})
}
