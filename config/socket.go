package config

import (
	"regexp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

const (
	// aboutControl is a line, not a comment, that begins the table [control] or sets a key of it.
	aboutControl = `(?m)^[ \t]*(\[[ \t]*)?["']?control["']?[ \t]*[].=]`
	// controlTable is the table [control], up to the line that begins the next table.
	controlTable = `(?ms)^([ \t]*\[[ \t]*["']?control["']?[ \t]*\].*?)(?:^[ \t]*\[|\z)`
)

// Socket returns the path of the control socket that the text of a configuration sets, or
// its default, whatever else is wrong with the text. known is false when the text does not
// say it clearly.
func Socket(text []byte) (path string, known bool) {
	doc, problem := document.Parse("", text, nil)
	// A text that is no TOML as a whole may have a table [control] that is.
	if problem != nil && regexp.MustCompile(aboutControl).Match(text) {
		if table := regexp.MustCompile(controlTable).FindSubmatch(text); table != nil {
			doc, problem = document.Parse("", table[1], nil)
		}
		if problem != nil {
			return "", false
		}
	}
	c := Default()
	if doc.Values["control"] == nil {
		return c.Control.Socket, true
	}
	table, known := doc.Values["control"].(map[string]any)
	if value := table["socket"]; value != nil {
		tables(&c, attest.Types()).find("control").find("socket").read(root, value, func(document.Path, Error) { known = false })
	}
	return c.Control.Socket, known
}
