package config

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
)

// importer walks through an aziot config.toml.
type importer struct {
	checker
	lines lines
	set   map[string]string // "table.key" of dpsd.toml to its value
	notes []*Note
	lost  bool // there is nothing with which dpsd could prove the identity
}

func (a *importer) note(at path, command, format string, args ...any) {
	a.notes = append(a.notes, &Note{a.file, a.places[at].line, shown(at), fmt.Sprintf(format, args...), command})
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
		if take := takers[name]; take != nil {
			take(at.key(name), values[name])
		} else {
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
		a.reportMissing(at, key, remedy)
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
	a.table(root, a.values, map[string]taker{
		"provisioning":             a.provisioning,
		"auto_reprovisioning_mode": a.reprovisioning,
		"agent":                    a.agent,
	}, aziotLeftOut)
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
	takers := map[string]taker{"source": func(path, any) {}}
	if !a.lost {
		takers["id_scope"], takers["global_endpoint"] = a.copyTo("dps.id_scope", checkIDScope), a.endpoint
		takers["payload"], takers["attestation"] = a.payload, a.attestation
		for _, needed := range []struct{ key, remedy string }{
			{"id_scope", "it is on the overview page of the provisioning service"},
			{"global_endpoint", `usually "https://global.azure-devices-provisioning.net"`},
			{"attestation", "add [provisioning.attestation]"},
		} {
			if values[needed.key] == nil {
				a.reportMissing(at, needed.key, needed.remedy)
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
	if err != nil || u.Scheme != "https" || u.User != nil || strings.Trim(u.Path, "/") != "" || checkHostName(u.Hostname()).problem != "" {
		a.report(at, Error{Problem: "is no address of a provisioning service", Remedy: `such as "https://global.azure-devices-provisioning.net"`})
		return
	}
	if port := u.Port(); port != "" && port != "443" {
		a.leaveOut(at, "the port; dpsd has transport.mqtt_port and transport.websocket_port")
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

func (a *importer) payload(at path, value any) {
	if file, scheme := a.location(at, value); file != "" {
		a.set["dps.payload_file"] = file
		a.readable(at, file, "; it must be a JSON object")
	} else if scheme != "" {
		a.leaveOut(at, "it is not in a file")
	}
}

// readable notes that dpsd, which is not root, has to read a file.
func (a *importer) readable(at path, file, more string) {
	a.todo(at, "runuser -u dpsd -- test -r "+shellQuote(file)+" && echo readable", "let the user dpsd read the file%s", more)
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
				a.reportMissing(at, key, "")
			}
		}
	case "x509":
		takers["identity_cert"], takers["identity_pk"] = a.certificate, a.privateKey
		if values["identity_cert"] == nil {
			a.reportMissing(at, "identity_cert", "")
		}
		if _, file := values["identity_cert"].(string); file && values["identity_pk"] == nil {
			a.reportMissing(at, "identity_pk", "")
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

const toCredstore = " | install -D -m 0600 /dev/stdin /etc/credstore/"

func (a *importer) symmetricKey(at path, value any) {
	table, ok := a.isTable(at, value)
	if !ok {
		return
	}
	a.set["credential.type"], a.set["credential.key"] = typeSymmetricKey, "credential:"+importedKey
	if inline := table["value"]; inline != nil {
		a.inlineKey(at.key("value"), inline)
		return
	}
	switch file, scheme := a.location(at, table); {
	case scheme == "pkcs11":
		a.cannot(at, "the key is in a PKCS#11 token, which gives it to nobody; put the key of the enrollment where dpsd can read it, or enroll a certificate")
	case file != "":
		// keyd uses the bytes of the file as they are, dpsd takes what the portal shows.
		a.todo(at, "base64 -w0 "+shellQuote(file)+toCredstore+importedKey,
			"the file holds the bytes of the key, and dpsd reads their base64 text; put that into /etc/credstore/%s", importedKey)
	}
}

// inlineKey moves a key that stands in the file.
func (a *importer) inlineKey(at path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	padding := strings.Repeat("=", (4-len(s)%4)%4) // aziot takes a key without it
	if _, err := attest.DecodeKey([]byte(s + padding)); err != nil {
		a.report(at, Error{Problem: err.Error()})
		return
	}
	command := a.extract(at, `value *= *.\([A-Za-z0-9+/=]*\)`, s, padding, importedKey)
	a.todo(at, command, "put the key, the base64 text, into /etc/credstore/%s; remove it here when aziot is gone", importedKey)
}

// extract returns a command that takes a secret out of its line with a basic regular
// expression and puts it into a credential; "" when that would give another text.
func (a *importer) extract(at path, expression, secret, more, name string) string {
	n := a.places[at].line
	if n == 0 || strings.ContainsFunc(a.file, unicode.IsControl) {
		return ""
	}
	// As far as it is used here, only the parentheses are written in another way.
	extended := strings.NewReplacer(`\(`, `(`, `\)`, `)`).Replace(expression)
	match := regexp.MustCompile(`^.*` + extended + `.*\s*$`).FindSubmatch(a.lines.line(n))
	if match == nil || string(match[1]) != secret {
		return ""
	}
	return fmt.Sprintf("sed -n '%ds,.*%s.*,\\1%s,p' %s%s%s", n, expression, more, shellQuote(a.file), toCredstore, name)
}

func (a *importer) certificate(at path, value any) {
	if table, ok := value.(map[string]any); ok && table["uri"] == nil {
		method, _ := table["method"].(string)
		how := map[string]string{"est": "by EST", "local_ca": "by a local CA", "self_signed": "by aziot-certd itself"}[method]
		if how == "" {
			how = "by aziot-certd"
		}
		a.cannot(at, "the certificate is issued %s, which dpsd does not do; have it and its key put into files, and write their file: URIs here and into identity_pk", how)
		return
	}
	if file, _ := a.location(at, value); file != "" {
		a.set["credential.type"], a.set["credential.certificate"] = typeX509, "file:"+file
		a.readable(at, file, "; the leaf comes first")
	} else if !a.bad[at] && !a.bad[at.key("uri")] {
		a.cannot(at, "the certificate is not in a file")
	}
}

func (a *importer) privateKey(at path, value any) {
	switch file, scheme := a.location(at, value); {
	case scheme == "pkcs11":
		a.cannot(at, "the key is in a PKCS#11 token; dpsd needs one in a file")
	case file != "":
		a.set["credential.private_key"] = "file:" + file
		a.readable(at, file, "")
	}
}

// reprovisioning takes IoT Edge's auto_reprovisioning_mode.
func (a *importer) reprovisioning(at path, value any) {
	s, ok := a.string(at, value, "")
	if !ok {
		return
	}
	policy := map[string]string{"dynamic": "verify", "alwaysonstartup": "always", "onerroronly": "if-needed"}[strings.ToLower(s)]
	if policy == "" {
		a.report(at, Error{Problem: quoted(s) + " is unknown", Remedy: `"Dynamic", "AlwaysOnStartup" and "OnErrorOnly" are known`})
		return
	}
	a.become(at, "provisioning.on_boot", policy)
}

// become sets a key that has another name or meaning here, and says so.
func (a *importer) become(at path, key, value string) {
	a.set[key] = value
	a.note(at, "", "is now %s = %s", key, toTOML(value))
}

// agent takes the proxy that IoT Edge's agent uses, and leaves the rest out.
func (a *importer) agent(at path, value any) {
	a.leaveOut(at, aziotLeftOut["agent"])
	agent, _ := value.(map[string]any)
	env, _ := agent["env"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := at.key("env").key(name)
		value, _ := env[name].(string)
		switch strings.ToLower(name) {
		case "https_proxy":
			a.proxy(at, value)
		case "no_proxy":
			a.leaveOut(at, `a proxy in dpsd.toml takes everything; transport.proxy = "environment" obeys NO_PROXY`)
		case "upstreamprotocol":
			a.leaveOut(at, "dpsd tries MQTT, and then MQTT over WebSocket; transport.protocols has the order")
		}
	}
}

func (a *importer) proxy(at path, value string) {
	u, err := url.Parse(value)
	if err != nil {
		a.leaveOut(at, "it is no address of a proxy")
		return
	}
	user := u.User
	u.User = nil
	if u.Port() == "" {
		u.Host += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	}
	address, w := checkProxy(u.String())
	if w.problem == "" && user != nil && user.Username() != "" {
		w = checkProxyUser(user.Username())
	}
	if w.problem != "" {
		a.leaveOut(at, w.problem)
		return
	}
	a.become(at, "transport.proxy", address)
	if user == nil || user.Username() == "" {
		return
	}
	a.set["transport.proxy_user"] = user.Username()
	if password, is := user.Password(); is && password != "" {
		a.set["transport.proxy_password"] = "credential:" + importedPassword
		a.todo(at, a.extract(at, `://[^:@]*:\([^@]*\)@`, password, "", importedPassword),
			"put the password, without percent-encoding, into /etc/credstore/%s", importedPassword)
	}
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
			if value := a.set[table+"."+key]; value != "" {
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

// shellQuote writes s as one word for sh.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
