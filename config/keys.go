package config

import (
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/tpm"
)

// key is a key of a table: its name, and functions that read its value, set it to its
// default and write it.
type key struct {
	name string
	kind
}

// table is a table of the configuration.
type table struct {
	name string
	keys []key
	// optional means that the defaults of the table apply only if the table is present.
	optional bool
	// array means that the table may appear several times, in double brackets.
	array bool
}

// tableList lists the tables of a configuration, in the order of the reference.
type tableList []table

// tables declares every key and the field for its value. A [[credential]] has the keys of
// one of the types; see newCredential. The keys of each [[consumer]] are those of consumerKeys.
func tables(c *Config, types []attest.Type) tableList {
	const day = 24 * time.Hour
	return tableList{
		{name: "dps", keys: []key{
			{"id_scope", text(&c.DPS.IDScope, "", checkIDScope)},
			{"registration_id", text(&c.DPS.RegistrationID.Template, "", checkTemplate)},
			{"registration_id_file", file(&c.DPS.RegistrationID.File, "")},
			{"endpoint", text(&c.DPS.Endpoint, "global.azure-devices-provisioning.net", checkEndpoint)},
			{"api_version", text(&c.DPS.APIVersion, "2019-03-31", checkAPIVersion)},
			{"payload_file", file(&c.DPS.PayloadFile, "")},
		}},
		{name: "credential", array: true, keys: newCredential(types).keys},
		{name: "transport", keys: []key{
			{"protocols", words(&c.Transport.Protocols, "mqtt", "websocket")},
			{"mqtt_port", port(&c.Transport.MQTTPort, 8883)},
			{"websocket_port", port(&c.Transport.WebSocketPort, 443)},
			{"proxy", proxy(&c.Transport.Proxy, "environment")},
			{"proxy_user", text(&c.Transport.ProxyUser, "", checkProxyUser)},
			{"proxy_password", reference(&c.Transport.ProxyPassword, false)},
			{"ca_file", file(&c.Transport.CAFile, "")},
			{"proxy_ca_file", file(&c.Transport.ProxyCAFile, "")},
			{"connect_timeout", duration(&c.Transport.ConnectTimeout, 30*time.Second, 100*time.Millisecond, 10*time.Minute)},
			{"response_timeout", duration(&c.Transport.ResponseTimeout, 60*time.Second, 100*time.Millisecond, 10*time.Minute)},
			{"keep_alive", duration(&c.Transport.KeepAlive, 60*time.Second, 0, maxKeepAlive, checkKeepAlive)},
		}},
		{name: "provisioning", keys: []key{
			{"on_boot", word(&c.Provisioning.OnBoot, "always", "always", "verify", "if-needed")},
			{"boot_delay_max", duration(&c.Provisioning.BootDelayMax, 0, 0, day)},
			{"interval", duration(&c.Provisioning.Interval, 0, 0, 365*day, checkInterval)},
			{"on_refusal", word(&c.Provisioning.OnRefusal, "reprovision", "reprovision", "report")},
			{"hub_check", word(&c.Provisioning.HubCheck, "off", "off", "https")},
		}},
		{name: "retry", keys: []key{
			{"initial", duration(&c.Retry.Initial, time.Second, 100*time.Millisecond, day)},
			{"max", duration(&c.Retry.Max, 5*time.Minute, time.Second, day)},
			{"offline_max", duration(&c.Retry.OfflineMax, 10*time.Second, time.Second, day)},
			{"refused_initial", duration(&c.Retry.RefusedInitial, 30*time.Second, time.Second, day)},
			{"refused_max", duration(&c.Retry.RefusedMax, time.Hour, time.Second, 7*day)},
		}},
		{name: "state", keys: []key{
			{"directory", file(&c.State.Directory, "/var/lib/dpsd")},
			{"mode", mode(&c.State.Mode, 0o644)},
		}},
		{name: "control", keys: []key{
			{"socket", file(&c.Control.Socket, "/run/dpsd/dpsd.sock", checkSocket)},
			{"metrics_file", file(&c.Control.MetricsFile, "")},
		}},
		{name: "certificate", optional: true, keys: []key{
			{"request", word(&c.Certificate.Request, "required", "required", "when-offered")},
			{"key_type", word(&c.Certificate.KeyType, "ec-p384", "ec-p256", "ec-p384", "rsa-2048")},
			{"key_store", word(&c.Certificate.KeyStore, "file", "file", "tpm")},
			{"renew_at", percentage(&c.Certificate.RenewAt, 67, 10, 95)},
			{"group", text(&c.Certificate.Group, CertificateGroup, checkGroup)},
		}},
		{name: "tpm", keys: []key{
			{"device", file(&c.TPM.Device, tpm.Path)},
		}},
		{name: "consumer", array: true, keys: consumerKeys(new(Consumer))},
		{name: "log", keys: []key{
			{"level", word(&c.Log.Level, "info", "debug", "info", "warn", "error")},
		}},
	}
}

// consumerKeys declares the keys of a [[consumer]] and the field for the value of each.
func consumerKeys(c *Consumer) []key {
	return []key{
		{"name", text(&c.Name, "", checkConsumerName)},
		{"scope", inQuotes(&c.Scope, "", scopes, parseScope, same)},
		{"lifetime", duration(&c.Lifetime, 15*time.Minute, time.Minute, time.Hour, checkLifetime)},
		{"certificate", boolean(&c.Certificate, false)},
	}
}

// credential is a [[credential]] while it is read.
type credential struct {
	keys       []key                        // "type" and the keys of all types
	kind       string                       // value of "type"
	references map[string]*attest.Reference // values of the other keys
}

func newCredential(types []attest.Type) *credential {
	one := &credential{references: map[string]*attest.Reference{}}
	one.keys = []key{{"type", word(&one.kind, "", typeNames(types)...)}}
	for _, t := range types {
		for _, k := range t.Keys(nil) {
			if one.references[k.Name] == nil {
				one.references[k.Name] = new(attest.Reference)
				one.keys = append(one.keys, key{k.Name, reference(one.references[k.Name], k.Signer)})
			}
		}
	}
	return one
}

func typeNames(types []attest.Type) []string {
	names := make([]string, 0, len(types))
	for _, t := range types {
		names = append(names, t.Name)
	}
	return names
}

// keyNames lists the keys of a type, without "type".
func keyNames(t attest.Type) (names []string) {
	for _, k := range t.Keys(nil) {
		names = append(names, k.Name)
	}
	return names
}

// find returns the table with this name, or a table without keys if there is none.
func (l tableList) find(name string) table {
	for _, t := range l {
		if t.name == name {
			return t
		}
	}
	return table{}
}

// header returns the line above the keys of the table.
func (t table) header() string {
	if t.array {
		return "[[" + t.name + "]]"
	}
	return "[" + t.name + "]"
}

// reset sets the keys to their defaults.
func (t table) reset() {
	for _, k := range t.keys {
		k.reset()
	}
}

// find returns the key with this name, or nil.
func (t table) find(name string) *key {
	for i := range t.keys {
		if t.keys[i].name == name {
			return &t.keys[i]
		}
	}
	return nil
}

// check returns an error if a value is invalid.
func (k key) check(value any) (wrong *Error) {
	k.read(root, value, func(_ document.Path, e Error) { wrong = &e })
	return wrong
}

// names lists the names of the keys of each table.
func (l tableList) names() map[string][]string {
	all := map[string][]string{}
	for _, t := range l {
		for _, k := range t.keys {
			all[t.name] = append(all[t.name], k.name)
		}
	}
	return all
}
