package tomlfile

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Replace replaces the index-th table of an array of tables, with its sub-tables, by a block
// of TOML. It appends the block if the index is -1, and removes the table, with the comment
// directly above it, if the block is nil. The rest of the text stays as it is.
func Replace(text []byte, table string, index int, block []byte) ([]byte, error) {
	if index < 0 {
		out := bytes.TrimRight(text, "\n")
		if len(out) > 0 {
			out = append(out[:len(out):len(out)], "\n\n"...)
		}
		return append(out, block...), nil
	}
	from, to, found := span(text, table, index)
	if !found {
		return nil, fmt.Errorf("the text has no [[%s]] number %d", table, index+1)
	}
	if block == nil {
		for from > 0 { // the comment, unless it begins the text
			above := lineStart(text, from-1)
			if above == 0 || !bytes.HasPrefix(bytes.TrimSpace(text[above:from]), []byte("#")) {
				break
			}
			from = above
		}
		to += len(text[to:]) - len(bytes.TrimLeft(text[to:], "\n"))
	}
	out := append([]byte{}, text[:from]...)
	out = append(out, block...)
	return append(out, text[to:]...), nil
}

// span returns where a table and its sub-tables begin and end: from the line of the header to
// the end of the last line that is neither empty nor a comment.
func span(text []byte, table string, index int) (from, to int, found bool) {
	parser := unstable.Parser{}
	parser.Reset(text)
	to = len(text)
	count := -1
	for parser.NextExpression() {
		e := parser.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue
		}
		var parts []string
		var first unstable.Range
		for it := e.Key(); it.Next(); {
			if len(parts) == 0 {
				first = it.Node().Raw
			}
			parts = append(parts, string(it.Node().Data))
		}
		name, start := strings.Join(parts, "."), lineStart(text, int(first.Offset))
		switch {
		case name == table:
			if count++; count == index {
				from, found = start, true
				continue
			}
		case strings.HasPrefix(name, table+"."):
			continue
		}
		if found {
			to = start
			break
		}
	}
	if !found {
		return 0, 0, false
	}
	for to > from {
		last := lineStart(text, to-1)
		line := bytes.TrimSpace(text[last:to])
		if len(line) > 0 && line[0] != '#' {
			break
		}
		to = last
	}
	return from, to, true
}

// lineStart returns where the line of an offset begins.
func lineStart(text []byte, at int) int {
	return bytes.LastIndexByte(text[:at], '\n') + 1
}
