package config

import (
	"bytes"
	"path/filepath"
	"regexp"

	"github.com/pelletier/go-toml/v2"
)

// Socket returns the path of the control socket that the text of a configuration sets, or
// its default, whatever else is wrong with the text. known is false when the text does not
// say it clearly.
func Socket(text []byte) (path string, known bool) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if len(text) > maxSize || tooManyKeys(text) {
		return "", false
	}
	if path, known = socketIn(text); known {
		return path, true
	}
	// The text is no TOML as a whole. Its table [control] may be TOML. A line about it, which is
	// not a comment, begins the table or sets a key of it.
	aboutControl := regexp.MustCompile(`(?m)^[ \t]*(\[[ \t]*)?["']?control["']?[ \t]*[].=]`)
	if !aboutControl.Match(text) {
		return Default().Control.Socket, true
	}
	starts := regexp.MustCompile(`(?m)^[ \t]*\[`).FindAllIndex(text, -1)
	for n, at := range starts {
		end := len(text)
		if n+1 < len(starts) {
			end = starts[n+1][0]
		}
		if table := text[at[0]:end]; aboutControl.Match(table) {
			return socketIn(table)
		}
	}
	return "", false
}

// socketIn is Socket for what has to be TOML.
func socketIn(text []byte) (path string, known bool) {
	values := map[string]any{}
	if toml.Unmarshal(text, &values) != nil {
		return "", false
	}
	table, found := values["control"]
	if !found {
		return Default().Control.Socket, true
	}
	control, isTable := table.(map[string]any)
	if !isTable {
		return "", false
	}
	value, found := control["socket"]
	if !found {
		return Default().Control.Socket, true
	}
	path, isText := value.(string)
	return path, isText && filepath.IsAbs(path) && len(path) <= maxSocketPath
}
