// Package nearest suggests the intended name for an unknown configuration key, command or
// flag.
package nearest

import (
	"slices"
	"strings"
)

// Name returns the name that is most similar to word, or "" if none is similar. A third of
// the letters may differ, and the parts between underscores may have another order.
func Name(word string, names []string) string {
	const longest = 64 // longer words are not similar to any known name
	if word == "" || len(word) > longest {
		return ""
	}
	word = strings.ReplaceAll(strings.ToLower(word), "-", "_")
	best, distance := "", max(1, len(word)/3)+1
	for _, name := range names {
		plain := strings.ReplaceAll(name, "-", "_")
		d := min(edits(word, plain), edits(sortParts(word), sortParts(plain)))
		if len(word) >= 3 && len(plain) >= 3 && (strings.HasPrefix(word, plain) || strings.HasPrefix(plain, word)) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = name, d
		}
	}
	return best
}

func sortParts(s string) string {
	parts := strings.Split(s, "_")
	slices.Sort(parts)
	return strings.Join(parts, "_")
}

// edits returns the number of insertions, deletions, substitutions and transpositions of
// adjacent bytes that turn a into b (optimal string alignment distance).
func edits(a, b string) int {
	before := make([]int, len(b)+1)
	last := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
