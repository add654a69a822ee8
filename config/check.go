package config

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/nearest"
)

// checker turns a document into a Config and collects what is wrong on the way.
type checker struct {
	document
	file  string
	errs  Errors
	known map[string][]string // the tables, and the keys of each
	bad   map[path]bool       // keys with an error of their own
	meant map[path]bool       // keys that an unknown one stands for, so that none is called missing
	first string              // the type of the first credential; "" when that is in doubt
}

// key is one key of a table: its name, what takes its value, and a pointer to where that
// goes.
type key struct {
	name string
	take func(at path, value any)
	to   any
}

// report adds an error at a key or element.
func (c *checker) report(at path, e Error) {
	p := c.places[at]
	e.File, e.Key, e.Line, e.Column = c.file, shown(at), p.line, p.column
	c.bad[at] = true
	c.errs = append(c.errs, &e)
}

// reportMissing adds an error for a key that is not there, at its table.
func (c *checker) reportMissing(table path, name, remedy string) {
	c.report(table.key(name), Error{Problem: "is missing", Remedy: remedy})
	last, p := c.errs[len(c.errs)-1], c.places[table]
	last.Line, last.Column = p.line, p.column
}

// shown writes a path for people: the indexes are left out, the line tells them.
func shown(at path) string {
	var names []string
	for _, name := range strings.Split(string(at), separator) {
		if name == "" || name[0] == '[' {
			continue
		}
		const longest = 40
		if r := []rune(name); len(r) > longest {
			name = string(r[:longest]) + "…"
		}
		if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			name = strconv.Quote(name)
		}
		names = append(names, name)
	}
	return strings.Join(names, ".")
}

// quoted repeats a wrong value, unless it is so long that it may be a key pasted on the
// wrong line: 16 bytes of base64 have 24 characters.
func quoted(value string) string {
	if len(value) > 20 {
		return "the value"
	}
	return strconv.Quote(value)
}

// kind names the type of a value.
func kind(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// names lists what a configuration may hold: the tables, and the keys of each.
func names() map[string][]string {
	all := map[string][]string{"credential": {"type", "key", "certificate", "private_key"}}
	var c Config
	for table, keys := range new(checker).tables(&c) {
		for _, k := range keys {
			all[table] = append(all[table], k.name)
		}
	}
	return all
}

// tables says which keys each table but [[credential]] has, and where their values go.
func (c *checker) tables(to *Config) map[string][]key {
	return map[string][]key{
		"dps": {
			{"id_scope", c.text(&to.DPS.IDScope, checkIDScope), &to.DPS.IDScope},
			{"registration_id", c.text(&to.DPS.RegistrationID.Template, checkTemplate), &to.DPS.RegistrationID.Template},
			{"registration_id_file", c.filePath(&to.DPS.RegistrationID.File), &to.DPS.RegistrationID.File},
			{"endpoint", c.text(&to.DPS.Endpoint, checkHostName), &to.DPS.Endpoint},
			{"api_version", c.text(&to.DPS.APIVersion, checkAPIVersion), &to.DPS.APIVersion},
			{"payload_file", c.filePath(&to.DPS.PayloadFile), &to.DPS.PayloadFile},
		},
		"transport": {
			{"protocols", c.choices(&to.Transport.Protocols, "mqtt", "websocket"), &to.Transport.Protocols},
			{"mqtt_port", c.port(&to.Transport.MQTTPort), &to.Transport.MQTTPort},
			{"websocket_port", c.port(&to.Transport.WebSocketPort), &to.Transport.WebSocketPort},
			{"proxy", c.proxy(&to.Transport.Proxy), &to.Transport.Proxy},
			{"proxy_user", c.text(&to.Transport.ProxyUser, checkProxyUser), &to.Transport.ProxyUser},
			{"proxy_password", c.reference(&to.Transport.ProxyPassword), &to.Transport.ProxyPassword},
			{"ca_file", c.filePath(&to.Transport.CAFile), &to.Transport.CAFile},
			{"proxy_ca_file", c.filePath(&to.Transport.ProxyCAFile), &to.Transport.ProxyCAFile},
			{"connect_timeout", c.duration(&to.Transport.ConnectTimeout, 100*time.Millisecond, 10*time.Minute), &to.Transport.ConnectTimeout},
			{"response_timeout", c.duration(&to.Transport.ResponseTimeout, 100*time.Millisecond, 10*time.Minute), &to.Transport.ResponseTimeout},
			{"keep_alive", c.keepAlive(&to.Transport.KeepAlive), &to.Transport.KeepAlive},
		},
		"provisioning": {
			{"on_boot", c.choice(&to.Provisioning.OnBoot, "always", "verify", "if-needed"), &to.Provisioning.OnBoot},
			{"boot_delay_max", c.duration(&to.Provisioning.BootDelayMax, 0, 24*time.Hour), &to.Provisioning.BootDelayMax},
			{"interval", c.interval(&to.Provisioning.Interval), &to.Provisioning.Interval},
		},
		"retry": {
			{"initial", c.duration(&to.Retry.Initial, 100*time.Millisecond, 24*time.Hour), &to.Retry.Initial},
			{"max", c.duration(&to.Retry.Max, time.Second, 24*time.Hour), &to.Retry.Max},
			{"offline_max", c.duration(&to.Retry.OfflineMax, time.Second, 24*time.Hour), &to.Retry.OfflineMax},
			{"refused_initial", c.duration(&to.Retry.RefusedInitial, time.Second, 24*time.Hour), &to.Retry.RefusedInitial},
			{"refused_max", c.duration(&to.Retry.RefusedMax, time.Second, 7*24*time.Hour), &to.Retry.RefusedMax},
		},
		"state": {
			{"directory", c.filePath(&to.State.Directory), &to.State.Directory},
			{"mode", c.mode(&to.State.Mode), &to.State.Mode},
		},
		"control": {
			{"socket", c.socket(&to.Control.Socket), &to.Control.Socket},
			{"metrics_file", c.filePath(&to.Control.MetricsFile), &to.Control.MetricsFile},
		},
		"log": {
			{"level", c.choice(&to.Log.Level, "debug", "info", "warn", "error"), &to.Log.Level},
		},
	}
}

// config checks the whole document.
func (c *checker) config(to *Config) {
	if len(c.values) == 0 {
		c.report("", Error{Problem: "the file sets nothing", Remedy: "begin with a copy of the annotated dpsd.toml"})
		return
	}
	tables := c.tables(to)
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		at, value := path("").key(name), c.values[name]
		if name == "credential" {
			to.Credentials = c.credentials(at, value)
			continue
		}
		keys, known := tables[name]
		if !known {
			c.unknownTop(at, name, value)
			continue
		}
		switch v := value.(type) {
		case map[string]any:
			c.table(at, v, keys, name)
		case []any:
			c.report(at, Error{Problem: "this table can be there once only", Remedy: "write [" + name + "], with single brackets"})
		default:
			c.report(at, Error{Problem: "must be a table, not " + kind(value), Remedy: "write [" + name + "] and its keys below"})
		}
	}
	c.missing(to)
	c.together(to)
}

// table checks the keys of one table.
func (c *checker) table(at path, values map[string]any, keys []key, table string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
		if i < 0 {
			c.unknown(at, name, values[name], table)
			continue
		}
		keys[i].take(at.key(name), values[name])
	}
}

// unknown reports a key that its table does not have. The nearest one is looked for
// there first, then in the other tables by its very name.
func (c *checker) unknown(at path, name string, value any, table string) {
	e := Error{Problem: "unknown key"}
	if _, ok := value.(map[string]any); ok {
		e.Problem = "unknown table"
		if _, known := c.known[name]; known {
			e.Nearest = name
		}
	}
	if e.Nearest == "" {
		if e.Nearest = nearest.Name(name, c.known[table]); e.Nearest != "" {
			c.meant[at.key(e.Nearest)] = true
		}
	}
	if e.Nearest == "" {
		e.Nearest = c.elsewhere(name)
	}
	c.report(at.key(name), e)
}

// unknownTop reports an unknown table, or a key that stands above all tables.
func (c *checker) unknownTop(at path, name string, value any) {
	e := Error{Problem: "unknown table"}
	switch value.(type) {
	case map[string]any, []any:
		if e.Nearest = nearest.Name(name, slices.Sorted(maps.Keys(c.known))); e.Nearest != "" {
			c.meant[path("").key(e.Nearest)] = true
		}
	default:
		e.Problem = "unknown key"
		e.Nearest = c.elsewhere(name)
		e.Remedy = "every key stands below the [table] it belongs to"
	}
	c.report(at, e)
}

// elsewhere returns "table.key" for a key of this very name, or "".
func (c *checker) elsewhere(name string) string {
	for _, table := range slices.Sorted(maps.Keys(c.known)) {
		if slices.Contains(c.known[table], name) {
			c.meant[path("").key(table).key(name)] = true
			return table + "." + name
		}
	}
	return ""
}

// has reports whether a key of a table is there, under its own or nearly its own name.
func (c *checker) has(table, name string) bool {
	at := path("").key(table)
	values, _ := c.values[table].(map[string]any)
	return values[name] != nil || c.meant[at] || c.meant[at.key(name)] || c.bad[at]
}

// missing reports what has no default and was not given.
func (c *checker) missing(to *Config) {
	dps, credential := path("").key("dps"), path("").key("credential")
	if _, there := c.values["dps"]; !there && !c.meant[dps] {
		c.report(dps, Error{Problem: "the table is missing", Remedy: "add [dps] with id_scope and registration_id"})
	} else if !c.has("dps", "id_scope") {
		c.reportMissing(dps, "id_scope", "it is on the overview page of the provisioning service")
	}
	none := len(to.Credentials) == 0 && !c.meant[credential] && !c.bad[credential]
	if none {
		c.report(credential, Error{Problem: "there is none", Remedy: `add [[credential]] with type = "symmetric-key" and key, or with type = "x509", certificate and private_key`})
	}
	switch values, _ := c.values["dps"].(map[string]any); {
	case values["registration_id"] != nil && values["registration_id_file"] != nil:
		c.report(dps.key("registration_id_file"), Error{Problem: "registration_id is set as well", Remedy: "keep one of the two"})
	case c.has("dps", "registration_id"), c.has("dps", "registration_id_file"):
	case c.first == typeX509:
		// The credential itself is nil when there is something wrong with it.
		if x, ok := to.Credentials[0].(attest.X509); ok {
			to.DPS.RegistrationID.FromCertificate = &x
		}
	case values != nil && (none || c.first == typeSymmetricKey):
		c.reportMissing(dps, "registration_id", "set it or registration_id_file; the certificate is asked only when the first credential is x509")
	}
}

// together checks what only two keys in company can get wrong.
func (c *checker) together(to *Config) {
	ordered := func(low, high string, lowValue, highValue time.Duration) {
		retry := path("").key("retry")
		if c.bad[retry.key(low)] || c.bad[retry.key(high)] || lowValue <= highValue {
			return
		}
		at := retry.key(low)
		if !c.has("retry", low) {
			at = retry.key(high)
		}
		c.report(at, Error{Problem: fmt.Sprintf("%s (%s) is above %s (%s)", low, brief(lowValue), high, brief(highValue))})
	}
	ordered("initial", "max", to.Retry.Initial, to.Retry.Max)
	ordered("refused_initial", "refused_max", to.Retry.RefusedInitial, to.Retry.RefusedMax)

	proxy := func(name, problem, remedy string) {
		if at := path("").key("transport").key(name); c.has("transport", name) && !c.bad[at] && !c.bad[path("").key("transport").key("proxy")] {
			c.report(at, Error{Problem: problem, Remedy: remedy})
		}
	}
	if to.Transport.Proxy == "none" {
		for _, name := range []string{"proxy_user", "proxy_password", "proxy_ca_file"} {
			proxy(name, `has no meaning with proxy = "none"`, "")
		}
	} else if !c.has("transport", "proxy_user") {
		proxy("proxy_password", "needs proxy_user", "")
	}
	if strings.HasPrefix(to.Transport.Proxy, "http://") {
		proxy("proxy_ca_file", "has no meaning with an http:// proxy", "it is for https:// proxies; the service's roots are added by ca_file")
	}

	// The runtime directory receives files of the same names when the state directory
	// cannot be written.
	socket := path("").key("control").key("socket")
	if !c.bad[socket] && filepath.Dir(to.Control.Socket) == to.State.Directory {
		at := socket
		if !c.has("control", "socket") {
			at = path("").key("state").key("directory")
		}
		c.report(at, Error{Problem: "the socket must not lie in the state directory", Remedy: `its directory is the runtime directory, usually "/run/dpsd"`})
	}
}

// credentials checks [[credential]]. One that is wrong leaves nil in its place.
func (c *checker) credentials(at path, value any) []attest.Credential {
	const remedy = "write [[credential]], with double brackets"
	switch v := value.(type) {
	case map[string]any:
		c.report(at, Error{Problem: "must be an array of tables", Remedy: remedy})
		one, kind := c.credential(at, v)
		c.first = kind
		return []attest.Credential{one}
	case []any:
		var all []attest.Credential
		for i, element := range v {
			table, ok := element.(map[string]any)
			if !ok {
				c.report(at.index(i), Error{Problem: "must be a table, not " + kind(element), Remedy: remedy})
				all = append(all, nil)
				continue
			}
			one, kind := c.credential(at.index(i), table)
			if i == 0 {
				c.first = kind
			}
			all = append(all, one)
		}
		return all
	}
	c.report(at, Error{Problem: "must be an array of tables, not " + kind(value), Remedy: remedy})
	return nil
}

// The types of a credential.
const (
	typeSymmetricKey = "symmetric-key"
	typeX509         = "x509"
)

func (c *checker) credential(at path, values map[string]any) (attest.Credential, string) {
	var (
		kind   string
		secret attest.SymmetricKey
		x      attest.X509
		errs   = len(c.errs)
		needs  []string
	)
	keys := []key{
		{"type", c.choice(&kind, typeSymmetricKey, typeX509), &kind},
		{"key", c.reference(&secret.Key), &secret.Key},
		{"certificate", c.reference(&x.Certificate), &x.Certificate},
		{"private_key", c.reference(&x.PrivateKey), &x.PrivateKey},
	}
	c.table(at, values, keys, "credential")
	switch kind {
	case typeSymmetricKey:
		needs = []string{"key"}
	case typeX509:
		needs = []string{"certificate", "private_key"}
	default:
		if values["type"] == nil && !c.meant[at.key("type")] {
			c.reportMissing(at, "type", oneOf([]string{typeSymmetricKey, typeX509}))
		}
		return nil, ""
	}
	for _, name := range needs {
		if values[name] == nil && !c.meant[at.key(name)] {
			c.reportMissing(at, name, fmt.Sprintf("a credential of type %q needs it", kind))
		}
	}
	for _, k := range keys[1:] {
		if values[k.name] != nil && !slices.Contains(needs, k.name) {
			c.report(at.key(k.name), Error{Problem: fmt.Sprintf("has no meaning with type %q", kind), Remedy: "each credential is a [[credential]] of its own"})
		}
	}
	switch {
	case len(c.errs) > errs:
		return nil, kind
	case kind == typeX509:
		return x, kind
	}
	return secret, kind
}

// string reports a value of another type.
func (c *checker) string(at path, value any, remedy string) (string, bool) {
	s, ok := value.(string)
	switch {
	case !ok:
		c.report(at, Error{Problem: "must be a string, not " + kind(value), Remedy: remedy})
	case s == "":
		c.report(at, Error{Problem: "is empty", Remedy: "give it a value or leave the key out"})
	}
	return s, ok && s != ""
}

// wrong is what a check has against a value; the zero value is nothing.
type wrong struct{ problem, remedy string }

// text takes a string that check has nothing against.
func (c *checker) text(to *string, check func(string) wrong) func(path, any) {
	return func(at path, value any) {
		s, ok := c.string(at, value, "write it in double quotes")
		if !ok {
			return
		}
		if w := check(s); w.problem != "" {
			if character := hidden(s); character != "" {
				w.remedy = character
			}
			c.report(at, Error{Problem: w.problem, Remedy: w.remedy})
			return
		}
		*to = s
	}
}

// idScope holds the unreserved characters of RFC 3986 §2.3: such a scope reads the same
// in the user name and in the signed resource. Its form is otherwise the service's affair.
var idScope = regexp.MustCompile(`^[A-Za-z0-9._~-]+$`)

func checkIDScope(s string) wrong {
	if len(s) > 128 || !idScope.MatchString(s) {
		return wrong{quoted(s) + " is no ID scope", `it has letters and digits, such as "0ne00000000"`}
	}
	return wrong{}
}

func checkTemplate(s string) wrong {
	if err := attest.ParseTemplate(s); err != nil {
		return wrong{err.Error(), ""}
	}
	return wrong{}
}

var apiVersion = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?$`)

func checkAPIVersion(s string) wrong {
	if !apiVersion.MatchString(s) {
		return wrong{quoted(s) + " is no API version", `it is a date such as "2019-03-31", with "-preview" for some`}
	}
	return wrong{}
}

// hostLabel is a label of a host name (RFC 1123 §2.1), but for its length: a counted
// repetition is compiled to as many copies, at every start of the program.
var hostLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)

func checkHostName(s string) wrong {
	const remedy = `write the name alone, such as "global.azure-devices-provisioning.net"`
	bare, _, _ := strings.Cut(strings.TrimPrefix(s, "["), "]")
	if address, err := netip.ParseAddr(bare); err == nil && address.Is6() {
		return wrong{"must be a host name, not an IPv6 address", "the certificate of the service is for its name, and dpsd uses IPv6 where the name has such an address; " + remedy}
	}
	switch {
	case strings.Contains(s, "://"):
		return wrong{"must be a host name, without a scheme", remedy}
	case strings.Contains(s, ":"):
		return wrong{"must be a host name, without a port", "the ports are transport.mqtt_port and transport.websocket_port"}
	case strings.HasSuffix(s, "."):
		return wrong{"must be a host name, without a dot at the end", remedy}
	}
	for _, label := range strings.Split(s, ".") {
		if len(s) > 253 || len(label) > 63 || !hostLabel.MatchString(label) {
			return wrong{quoted(s) + " is no host name", remedy}
		}
	}
	return wrong{}
}

// filePath takes an absolute path.
func (c *checker) filePath(to *string) func(path, any) {
	var clean string
	take := c.text(&clean, func(s string) wrong {
		switch {
		case strings.HasPrefix(s, "file:"):
			return wrong{"must be a plain path", `leave "file:" away; only credentials are written as references`}
		case !filepath.IsAbs(s):
			return wrong{"must be an absolute path", `begin it with "/"`}
		case strings.ContainsFunc(s, unicode.IsControl):
			return wrong{"holds a control character", ""}
		}
		return wrong{}
	})
	return func(at path, value any) {
		if take(at, value); !c.bad[at] {
			*to = filepath.Clean(clean)
		}
	}
}

// maxSocketPath is what fits into a socket address before its final NUL (unix(7)).
const maxSocketPath = 107

func (c *checker) socket(to *string) func(path, any) {
	take := c.filePath(to)
	return func(at path, value any) {
		if take(at, value); c.bad[at] {
			return
		}
		switch s := value.(string); {
		case strings.HasSuffix(s, "/"):
			c.report(at, Error{Problem: "must be the path of a socket, not of a directory", Remedy: `such as "/run/dpsd/dpsd.sock"`})
		case len(*to) > maxSocketPath:
			c.report(at, Error{Problem: fmt.Sprintf("a socket's path has at most %d bytes, not %d", maxSocketPath, len(*to))})
		}
	}
}

// choice takes one of a few words.
func (c *checker) choice(to *string, words ...string) func(path, any) {
	return func(at path, value any) {
		s, ok := c.string(at, value, oneOf(words))
		if !ok {
			return
		}
		if !slices.Contains(words, s) {
			c.report(at, Error{Problem: quoted(s) + " is unknown", Nearest: nearest.Name(s, words), Remedy: oneOf(words)})
			return
		}
		*to = s
	}
}

func oneOf(words []string) string {
	quotes := make([]string, len(words))
	for i, w := range words {
		quotes[i] = strconv.Quote(w)
	}
	last := len(quotes) - 1
	return "write " + strings.Join(quotes[:last], ", ") + " or " + quotes[last]
}

// choices takes some of a few words, each once, in the order given.
func (c *checker) choices(to *[]string, words ...string) func(path, any) {
	return func(at path, value any) {
		list, ok := value.([]any)
		if !ok {
			c.report(at, Error{Problem: "must be an array, not " + kind(value), Remedy: `such as ["` + words[0] + `"]`})
			return
		}
		if len(list) == 0 {
			c.report(at, Error{Problem: "must not be empty", Remedy: `such as ["` + words[0] + `"]`})
			return
		}
		var taken []string
		for i, element := range list {
			var word string
			c.choice(&word, words...)(at.index(i), element)
			if word == "" {
				c.bad[at] = true
				continue
			}
			if slices.Contains(taken, word) {
				c.report(at.index(i), Error{Problem: strconv.Quote(word) + " is there twice"})
				continue
			}
			taken = append(taken, word)
		}
		*to = taken
	}
}

func (c *checker) port(to *int) func(path, any) {
	return func(at path, value any) {
		n, ok := value.(int64)
		switch {
		case !ok:
			c.report(at, Error{Problem: "must be an integer, not " + kind(value), Remedy: "write the port without quotes"})
		case n < 1 || n > 65535:
			c.report(at, Error{Problem: fmt.Sprintf("%d is no TCP port", n), Remedy: "ports are 1 to 65535"})
		default:
			*to = int(n)
		}
	}
}

// duration takes a duration in Go's notation from low to high.
func (c *checker) duration(to *time.Duration, low, high time.Duration) func(path, any) {
	return func(at path, value any) {
		const remedy = `write a number with its unit, such as "90s", "5m" or "24h"`
		s, ok := c.string(at, value, remedy)
		if !ok {
			return
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			c.report(at, Error{Problem: quoted(s) + " is no duration", Remedy: remedy})
			return
		}
		if d < low || d > high {
			c.report(at, Error{Problem: quoted(s) + " is out of range", Remedy: brief(low) + " to " + brief(high) + " are allowed"})
			return
		}
		*to = d
	}
}

// brief writes a duration without the zero units that Duration.String appends.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// keepAlive takes whole seconds, as CONNECT carries them [MQTT-3.1.2-24]. IoT Hub's
// servers count at most 1767 s, one and a half times 1177 s.
func (c *checker) keepAlive(to *time.Duration) func(path, any) {
	take := c.duration(to, 0, 1177*time.Second)
	return func(at path, value any) {
		if take(at, value); !c.bad[at] && *to%time.Second != 0 {
			c.report(at, Error{Problem: "must be whole seconds", Remedy: `such as "60s", or "0s" for none`})
		}
	}
}

func (c *checker) mode(to *fs.FileMode) func(path, any) {
	return func(at path, value any) {
		var s string
		if c.choice(&s, "0644", "0640")(at, value); s == "" {
			return
		}
		*to = 0o644
		if s == "0640" {
			*to = 0o640
		}
	}
}

// reference takes "file:/path" or "credential:NAME". Whatever else is there may be a
// secret, and is not repeated.
func (c *checker) reference(to *attest.Reference) func(path, any) {
	return func(at path, value any) {
		s, ok := c.string(at, value, `write "file:/path" or "credential:NAME"`)
		if !ok {
			return
		}
		r, err := attest.ParseReference(s)
		if err != nil {
			c.report(at, Error{Problem: err.Error()})
			return
		}
		*to = r
	}
}

// anAddress is how the address of a proxy looks.
const anAddress = `"http://proxy.example:3128"`

// proxy takes a word or an address. A wrong address is not repeated: it may hold a
// password.
func (c *checker) proxy(to *string) func(path, any) {
	const remedy = `write "environment", "none" or an address such as ` + anAddress
	return func(at path, value any) {
		s, ok := c.string(at, value, remedy)
		switch {
		case !ok:
		case s == "environment" || s == "none":
			*to = s
		case strings.ContainsAny(s, ":/@"):
			address, w := checkProxy(s)
			if w.problem != "" {
				c.report(at, Error{Problem: w.problem, Remedy: w.remedy})
				return
			}
			*to = address
		default:
			c.report(at, Error{Problem: quoted(s) + " is unknown", Nearest: nearest.Name(s, []string{"environment", "none"}), Remedy: remedy})
		}
	}
}

// checkProxy returns the address of a proxy without what means nothing in it.
func checkProxy(s string) (string, wrong) {
	const remedy = "write it as " + anAddress
	if strings.Contains(s, "@") {
		return "", wrong{"a user or a password does not belong into the address",
			`write the address alone, and set proxy_user, and proxy_password to "credential:NAME" or "file:/path"`}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", wrong{"is no address", remedy}
	case u.Scheme != "http" && u.Scheme != "https":
		return "", wrong{`the address must begin with "http://" or "https://"`, remedy}
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", wrong{"the address must end with the port", remedy}
	case u.Port() == "":
		return "", wrong{"the address has no port", remedy}
	}
	if n, err := strconv.Atoi(u.Port()); err != nil || n < 1 || n > 65535 {
		return "", wrong{"the address has no valid port", "ports are 1 to 65535"}
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		if w := checkHostName(u.Hostname()); w.problem != "" {
			return "", wrong{"the address has no valid host name", remedy}
		}
	}
	return u.Scheme + "://" + u.Host, wrong{}
}

// checkProxyUser refuses what basic authentication cannot carry (RFC 7617 §2).
func checkProxyUser(s string) wrong {
	switch {
	case strings.Contains(s, ":"):
		return wrong{"must not hold a colon", "the password is apart, in proxy_password"}
	case strings.ContainsFunc(s, unicode.IsControl):
		return wrong{"holds a control character", ""}
	}
	return wrong{}
}

// interval is 0 for never, or long enough not to be a burden on the service.
func (c *checker) interval(to *time.Duration) func(path, any) {
	return func(at path, value any) {
		d := time.Duration(-1)
		c.duration(&d, 0, 365*24*time.Hour)(at, value)
		switch {
		case d < 0: // told already
		case d > 0 && d < minInterval:
			c.report(at, Error{Problem: brief(d) + " is too often", Remedy: "at least " + brief(minInterval) + ", or \"0s\" for never"})
		default:
			*to = d
		}
	}
}

// minInterval keeps a gateway from being a burden: each registration is billed.
const minInterval = 10 * time.Minute
