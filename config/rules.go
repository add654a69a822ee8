package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

// has reports whether a key of a table is set, with its own name or a similar name.
func (c *checker) has(table, name string) bool {
	at := root.Key(table)
	values, _ := c.Values[table].(map[string]any)
	return values[name] != nil || c.meant[at] || c.meant[at.Key(name)] || c.Bad[at]
}

// missing reports required keys that are not set.
func (c *checker) missing(to *Config) {
	dps, credential := root.Key("dps"), root.Key("credential")
	if _, there := c.Values["dps"]; !there && !c.meant[dps] {
		c.Report(dps, Error{Problem: "the table is missing", Remedy: "add [dps] with id_scope and registration_id"})
	} else if !c.has("dps", "id_scope") {
		c.ReportMissing(dps, "id_scope", "it is on the overview page of the provisioning service")
	}
	none := len(to.Credentials) == 0 && !c.meant[credential] && !c.Bad[credential]
	if none {
		c.Report(credential, Error{Problem: "is missing", Remedy: "add [[credential]] " + withType(c.types)})
	}
	switch values, _ := c.Values["dps"].(map[string]any); {
	case values["registration_id"] != nil && values["registration_id_file"] != nil:
		c.Report(dps.Key("registration_id_file"), Error{Problem: "registration_id is set as well", Remedy: "keep only one of the two"})
	case c.has("dps", "registration_id"), c.has("dps", "registration_id_file"):
	case c.first == attest.X509{}.Type().Name:
		// An invalid credential is nil.
		if x, ok := to.Credentials[0].(attest.X509); ok {
			to.DPS.RegistrationID.FromCertificate = &x
		}
	case values != nil && (none || c.first != ""):
		c.ReportMissing(dps, "registration_id", "set it or registration_id_file; dpsd takes the ID from the certificate only if the first credential is x509")
	}
}

// withType returns a text that lists the keys of each type of credential.
func withType(types []attest.Type) string {
	all := make([]string, 0, len(types))
	for _, t := range types {
		first := fmt.Sprintf("with type = %q", t.Name)
		all = append(all, enumerated(append([]string{first}, keyNames(t)...), "and"))
	}
	return strings.Join(all, ", or ")
}

const (
	// issuing is the first stable API version that supports issued certificates, and
	// firstIssuing is the first preview version that does.
	issuing      = "2026-11-01"
	firstIssuing = "2025-07-01-preview"
	// maxCommonName is the maximum length of a common name (RFC 5280, ub-common-name). The
	// registration ID becomes the common name of the issued certificate.
	maxCommonName = 64
)

// certificate checks the keys that [certificate] affects, and sets the API version unless the
// file does.
func (c *checker) certificate(to *Config) {
	if to.Certificate.Request == "" {
		return
	}
	dps := root.Key("dps")
	if version := dps.Key("api_version"); !c.has("dps", "api_version") {
		to.DPS.APIVersion = issuing
	} else if to.DPS.APIVersion < firstIssuing && !c.Bad[version] {
		c.Report(version, Error{Problem: fmt.Sprintf("%q does not support issued certificates, but the file has the table [certificate]", to.DPS.APIVersion),
			Remedy: fmt.Sprintf("remove api_version, so that dpsd uses %q, or remove [certificate]", issuing)})
	}
	// The host name has at least one character, and the machine ID has 32.
	if id := strings.NewReplacer("%H", "h", "%m", strings.Repeat("0", 32)).Replace(to.DPS.RegistrationID.Template); len(id) > maxCommonName {
		c.Report(dps.Key("registration_id"), Error{Problem: fmt.Sprintf("has %d characters; with [certificate], at most %d are allowed", len(id), maxCommonName),
			Remedy: "write a shorter one, because it becomes the common name of the certificate"})
	}
}

// together checks the rules that concern more than one key.
func (c *checker) together(to *Config) {
	// A key whose value is invalid has its default here.
	bad := func(table, name string) bool { return c.Bad[root.Key(table).Key(name)] }
	// where returns the first key if it is set, or else the second key, whose value caused the
	// error.
	where := func(table, name, otherTable, other string) document.Path {
		if c.has(table, name) {
			return root.Key(table).Key(name)
		}
		return root.Key(otherTable).Key(other)
	}
	ordered := func(low, high string, lowValue, highValue time.Duration) {
		if lowValue > highValue && !bad("retry", low) && !bad("retry", high) {
			c.Report(where("retry", low, "retry", high), Error{Problem: fmt.Sprintf("%s (%s) is greater than %s (%s)", low, brief(lowValue), high, brief(highValue))})
		}
	}
	ordered("initial", "max", to.Retry.Initial, to.Retry.Max)
	ordered("refused_initial", "refused_max", to.Retry.RefusedInitial, to.Retry.RefusedMax)

	proxy := func(name, problem, remedy string) {
		if c.has("transport", name) && !bad("transport", name) && !bad("transport", "proxy") {
			c.Report(root.Key("transport").Key(name), Error{Problem: problem, Remedy: remedy})
		}
	}
	if to.Transport.Proxy == "none" {
		for _, name := range []string{"proxy_user", "proxy_password", "proxy_ca_file"} {
			proxy(name, `has no effect with proxy = "none"`, "")
		}
	} else if !c.has("transport", "proxy_user") {
		proxy("proxy_password", "requires proxy_user", "")
	}
	if strings.HasPrefix(to.Transport.Proxy, "http://") {
		proxy("proxy_ca_file", "has no effect with an http:// proxy", "it applies only to https:// proxies; ca_file adds roots for DPS")
	}

	// The runtime directory receives files of the same names when the state directory
	// cannot be written.
	if !bad("control", "socket") && filepath.Dir(to.Control.Socket) == to.State.Directory {
		c.Report(where("control", "socket", "state", "directory"), Error{Problem: "the socket must not be in the state directory", Remedy: `its directory is the runtime directory, usually "/run/dpsd"`})
	}
}
