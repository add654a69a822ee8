package aziot

import (
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/input"
)

// DropIn is a drop-in of a unit of aziot (systemd.unit(5)). Microsoft's documentation says to
// set the proxy there.
type DropIn struct {
	Name string // name in messages and commands
	Text io.Reader
	// Files returns the files that EnvironmentFile= names by a pattern, in the order of
	// systemd. It is nil for a copy of a drop-in, which may come from another gateway.
	Files func(pattern string) ([]EnvironmentFile, error)
}

// agent converts the connection settings of IoT Edge's agent and leaves out the others.
func (a *importer) agent(at document.Path, value any) {
	a.leaveOut(at, leftOut["agent"])
	agent, _ := value.(map[string]any)
	env, _ := agent["env"].(map[string]any)
	var found []variable
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := at.Key("env").Key(name)
		value, _ := env[name].(string)
		switch strings.ToLower(name) {
		case "https_proxy":
			found = append(found, variable{a.origin(at), value})
		case "no_proxy":
			a.leaveOut(at, ignoresNoProxy)
		case "upstreamprotocol":
			a.upstreamProtocol(at, value)
		}
	}
	// .NET prefers the lower-case name, which is the last element here.
	slices.Reverse(found)
	a.proxies = append(a.proxies, found...)
}

const ignoresNoProxy = `a proxy in dpsd.toml applies to every connection; transport.proxy = "environment" respects NO_PROXY`

// upstreamProtocol converts the order of the protocols for an agent behind a firewall that
// allows only outbound HTTPS.
func (a *importer) upstreamProtocol(at document.Path, value string) {
	switch strings.ToLower(value) {
	case "mqttws", "amqpws":
		a.become(a.origin(at), "transport.protocols", []string{"websocket", "mqtt"})
	default:
		a.leaveOut(at, "dpsd tries MQTT, and then MQTT over WebSocket; transport.protocols sets the order")
	}
}

// dropIn is a DropIn whose text was read.
type dropIn struct {
	DropIn
	data []byte
	unit string
	// placed means that the file is in a directory of drop-ins.
	placed bool
}

func readDropIn(d DropIn) (dropIn, error) {
	data, err := document.Read(d.Name, d.Text)
	unit, placed := strings.CutSuffix(filepath.Base(filepath.Dir(d.Name)), ".service.d")
	if !placed {
		unit = identityd
	}
	return dropIn{d, data, unit, placed}, err
}

const (
	// section matches the header of a section that systemd reads from a drop-in.
	section = `(?m)^[ \t]*\[(Unit|Service|Install)\][ \t\r]*$`
	// unitLine matches lines that only files of units contain.
	unitLine = `(?m)^[ \t]*(\[(Unit|Service|Install)\][ \t\r]*$|Environment(File)?[ \t]*=)`
)

// dropInAlone returns the error for a drop-in as the first file. config.toml may be one of
// the others.
func dropInAlone(name string, others []dropIn) *document.Error {
	file := theFile
	if i := slices.IndexFunc(others, func(d dropIn) bool { return !matches(section, d.data) }); i >= 0 {
		file = others[i].Name
	}
	return &document.Error{File: name, Problem: "this is a systemd drop-in, which contains the proxy but no identity",
		Remedy: "specify config.toml first: dpsd config import-aziot " + input.Quote(file) + " " + input.Quote(name)}
}

// dropIns collects the proxies in the environment of the units. The proxy of aziot-identityd,
// which registers, has precedence over those of aziot-edged and of the agent.
func (a *importer) dropIns(all []dropIn) *document.Error {
	units, rank := map[string]*environment{}, map[string]int{edged: 1}
	var order []string
	for _, d := range all {
		a.edge = a.edge || d.unit == edged
		if units[d.unit] == nil {
			units[d.unit] = &environment{values: map[string]variable{}}
			order = append(order, d.unit)
		}
		switch {
		case matches(section, d.data):
			units[d.unit].read(d)
		case !d.placed:
			return &document.Error{File: d.Name, Problem: "this is not a systemd drop-in, because it has no [Service] section",
				Remedy: "only drop-ins may follow config.toml, such as /etc/systemd/system/aziot-identityd.service.d/override.conf"}
		case matches(content, d.data):
			a.noteOf(origin{file: d.Name, key: "[Service]"}, "", "left out: the section is missing, so systemd ignores this file")
		}
	}
	slices.SortStableFunc(order, func(x, y string) int { return rank[x] - rank[y] })
	for _, unit := range order {
		e := units[unit]
		for _, f := range e.files {
			a.environmentFile(e, f)
		}
		// The Identity Service prefers the upper-case name.
		for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
			if v, is := e.values[name]; is {
				a.proxies = append(a.proxies, v)
			}
		}
		for _, name := range []string{"NO_PROXY", "no_proxy"} {
			if v, is := e.values[name]; is {
				a.noteOf(v.origin, "", "left out: %s", ignoresNoProxy)
			}
		}
	}
	return nil
}

const (
	identityd = "aziot-identityd"
	edged     = "aziot-edged"
)

// takeProxy uses the first valid proxy and adds a note about each of the others.
func (a *importer) takeProxy() {
	var taken *variable
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

// proxy converts a proxy and reports whether it is valid.
func (a *importer) proxy(o origin, value string) bool {
	u, err := url.Parse(value)
	if err != nil {
		a.noteOf(o, "", "left out: it is not a proxy address")
		return false
	}
	user := u.User
	u.User = nil
	if u.Port() == "" {
		u.Host += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	}
	// The slash prevents a word such as "none" from being valid for transport.proxy.
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
