package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/transport"
)

func configShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show every value in effect, and where it comes from",
		Long: `Show every value in effect, and where it comes from: the file and line, or
the default. The output also shows values that are determined at run time: the
current registration ID, and the proxy from the environment (without its user
name and password). Keys and certificates are shown as references, never as
content.

The output is a valid dpsd.toml. With --json, it is an object with "file" and
"settings". "settings" contains one object per table; "credential" and
"consumer" are arrays of objects. Each key has "value" (null if it is not set)
and "origin" ("file", "default" or "unset"); if the origin is "file", it also
has "line" and "column". A key whose value is determined at run time also has
"resolved", or "problem" if that failed.`,
		Example: `  dpsd config show
  dpsd config show --json | jq .settings.dps.registration_id`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configOf(cmd)
			s, err := effective(file)
			if err != nil {
				return invalid(file, err)
			}
			write := s.toml
			if asJSON {
				write = s.json
			}
			return failed(write(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, for programs")
	return cmd
}

// effective returns the effective values.
func effective(file string) (shown, error) {
	text, err := contents(file)
	if err != nil {
		return shown{}, err
	}
	cfg, settings, err := config.ParseSettings(file, bytes.NewReader(text))
	if err != nil {
		return shown{}, err
	}
	identity := "dps.registration_id"
	if cfg.DPS.RegistrationID.File != "" {
		identity = "dps.registration_id_file"
	}
	s := shown{file: file, settings: settings, lookups: map[string]lookup{identity: identityNow(cfg.DPS.RegistrationID)}}
	if cfg.Transport.Proxy == "environment" {
		s.lookups["transport.proxy"] = proxyNow(cfg)
	}
	return s, nil
}

// lookup is the current result of resolving a value on this machine: a value, or the reason
// why there is none.
type lookup struct {
	value, problem string
	// remark is additional information for people.
	remark string
}

func identityNow(source attest.RegistrationID) lookup {
	id, err := source.Resolve(attest.Host{}, attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY")))
	from := source.String()
	switch source.Template {
	case "":
	case id:
		return lookup{value: id}
	default:
		from = "from the template"
	}
	if err != nil {
		return lookup{problem: err.Error(), remark: "no registration ID at present: " + err.Error()}
	}
	return lookup{value: id, remark: fmt.Sprintf("the current registration ID is %q (%s)", id, from)}
}

// proxyNow returns the proxy for the first port that is tried. The environment of this
// process may differ from the service's.
func proxyNow(cfg *config.Config) lookup {
	const where = "; the service has its own environment: systemctl show --property=Environment dpsd"
	port := cfg.Transport.MQTTPort
	if cfg.Transport.Protocols[0] == "websocket" {
		port = cfg.Transport.WebSocketPort
	}
	target := &url.URL{Scheme: "https", Host: net.JoinHostPort(cfg.DPS.Endpoint, strconv.Itoa(port))}
	proxy, err := transport.ProxyFromEnvironment()(target)
	switch {
	case err != nil:
		return lookup{problem: err.Error(), remark: err.Error() + where}
	case proxy == nil:
		return lookup{value: "none", remark: "with HTTPS_PROXY and NO_PROXY from this shell, dpsd connects directly" + where}
	}
	address := proxy.Scheme + "://" + proxy.Host // without user and password
	return lookup{value: address, remark: "with HTTPS_PROXY from this shell, dpsd connects through " + address + where}
}

// shown is a configuration to show.
type shown struct {
	file     string
	settings []config.Setting
	lookups  map[string]lookup // by "table.key"
}

// toml writes a dpsd.toml with comments.
func (s shown) toml(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# The values of %s, and the defaults. Secrets appear only as references.\n", comment(s.file))
	set := map[string]bool{} // tables with a value
	for _, setting := range s.settings {
		set[setting.Table] = set[setting.Table] || setting.Value != nil
	}
	table, element := "", 0
	for _, setting := range s.settings {
		if !set[setting.Table] {
			if setting.Table != table {
				fmt.Fprintf(&b, "\n# [%s] is not set\n", setting.Table)
			}
			table = setting.Table
			continue
		}
		if setting.Table != table || setting.Element != element {
			table, element = setting.Table, setting.Element
			b.WriteString("\n" + setting.Header() + "\n")
		}
		switch {
		case setting.Value == nil:
			fmt.Fprintf(&b, "# %s is not set\n", setting.Key)
		case setting.Line > 0:
			fmt.Fprintf(&b, "%-40s # %s:%d\n", setting.TOML(), comment(s.file), setting.Line)
		default:
			fmt.Fprintf(&b, "%-40s # default\n", setting.TOML())
		}
		if remark := s.lookups[setting.Table+"."+setting.Key].remark; remark != "" {
			fmt.Fprintf(&b, "#   %s\n", comment(remark))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// comment makes text valid in a comment, because the name of a file may contain a newline.
func comment(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// shownSetting is one key in JSON.
type shownSetting struct {
	Value    any    `json:"value"`
	Origin   string `json:"origin"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Resolved string `json:"resolved,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

func (s shown) json(w io.Writer) error {
	tables := map[string][]map[string]shownSetting{}
	for _, setting := range s.settings {
		one := shownSetting{Value: setting.Value, Origin: "default"}
		switch {
		case setting.Value == nil:
			one.Origin = "unset"
		case setting.Line > 0:
			one.Origin, one.File, one.Line, one.Column = "file", s.file, setting.Line, setting.Column
		}
		found := s.lookups[setting.Table+"."+setting.Key]
		one.Resolved, one.Problem = found.value, found.problem
		for len(tables[setting.Table]) <= setting.Element {
			tables[setting.Table] = append(tables[setting.Table], map[string]shownSetting{})
		}
		tables[setting.Table][setting.Element][setting.Key] = one
	}
	settings := map[string]any{}
	for name, elements := range tables {
		settings[name] = elements[0]
	}
	for _, array := range []string{"credential", "consumer"} {
		settings[array] = append([]map[string]shownSetting{}, tables[array]...)
	}
	return writeJSON(w, map[string]any{"file": s.file, "settings": settings})
}
