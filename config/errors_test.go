package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/test/configuration"
)

func TestErrors(t *testing.T) {
	const (
		noCredential = `dpsd.toml: credential: is missing; add [[credential]] with type = "symmetric-key" and key, or with type = "x509", certificate and private_key`
		noDPS        = `dpsd.toml: dps: the table is missing; add [dps] with id_scope and registration_id`
		noReference  = `not a reference: write "file:/path" or "credential:NAME"; do not write the secret itself here`
		anAddress    = `write it as "http://proxy.example:3128"`
		aPercentage  = `write a whole percentage from "10%" to "95%"`
		aGroup       = `write at most 31 letters, digits, "_" and "-", such as "dpsd-certificate"`
		aName        = `write at most 64 letters, digits, "-", "_" and ".", not beginning with "."`
		aScope       = `write "device", "device/messages/events", or "module:NAME" with a module ID`
		aModule      = "write 1 to 128 letters, digits and \"-:._%*?!(),=@$'\" after \"module:\""
		durations    = `write a number with its unit, such as "90s", "5m" or "24h"`
	)
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		// Names.
		{"an unknown key is reported with its position and the nearest known key", "[dps]\nid_scop = \"x\"\nregistration_id = \"gw-1\"\n" + minimalCredential,
			[]string{`dpsd.toml:2:1: dps.id_scop: unknown key; did you mean "id_scope"?`}},
		{"the nearest key is found when its parts are swapped", minimal + "[transport]\nport_mqtt = 1\n",
			[]string{`dpsd.toml:8:1: transport.port_mqtt: unknown key; did you mean "mqtt_port"?`}},
		{"the nearest key is found with hyphens and capitals", minimal + "[transport]\nKeep-Alive = \"1s\"\n",
			[]string{`dpsd.toml:8:1: transport.Keep-Alive: unknown key; did you mean "keep_alive"?`}},
		{"an unknown key without a similar key is reported without a suggestion", minimal + "[log]\nxyzzy = 1\n",
			[]string{`dpsd.toml:8:1: log.xyzzy: unknown key`}},
		{"a key in the wrong table is reported with the right table", minimal + "[transport]\ninterval = \"24h\"\n",
			[]string{`dpsd.toml:8:1: transport.interval: unknown key; did you mean "provisioning.interval"?`}},
		{"a key above all tables is reported with its table", "id_scope = \"x\"\n" + minimal,
			[]string{`dpsd.toml:1:1: id_scope: unknown key; did you mean "dps.id_scope"? write each key below the [table] that it belongs to`}},
		{"an unknown table is reported once, without an error about the missing table", "[dsp]\nid_scope = \"x\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/k\"\n",
			[]string{`dpsd.toml:1:2: dsp: unknown table; did you mean "dps"?`}},
		{"the plural of credential is reported", minimalDPS + "[[credentials]]\ntype = \"x509\"\n",
			[]string{`dpsd.toml:4:3: credentials: unknown table; did you mean "credential"?`}},
		{"a table below a table is unknown", minimal + "[dps.transport]\nmqtt_port = 1\n",
			[]string{`dpsd.toml:7:6: dps.transport: unknown table; did you mean "transport"?`}},
		{"an unknown key in a credential is reported with its own line", minimal + "[[credential]]\ntype = \"x509\"\ncertifcate = \"file:/c\"\nprivate_key = \"file:/k\"\n",
			[]string{`dpsd.toml:9:1: credential.certifcate: unknown key; did you mean "certificate"?`}},
		{"a misspelled key in one credential does not hide a missing key in another", minimalDPS + "[[credential]]\ntype = \"symmetric-key\"\nkye = \"file:/k\"\n[[credential]]\ntype = \"symmetric-key\"\n",
			[]string{`dpsd.toml:6:1: credential.kye: unknown key; did you mean "key"?`,
				`dpsd.toml:7:3: credential.key: is missing; a credential of type "symmetric-key" needs it`}},
		{"the error about a quoted key with a newline has one line", minimal + "[log]\n\"a\\nb\" = 1\n",
			[]string{`dpsd.toml:8:1: log."a\nb": unknown key`}},
		{"a very long key is shortened", minimal + "[log]\n" + strings.Repeat("k", 100) + " = 1\n",
			[]string{`dpsd.toml:8:1: log.` + strings.Repeat("k", 40) + `…: unknown key`}},
		{"columns count characters, not bytes", minimal + "[log]\n\"ü\".\"ü\" = 1\n",
			[]string{`dpsd.toml:8:1: log.ü: unknown table`}},
		{"a column after non-ASCII letters is right", "dps = {\"üüü\" = 1, \"x\" = 2}\n[[credential]]\ntype=\"symmetric-key\"\nkey=\"file:/k\"\n",
			[]string{`dpsd.toml:1:1: dps.id_scope: is missing; it is on the overview page of the provisioning service`,
				`dpsd.toml:1:1: dps.registration_id: is missing; set it or registration_id_file; dpsd takes the ID from the certificate only if the first credential is x509`,
				`dpsd.toml:1:8: dps.üüü: unknown key`,
				`dpsd.toml:1:19: dps.x: unknown key`}},

		// Tables.
		{"single brackets for a credential are reported", minimalDPS + "[credential]\ntype = \"symmetric-key\"\nkey = \"file:/k\"\n",
			[]string{`dpsd.toml:4:2: credential: must be an array of tables; write [[credential]], with double brackets`}},
		{"single brackets do not hide the errors inside", minimalDPS + "[credential]\ntype = \"symmetric-key\"\n",
			[]string{`dpsd.toml:4:2: credential: must be an array of tables; write [[credential]], with double brackets`,
				`dpsd.toml:4:2: credential.key: is missing; a credential of type "symmetric-key" needs it`}},
		{"a credential that is a string is reported", "credential = \"x\"\n" + minimalDPS,
			[]string{`dpsd.toml:1:1: credential: must be an array of tables, not a string; write [[credential]], with double brackets`}},
		{"a credential in an array that is not a table is reported", "credential = [1]\n" + minimalDPS,
			[]string{`dpsd.toml:1:15: credential: must be a table, not an integer; write [[credential]], with double brackets`}},
		{"an empty array is reported as a missing credential", "credential = []\n" + minimalDPS, []string{strings.Replace(noCredential, "dpsd.toml:", "dpsd.toml:1:1:", 1)}},
		{"double brackets for a table are reported", "[[dps]]\nid_scope = \"x\"\n" + minimalCredential,
			[]string{`dpsd.toml:1:3: dps: this table may appear only once; write [dps], with single brackets`}},
		{"a table that is a number is reported", "log = 3\n" + minimal,
			[]string{`dpsd.toml:1:1: log: must be a table, not an integer; write [log] and its keys below it`}},
		{"an empty file is reported", "", []string{`dpsd.toml: the file sets no keys; start from a copy of the annotated dpsd.toml`}},
		{"a file of comments is reported", "# x\n\n", []string{`dpsd.toml: the file sets no keys; start from a copy of the annotated dpsd.toml`}},
		{"a missing [dps] is reported once", minimalCredential, []string{noDPS}},
		{"two errors are reported for a file with only another table", "[log]\n", []string{noDPS, noCredential}},
		{"the missing keys of an empty [dps] are reported at its line", "\n [dps]\n",
			[]string{`dpsd.toml:2:3: dps.id_scope: is missing; it is on the overview page of the provisioning service`,
				`dpsd.toml:2:3: dps.registration_id: is missing; set it or registration_id_file; dpsd takes the ID from the certificate only if the first credential is x509`,
				noCredential}},

		// Types.
		{"a string where an integer belongs is reported", minimal + "[transport]\nmqtt_port = \"8883\"\n",
			[]string{`dpsd.toml:8:1: transport.mqtt_port: must be an integer, not a string; write the port without quotes`}},
		{"an integer where a string belongs is reported", strings.Replace(minimal, `"gw-1"`, "1", 1),
			[]string{`dpsd.toml:3:1: dps.registration_id: must be a string, not an integer; write it in double quotes`}},
		{"a boolean where a string belongs is reported", minimal + "[log]\nlevel = true\n",
			[]string{`dpsd.toml:8:1: log.level: must be a string, not a boolean; write "debug", "info", "warn" or "error"`}},
		{"a date where a string belongs is reported", "[dps]\napi_version = 2019-03-31\n" + strings.TrimPrefix(minimal, "[dps]\n"),
			[]string{`dpsd.toml:2:1: dps.api_version: must be a string, not a date or time; write it in double quotes`}},
		{"a float where a duration belongs is reported", minimal + "[retry]\ninitial = 1.5\n",
			[]string{`dpsd.toml:8:1: retry.initial: must be a string, not a float; ` + durations}},
		{"a string where an array belongs is reported", minimal + "[transport]\nprotocols = \"mqtt\"\n",
			[]string{`dpsd.toml:8:1: transport.protocols: must be an array, not a string; such as ["mqtt"]`}},
		{"an octal number where the mode belongs is reported", minimal + "[state]\nmode = 0o644\n",
			[]string{`dpsd.toml:8:1: state.mode: must be a string, not an integer; write "0644" or "0640"`}},
		{"a table where a string belongs is reported", minimal + "[dps.endpoint]\n",
			[]string{`dpsd.toml:7:6: dps.endpoint: must be a string, not a table; write it in double quotes`}},
		{"an array where a reference belongs is reported", strings.Replace(minimal, `"credential:dps-primary-key"`, `["file:/k"]`, 1),
			[]string{`dpsd.toml:6:1: credential.key: must be a string, not an array; write "file:/path" or "credential:NAME"`}},

		// Values.
		{"an empty string is reported", strings.Replace(minimal, `"gw-1"`, `""`, 1),
			[]string{`dpsd.toml:3:1: dps.registration_id: is empty; set a value or remove the key`}},
		{"an ID scope with a slash is reported", strings.Replace(minimal, "0ne00000000", "0ne/1", 1),
			[]string{`dpsd.toml:2:1: dps.id_scope: "0ne/1" is not an ID scope; it consists of letters and digits, such as "0ne00000000"`}},
		{"an unknown verb is reported", strings.Replace(minimal, "gw-1", "gw-%h", 1),
			[]string{`dpsd.toml:3:1: dps.registration_id: not a valid template of a registration ID: %h is unknown; the verbs are %H (host name) and %m (machine ID)`}},
		{"an ID that ends with a dot is reported", strings.Replace(minimal, "gw-1", "gw.", 1),
			[]string{`dpsd.toml:3:1: dps.registration_id: not a valid registration ID: it must end with a letter, digit or "-", not '.'`}},
		{"a percent sign in an ID is reported", strings.Replace(minimal, "gw-1", "gw%%1", 1),
			[]string{`dpsd.toml:3:1: dps.registration_id: not a valid registration ID: '%' is not allowed; use letters, digits and "-._:"`}},
		{"two sources of the ID are reported", strings.Replace(minimal, "[[cred", "registration_id_file = \"/etc/serial\"\n[[cred", 1),
			[]string{`dpsd.toml:4:1: dps.registration_id_file: registration_id is set as well; keep only one of the two`}},
		{"an endpoint that is a URL is reported", with("dps", "endpoint", `"https://x.example"`),
			[]string{`dpsd.toml:2:1: dps.endpoint: must be a host name, without a scheme; write only the name, such as "global.azure-devices-provisioning.net"`}},
		{"an endpoint with a port is reported", with("dps", "endpoint", `"x.example:8883"`),
			[]string{`dpsd.toml:2:1: dps.endpoint: must be a host name, without a port; set the ports with transport.mqtt_port and transport.websocket_port`}},
		{"an endpoint that is an IPv6 address is reported", with("dps", "endpoint", `"[2001:db8::7]:8883"`),
			[]string{`dpsd.toml:2:1: dps.endpoint: must be a host name, not an IPv6 address; the server's certificate is for its name, and dpsd uses IPv6 if the name has an IPv6 address; write only the name, such as "global.azure-devices-provisioning.net"`}},
		{"an endpoint that is a bare IPv6 address is reported", with("dps", "endpoint", `"2001:db8::7"`),
			[]string{`dpsd.toml:2:1: dps.endpoint: must be a host name, not an IPv6 address; the server's certificate is for its name, and dpsd uses IPv6 if the name has an IPv6 address; write only the name, such as "global.azure-devices-provisioning.net"`}},
		{"an endpoint with a final dot is reported", with("dps", "endpoint", `"x.example."`),
			[]string{`dpsd.toml:2:1: dps.endpoint: must be a host name, without a dot at the end; write only the name, such as "global.azure-devices-provisioning.net"`}},
		{"an endpoint with a path is reported", with("dps", "endpoint", `"x.example/y"`),
			[]string{`dpsd.toml:2:1: dps.endpoint: "x.example/y" is not a host name; write only the name, such as "global.azure-devices-provisioning.net"`}},
		{"an API version that is not a date is reported", with("dps", "api_version", `"latest"`),
			[]string{`dpsd.toml:2:1: dps.api_version: "latest" is not an API version; it is a date such as "2019-03-31", optionally with the suffix "-preview"`}},
		{"a relative path is reported", with("dps", "payload_file", `"payload.json"`),
			[]string{`dpsd.toml:2:1: dps.payload_file: must be an absolute path; begin it with "/"`}},
		{"a reference where a path belongs is reported", with("transport", "ca_file", `"file:/ca.pem"`),
			[]string{`dpsd.toml:8:1: transport.ca_file: must be a plain path; omit "file:"; only credentials are references`}},
		{"a NUL byte in a path is reported", with("transport", "ca_file", `"/ca\u0000.pem"`),
			[]string{`dpsd.toml:8:1: transport.ca_file: contains a control character`}},
		{"an inline key is reported, and the error does not contain it", strings.Replace(minimal, "credential:dps-primary-key", "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE", 1),
			[]string{`dpsd.toml:6:1: credential.key: ` + noReference}},
		{"port 0 is reported", with("transport", "mqtt_port", "0"), []string{`dpsd.toml:8:1: transport.mqtt_port: 0 is not a TCP port; ports are 1 to 65535`}},
		{"port 65536 is reported", with("transport", "websocket_port", "65536"), []string{`dpsd.toml:8:1: transport.websocket_port: 65536 is not a TCP port; ports are 1 to 65535`}},
		{"a negative port is reported", with("transport", "mqtt_port", "-1"), []string{`dpsd.toml:8:1: transport.mqtt_port: -1 is not a TCP port; ports are 1 to 65535`}},
		{"no protocol is reported", with("transport", "protocols", "[]"), []string{`dpsd.toml:8:1: transport.protocols: must not be empty; such as ["mqtt"]`}},
		{"each wrong protocol is reported at its own position", with("transport", "protocols", `["mqtt", "mqqt", 3, "mqtt"]`),
			[]string{`dpsd.toml:8:22: transport.protocols: "mqqt" is unknown; did you mean "mqtt"? write "mqtt" or "websocket"`,
				`dpsd.toml:8:30: transport.protocols: must be a string, not an integer; write "mqtt" or "websocket"`,
				`dpsd.toml:8:33: transport.protocols: "mqtt" appears twice`}},
		{"a number without a unit is reported", with("retry", "max", `"300"`), []string{`dpsd.toml:8:1: retry.max: "300" is not a duration; ` + durations}},
		{"days are reported", with("retry", "max", `"1d"`), []string{`dpsd.toml:8:1: retry.max: "1d" is not a duration; ` + durations}},
		{"a duration over 290 years is reported", with("retry", "max", `"9999999h"`), []string{`dpsd.toml:8:1: retry.max: "9999999h" is not a duration; ` + durations}},
		{"a negative duration is reported", with("transport", "connect_timeout", `"-1s"`), []string{`dpsd.toml:8:1: transport.connect_timeout: "-1s" is out of range; 100ms to 10m are allowed`}},
		{"a timeout of 0 is reported", with("transport", "response_timeout", `"0s"`), []string{`dpsd.toml:8:1: transport.response_timeout: "0s" is out of range; 100ms to 10m are allowed`}},
		{"a retry without a pause is reported", with("retry", "max", `"1ms"`), []string{`dpsd.toml:8:1: retry.max: "1ms" is out of range; 1s to 24h are allowed`}},
		{"a boot delay of days is reported", with("provisioning", "boot_delay_max", `"25h"`), []string{`dpsd.toml:8:1: provisioning.boot_delay_max: "25h" is out of range; 0s to 24h are allowed`}},
		{"half a second of keep alive is reported", with("transport", "keep_alive", `"1500ms"`), []string{`dpsd.toml:8:1: transport.keep_alive: must be a whole number of seconds; such as "60s", or "0s" to disable it`}},
		{"a keep alive that servers cap is reported", with("transport", "keep_alive", `"1178s"`), []string{`dpsd.toml:8:1: transport.keep_alive: "1178s" is out of range; 0s to 19m37s are allowed`}},
		{"a first delay above the last is reported where it is set", with("retry", "initial", `"10m"`), []string{`dpsd.toml:8:1: retry.initial: initial (10m) is greater than max (5m)`}},
		{"a last delay below the first is reported where it is set", with("retry", "refused_max", `"20s"`), []string{`dpsd.toml:8:1: retry.refused_max: refused_initial (30s) is greater than refused_max (20s)`}},
		{"another mode is reported", with("state", "mode", `"0600"`), []string{`dpsd.toml:8:1: state.mode: "0600" is unknown; did you mean "0640"? write "0644" or "0640"`}},
		{"a relative state directory is reported", with("state", "directory", `"state"`), []string{`dpsd.toml:8:1: state.directory: must be an absolute path; begin it with "/"`}},
		{"a socket that is a directory is reported", with("control", "socket", `"/run/dpsd/"`), []string{`dpsd.toml:8:1: control.socket: must be the path of a socket, not of a directory; such as "/run/dpsd/dpsd.sock"`}},
		{"a socket's path of 108 bytes is reported", with("control", "socket", `"/`+strings.Repeat("s", 107)+`"`), []string{`dpsd.toml:8:1: control.socket: the path of a socket has at most 107 bytes, not 108`}},
		{"a socket in the state directory is reported", with("control", "socket", `"/var/lib/dpsd/dpsd.sock"`), []string{`dpsd.toml:8:1: control.socket: the socket must not be in the state directory; its directory is the runtime directory, usually "/run/dpsd"`}},
		{"a state directory around the socket is reported", with("state", "directory", `"/run/dpsd"`), []string{`dpsd.toml:8:1: state.directory: the socket must not be in the state directory; its directory is the runtime directory, usually "/run/dpsd"`}},
		{"an unknown level is reported with the nearest level", with("log", "level", `"warning"`), []string{`dpsd.toml:8:1: log.level: "warning" is unknown; did you mean "warn"? write "debug", "info", "warn" or "error"`}},

		// Issued certificates.
		{"an unknown request is reported", with("certificate", "request", `"never"`), []string{`dpsd.toml:8:1: certificate.request: "never" is unknown; write "required" or "when-offered"`}},
		{"a boolean request is reported", with("certificate", "request", "true"), []string{`dpsd.toml:8:1: certificate.request: must be a string, not a boolean; write "required" or "when-offered"`}},
		{"an unknown type of key is reported with the nearest", with("certificate", "key_type", `"ec-384"`), []string{`dpsd.toml:8:1: certificate.key_type: "ec-384" is unknown; did you mean "ec-p384"? write "ec-p256", "ec-p384" or "rsa-2048"`}},
		{"a percentage without its sign is reported", with("certificate", "renew_at", `"67"`), []string{`dpsd.toml:8:1: certificate.renew_at: "67" is not a whole percentage; ` + aPercentage}},
		{"a percentage without quotes is reported", with("certificate", "renew_at", "67"), []string{`dpsd.toml:8:1: certificate.renew_at: must be a string, not an integer; ` + aPercentage}},
		{"a fraction of a percent is reported", with("certificate", "renew_at", `"66.7%"`), []string{`dpsd.toml:8:1: certificate.renew_at: "66.7%" is not a whole percentage; ` + aPercentage}},
		{"a negative percentage is reported", with("certificate", "renew_at", `"-67%"`), []string{`dpsd.toml:8:1: certificate.renew_at: "-67%" is not a whole percentage; ` + aPercentage}},
		{"a duration instead of a percentage is reported", with("certificate", "renew_at", `"72h"`), []string{`dpsd.toml:8:1: certificate.renew_at: "72h" is not a whole percentage; ` + aPercentage}},
		{"a percentage that is too low is reported", with("certificate", "renew_at", `"9%"`), []string{`dpsd.toml:8:1: certificate.renew_at: "9%" is out of range; ` + aPercentage}},
		{"a percentage that is too high is reported", with("certificate", "renew_at", `"96%"`), []string{`dpsd.toml:8:1: certificate.renew_at: "96%" is out of range; ` + aPercentage}},
		{"a percentage that no integer contains is reported", with("certificate", "renew_at", `"99999999999999999999%"`), []string{`dpsd.toml:8:1: certificate.renew_at: the value is not a whole percentage; ` + aPercentage}},
		{"a group without a name is reported", with("certificate", "group", `""`), []string{`dpsd.toml:8:1: certificate.group: is empty; set a value or remove the key`}},
		{"the number of a group is reported", with("certificate", "group", `"1000"`), []string{`dpsd.toml:8:1: certificate.group: "1000" is not a valid group name; ` + aGroup}},
		{"a group with a colon is reported", with("certificate", "group", `"root:x"`), []string{`dpsd.toml:8:1: certificate.group: "root:x" is not a valid group name; ` + aGroup}},
		{"a group of 32 characters is reported", with("certificate", "group", `"`+strings.Repeat("g", 32)+`"`), []string{`dpsd.toml:8:1: certificate.group: the value is not a valid group name; ` + aGroup}},
		{"an unknown key of [certificate] is reported", with("certificate", "keytype", `"ec-p384"`), []string{`dpsd.toml:8:1: certificate.keytype: unknown key; did you mean "key_type"?`}},
		{"two tables [certificate] are reported", minimal + "[[certificate]]\n", []string{`dpsd.toml:7:3: certificate: this table may appear only once; write [certificate], with single brackets`}},
		{"the certificate of a credential above all tables is reported with its table", "certificate = \"file:/c\"\n" + minimal,
			[]string{`dpsd.toml:1:1: certificate: must be a table, not a string; did you mean "credential.certificate"? write [certificate] and its keys below it`}},
		{"an API version without certificates is reported where it is set", with("dps", "api_version", `"2019-03-31"`) + "[certificate]\n",
			[]string{`dpsd.toml:2:1: dps.api_version: "2019-03-31" does not support issued certificates, but the file has the table [certificate]; remove api_version, so that dpsd uses "2026-11-01", or remove [certificate]`}},
		{"the last API version without certificates is reported", with("dps", "api_version", `"2021-11-01-preview"`) + "[certificate]\n",
			[]string{`dpsd.toml:2:1: dps.api_version: "2021-11-01-preview" does not support issued certificates, but the file has the table [certificate]; remove api_version, so that dpsd uses "2026-11-01", or remove [certificate]`}},
		{"an invalid API version is the only error reported", with("dps", "api_version", `"preview"`) + "[certificate]\n",
			[]string{`dpsd.toml:2:1: dps.api_version: "preview" is not an API version; it is a date such as "2019-03-31", optionally with the suffix "-preview"`}},
		{"a registration ID that a certificate cannot contain is reported", with("dps", "registration_id", `"`+strings.Repeat("a", 65)+`"`) + "[certificate]\n",
			[]string{`dpsd.toml:2:1: dps.registration_id: has 65 characters; with [certificate], at most 64 are allowed; write a shorter one, because it becomes the common name of the certificate`}},
		{"a template that is too long for a certificate on every machine is reported", with("dps", "registration_id", `"`+strings.Repeat("a", 32)+`%m%H"`) + "[certificate]\n",
			[]string{`dpsd.toml:2:1: dps.registration_id: has 65 characters; with [certificate], at most 64 are allowed; write a shorter one, because it becomes the common name of the certificate`}},

		// Credentials.
		{"a credential without a type is reported", minimalDPS + "[[credential]]\nkey = \"file:/k\"\n", []string{`dpsd.toml:4:3: credential.type: is missing; write "symmetric-key" or "x509"`}},
		{"a credential of an unknown type is reported", minimalDPS + "[[credential]]\ntype = \"x.509\"\n", []string{`dpsd.toml:5:1: credential.type: "x.509" is unknown; did you mean "x509"? write "symmetric-key" or "x509"`}},
		{"a certificate without a key is reported", minimalDPS + "[[credential]]\ntype = \"x509\"\ncertificate = \"file:/c\"\n", []string{`dpsd.toml:4:3: credential.private_key: is missing; a credential of type "x509" needs it`}},
		{"a key in a certificate's table is reported", minimalDPS + "[[credential]]\ntype = \"x509\"\ncertificate = \"file:/c\"\nprivate_key = \"file:/p\"\nkey = \"file:/k\"\n",
			[]string{`dpsd.toml:8:1: credential.key: does not apply to type "x509"; write a separate [[credential]] for each credential`}},

		// Consumers.
		{"single brackets for a consumer are reported", minimal + "[consumer]\nname = \"a\"\nscope = \"device\"\n",
			[]string{`dpsd.toml:7:2: consumer: must be an array of tables; write [[consumer]], with double brackets`}},
		{"the plural of consumer is reported", minimal + "[[consumers]]\nname = \"a\"\n", []string{`dpsd.toml:7:3: consumers: unknown table; did you mean "consumer"?`}},
		{"a consumer without a name and a scope is reported", minimal + "[[consumer]]\n",
			[]string{`dpsd.toml:7:3: consumer.name: is missing; it is the NAME of the unit dpsd-hub@NAME.socket`,
				`dpsd.toml:7:3: consumer.scope: is missing; ` + aScope}},
		{"an unknown key in a consumer is reported with the nearest key", with("consumer", "lifetme", `"15m"`), []string{`dpsd.toml:8:1: consumer.lifetme: unknown key; did you mean "lifetime"?`}},
		{"a misspelled scope is reported once", minimal + "[[consumer]]\nname = \"a\"\nscop = \"device\"\n", []string{`dpsd.toml:9:1: consumer.scop: unknown key; did you mean "scope"?`}},
		{"a consumer whose name is a path is reported", with("consumer", "name", `"a/b"`), []string{`dpsd.toml:8:1: consumer.name: "a/b" is not a valid name for a consumer; ` + aName}},
		{"a consumer with the name of the socket for programs of the Identity Service is reported", with("consumer", "name", `"aziot-identity"`),
			[]string{`dpsd.toml:8:1: consumer.name: "aziot-identity" is the name of the socket for programs of the Azure IoT Identity Service, which needs no [[consumer]]; choose another name, or remove the table; see docs/migration.md`}},
		{"a consumer whose name begins with a dot is reported", with("consumer", "name", `".a"`), []string{`dpsd.toml:8:1: consumer.name: ".a" is not a valid name for a consumer; ` + aName}},
		{"a consumer whose name has a newline at the end is reported", with("consumer", "name", `"a\n"`), []string{`dpsd.toml:8:1: consumer.name: "a\n" is not a valid name for a consumer; ` + aName}},
		{"a consumer whose name has 65 characters is reported", with("consumer", "name", `"`+strings.Repeat("a", 65)+`"`), []string{`dpsd.toml:8:1: consumer.name: the value is not a valid name for a consumer; ` + aName}},
		{"a name that two consumers have is reported at the second", with("consumer", "name", `"a"`) + "[[consumer]]\nname = \"a\"\nscope = \"device\"\n",
			[]string{`dpsd.toml:11:1: consumer.name: "a" is also the name of another [[consumer]]; give each a different name`}},
		{"an unknown scope is reported", with("consumer", "scope", `"devices"`), []string{`dpsd.toml:8:1: consumer.scope: "devices" is not a scope; ` + aScope}},
		{"a scope that is a resource is reported", with("consumer", "scope", `"hub.azure-devices.net/devices/gw"`), []string{`dpsd.toml:8:1: consumer.scope: the value is not a scope; ` + aScope}},
		{"a module without a name is reported", with("consumer", "scope", `"module:"`), []string{`dpsd.toml:8:1: consumer.scope: "" is not a valid module ID; ` + aModule}},
		{"a module whose ID is a topic filter is reported", with("consumer", "scope", `"module:#"`), []string{`dpsd.toml:8:1: consumer.scope: "#" is not a valid module ID; ` + aModule}},
		{"a module ID with a slash is reported", with("consumer", "scope", `"module:a/messages/events"`), []string{`dpsd.toml:8:1: consumer.scope: "a/messages/events" is not a valid module ID; ` + aModule}},
		{"a module ID of 129 characters is reported", with("consumer", "scope", `"module:`+strings.Repeat("a", 129)+`"`), []string{`dpsd.toml:8:1: consumer.scope: the value is not a valid module ID; ` + aModule}},
		{"a module that belongs to the hub is reported", with("consumer", "scope", `"module:$edgeHub"`),
			[]string{`dpsd.toml:8:1: consumer.scope: IoT Hub reserves module IDs that begin with "$"; write another name after "module:"`}},
		{"a module that two consumers have is reported at the second", with("consumer", "scope", `"module:m"`) + "[[consumer]]\nname = \"b\"\nscope = \"module:m\"\n",
			[]string{`dpsd.toml:12:1: consumer.scope: consumer "a" uses the same module; give each a different module, because the hub disconnects one when the other connects`}},
		{"a token that lives too long is reported", with("consumer", "lifetime", `"61m"`), []string{`dpsd.toml:8:1: consumer.lifetime: "61m" is out of range; 1m to 1h are allowed`}},
		{"a token that is too short is reported", with("consumer", "lifetime", `"59s"`), []string{`dpsd.toml:8:1: consumer.lifetime: "59s" is out of range; 1m to 1h are allowed`}},
		{"a token that lives for half a second more is reported", with("consumer", "lifetime", `"90.5s"`), []string{`dpsd.toml:8:1: consumer.lifetime: must be a whole number of seconds; such as "15m"`}},
		{"a boolean in quotes is reported", with("consumer", "certificate", `"true"`), []string{`dpsd.toml:8:1: consumer.certificate: must be a boolean, not a string; write true or false, without quotes`}},
		{"a certificate for a part of the device is reported", with("consumer", "scope", "\"device/messages/events\"\ncertificate = true"),
			[]string{`dpsd.toml:9:1: consumer.certificate: only a service with the scope "device" can use the certificate; write scope = "device", or remove certificate`}},
		{"a certificate for a module is reported", with("consumer", "scope", "\"module:m\"\ncertificate = true"),
			[]string{`dpsd.toml:9:1: consumer.certificate: only a service with the scope "device" can use the certificate; write scope = "device", or remove certificate`}},
		{"an unknown policy for refusals is reported", with("provisioning", "on_refusal", `"ignore"`), []string{`dpsd.toml:8:1: provisioning.on_refusal: "ignore" is unknown; write "reprovision" or "report"`}},
		{"a boolean as the check of the hub is reported", with("provisioning", "hub_check", `true`), []string{`dpsd.toml:8:1: provisioning.hub_check: must be a string, not a boolean; write "off" or "https"`}},

		// Policies and proxies.
		{"the policy \"never\" is unknown", with("provisioning", "on_boot", `"never"`), []string{`dpsd.toml:8:1: provisioning.on_boot: "never" is unknown; write "always", "verify" or "if-needed"`}},
		{"an interval that is too short is reported", with("provisioning", "interval", `"30s"`), []string{`dpsd.toml:8:1: provisioning.interval: 30s is too short; at least 10m, or "0s" for never`}},
		{"a password in a proxy's address is rejected, and the error does not contain it", with("transport", "proxy", `"http://u:S3CRET@proxy:3128"`),
			[]string{`dpsd.toml:8:1: transport.proxy: the address must not contain a user name or password; write only the address, and set proxy_user, and proxy_password to "credential:NAME" or "file:/path"`}},
		{"another word for the proxy is unknown", with("transport", "proxy", `"env"`), []string{`dpsd.toml:8:1: transport.proxy: "env" is unknown; did you mean "environment"? write "environment", "none" or an address such as "http://proxy.example:3128"`}},
		{"a proxy without a scheme is reported", with("transport", "proxy", `"proxy:3128"`), []string{`dpsd.toml:8:1: transport.proxy: the address must begin with "http://" or "https://"; ` + anAddress}},
		{"a SOCKS proxy is reported", with("transport", "proxy", `"socks5://proxy:1080"`), []string{`dpsd.toml:8:1: transport.proxy: the address must begin with "http://" or "https://"; ` + anAddress}},
		{"a proxy without a port is reported", with("transport", "proxy", `"http://proxy"`), []string{`dpsd.toml:8:1: transport.proxy: the address has no port; ` + anAddress}},
		{"a proxy at port 0 is reported", with("transport", "proxy", `"http://proxy:0"`), []string{`dpsd.toml:8:1: transport.proxy: the address has no valid port; ports are 1 to 65535`}},
		{"a proxy at no port is reported", with("transport", "proxy", `"http://proxy:web"`), []string{`dpsd.toml:8:1: transport.proxy: is not an address; ` + anAddress}},
		{"a proxy without a name is reported", with("transport", "proxy", `"http://:3128"`), []string{`dpsd.toml:8:1: transport.proxy: the address has no valid host name; ` + anAddress}},
		{"a proxy with a path is reported", with("transport", "proxy", `"http://proxy:3128/p"`), []string{`dpsd.toml:8:1: transport.proxy: the address must end with the port; ` + anAddress}},
		{"a proxy's user with a colon is reported", with("transport", "proxy_user", `"u:S3CRET"`), []string{`dpsd.toml:8:1: transport.proxy_user: must not contain a colon; set the password with proxy_password`}},
		{"a proxy's user of two lines is reported", with("transport", "proxy_user", `"u\nx"`), []string{`dpsd.toml:8:1: transport.proxy_user: contains a control character`}},
		{"a proxy's password must be a reference, and the error does not contain it", with("transport", "proxy_user", "\"u\"\nproxy_password = \"S3CRET\""), []string{`dpsd.toml:9:1: transport.proxy_password: ` + noReference}},
		{"a proxy's password without a user is reported", with("transport", "proxy_password", `"file:/p"`), []string{`dpsd.toml:8:1: transport.proxy_password: requires proxy_user`}},
		{"a proxy user without a proxy is reported", with("transport", "proxy", "\"none\"\nproxy_user = \"u\"\nproxy_password = \"file:/p\"\nproxy_ca_file = \"/ca.pem\""),
			[]string{`dpsd.toml:9:1: transport.proxy_user: has no effect with proxy = "none"`, `dpsd.toml:10:1: transport.proxy_password: has no effect with proxy = "none"`, `dpsd.toml:11:1: transport.proxy_ca_file: has no effect with proxy = "none"`}},
		{"roots for a proxy without TLS are reported", with("transport", "proxy", "\"http://proxy:3128\"\nproxy_ca_file = \"/ca.pem\""),
			[]string{`dpsd.toml:9:1: transport.proxy_ca_file: has no effect with an http:// proxy; it applies only to https:// proxies; ca_file adds roots for DPS`}},
		{"an invalid proxy address is the only error reported", with("transport", "proxy", "\"http://proxy\"\nproxy_ca_file = \"/ca.pem\"\nproxy_password = \"file:/p\""), []string{`dpsd.toml:8:1: transport.proxy: the address has no port; ` + anAddress}},

		// Syntax.
		{"text without quotes is reported with its key", "[dps]\nid_scope = 0ne00\n", []string{`dpsd.toml:2:13: dps.id_scope: TOML syntax: strings must be quoted; write text in double quotes`}},
		{"a string without an end is reported with its key", minimal + "[log]\nlevel = \"info\n", []string{`dpsd.toml:8:14: log.level: TOML syntax: basic strings cannot have new lines; close the quotes on the same line`}},
		{"a duplicate key is reported", "[dps]\nid_scope = \"a\"\nid_scope = \"b\"\n", []string{`dpsd.toml:3:1: dps.id_scope: TOML syntax: key id_scope is already defined`}},
		{"a duplicate table is reported", minimal + "[dps]\n", []string{`dpsd.toml:7:2: TOML syntax: table dps already exists`}},
		{"a column in a line with non-ASCII letters is right", "# ü\n\"ü\" = x\n", []string{`dpsd.toml:2:7: TOML syntax: unexpected character U+0078 'x' at start of value; write text in double quotes`}},
		{"a Windows path in double quotes is reported", "[dps]\npayload_file = \"C:\\p\"\n", []string{`dpsd.toml:2:19: dps.payload_file: TOML syntax: invalid escape character U+0070 'p'; write a backslash as \\, or use single quotes`}},
		{"text after a table header is reported", minimal + "[log]x\n", []string{`dpsd.toml:7:6: TOML syntax: expected newline but got U+0078 'x'`}},
		{"a line that is not TOML is reported", "[dps]\nwhat is this\n", []string{`dpsd.toml:2:6: TOML syntax: expected '=' after key`}},
		{"a NUL byte is reported", "[dps]\n\x00\n", []string{`dpsd.toml:2:1: TOML syntax: invalid character at start of key: U+0000`}},
		{"Latin-1 is reported", "[dps]\nid_scope = \"\xfc\"\n", []string{`dpsd.toml:2:13: dps.id_scope: TOML syntax: invalid UTF-8 character in basic string; save the file as UTF-8`}},
		{"UTF-16 is reported", "\xff\xfe[\x00d\x00", []string{`dpsd.toml:1:1: the file is UTF-16 text, not UTF-8; cp -p dpsd.toml dpsd.toml.orig && iconv -f UTF-16 -t UTF-8 dpsd.toml.orig >dpsd.toml`}},
		{"UTF-16 in the other byte order is reported", "\xfe\xff\x00[\x00d", []string{`dpsd.toml:1:1: the file is UTF-16 text, not UTF-8; cp -p dpsd.toml dpsd.toml.orig && iconv -f UTF-16 -t UTF-8 dpsd.toml.orig >dpsd.toml`}},
		{"a number that is too large is reported without its digits", with("transport", "mqtt_port", "1e99999"), []string{`dpsd.toml:8:13: transport.mqtt_port: TOML syntax: unable to parse float`}},
		{"a file of thousands of keys is reported quickly", minimal + keys(4996), []string{`dpsd.toml: the file has more than 5000 keys; a configuration has a few dozen; is this the right file?`}},
		{"a key of thousands of parts is reported quickly", "a" + strings.Repeat(".a", 500_000) + "=1", []string{`dpsd.toml: the file has more than 5000 keys; a configuration has a few dozen; is this the right file?`}},
		{"values nested without end are reported", "a = " + strings.Repeat("[", 1<<19), []string{`dpsd.toml:1:10005: TOML syntax: arrays and inline tables are nested more than the maximum of 10000 levels deep`}},
		{"a file over 1 MiB is reported", strings.Repeat("#", 1<<20+1), []string{`dpsd.toml: the file is larger than 1 MiB; a configuration has a few lines; is this the right file?`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			errs := problems(t, c.text)
			if got, want := errs.Error(), strings.Join(c.want, "\n"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// keys returns n lines with a key each, for the last table.
func keys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d = 1\n", i)
	}
	return b.String()
}

func TestAllErrorsAreReportedTogether(t *testing.T) {
	errs := problems(t, `[dps]
id_scop = "x"
registration_id = "gw 1"
[[credential]]
type = "symmetric-key"
key = "inline"
[transport]
mqtt_port = "8883"
protocols = ["mqtt", "mqtt"]
[retry]
initial = "1 second"
[log]
level = "loud"
[colour]
x = 1
`)
	var lines []int
	for _, e := range errs {
		lines = append(lines, e.Line)
	}
	want := []int{2, 3, 6, 8, 9, 11, 13, 14}
	if len(lines) != len(want) {
		t.Fatalf("got\n%v", errs)
	}
	for i := range want {
		if lines[i] != want[i] {
			t.Errorf("error %d is at line %d, not %d", i, lines[i], want[i])
		}
	}
	t.Run("a file of 4,900 unknown keys lists each of them", func(t *testing.T) {
		if errs := problems(t, minimal+"[log]\n"+keys(4900)); len(errs) != 4900 {
			t.Errorf("%d are listed", len(errs))
		}
	})
	var one *config.Error
	if !errors.As(error(errs), &one) || one.Key != "dps.id_scop" || one.Nearest != "id_scope" || one.File != "dpsd.toml" || one.Column != 1 {
		t.Errorf("errors.As finds %+v", one)
	}
}

func TestErrorsContainNoSecrets(t *testing.T) {
	// The text has the length of a key and contains every kind of base64 character.
	const secret = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
	texts := map[string]string{
		"in quotes that do not end":      "[[credential]]\nkey = \"" + secret + "\n",
		"without quotes":                 "[[credential]]\nkey = " + secret + "\n",
		"on its own line":                "[[credential]]\n" + secret + "\n",
		"in a string over several lines": "[[credential]]\nkey = \"\"\"\n" + secret + "\n",
		"after a string":                 "[[credential]]\nkey = \"x\" " + secret + "\n",
		"as a credential's name":         strings.Replace(minimal, "dps-primary-key", secret, 1),
		"as a file":                      strings.Replace(minimal, "credential:dps-primary-key", "file:"+secret, 1),
		"as the whole credential":        "credential = \"" + secret + "\"\n",
		"in an array":                    "credential = [\"" + secret + "\"]\n",
		"as a table":                     "[[credential]]\nkey = {primary = \"" + secret + "\"}\n",
		"under an unknown key":           minimal + "symmetric_key = \"" + secret + "\"\n",
		"in an unknown table":            minimal + "[keys]\nprimary = \"" + secret + "\"\n",
		"above all tables":               "key = \"" + secret + "\"\n" + minimal,
		"twice":                          minimal + "key = \"" + secret + "\"\n",
		"as the proxy's password":        with("transport", "proxy_password", "\""+secret+"\""),
		"in the proxy's address":         with("transport", "proxy", "\"http://u:"+secret+"@proxy\""),
		"after an invalid escape":        "[[credential]]\nkey = \"\\q" + secret + "\"\n",
	}
	for table, keys := range config.Keys() {
		for _, key := range keys {
			if table == "credential" {
				texts["as credential."+key] = minimal + "[[credential]]\n" + key + " = \"" + secret + "\"\n"
				continue
			}
			if key == "proxy_user" {
				continue // a user name may be any text
			}
			texts["as "+table+"."+key] = with(table, key, "\""+secret+"\"")
		}
	}
	for name, text := range texts {
		t.Run("a key written "+name+" is not in the error", func(t *testing.T) {
			errs := problems(t, text)
			for i := 0; i+6 <= len(secret); i++ {
				if strings.Contains(errs.Error(), secret[i:i+6]) {
					t.Fatalf("%q is in\n%v", secret[i:i+6], errs)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(config.Reference()))
	f.Add(bytes.ReplaceAll([]byte(config.Reference()), []byte("\n#"), []byte("\n")))
	f.Add([]byte("[[credential]]\n[[credential.x]]\n[credential.x.y]\nz = [[1], {a.b = [{}]}]\n"))
	f.Add([]byte("credential = [{}, 1, [2]]\ndps.x.y = 1\n[dps.\"\\u0000\"]\n"))
	f.Add([]byte("\ufeff[dps]\r\nid_scope = \"\"\r\n"))
	for _, s := range settings {
		f.Add([]byte(with(s.table, s.key, s.value)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("x", bytes.NewReader(data))
		if err != nil {
			var errs config.Errors
			if !errors.As(err, &errs) || len(errs) == 0 || c != nil {
				t.Fatalf("got %v, %v", c, err)
			}
			lines := 1 + bytes.Count(data, []byte("\n"))
			for _, e := range errs {
				if e.Problem == "" || e.File != "x" || e.Line < 0 || e.Line > lines || (e.Line > 0) != (e.Column > 0) {
					t.Fatalf("got %+v in %d lines", e, lines)
				}
				if strings.Contains(e.Error(), "\n") {
					t.Fatalf("%q is more than a line", e.Error())
				}
			}
			return
		}
		if broken := configuration.Broken(c); broken != "" {
			t.Fatalf("%s in %+v", broken, c)
		}
		again, _ := rewritten(t, string(data))
		if diff := cmp.Diff(c, parse(t, again)); diff != "" {
			t.Fatalf("written from its settings it has changed: %s\n%s", diff, again)
		}
	})
}
