package unitfile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dpsd-project/dpsd/unitfile"
)

func TestASettingOfAUnitHasItsSectionAndItsFirstLine(t *testing.T) {
	const text = "# [Unit]\n[Service]\nEnvironment = A=1 \\\n  B=2\n\n; C=3\nnothing\n[Install]\r\nWantedBy=multi-user.target\\"
	want := []unitfile.Setting{
		{Section: "[Service]", Key: "Environment", Value: "A=1  B=2", Line: 3},
		{Section: "[Install]", Key: "WantedBy", Value: `multi-user.target\`, Line: 9},
	}
	if diff := cmp.Diff(want, unitfile.Settings([]byte(text))); diff != "" {
		t.Error(diff)
	}
}

func TestAValueIsSplitAtTheBlanksOutsideOfQuotes(t *testing.T) {
	for text, want := range map[string][]string{
		"A=1 \t B=2":          {"A=1", "B=2"},
		`"A=1 2" 'B="3" 4'`:   {"A=1 2", `B="3" 4`},
		`A="1 2"3 B=\ x`:      {"A=1 23", "B= x"},
		`"A=\"1\\" B=don\'t`:  {`A="1\`, "B=don't"},
		`A="not closed B=2`:   {"A=not closed B=2"},
		`"" ''`:               {"", ""},
		`"A=a backslash is\`:  {`A=a backslash is\`},
		"A=two\nlines \"B=\n": {"A=two\nlines", "B=\n"},
		"  ":                  nil,
	} {
		if diff := cmp.Diff(want, unitfile.Words(text), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}

func TestAFileOfVariablesIsReadAsSystemdReadsIt(t *testing.T) {
	for text, want := range map[string][]unitfile.Setting{
		" A = 1 2 \t\r\n#B=3\n;C=4\nD\nE=5": {{Key: "A", Value: "1 2", Line: 1}, {Key: "E", Value: "5", Line: 5}},
		"A=\" 1\n2 \"\nB='3\\'4\n":          {{Key: "A", Value: " 1\n2 ", Line: 1}, {Key: "B", Value: `3\4`, Line: 3}},
		`A="\"\\\$\x" ` + "\nB=2":           {{Key: "A", Value: `"\$\x`, Line: 1}, {Key: "B", Value: "2", Line: 2}},
		"A='1' \"2\" 3\"4\"\n":              {{Key: "A", Value: `123"4"`, Line: 1}},
		"A=1\\\n2 \\\n\nB=3\\ \nC=\\'":      {{Key: "A", Value: "12", Line: 1}, {Key: "B", Value: "3 ", Line: 4}, {Key: "C", Value: "'", Line: 5}},
		"A=\"not closed\nB=2\n":             {{Key: "A", Value: "not closed\nB=2\n", Line: 1}},
		"A=1\\":                             {{Key: "A", Value: "1", Line: 1}},
		"A=\r\n":                            {{Key: "A", Line: 1}},
	} {
		if diff := cmp.Diff(want, unitfile.Variables([]byte(text)), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}
