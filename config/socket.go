package config

import (
	"regexp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

const (
	// aboutControl matches a line that begins the table [control] or sets a key of it.
	aboutControl = `(?m)^[ \t]*(\[[ \t]*)?["']?control["']?[ \t]*[].=]`
	// controlTable matches the table [control] up to the line that begins the next table.
	controlTable = `(?ms)^([ \t]*\[[ \t]*["']?control["']?[ \t]*\].*?)(?:^[ \t]*\[|\z)`
)

// Socket returns the path of the control socket that the text of a configuration sets, or
// its default, even if the text has errors elsewhere. known is false if the path is not
// certain.
func Socket(text []byte) (path string, known bool) {
	doc, problem := document.Parse("", text, nil)
	// The table [control] may be valid even if the text as a whole is not TOML.
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
