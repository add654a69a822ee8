// Package page puts what was measured into the pages of the documentation.
package page

import (
	"fmt"
	"os"
	"strings"
)

// Insert replaces what stands between the markers of that name in a file, which are
// lines: <!-- name:begin --> and <!-- name:end -->. A file without both is an error, and
// is left alone.
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
	return os.WriteFile(file, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // a page of the documentation is for everyone
}
