package setup

import (
	"bytes"
	"errors"
	"slices"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

// Previous is a configuration that the answers replace. Its settings stay in effect, except
// those that the answers contain. A nil Previous is empty.
type Previous struct {
	config   *config.Config
	settings []config.Setting // those that the file sets
	id       string           // the current registration ID, or "" if it is unknown
}

// ParsePrevious reads a configuration. name is the file's name in messages.
func ParsePrevious(name string, text []byte) (*Previous, error) {
	c, all, err := config.ParseSettings(name, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	p := &Previous{config: c, settings: written(all)}
	p.id, _ = c.DPS.RegistrationID.Resolve(attest.Host{}, attest.SystemSecrets(""))
	return p, nil
}

// written returns the settings that a file sets.
func written(all []config.Setting) (set []config.Setting) {
	for _, s := range all {
		if s.Line > 0 {
			set = append(set, s)
		}
	}
	return set
}

func (p *Previous) idScope() string {
	if p == nil {
		return ""
	}
	return p.config.DPS.IDScope
}

func (p *Previous) registrationID() string {
	if p == nil {
		return ""
	}
	return p.id
}

// x509 reports whether the first credential is a certificate.
func (p *Previous) x509() bool {
	if p == nil {
		return false
	}
	_, is := p.config.Credentials[0].(attest.X509)
	return is
}

// keepsKey reports whether the current key can be used with a registration ID.
func (p *Previous) keepsKey(id string) bool { return p != nil && !p.x509() && p.id == id }

// Complete adds the values of the previous configuration to incomplete answers. It adds no
// credential, because nil keeps the previous one.
func (p *Previous) Complete(a Answers) Answers {
	if a.IDScope == "" {
		a.IDScope = p.idScope()
	}
	if a.RegistrationID == "" {
		a.RegistrationID = p.registrationID()
	}
	return a
}

// Keeps reports whether the previous credential can be used with a registration ID.
func (p *Previous) Keeps(id string) bool { return p != nil && p.id == id }

// Extra are settings in addition to the answers, such as a proxy.
type Extra []config.Setting

// ReadExtra reads a file with tables of a configuration other than [dps] and [[credential]].
func ReadExtra(name string) (Extra, error) {
	text, err := readConfiguration(name)
	if err != nil {
		return nil, err
	}
	// The tables are complete with any identity, which follows them so that the lines in
	// messages are those of the file.
	const identity = "\n[dps]\nid_scope = \"0ne\"\nregistration_id = \"gw\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/key\"\n"
	last := bytes.Count(text, []byte("\n")) + 1
	_, all, err := config.ParseSettings(name, bytes.NewReader(append(text, identity...)))
	var invalid config.Errors
	conflict := errors.As(err, &invalid) && invalid[0].Line > last
	extra := Extra{}
	for i := range all {
		switch s := &all[i]; {
		case s.Line == 0:
		case s.Table != "dps" && s.Table != "credential":
			extra = append(extra, *s)
		case s.Line <= last:
			conflict = true
		}
	}
	if conflict {
		return nil, config.Errors{{File: name, Problem: "must consist of complete tables other than [dps] and [[credential]], which dpsd init writes"}}
	}
	return extra, err
}

// add adds a setting, unless there is one for its key.
func (e Extra) add(s *config.Setting) Extra {
	for i := range e {
		if e[i].Table == s.Table && e[i].Element == s.Element && e[i].Key == s.Key {
			return e
		}
	}
	return append(e, *s)
}

// has reports whether a setting belongs to the table.
func (e Extra) has(table string) bool {
	return slices.ContainsFunc(e, func(s config.Setting) bool { return s.Table == table })
}

// header begins each configuration.
const header = "# Written by \"dpsd init\". man dpsd.toml describes every key.\n"

// text returns the text of a configuration. credential contains the lines of [[credential]], or
// is "" to keep those of the previous configuration. The settings of extra replace those of the
// previous configuration, and those replace the settings of usual.
func (p *Previous) text(a Answers, credential string, extra, usual Extra) string {
	var set Extra
	answer := func(key, value string) {
		if value != "" {
			set = append(set, config.Setting{Table: "dps", Key: key, Value: value})
		}
	}
	answer("id_scope", a.IDScope)
	keep, same := credential == "", p.Keeps(a.RegistrationID)
	if same {
		// The same ID still comes from the same source, such as a template.
		for i := range p.settings {
			if sourceOfID(&p.settings[i]) {
				set = append(set, p.settings[i])
			}
		}
	}
	if len(set) == 1 && (!same || !keep) { // otherwise, the source may be the certificate
		answer("registration_id", a.RegistrationID)
	}
	answer("endpoint", a.Endpoint)
	set = append(set, extra...)
	if p != nil {
		for i := range p.settings {
			switch s := &p.settings[i]; {
			case s.Table == "consumer" && extra.has("consumer"): // the elements of two files do not belong together
			case s.Table != "credential":
				if !sourceOfID(s) {
					set = set.add(s)
				}
			case keep:
				if s.Key == "type" {
					credential += "\n[[credential]]\n"
				}
				credential += s.TOML() + "\n"
			}
		}
	}
	for i := range usual {
		set = set.add(&usual[i])
	}
	text := header
	type table struct {
		name    string
		element int
	}
	written := map[table]bool{}
	for i := range set {
		this := table{set[i].Table, set[i].Element}
		if written[this] {
			continue
		}
		written[this] = true
		text += "\n" + set[i].Header() + "\n"
		for j := range set {
			if this == (table{set[j].Table, set[j].Element}) {
				text += set[j].TOML() + "\n"
			}
		}
		if i == 0 { // [dps]
			text += credential
		}
	}
	return text
}

// sourceOfID reports whether a setting is a source of the registration ID.
func sourceOfID(s *config.Setting) bool {
	return s.Table == "dps" && (s.Key == "registration_id" || s.Key == "registration_id_file")
}
