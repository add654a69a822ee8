package aziot

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/input"
)

// importer converts an aziot config.toml.
type importer struct {
	document.Checker
	set     map[string]any // "table.key" of dpsd.toml to its value
	notes   []*Note
	lost    bool                  // dpsd could not prove the identity
	edge    bool                  // the gateway has a unit of IoT Edge
	stray   map[document.Path]any // keys in a wrong table, and their values
	proxies []variable            // by precedence, highest first
}

// origin is the position of a setting.
type origin struct {
	file, key string
	line      int    // 0 if it is unknown
	text      []byte // text of the file from that line on
}

func (a *importer) origin(at document.Path) origin {
	o := origin{file: a.Name, key: at.String(), line: a.Place(at).Line}
	if o.line > 0 {
		o.text = a.From(o.line)
	}
	return o
}

func (a *importer) noteOf(o origin, command, format string, args ...any) {
	a.notes = append(a.notes, &Note{o.file, o.line, o.key, fmt.Sprintf(format, args...), command})
}

func (a *importer) note(at document.Path, command, format string, args ...any) {
	a.noteOf(a.origin(at), command, format, args...)
}

// todo is the beginning of a note about a task.
const todo = "to do: "

// todo adds a note about a task and the command for it.
func (a *importer) todo(at document.Path, command, format string, args ...any) {
	a.note(at, command, todo+format, args...)
}

// cannot adds a note that a key on which the identity depends cannot be converted.
func (a *importer) cannot(at document.Path, format string, args ...any) {
	a.lost = true
	a.note(at, "", "cannot be converted: "+format, args...)
}

// leaveOut adds a note that a key is left out.
func (a *importer) leaveOut(at document.Path, why string) {
	if why == "" {
		why = "dpsd has no equivalent"
	}
	a.note(at, "", "left out: %s", why)
}

// taker converts the value of a key.
type taker func(at document.Path, value any)

// table passes the value of each key to its taker and leaves out the keys that have none.
func (a *importer) table(at document.Path, values map[string]any, takers map[string]taker, why map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		key, take := at.Key(name), takers[name]
		switch _, stray := a.stray[key]; {
		case stray: // see misplaced
		case take != nil:
			take(key, values[name])
		default:
			a.leaveOut(key, why[name])
		}
	}
}

// isTable returns a table, and reports an error if the value has another type.
func (a *importer) isTable(at document.Path, value any) (map[string]any, bool) {
	table, ok := value.(map[string]any)
	if !ok {
		a.Report(at, document.Error{Problem: "must be a table, not " + document.TypeOf(value)})
	}
	return table, ok
}

// words returns the string at a key of values. If it is missing, words reports an error and
// returns "".
func (a *importer) words(at document.Path, values map[string]any, key, remedy string) (s string) {
	if a.needs(at, values, key, remedy) {
		s, _ = a.string(at.Key(key), values[key], "")
	}
	return s
}

// whole converts the whole file.
func (a *importer) whole() {
	root := document.Path("")
	if a.Values["provisioning"] == nil {
		a.Report(root.Key("provisioning"), document.Error{Problem: "the table is missing", Remedy: "is this the config.toml of IoT Edge or the IoT Identity Service?"})
	}
	a.findStray(root, a.Values, 0)
	a.table(root, a.Values, map[string]taker{
		"provisioning":                  a.provisioning,
		"auto_reprovisioning_mode":      func(document.Path, any) {}, // see bootPolicy
		"always_reprovision_on_startup": func(document.Path, any) {},
		"agent":                         a.agent,
	}, leftOut)
	for _, at := range slices.Sorted(maps.Keys(a.stray)) {
		a.misplaced(at)
	}
	if !a.lost {
		a.bootPolicy()
	}
}

func (a *importer) provisioning(at document.Path, value any) {
	values, ok := a.isTable(at, value)
	if !ok {
		return
	}
	const sources = `the sources are "dps", "manual" and "none"`
	switch source := a.words(at, values, "source", sources); source {
	case "":
		return
	case "dps":
	case "manual":
		a.cannot(at.Key("source"), "this gateway was registered at its hub manually, but dpsd registers with the provisioning service; create an enrollment for it there")
	case "none":
		a.cannot(at.Key("source"), "this gateway is not provisioned")
	default:
		a.Report(at.Key("source"), document.Error{Problem: document.Quote(source) + " is unknown", Remedy: sources})
		return
	}
	takers := map[string]taker{
		"source":                        func(document.Path, any) {},
		"always_reprovision_on_startup": func(document.Path, any) {}, // see bootPolicy
		"dynamic_reprovisioning":        func(document.Path, any) {},
	}
	if !a.lost {
		if values["scope_id"] != nil && values["id_scope"] == nil {
			a.Report(at.Key("scope_id"), document.Error{Problem: "is called id_scope in this file"})
			a.Bad[at.Key("id_scope")] = true
		}
		takers["id_scope"], takers["global_endpoint"] = a.copyTo("dps.id_scope"), a.endpoint
		takers["payload"], takers["attestation"] = a.payload, a.attestation
		a.needs(at, values, "id_scope", "it is on the overview page of the provisioning service")
		a.needs(at, values, "global_endpoint", `usually "https://global.azure-devices-provisioning.net"`)
		a.needs(at, values, "attestation", "add [provisioning.attestation]")
	}
	a.table(at, values, takers, map[string]string{
		"connection_string": "it is for manual provisioning",
		"iothub_hostname":   "it is for manual provisioning; DPS assigns the hub",
		"device_id":         "it is for manual provisioning; DPS assigns the device ID",
		"authentication":    "it is for manual provisioning",
	})
}

// copyTo returns a taker that copies a value to a key of dpsd.toml if it is valid there.
func (a *importer) copyTo(key string) taker {
	return func(at document.Path, value any) {
		if wrong := config.Check(key, value); wrong != nil {
			a.Report(at, *wrong)
			return
		}
		a.set[key] = value
	}
}

// registrationID converts a registration ID. Unlike in dpsd.toml, a percent sign has no
// special meaning in it.
func (a *importer) registrationID(at document.Path, value any) {
	if s, is := value.(string); is {
		value = strings.ReplaceAll(s, "%", "%%")
	}
	a.copyTo("dps.registration_id")(at, value)
}

// string returns a non-empty string, and reports an error for any other value.
func (a *importer) string(at document.Path, value any, remedy string) (string, bool) {
	s, wrong := document.String(value, remedy)
	if wrong != nil {
		a.Report(at, *wrong)
	}
	return s, wrong == nil
}

// endpoint converts an https: URL to its host name.
func (a *importer) endpoint(at document.Path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.User != nil || config.Check("dps.endpoint", u.Hostname()) != nil {
		a.Report(at, document.Error{Problem: "is not the address of a provisioning service", Remedy: `such as "https://global.azure-devices-provisioning.net"`})
		return
	}
	if port := u.Port(); port != "" && port != "443" {
		a.leaveOut(at, "the port; dpsd has transport.mqtt_port and transport.websocket_port")
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		a.leaveOut(at, "the part after the host name; the IoT Identity Service does not use it either")
	}
	a.set["dps.endpoint"] = u.Hostname()
}

// location returns the path of a file: URI. The string may be the key uri of a table. Errors
// do not contain other URIs, because the URI of a PKCS#11 object may include the PIN.
func (a *importer) location(at document.Path, value any) (file, scheme string) {
	if table, ok := value.(map[string]any); ok {
		at = at.Key("uri")
		if value = table["uri"]; value == nil {
			a.Report(at, document.Error{Problem: "is missing"})
			return "", ""
		}
	}
	s, ok := a.string(at, value, `write a URI such as "file:///var/secrets/device-id.pem"`)
	if !ok {
		return "", ""
	}
	scheme, _, _ = strings.Cut(s, ":")
	if scheme == "pkcs11" {
		return "", scheme
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "file" || u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || u.Fragment != "" {
		a.Report(at, document.Error{Problem: "is not the URI of a file or a PKCS#11 object", Remedy: `such as "file:///var/secrets/device-id.pem"`})
		return "", ""
	}
	if r, err := attest.ParseReference("file:" + u.Path); err == nil && !strings.ContainsFunc(u.Path, unicode.IsControl) {
		return r.File, u.Scheme
	}
	a.Report(at, document.Error{Problem: "is not the URI of an absolute path", Remedy: `such as "file:///var/secrets/device-id.pem"`})
	return "", ""
}

// importedPayload is the new path of the payload, because only aziotid may read the old file.
const importedPayload = "/etc/dpsd/payload.json"

func (a *importer) payload(at document.Path, value any) {
	if file, scheme := a.location(at, value); file != "" {
		a.set["dps.payload_file"] = importedPayload
		a.todo(at, "install -D -m 0640 -g dpsd "+input.Quote(file)+" "+importedPayload,
			"copy the file to %s, where dpsd can read it; it must be a JSON object", importedPayload)
	} else if scheme != "" {
		a.leaveOut(at, "it is not in a file")
	}
}

func (a *importer) attestation(at document.Path, value any) {
	values, ok := a.isTable(at, value)
	if !ok {
		return
	}
	const methods = `the methods are "symmetric_key", "x509" and "tpm"`
	takers := map[string]taker{
		"method":          func(document.Path, any) {},
		"registration_id": a.registrationID,
	}
	switch method := a.words(at, values, "method", methods); method {
	case "":
		return
	case "symmetric_key":
		takers["symmetric_key"] = a.symmetricKey
		a.needs(at, values, "registration_id", "")
		a.needs(at, values, "symmetric_key", "")
	case "x509":
		takers["identity_cert"], takers["identity_pk"] = a.certificate, a.privateKey
		a.needs(at, values, "identity_cert", "")
		if _, file := values["identity_cert"].(string); file {
			a.needs(at, values, "identity_pk", "")
		}
	case "tpm":
		a.cannot(at.Key("method"), "dpsd authenticates with a symmetric key or a certificate; create such an enrollment")
	default:
		a.Report(at.Key("method"), document.Error{Problem: document.Quote(method) + " is unknown", Remedy: methods})
		return
	}
	a.table(at, values, takers, map[string]string{
		"symmetric_key": "it belongs to a different method",
		"identity_cert": "it belongs to a different method",
		"identity_pk":   "it belongs to a different method",
	})
}

// become sets a key that has a different name or meaning in dpsd.toml, and adds a note.
func (a *importer) become(o origin, key string, value any) {
	a.set[key] = value
	a.noteOf(o, "", "is now %s", config.Setting{Key: key, Value: value}.TOML())
}

// result returns the text of dpsd.toml.
func (a *importer) result() string {
	var b strings.Builder
	b.WriteString("# Generated by dpsd config import-aziot. Every other key has its default; the annotated\n# reference is /usr/share/dpsd/dpsd.toml.\n")
	for _, n := range a.notes {
		fmt.Fprintf(&b, "#\n# %s\n", toComment(n.String()))
		if n.Command != "" {
			fmt.Fprintf(&b, "#   %s\n", toComment(n.Command))
		}
	}
	return b.String() + config.TOML(a.set)
}

// toComment replaces the characters that a TOML comment must not contain.
func toComment(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}
