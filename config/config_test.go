package config_test

import (
	"errors"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/pace"
)

// minimal is a minimal configuration. Tests append keys to it.
const minimal = minimalDPS + minimalCredential

const minimalDPS = `[dps]
id_scope = "0ne00000000"
registration_id = "gw-1"
`

const minimalCredential = `[[credential]]
type = "symmetric-key"
key = "credential:dps-primary-key"
`

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("dpsd.toml", strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	return c
}

// types are the types of credentials that the expected messages list.
var types = []attest.Type{attest.SymmetricKey{}.Type(), attest.X509{}.Type()}

// problems parses an invalid text and returns the errors.
func problems(t testing.TB, text string) config.Errors {
	t.Helper()
	c, _, err := config.ParseTypes("dpsd.toml", strings.NewReader(text), types)
	var errs config.Errors
	if !errors.As(err, &errs) || len(errs) == 0 || c != nil {
		t.Fatalf("got %+v, %v for\n%s", c, err, text)
	}
	return errs
}

func TestDefaults(t *testing.T) {
	t.Run("a configuration needs only scope, ID and credential", func(t *testing.T) {
		want := &config.Config{
			DPS: config.DPS{
				IDScope:        "0ne00000000",
				RegistrationID: attest.RegistrationID{Template: "gw-1"},
				Endpoint:       "global.azure-devices-provisioning.net",
				APIVersion:     "2019-03-31",
			},
			Credentials: []attest.Credential{attest.SymmetricKey{Key: attest.Reference{Credential: "dps-primary-key"}}},
			Transport: config.Transport{
				Protocols: []string{"mqtt", "websocket"}, MQTTPort: 8883, WebSocketPort: 443, Proxy: "environment",
				ConnectTimeout: 30 * time.Second, ResponseTimeout: time.Minute, KeepAlive: time.Minute,
			},
			Provisioning: config.Provisioning{OnBoot: "always", OnRefusal: "reprovision", HubCheck: "off"},
			Retry: pace.Retry{
				Initial: time.Second, Max: 5 * time.Minute, OfflineMax: 10 * time.Second,
				RefusedInitial: 30 * time.Second, RefusedMax: time.Hour,
			},
			State:   config.State{Directory: "/var/lib/dpsd", Mode: 0o644},
			Control: config.Control{Socket: "/run/dpsd/dpsd.sock"},
			TPM:     config.TPM{Device: "/dev/tpmrm0"},
			Log:     config.Log{Level: "info"},
		}
		if diff := cmp.Diff(want, parse(t, minimal)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("[certificate] alone has defaults, and changes the API version", func(t *testing.T) {
		want := parse(t, minimal)
		want.Certificate = config.Certificate{Request: "required", KeyType: "ec-p384", KeyStore: "file", RenewAt: 67, Group: "dpsd-certificate"}
		want.DPS.APIVersion = "2026-11-01"
		for _, text := range []string{minimal + "[certificate]\n", "certificate = {}\n" + minimal} {
			if diff := cmp.Diff(want, parse(t, text)); diff != "" {
				t.Error(diff)
			}
		}
	})
	t.Run("without [certificate], none is requested", func(t *testing.T) {
		if c := parse(t, minimal); c.Certificate != (config.Certificate{}) {
			t.Errorf("got %+v", c.Certificate)
		}
	})
	t.Run("with [certificate], an API version that issues certificates is kept", func(t *testing.T) {
		for _, version := range []string{"2025-07-01-preview", "2025-08-01-preview", "2026-11-01", "2026-11-02-preview", "2027-01-01"} {
			if c := parse(t, with("dps", "api_version", `"`+version+`"`)+"[certificate]\n"); c.DPS.APIVersion != version {
				t.Errorf("%s becomes %s", version, c.DPS.APIVersion)
			}
		}
	})
	t.Run("with [certificate], a registration ID of 64 characters is accepted", func(t *testing.T) {
		for _, id := range []string{strings.Repeat("a", 64), strings.Repeat("a", 32) + "%m", strings.Repeat("a", 63) + "%H"} {
			parse(t, with("dps", "registration_id", `"`+id+`"`)+"[certificate]\n")
		}
	})
	t.Run("without [certificate], a registration ID of 128 characters is accepted", func(t *testing.T) {
		parse(t, with("dps", "registration_id", `"`+strings.Repeat("a", 128)+`"`))
	})
}

// settings contains every key that has a meaning alone, with a value that is not its
// default, and the expected value in the Config.
var settings = []struct {
	table, key, value string
	got               func(*config.Config) any
	want              any
}{
	{"dps", "id_scope", `"0cnABCDEF01"`, func(c *config.Config) any { return c.DPS.IDScope }, "0cnABCDEF01"},
	{"dps", "registration_id", `"gw-%H-%m"`, func(c *config.Config) any { return c.DPS.RegistrationID.Template }, "gw-%H-%m"},
	{"dps", "registration_id_file", `"/etc/gateway/../serial"`, func(c *config.Config) any { return c.DPS.RegistrationID.File }, "/etc/serial"},
	{"dps", "endpoint", `"127.0.0.1"`, func(c *config.Config) any { return c.DPS.Endpoint }, "127.0.0.1"},
	{"dps", "api_version", `"2025-07-01-preview"`, func(c *config.Config) any { return c.DPS.APIVersion }, "2025-07-01-preview"},
	{"dps", "payload_file", `"/etc/dpsd/payload.json"`, func(c *config.Config) any { return c.DPS.PayloadFile }, "/etc/dpsd/payload.json"},
	{"transport", "protocols", `["websocket"]`, func(c *config.Config) any { return c.Transport.Protocols }, []string{"websocket"}},
	{"transport", "mqtt_port", `1`, func(c *config.Config) any { return c.Transport.MQTTPort }, 1},
	{"transport", "websocket_port", `65_535`, func(c *config.Config) any { return c.Transport.WebSocketPort }, 65535},
	{"transport", "proxy", `"none"`, func(c *config.Config) any { return c.Transport.Proxy }, "none"},
	{"transport", "proxy", `"https://[2001:db8::1]:3129/"`, func(c *config.Config) any { return c.Transport.Proxy }, "https://[2001:db8::1]:3129"},
	{"transport", "proxy_user", `"gateway"`, func(c *config.Config) any { return c.Transport.ProxyUser }, "gateway"},
	{"transport", "proxy_ca_file", `"/etc/dpsd/proxy-ca.pem"`, func(c *config.Config) any { return c.Transport.ProxyCAFile }, "/etc/dpsd/proxy-ca.pem"},
	{"transport", "ca_file", `'/etc/dpsd/ca.pem'`, func(c *config.Config) any { return c.Transport.CAFile }, "/etc/dpsd/ca.pem"},
	{"transport", "connect_timeout", `"10m"`, func(c *config.Config) any { return c.Transport.ConnectTimeout }, 10 * time.Minute},
	{"transport", "response_timeout", `"100ms"`, func(c *config.Config) any { return c.Transport.ResponseTimeout }, 100 * time.Millisecond},
	{"transport", "keep_alive", `"1177s"`, func(c *config.Config) any { return c.Transport.KeepAlive }, 1177 * time.Second},
	{"provisioning", "boot_delay_max", `"1h30m"`, func(c *config.Config) any { return c.Provisioning.BootDelayMax }, 90 * time.Minute},
	{"provisioning", "on_boot", `"verify"`, func(c *config.Config) any { return c.Provisioning.OnBoot }, "verify"},
	{"provisioning", "interval", `"10m"`, func(c *config.Config) any { return c.Provisioning.Interval }, 10 * time.Minute},
	{"provisioning", "on_refusal", `"report"`, func(c *config.Config) any { return c.Provisioning.OnRefusal }, "report"},
	{"provisioning", "hub_check", `"https"`, func(c *config.Config) any { return c.Provisioning.HubCheck }, "https"},
	{"retry", "initial", `"1.5s"`, func(c *config.Config) any { return c.Retry.Initial }, 1500 * time.Millisecond},
	{"retry", "max", `"1s"`, func(c *config.Config) any { return c.Retry.Max }, time.Second},
	{"retry", "offline_max", `"24h"`, func(c *config.Config) any { return c.Retry.OfflineMax }, 24 * time.Hour},
	{"retry", "refused_initial", `"1h"`, func(c *config.Config) any { return c.Retry.RefusedInitial }, time.Hour},
	{"retry", "refused_max", `"168h"`, func(c *config.Config) any { return c.Retry.RefusedMax }, 7 * 24 * time.Hour},
	{"state", "directory", `"/data/dpsd/"`, func(c *config.Config) any { return c.State.Directory }, "/data/dpsd"},
	{"state", "mode", `"0640"`, func(c *config.Config) any { return c.State.Mode }, fs.FileMode(0o640)},
	{"control", "metrics_file", `"/tmp/x/dpsd.prom"`, func(c *config.Config) any { return c.Control.MetricsFile }, "/tmp/x/dpsd.prom"},
	{"control", "socket", `"/tmp/x/dpsd.sock"`, func(c *config.Config) any { return c.Control.Socket }, "/tmp/x/dpsd.sock"},
	{"certificate", "request", `"when-offered"`, func(c *config.Config) any { return c.Certificate.Request }, "when-offered"},
	{"certificate", "key_type", `"rsa-2048"`, func(c *config.Config) any { return c.Certificate.KeyType }, "rsa-2048"},
	{"certificate", "key_type", `"ec-p256"`, func(c *config.Config) any { return c.Certificate.KeyType }, "ec-p256"},
	{"certificate", "key_store", `"tpm"`, func(c *config.Config) any { return c.Certificate.KeyStore }, "tpm"},
	{"certificate", "renew_at", `"10%"`, func(c *config.Config) any { return c.Certificate.RenewAt }, 10},
	{"certificate", "renew_at", `"95%"`, func(c *config.Config) any { return c.Certificate.RenewAt }, 95},
	{"certificate", "group", `"mosquitto"`, func(c *config.Config) any { return c.Certificate.Group }, "mosquitto"},
	{"tpm", "device", `"/dev/tpmrm1"`, func(c *config.Config) any { return c.TPM.Device }, "/dev/tpmrm1"},
	{"consumer", "name", `"telemetry"`, func(c *config.Config) any { return c.Consumers }, []config.Consumer{{Name: "telemetry", Scope: "device", Lifetime: 15 * time.Minute}}},
	{"consumer", "scope", `"module:a'(b)!"`, func(c *config.Config) any { return c.Consumers }, []config.Consumer{{Name: "a", Scope: "module:a'(b)!", Lifetime: 15 * time.Minute}}},
	{"consumer", "scope", `"device/messages/events"`, func(c *config.Config) any { return c.Consumers }, []config.Consumer{{Name: "a", Scope: "device/messages/events", Lifetime: 15 * time.Minute}}},
	{"consumer", "lifetime", `"1h"`, func(c *config.Config) any { return c.Consumers }, []config.Consumer{{Name: "a", Scope: "device", Lifetime: time.Hour}}},
	{"consumer", "certificate", `true`, func(c *config.Config) any { return c.Consumers }, []config.Consumer{{Name: "a", Scope: "device", Lifetime: 15 * time.Minute, Certificate: true}}},
	{"log", "level", `"debug"`, func(c *config.Config) any { return c.Log.Level }, "debug"},
}

// with returns the minimal configuration with one more setting.
func with(table, key, value string) string {
	line := key + " = " + value + "\n"
	if table == "consumer" { // requires a name and a scope
		for _, other := range []string{"name = \"a\"\n", "scope = \"device\"\n"} {
			if !strings.HasPrefix(other, key+" ") {
				line += other
			}
		}
		return minimal + "[[consumer]]\n" + line
	}
	if table != "dps" {
		return minimal + "[" + table + "]\n" + line
	}
	text := minimal
	switch key {
	case "id_scope":
		text = strings.Replace(text, "id_scope = \"0ne00000000\"\n", "", 1)
	case "registration_id", "registration_id_file":
		text = strings.Replace(text, "registration_id = \"gw-1\"\n", "", 1)
	}
	return strings.Replace(text, "[dps]\n", "[dps]\n"+line, 1)
}

func TestEveryKeyTakesEffect(t *testing.T) {
	tried := map[string]bool{}
	for _, s := range settings {
		name := s.table + "." + s.key
		tried[name] = true
		t.Run(name+" = "+s.value+" changes this field of the Config and no other", func(t *testing.T) {
			c := parse(t, with(s.table, s.key, s.value))
			if got := s.got(c); !reflect.DeepEqual(got, s.want) {
				t.Errorf("got %v, want %v", got, s.want)
			}
			plain := parse(t, minimal)
			if s.table == "certificate" { // the table alone has an effect
				plain = parse(t, minimal+"[certificate]\n")
			}
			if reflect.DeepEqual(s.got(plain), s.want) {
				t.Error("the value is the default, so the test proves nothing")
			}
			if n := differing(reflect.ValueOf(*plain), reflect.ValueOf(*c)); n != 1 && s.key != "registration_id_file" {
				t.Errorf("%d fields differ from the defaults", n)
			}
		})
	}
	t.Run("a proxy has a user and a password", func(t *testing.T) {
		c := parse(t, with("transport", "proxy_user", "\"gateway\"\nproxy_password = \"credential:proxy-password\""))
		if want := (attest.Reference{Credential: "proxy-password"}); c.Transport.ProxyPassword != want || c.Transport.ProxyUser != "gateway" {
			t.Errorf("got %+v", c.Transport)
		}
	})
	for _, credential := range attest.Types() {
		t.Run("each key of a credential of type "+credential.Name+" changes its own reference", func(t *testing.T) {
			text := minimalDPS + "[[credential]]\ntype = \"" + credential.Name + "\"\n"
			var want []string
			for _, k := range credential.Keys(nil) {
				want = append(want, "file:/etc/dpsd/keys/"+k.Name)
				text += k.Name + " = \"" + want[len(want)-1] + "\"\n"
			}
			c := parse(t, text).Credentials[0]
			var got []string
			for _, k := range c.Type().Keys(c) {
				got = append(got, k.Reference.String())
			}
			if c.Type().Name != credential.Name || !slices.Equal(got, want) {
				t.Errorf("got %v with %q, want %q", c, got, want)
			}
		})
	}
	for table, keys := range config.Keys() {
		for _, key := range keys {
			if name := table + "." + key; !tried[name] && table != "credential" && name != "transport.proxy_password" {
				t.Errorf("%s is known to Parse but not tried here", name)
			}
		}
	}
}

// differing counts the fields, at the leaves, in which two values differ.
func differing(a, b reflect.Value) int {
	if a.Kind() != reflect.Struct {
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			return 0
		}
		return 1
	}
	n := 0
	for i := range a.NumField() {
		n += differing(a.Field(i), b.Field(i))
	}
	return n
}

func TestCredentials(t *testing.T) {
	const x509 = "[[credential]]\ntype = \"x509\"\ncertificate = \"file:/etc/dpsd/device.pem\"\nprivate_key = \"credential:dps-private-key\"\n"
	const key = "[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/etc/dpsd/keys/primary\"\n"
	x := attest.X509{Certificate: attest.Reference{File: "/etc/dpsd/device.pem"}, PrivateKey: attest.Reference{Credential: "dps-private-key"}}
	k := attest.SymmetricKey{Key: attest.Reference{File: "/etc/dpsd/keys/primary"}}

	t.Run("credentials stay in the order of the file", func(t *testing.T) {
		if diff := cmp.Diff([]attest.Credential{k, x, k}, parse(t, minimalDPS+key+x509+key).Credentials); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("an inline array of tables is equivalent", func(t *testing.T) {
		text := `credential = [{type = "symmetric-key", key = "file:/etc/dpsd/keys/primary"}]` + "\n" + minimalDPS
		if diff := cmp.Diff([]attest.Credential{k}, parse(t, text).Credentials); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("dotted keys are equivalent to tables", func(t *testing.T) {
		c := parse(t, "dps.id_scope = \"0ne00000000\"\ndps.registration_id = \"gw-1\"\n"+key)
		if c.DPS.IDScope != "0ne00000000" || len(c.Credentials) != 1 {
			t.Errorf("got %+v", c)
		}
	})
	t.Run("if the first credential is a certificate and registration_id is not set, the ID is its common name", func(t *testing.T) {
		c := parse(t, "[dps]\nid_scope = \"0ne00000000\"\n"+x509+key)
		if diff := cmp.Diff(attest.RegistrationID{FromCertificate: &x}, c.DPS.RegistrationID); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("registration_id overrides the common name", func(t *testing.T) {
		if c := parse(t, minimalDPS+x509); c.DPS.RegistrationID.FromCertificate != nil || c.DPS.RegistrationID.Template != "gw-1" {
			t.Errorf("got %+v", c.DPS.RegistrationID)
		}
	})
	t.Run("if the second credential is a certificate, registration_id is required", func(t *testing.T) {
		errs := problems(t, "[dps]\nid_scope = \"0ne00000000\"\n"+key+x509)
		if len(errs) != 1 || errs[0].Key != "dps.registration_id" || errs[0].Line != 1 {
			t.Errorf("got %v", errs)
		}
	})
}

func TestForms(t *testing.T) {
	want := parse(t, minimal)
	for name, text := range map[string]string{
		"Windows line endings are accepted":             strings.ReplaceAll(minimal, "\n", "\r\n"),
		"a UTF-8 byte order mark is ignored":            "\ufeff" + minimal,
		"a file without a final newline is accepted":    strings.TrimSuffix(minimal, "\n"),
		"indentation and comments change nothing":       "# Küche\n" + strings.ReplaceAll(minimal, "\n", " # x\n\t"),
		"an empty table changes nothing":                minimal + "[transport]\n[log]\n",
		"literal strings are strings":                   strings.ReplaceAll(minimal, `"`, `'`),
		"a file of exactly 1 MiB is read":               minimal + "#" + strings.Repeat("x", 1<<20-len(minimal)-1),
		"dpsd.toml may be one long line of dotted keys": `dps={id_scope="0ne00000000",registration_id="gw-1"}` + "\n" + `credential=[{type="symmetric-key",key="credential:dps-primary-key"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(want, parse(t, text)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("an error of the reader is returned and is not an error in the text", func(t *testing.T) {
		_, err := config.Parse("dpsd.toml", iotest.ErrReader(fs.ErrPermission))
		var errs config.Errors
		if !errors.Is(err, fs.ErrPermission) || errors.As(err, &errs) || !strings.Contains(err.Error(), "dpsd.toml") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("reading an endless file stops after 1 MiB", func(t *testing.T) {
		_, err := config.Parse("dpsd.toml", endless{})
		if err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a reader that returns one byte at a time is read completely", func(t *testing.T) {
		c, err := config.Parse("dpsd.toml", iotest.OneByteReader(strings.NewReader(minimal)))
		if diff := cmp.Diff(want, c); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}

// endless is a reader like /dev/zero.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
	}
	return len(p), nil
}
