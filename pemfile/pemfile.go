// Package pemfile reads PEM (RFC 7468) and leaves nothing of it out: what begins like a
// block is either returned or reported with its line. A missing line feed between two blocks
// and blanks around lines are accepted. If a file holds something else, the package says
// what that is and which command makes of it what is needed.
package pemfile

import (
	"bytes"
	"encoding/base64"
	"fmt"
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

var (
	begin  = []byte("-----BEGIN")
	end    = []byte("-----END")
	dashes = []byte("-----")
)

// Has reports whether a text holds something that begins like a block.
func Has(text []byte) bool { return bytes.Contains(text, begin) }

// Blocks returns all blocks of a text; what stands between them is explanation. The error
// is a *input.Mistake that names the line.
func Blocks(text []byte) ([]Block, error) {
	r := reader{text: text}
	var blocks []Block
	for {
		b, found, err := r.block()
		if err != nil {
			return nil, err
		}
		if !found {
			return blocks, nil
		}
		blocks = append(blocks, b)
	}
}

// reader reads one block after the other.
type reader struct {
	text []byte
	at   int // how far it has come
}

func (r *reader) line(at int) int { return 1 + bytes.Count(r.text[:at], []byte("\n")) }

// wrong is a mistake in the line of an offset.
func (r *reader) wrong(at int, format string, a ...any) error {
	return &input.Mistake{
		What: fmt.Sprintf("line %d: ", r.line(at)) + fmt.Sprintf(format, a...),
		Then: "copy the file again from where it was issued, or correct this line",
	}
}

// next is the offset of a text from where the reader is; the end of the file for none.
func (r *reader) next(what []byte) int {
	if i := bytes.Index(r.text[r.at:], what); i >= 0 {
		return r.at + i
	}
	return len(r.text)
}

// block reads the next block; found is false if there is none.
func (r *reader) block() (b Block, found bool, err error) {
	from := r.next(begin)
	if stray := r.next(end); stray < from {
		return Block{}, false, r.wrong(stray, "a -----END line without its -----BEGIN line")
	}
	if from == len(r.text) {
		return Block{}, false, nil
	}
	b.Line, r.at = r.line(from), from+len(begin)
	if b.Type, found = r.label(); !found {
		return Block{}, false, r.wrong(from, "the -----BEGIN line is not complete")
	}
	body, until := r.at, r.next(end)
	if until == len(r.text) || r.next(begin) < until {
		return Block{}, false, r.wrong(from, "the block %q has no -----END line: the file is cut off or damaged", shown(b.Type))
	}
	r.at = until + len(end)
	switch label, found := r.label(); {
	case !found:
		return Block{}, false, r.wrong(until, "the -----END line is not complete: the file is cut off")
	case label != b.Type:
		return Block{}, false, r.wrong(until, "-----END %s----- ends the block %q that begins in line %d", shown(label), shown(b.Type), b.Line)
	}
	encrypted, size := headers(r.text[body:until])
	b.Encrypted = encrypted
	b.Bytes, err = r.decode(body+size, until)
	return b, err == nil, err
}

// label reads what follows -----BEGIN or -----END in the same line.
func (r *reader) label() (string, bool) {
	line := r.text[r.at:]
	if n := bytes.IndexByte(line, '\n'); n >= 0 {
		line = line[:n]
	}
	label, _, found := bytes.Cut(line, dashes)
	if !found || len(label) < 2 || label[0] != ' ' {
		return "", false
	}
	r.at += len(label) + len(dashes)
	return string(label[1:]), true
}

// shown keeps the label of a damaged file short.
func shown(label string) string {
	if len(label) > 40 {
		return label[:40] + "…"
	}
	return label
}

// headers reads the lines "name: value" at the beginning of a body (RFC 1421), and returns
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

// decode reads base64 between two offsets, and finds the line that is none.
func (r *reader) decode(from, to int) ([]byte, error) {
	packed := make([]byte, 0, to-from)
	for _, c := range r.text[from:to] {
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
		return nil, r.wrong(to, "the block is empty")
	case bytes.Contains(r.text[from:to], []byte(`\n`)):
		return nil, &input.Mistake{
			What:    fmt.Sprintf(`line %d: the file has \n, as two characters, in place of line breaks`, r.line(from)),
			Command: `cp -p FILE FILE.orig && sed 's/\\n/\n/g' FILE.orig >FILE`,
		}
	}
	for at := from; at < to; at++ {
		if c := r.text[at]; !blank(c) && !strings.ContainsRune(alphabet, rune(c)) {
			return nil, r.wrong(at, "a character that is not base64")
		}
	}
	return nil, r.wrong(to, "the base64 text before this line is not complete or has characters too many")
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="

func blank(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
