package aziot

import (
	"bytes"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/document"
)

// DropIn is a drop-in of a unit of aziot, systemd.unit(5). Microsoft's documentation has
// the proxy set there.
type DropIn struct {
	Name string // stands for the file in messages and commands
	Text io.Reader
}

// proxySetting is a proxy that aziot uses.
type proxySetting struct {
	origin
	value string
	unit  string // that has it in its environment; "" for the container of IoT Edge's agent
}

// agent takes from IoT Edge's agent how it reaches the cloud, and leaves the rest out.
func (a *importer) agent(at document.Path, value any) {
	a.leaveOut(at, aziotLeftOut["agent"])
	agent, _ := value.(map[string]any)
	env, _ := agent["env"].(map[string]any)
	var found []proxySetting
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := at.Key("env").Key(name)
		value, _ := env[name].(string)
		switch strings.ToLower(name) {
		case "https_proxy":
			found = append(found, proxySetting{a.origin(at), value, ""})
		case "no_proxy":
			a.leaveOut(at, ignoresNoProxy)
		case "upstreamprotocol":
			a.upstreamProtocol(at, value)
		}
	}
	// .NET looks for the lower-case name first, which comes last here.
	slices.Reverse(found)
	a.proxies = append(a.proxies, found...)
}

const ignoresNoProxy = `a proxy in dpsd.toml takes everything; transport.proxy = "environment" obeys NO_PROXY`

// upstreamProtocol takes the order of the protocols from an agent behind a firewall that
// lets only HTTPS out.
func (a *importer) upstreamProtocol(at document.Path, value string) {
	switch strings.ToLower(value) {
	case "mqttws", "amqpws":
		a.become(a.origin(at), "transport.protocols", []string{"websocket", "mqtt"})
	default:
		a.leaveOut(at, "dpsd tries MQTT, and then MQTT over WebSocket; transport.protocols has the order")
	}
}

// dropIns takes the proxies that the units have in their environment. aziot-identityd
// is what registers: its proxy stands before that of aziot-edged, and before the agent's.
func (a *importer) dropIns(all []DropIn) error {
	units := map[string]*environment{}
	var order []string
	for _, d := range all {
		data, err := document.Read(d.Name, d.Text)
		if err != nil {
			return err
		}
		unit := unitOf(d.Name)
		if units[unit] == nil {
			units[unit] = &environment{}
			order = append(order, unit)
		}
		units[unit].read(d.Name, data)
	}
	slices.SortStableFunc(order, func(x, y string) int { return rank(x) - rank(y) })
	var found []proxySetting
	for _, unit := range order {
		e := units[unit]
		for _, o := range e.files {
			a.noteOf(o, "", `left out: the file is not read; if it sets HTTPS_PROXY, set transport.proxy in dpsd.toml`)
		}
		// The Identity Service looks for the upper-case name first.
		for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
			if v, is := e.values[name]; is {
				found = append(found, proxySetting{v.origin, v.value, unit})
			}
		}
		for _, name := range []string{"NO_PROXY", "no_proxy"} {
			if v, is := e.values[name]; is {
				a.noteOf(v.origin, "", "left out: %s", ignoresNoProxy)
			}
		}
	}
	a.proxies = append(found, a.proxies...)
	return nil
}

const edged = "aziot-edged.service"

// unitOf is the unit that a drop-in belongs to, by its directory.
func unitOf(name string) string {
	unit, found := strings.CutSuffix(filepath.Base(filepath.Dir(name)), ".d")
	if !found {
		return "aziot-identityd.service"
	}
	return unit
}

func rank(unit string) int {
	if unit == edged {
		return 1
	}
	return 0
}

// takeProxy takes the proxy that counts, and says of the others that they do not.
func (a *importer) takeProxy() {
	var taken *proxySetting
	for i := range a.proxies {
		p := &a.proxies[i]
		switch {
		case p.value == "":
			a.noteOf(p.origin, "", "left out: it is empty")
		case strings.Contains(p.value, "\x00"):
			a.noteOf(p.origin, "", `left out: systemd reads "%%" as the start of a specifier; write it twice`)
		case taken != nil:
			a.noteOf(p.origin, "", "left out: %s in %s takes precedence", taken.key, taken.file)
		case a.proxy(p.origin, p.value):
			taken = p
		}
	}
}

// proxy takes a proxy, if it is one.
func (a *importer) proxy(o origin, value string) bool {
	u, err := url.Parse(value)
	if err != nil {
		a.noteOf(o, "", "left out: it is no address of a proxy")
		return false
	}
	user := u.User
	u.User = nil
	if u.Port() == "" {
		u.Host += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	}
	// The slash makes an address of the words that dpsd.toml has in its place, such as none.
	wrong := config.Check("transport.proxy", u.String()+"/")
	if wrong == nil && user != nil && user.Username() != "" {
		wrong = config.Check("transport.proxy_user", user.Username())
	}
	if wrong != nil {
		a.noteOf(o, "", "left out: %s", wrong.Problem)
		return false
	}
	a.become(o, "transport.proxy", u.Scheme+"://"+u.Host)
	if user == nil || user.Username() == "" {
		return true
	}
	a.set["transport.proxy_user"] = user.Username()
	if password, is := user.Password(); is && password != "" {
		a.set["transport.proxy_password"] = "credential:" + importedPassword
		a.noteOf(o, extract(o, `://[^:@]*:\([^@]*\)@`, password, "", importedPassword),
			todo+"put the password, without percent-encoding, into /etc/credstore/%s", importedPassword)
	}
	return true
}

// environment is what drop-ins of a unit set, systemd.exec(5).
type environment struct {
	values map[string]variable
	files  []origin // EnvironmentFile=
}

type variable struct {
	origin
	value string
}

// read goes through a drop-in: what it sets replaces what earlier ones have set.
func (e *environment) read(name string, data []byte) {
	if e.values == nil {
		e.values = map[string]variable{}
	}
	lines := document.NewLines(data)
	section := ""
	for n := 1; n <= lines.Count(); n++ {
		first := n
		line := strings.TrimSpace(string(lines.Line(n)))
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		for strings.HasSuffix(line, `\`) && n < lines.Count() {
			n++
			line = strings.TrimSuffix(line, `\`) + " " + strings.TrimSpace(string(lines.Line(n)))
		}
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if !found || section != "[Service]" {
			continue
		}
		o := origin{name, strings.TrimSpace(key), first, lines.From(first)}
		switch o.key {
		case "Environment":
			e.assign(o, strings.TrimSpace(value))
		case "EnvironmentFile":
			if value = strings.TrimSpace(value); value == "" {
				e.files = nil
			} else {
				e.files = append(e.files, o)
			}
		}
	}
}

// assign takes the assignments of a line; an empty one takes back all before.
func (e *environment) assign(o origin, value string) {
	if value == "" {
		clear(e.values)
	}
	for _, word := range unitWords(value) {
		if name, value, found := strings.Cut(word, "="); found {
			o.key = name
			e.values[name] = variable{o, specifiers(value)}
		}
	}
}

// specifiers writes "%%" as "%"; any other specifier, which only systemd can resolve,
// becomes a NUL, which no address holds.
func specifiers(value string) string {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] != '%':
			b.WriteByte(value[i])
		case i+1 < len(value) && value[i+1] == '%':
			b.WriteByte('%')
			i++
		default:
			b.WriteByte(0)
		}
	}
	return b.String()
}

// unitWords splits a value as systemd does: at blanks that are not in quotes.
func unitWords(text string) (words []string) {
	var word bytes.Buffer
	quote, begun := byte(0), false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			begun = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}
