package config

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
)

// importer walks through an aziot config.toml.
type importer struct {
	checker
	lines   lines
	set     map[string]any // "table.key" of dpsd.toml to its value
	notes   []*Note
	lost    bool           // there is nothing with which dpsd could prove the identity
	edge    bool           // the gateway has a unit of IoT Edge
	stray   map[path]stray // keys in a wrong table
	proxies []proxySetting // in the order in which they count
}

// origin is where a setting stands.
type origin struct {
	file, key string
	line      int    // 0 when it cannot be told
	text      []byte // of the file from that line on
}

func (a *importer) origin(at path) origin {
	o := origin{file: a.file, key: shown(at), line: a.places[at].line}
	if o.line > 0 {
		o.text = a.lines.data[a.lines.starts[o.line-1]:]
	}
	return o
}

func (a *importer) noteOf(o origin, command, format string, args ...any) {
	a.notes = append(a.notes, &Note{o.file, o.line, o.key, fmt.Sprintf(format, args...), command})
}

func (a *importer) note(at path, command, format string, args ...any) {
	a.noteOf(a.origin(at), command, format, args...)
}

// todo begins what a person has to do.
const todo = "to do: "

// todo notes that, and the command that does it.
func (a *importer) todo(at path, command, format string, args ...any) {
	a.note(at, command, todo+format, args...)
}

// cannot notes that what the identity rests on cannot be carried over.
func (a *importer) cannot(at path, format string, args ...any) {
	a.lost = true
	a.note(at, "", "cannot be carried over: "+format, args...)
}

// leaveOut notes that a key is not carried over.
func (a *importer) leaveOut(at path, why string) {
	if why == "" {
		why = "dpsd has nothing like it"
	}
	a.note(at, "", "left out: %s", why)
}

// taker looks at the value of a key.
type taker func(at path, value any)

// table hands each key to its taker, and leaves out the others.
func (a *importer) table(at path, values map[string]any, takers map[string]taker, why map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch take := takers[name]; {
		case a.stray[at.key(name)].home != "": // see misplaced
		case take != nil:
			take(at.key(name), values[name])
		default:
			a.leaveOut(at.key(name), why[name])
		}
	}
}

// isTable reports a value of another type.
func (a *importer) isTable(at path, value any) (map[string]any, bool) {
	table, ok := value.(map[string]any)
	if !ok {
		a.report(at, Error{Problem: "must be a table, not " + kind(value)})
	}
	return table, ok
}

// words is the string at a key of values; "" when it is missing, which is reported.
func (a *importer) words(at path, values map[string]any, key, remedy string) string {
	if values[key] == nil {
		a.reportAbsent(at, key, remedy)
		return ""
	}
	s, _ := a.string(at.key(key), values[key], "")
	return s
}

// whole walks through the file.
func (a *importer) whole() {
	root := path("")
	if a.values["provisioning"] == nil {
		a.report(root.key("provisioning"), Error{Problem: "the table is missing", Remedy: "is this the config.toml of IoT Edge or the IoT Identity Service?"})
	}
	a.findStray(root, a.values, 0)
	a.table(root, a.values, map[string]taker{
		"provisioning":                  a.provisioning,
		"auto_reprovisioning_mode":      func(path, any) {}, // see bootPolicy
		"always_reprovision_on_startup": func(path, any) {},
		"agent":                         a.agent,
	}, aziotLeftOut)
	for _, at := range slices.Sorted(maps.Keys(a.stray)) {
		a.misplaced(at)
	}
	if !a.lost {
		a.bootPolicy()
	}
}

func (a *importer) provisioning(at path, value any) {
	values, ok := a.isTable(at, value)
	if !ok {
		return
	}
	const sources = `"dps", "manual" and "none" are known`
	switch source := a.words(at, values, "source", sources); source {
	case "":
		return
	case "dps":
	case "manual":
		a.cannot(at.key("source"), "this gateway was entered at its hub by hand, and dpsd registers with the provisioning service; make an enrollment for it there")
	case "none":
		a.cannot(at.key("source"), "this gateway is not provisioned")
	default:
		a.report(at.key("source"), Error{Problem: quoted(source) + " is unknown", Remedy: sources})
		return
	}
	takers := map[string]taker{
		"source":                        func(path, any) {},
		"always_reprovision_on_startup": func(path, any) {}, // see bootPolicy
		"dynamic_reprovisioning":        func(path, any) {},
	}
	if !a.lost {
		if values["scope_id"] != nil && values["id_scope"] == nil {
			a.report(at.key("scope_id"), Error{Problem: "is called id_scope in this file"})
			a.bad[at.key("id_scope")] = true
		}
		takers["id_scope"], takers["global_endpoint"] = a.copyTo("dps.id_scope", checkIDScope), a.endpoint
		takers["payload"], takers["attestation"] = a.payload, a.attestation
		for _, needed := range []struct{ key, remedy string }{
			{"id_scope", "it is on the overview page of the provisioning service"},
			{"global_endpoint", `usually "https://global.azure-devices-provisioning.net"`},
			{"attestation", "add [provisioning.attestation]"},
		} {
			if values[needed.key] == nil && !a.bad[at.key(needed.key)] {
				a.reportAbsent(at, needed.key, needed.remedy)
			}
		}
	}
	a.table(at, values, takers, map[string]string{
		"connection_string": "it is for manual provisioning",
		"iothub_hostname":   "it is for manual provisioning; the service assigns the hub",
		"device_id":         "it is for manual provisioning; the service assigns the device ID",
		"authentication":    "it is for manual provisioning",
	})
}

// copyTo takes a string that check has nothing against.
func (a *importer) copyTo(to string, check func(string) wrong) taker {
	return func(at path, value any) {
		s := ""
		if a.text(&s, check)(at, value); s != "" {
			a.set[to] = s
		}
	}
}

// endpoint takes the host name of an https: URL.
func (a *importer) endpoint(at path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.User != nil || checkHostName(u.Hostname()).problem != "" {
		a.report(at, Error{Problem: "is no address of a provisioning service", Remedy: `such as "https://global.azure-devices-provisioning.net"`})
		return
	}
	if port := u.Port(); port != "" && port != "443" {
		a.leaveOut(at, "the port; dpsd has transport.mqtt_port and transport.websocket_port")
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		a.leaveOut(at, "what follows the host name; the IoT Identity Service does not use it either")
	}
	a.set["dps.endpoint"] = u.Hostname()
}

// location returns the path of a file: URI. The string may be in a table, as its uri. What
// is not repeated are the other URIs: that of a PKCS#11 object may hold the PIN.
func (a *importer) location(at path, value any) (file, scheme string) {
	if table, ok := value.(map[string]any); ok {
		at = at.key("uri")
		if value = table["uri"]; value == nil {
			a.report(at, Error{Problem: "is missing"})
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
		a.report(at, Error{Problem: "is no URI of a file or a PKCS#11 object", Remedy: `such as "file:///var/secrets/device-id.pem"`})
		return "", ""
	}
	if r, err := attest.ParseReference("file:" + u.Path); err == nil && !strings.ContainsFunc(u.Path, unicode.IsControl) {
		return r.File, u.Scheme
	}
	a.report(at, Error{Problem: "is no URI of an absolute path", Remedy: `such as "file:///var/secrets/device-id.pem"`})
	return "", ""
}

// importedPayload is where the payload is put: aziotid keeps its own to itself.
const importedPayload = "/etc/dpsd/payload.json"

func (a *importer) payload(at path, value any) {
	if file, scheme := a.location(at, value); file != "" {
		a.set["dps.payload_file"] = importedPayload
		a.todo(at, "install -D -m 0640 -g dpsd "+input.Quote(file)+" "+importedPayload,
			"copy the file to %s, where dpsd can read it; it must be a JSON object", importedPayload)
	} else if scheme != "" {
		a.leaveOut(at, "it is not in a file")
	}
}

func (a *importer) attestation(at path, value any) {
	values, ok := a.isTable(at, value)
	if !ok {
		return
	}
	const methods = `"symmetric_key", "x509" and "tpm" are known`
	takers := map[string]taker{
		"method": func(path, any) {},
		"registration_id": a.copyTo("dps.registration_id", func(s string) wrong {
			if err := attest.CheckRegistrationID(s); err != nil {
				return wrong{err.Error(), ""}
			}
			return wrong{}
		}),
	}
	switch method := a.words(at, values, "method", methods); method {
	case "":
		return
	case "symmetric_key":
		takers["symmetric_key"] = a.symmetricKey
		for _, key := range []string{"registration_id", "symmetric_key"} {
			if values[key] == nil {
				a.reportAbsent(at, key, "")
			}
		}
	case "x509":
		takers["identity_cert"], takers["identity_pk"] = a.certificate, a.privateKey
		if values["identity_cert"] == nil {
			a.reportAbsent(at, "identity_cert", "")
		}
		if _, file := values["identity_cert"].(string); file && values["identity_pk"] == nil {
			a.reportAbsent(at, "identity_pk", "")
		}
	case "tpm":
		a.cannot(at.key("method"), "dpsd proves the identity by a symmetric key or a certificate; make such an enrollment")
	default:
		a.report(at.key("method"), Error{Problem: quoted(method) + " is unknown", Remedy: methods})
		return
	}
	a.table(at, values, takers, map[string]string{
		"symmetric_key": "the method is another",
		"identity_cert": "the method is another",
		"identity_pk":   "the method is another",
	})
}

// become sets a key that has another name or meaning here, and says so.
func (a *importer) become(o origin, key string, value any) {
	a.set[key] = value
	a.noteOf(o, "", "is now %s = %s", key, toTOML(value))
}

// result writes dpsd.toml.
func (a *importer) result() string {
	var b strings.Builder
	b.WriteString("# Made by dpsd config import-aziot. Every other key has its default; the annotated\n# reference is /usr/share/dpsd/dpsd.toml.\n")
	for _, n := range a.notes {
		fmt.Fprintf(&b, "#\n# %s\n", toComment(n.String()))
		if n.Command != "" {
			fmt.Fprintf(&b, "#   %s\n", toComment(n.Command))
		}
	}
	names := names()
	for _, table := range tableOrder {
		header := "\n[" + table + "]\n"
		if table == "credential" {
			header = "\n[[" + table + "]]\n"
		}
		for _, key := range names[table] {
			if value := a.set[table+"."+key]; value != nil {
				b.WriteString(header + Setting{Key: key, Value: value}.TOML() + "\n")
				header = ""
			}
		}
	}
	return b.String()
}

// toComment replaces what no comment of TOML may hold.
func toComment(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}
