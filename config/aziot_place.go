package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// aziotPlaces are the tables that keys belong to, as far as they are often found
// elsewhere: a key at the end of a file is in the table of the last header. aziot takes no
// notice of a key that it does not know in a table.
var aziotPlaces = map[string]path{
	"auto_reprovisioning_mode": "",
	"id_scope":                 path("").key("provisioning"),
	"global_endpoint":          path("").key("provisioning"),
	"attestation":              path("").key("provisioning"),
	"registration_id":          path("").key("provisioning").key("attestation"),
	"symmetric_key":            path("").key("provisioning").key("attestation"),
}

// stray is a key in a wrong table.
type stray struct {
	home  string // where it belongs, for people
	value any
}

// findStray collects the keys that are in a wrong table.
func (a *importer) findStray(table path, values map[string]any, depth int) {
	const deepest = 20
	for name, value := range values {
		at := table.key(name)
		if home, known := aziotPlaces[name]; known && home != table {
			a.stray[at] = stray{header(home), value}
			continue
		}
		if inner, is := value.(map[string]any); is && depth < deepest {
			a.findStray(at, inner, depth+1)
		}
	}
}

// header names a table for people.
func header(table path) string {
	if table == "" {
		return "at the top of the file, above all tables"
	}
	return "below [" + shown(table) + "]"
}

// misplaced notes that a key is in a wrong table.
func (a *importer) misplaced(at path) {
	means := ""
	if s, is := a.stray[at].value.(string); is && modes[strings.ToLower(s)] != "" {
		means = fmt.Sprintf("; in the right place it would become provisioning.on_boot = %q", modes[strings.ToLower(s)])
	}
	a.leaveOut(at, "it is in the wrong table, where aziot ignores it; it belongs "+a.stray[at].home+means)
}

// reportAbsent reports a key that its table lacks: where it is found in another table,
// if it is.
func (a *importer) reportAbsent(table path, name, remedy string) {
	for _, at := range slices.Sorted(maps.Keys(a.stray)) {
		if strings.HasSuffix(string(at), separator+name) && aziotPlaces[name] == table {
			a.report(at, Error{Problem: "is in the wrong table", Remedy: "it belongs " + a.stray[at].home})
			return
		}
	}
	a.reportMissing(table, name, remedy)
}

const theFile = "/etc/aziot/config.toml"

var (
	// yamlLine are lines of the config.yaml of IoT Edge 1.1 that are no TOML.
	yamlLine = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`(?m)^[ \t]*(provisioning|scope_id|device_connection_string|certificates|moby_runtime|agent):([ \t\r]|$)`)
	})
	content = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^[ \t]*[^# \t\r\n]`) })
)

// anotherFile recognises files that are often taken for config.toml; nil when it is none
// of them. problem is what is wrong with its TOML, if it has any.
func anotherFile(data []byte, values map[string]any, problem *Error) *Error {
	if problem != nil {
		at := yamlLine().FindIndex(data)
		if at == nil {
			return problem
		}
		place := newLines(data).place(at[0])
		return &Error{Line: place.line, Column: 1, Problem: "this is YAML, and looks like the config.yaml of IoT Edge 1.1",
			Remedy: `convert it with "iotedge config import" of IoT Edge 1.2 or later, or copy scope_id (as id_scope) and registration_id to dpsd.toml`}
	}
	if service := service(values); service != "" {
		return &Error{Problem: "this is the 00-super.toml of " + service + ", which \"config apply\" generates from " + theFile, Remedy: "import " + theFile + " instead"}
	}
	if _, is := values["dps"].(map[string]any); is {
		return &Error{Problem: "this is a configuration of dpsd, which needs no conversion", Remedy: "import " + theFile + " instead"}
	}
	if _, is := values["Service"].(map[string]any); is {
		return &Error{Problem: "this is a drop-in of systemd", Remedy: "name " + theFile + " first, and the drop-in after it"}
	}
	if len(values) == 0 && len(data) > 0 && !content().Match(data) {
		return &Error{Problem: "every line is a comment, as in the template", Remedy: "uncomment one of the blocks that begin with [provisioning] and fill it in, or import the file that is in use, " + theFile}
	}
	return nil
}

// service names the service of aziot whose own configuration this is; "" for none.
func service(values map[string]any) string {
	provisioning, _ := values["provisioning"].(map[string]any)
	keys, _ := values["aziot_keys"].(map[string]any)
	switch {
	case provisioning != nil && values["homedir"] != nil:
		return "aziot-identityd"
	case keys["homedir_path"] != nil:
		return "aziot-keyd"
	case values["homedir_path"] != nil:
		return "aziot-certd"
	case values["homedir"] != nil:
		return "aziot-edged"
	}
	return ""
}
