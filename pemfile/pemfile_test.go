package pemfile_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/pemfile"
)

// block returns a PEM block with the given text as its content.
func block(label, text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: []byte(text)}))
}

// long is content of several lines.
var long = strings.Repeat("a certificate, ", 20)

func TestEveryBlockIsReadRegardlessOfTheTextAroundIt(t *testing.T) {
	a, b := block("CERTIFICATE", long), block("PRIVATE KEY", "key")
	for _, test := range []struct{ expect, text string }{
		{"two blocks", a + b},
		{"text before, between and after them", "subject=CN = x\n" + a + "\nBag Attributes\n    friendlyName: x\n" + b + "the end"},
		{"no line feed between them", strings.TrimSuffix(a, "\n") + b},
		{"no line feed at the end", a + strings.TrimSuffix(b, "\n")},
		{"Windows line endings", strings.ReplaceAll(a+b, "\n", "\r\n")},
		{"blanks at both ends of each line", strings.ReplaceAll("  "+a+b, "\n", " \t\n  ")},
		{"quotes around it", `"` + a + b + `"`},
		{"a name before it", "certificate: " + a + b},
		{"lines of another length", strings.ReplaceAll(a, "\n", "\n\n") + b},
		{"one line each", strings.ReplaceAll(a, "\n", "") + b},
	} {
		t.Run(test.expect, func(t *testing.T) {
			blocks, err := pemfile.Blocks([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if len(blocks) != 2 || blocks[0].Type != "CERTIFICATE" || blocks[1].Type != "PRIVATE KEY" ||
				string(blocks[0].Bytes) != long || string(blocks[1].Bytes) != "key" {
				t.Errorf("got %v", blocks)
			}
		})
	}
	t.Run("a header that says the block is encrypted", func(t *testing.T) {
		text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")})
		blocks, err := pemfile.Blocks(text)
		if err != nil || len(blocks) != 1 || !blocks[0].Encrypted || string(blocks[0].Bytes) != "x" {
			t.Errorf("got %v, %v", blocks, err)
		}
	})
	t.Run("a text without a block has none", func(t *testing.T) {
		if blocks, err := pemfile.Blocks([]byte("BEGIN and END, -----\n")); len(blocks) != 0 || err != nil {
			t.Errorf("got %v, %v", blocks, err)
		}
	})
}

func TestTheErrorAboutABlockThatCannotBeReadNamesItsLine(t *testing.T) {
	a := block("CERTIFICATE", long) // 9 lines
	begun, _, _ := strings.Cut(a, "-----END")
	for _, test := range []struct{ expect, text, says string }{
		{"a block that is truncated in its text", a + a[:200], "line 10: the block \"CERTIFICATE\" has no -----END line"},
		{"a block that is truncated in its first line", a + "-----BEGIN CERT", "line 10: the -----BEGIN line is incomplete"},
		{"a block that is truncated after -----BEGIN", a + "-----BEGIN", "line 10: the -----BEGIN line is incomplete"},
		{"a block that is truncated in its last line", a + strings.TrimSuffix(a, "--\n"), "line 18: the -----END line is incomplete"},
		{"a block whose end is missing before the next one", begun + a, "line 1: the block \"CERTIFICATE\" has no -----END line"},
		{"a block with the end of another block", strings.Replace(a, "END CERT", "END X509 CERT", 1), "line 9: -----END X509 CERTIFICATE----- ends the block \"CERTIFICATE\" that begins on line 1"},
		{"an end without a begin", a + "-----END CERTIFICATE-----\n", "line 10: a -----END line without"},
		{"a begin without one dash", a + a[1:], "line 18: a -----END line without"},
		{"a character that is not base64", strings.Replace(a, "\n", "\n*", 2), "line 2: a character that is not base64"},
		{"a comment sign before every line", "#" + strings.ReplaceAll(a, "\n", "\n#"), "line 2: a character that is not base64"},
		{"incomplete text", strings.Replace(a, "\n-----END", "X\n-----END", 1), "line 9: the base64 text before this line is incomplete"},
		{"an empty block", "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "line 2: the block is empty"},
		{`\n in place of line breaks`, strings.ReplaceAll(a, "\n", `\n`), `line 1: the file contains \n as two characters`},
	} {
		t.Run(test.expect, func(t *testing.T) {
			blocks, err := pemfile.Blocks([]byte(test.text))
			var m *input.Mistake
			if !errors.As(err, &m) || m.Remedy() == "" || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %q; blocks %v", err, test.says, blocks)
			}
		})
	}
}

// FuzzBlocks compares the reader with encoding/pem: it returns every block that encoding/pem
// returns, and reports everything else that begins like a block.
func FuzzBlocks(f *testing.F) {
	a := block("CERTIFICATE", long)
	for _, seed := range []string{a, a + a, a[:200], strings.TrimSuffix(a, "\n") + a, "-----BEGIN", "x: y\n" + a, "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END A-----"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		blocks, err := pemfile.Blocks(text)
		if err != nil {
			if err.Error() == "" || blocks != nil {
				t.Fatalf("%v, %v", blocks, err)
			}
			return
		}
		if begins := bytes.Count(text, []byte("-----BEGIN")); begins != len(blocks) {
			t.Fatalf("%d blocks begin, %d are returned", begins, len(blocks))
		}
		for rest := text; ; {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				return
			}
			found := false
			for _, have := range blocks {
				found = found || have.Type == b.Type && bytes.Equal(have.Bytes, b.Bytes)
			}
			if !found && len(b.Bytes) > 0 {
				t.Fatalf("encoding/pem reads %v, which is not returned: %v", b, blocks)
			}
		}
	})
}
