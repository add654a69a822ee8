// Package pemfile reads PEM (RFC 7468) without skipping anything: it returns every block,
// or reports the line of one that it cannot read. It accepts a missing line feed between
// two blocks and blanks around lines. If a file contains something else, the error says
// what that is and which command converts it.
package pemfile

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"

	"github.com/dpsd-project/dpsd/input"
)

// Block is one block of a PEM file.
type Block struct {
	// Type is the label, such as "CERTIFICATE".
	Type string
	// Encrypted reports the header "Proc-Type: 4,ENCRYPTED".
	Encrypted bool
	// Bytes is the content.
	Bytes []byte
	// Line is where the block begins, from 1.
	Line int
}

// Has reports whether a text contains the beginning of a block.
func Has(text []byte) bool { return bytes.Contains(text, []byte("-----BEGIN")) }

// boundary matches the beginning or the end of a block. A boundary without a label is
// incomplete.
const boundary = `-----(?:(BEGIN)|END)(?: (-{0,4}[^\n-][^\n]*?)-----)?`

// Blocks returns all blocks of a text. It ignores the text between them. The error is a
// *input.Mistake that names the line.
func Blocks(text []byte) (blocks []Block, err error) {
	f := file(text)
	boundaries := regexp.MustCompile(boundary).FindAllSubmatchIndex(text, -1)
	begins := func(i int) bool { return boundaries[i][2] >= 0 }
	label := func(i int) string { return string(text[max(0, boundaries[i][4]):max(0, boundaries[i][5])]) }
	for i := 0; i < len(boundaries); i += 2 {
		from := boundaries[i][0]
		b := Block{Type: label(i), Line: f.line(from)}
		switch {
		case !begins(i):
			return nil, f.wrong(from, "a -----END line without its -----BEGIN line")
		case b.Type == "":
			return nil, f.wrong(from, "the -----BEGIN line is incomplete")
		case i+1 == len(boundaries) || begins(i+1):
			return nil, f.wrong(from, "the block %q has no -----END line: the file is cut off or damaged", shown(b.Type))
		}
		body, until := boundaries[i][1], boundaries[i+1][0]
		switch end := label(i + 1); end {
		case b.Type:
		case "":
			return nil, f.wrong(until, "the -----END line is incomplete: the file is cut off")
		default:
			return nil, f.wrong(until, "-----END %s----- ends the block %q that begins on line %d", shown(end), shown(b.Type), b.Line)
		}
		encrypted, size := headers(text[body:until])
		b.Encrypted = encrypted
		if b.Bytes, err = f.decode(body+size, until); err != nil {
			return nil, err
		}
		blocks = append(blocks, b)
	}
	return blocks, nil
}

// file is the text of a file.
type file []byte

func (f file) line(at int) int { return 1 + bytes.Count(f[:at], []byte("\n")) }

// wrong returns a mistake in the line at an offset.
func (f file) wrong(at int, format string, a ...any) error {
	return &input.Mistake{
		What: fmt.Sprintf("line %d: ", f.line(at)) + fmt.Sprintf(format, a...),
		Then: "copy the file again from its source, or correct this line",
	}
}

// shown shortens the label of a damaged file for an error.
func shown(label string) string {
	if len(label) > 40 {
		return label[:40] + "…"
	}
	return label
}

// headers reads the lines "name: value" at the beginning of a body (RFC 1421) and returns
// their size.
func headers(body []byte) (encrypted bool, size int) {
	for line := range bytes.Lines(body) {
		name, value, found := bytes.Cut(line, []byte(":"))
		switch {
		case found:
			encrypted = encrypted || string(bytes.TrimSpace(name)) == "Proc-Type" && bytes.Contains(value, []byte("ENCRYPTED"))
		case len(bytes.TrimSpace(line)) > 0:
			return encrypted, size
		}
		size += len(line)
	}
	return encrypted, size
}

// decode decodes the base64 text between two offsets. Its error names the invalid line.
func (f file) decode(from, to int) ([]byte, error) {
	packed := make([]byte, 0, to-from)
	for _, c := range f[from:to] {
		if !blank(c) {
			packed = append(packed, c)
		}
	}
	defer clear(packed)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(packed)))
	n, err := base64.StdEncoding.Decode(der, packed)
	switch {
	case err == nil && n > 0:
		return der[:n], nil
	case err == nil:
		return nil, f.wrong(to, "the block is empty")
	case bytes.Contains(f[from:to], []byte(`\n`)):
		return nil, &input.Mistake{
			What:    fmt.Sprintf(`line %d: the file contains \n as two characters instead of line breaks`, f.line(from)),
			Command: `cp -p FILE FILE.orig && sed 's/\\n/\n/g' FILE.orig >FILE`,
		}
	}
	for at := from; at < to; at++ {
		if c := f[at]; !blank(c) && !strings.ContainsRune(alphabet, rune(c)) {
			return nil, f.wrong(at, "a character that is not base64")
		}
	}
	return nil, f.wrong(to, "the base64 text before this line is incomplete or has too many characters")
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="

func blank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
