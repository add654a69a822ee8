// Package page inserts measured values into the pages of the documentation.
package page

import (
	"fmt"
	"os"
	"strings"
)

// Insert replaces the text between two markers in a file, which are the lines
// <!-- name:begin --> and <!-- name:end -->. It returns an error for a file without both markers,
// and does not change it.
func Insert(file, name, text string) error {
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->\n"
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(old), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return fmt.Errorf("%s has no %s and %s", file, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // documentation is world-readable
}
