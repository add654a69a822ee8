// Package configuration checks for tests the guarantees of an accepted configuration.
package configuration

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

// Broken returns the guarantees to the daemon that an accepted configuration violates, or "" if
// it violates none.
func Broken(c *config.Config) string {
	r, tr := c.DPS.RegistrationID, c.Transport
	sources := 0
	for _, set := range []bool{r.Template != "", r.File != "", r.FromCertificate != nil} {
		if set {
			sources++
		}
	}
	within := func(d, low, high time.Duration) bool { return low <= d && d <= high }
	for _, p := range []struct {
		what string
		ok   bool
	}{
		{"an ID scope that breaks the user name", c.DPS.IDScope != "" && !strings.ContainsAny(c.DPS.IDScope, "/&?%# \x00")},
		{fmt.Sprint(sources, " sources of the registration ID"), sources == 1},
		{"a template that cannot work", r.Template == "" || attest.ParseTemplate(r.Template) == nil},
		{"a relative registration ID file", r.File == "" || filepath.IsAbs(r.File)},
		{"an endpoint that is no host name", c.DPS.Endpoint != "" && !strings.ContainsAny(c.DPS.Endpoint, "/:@ %\x00")},
		{"an API version that breaks the user name", c.DPS.APIVersion != "" && !strings.ContainsAny(c.DPS.APIVersion, "/&? ")},
		{"a relative payload file", c.DPS.PayloadFile == "" || filepath.IsAbs(c.DPS.PayloadFile)},
		{"no credential", len(c.Credentials) > 0},
		{"no protocol", len(tr.Protocols) == 1 || len(tr.Protocols) == 2 && tr.Protocols[0] != tr.Protocols[1]},
		{"an unknown protocol", !slices.ContainsFunc(tr.Protocols, func(p string) bool { return p != "mqtt" && p != "websocket" })},
		{"a port out of range", tr.MQTTPort >= 1 && tr.MQTTPort <= 65535 && tr.WebSocketPort >= 1 && tr.WebSocketPort <= 65535},
		{"an unknown proxy", tr.Proxy == "environment" || tr.Proxy == "none" || regexp.MustCompile(`^https?://[^@/?#]+:[0-9]+$`).MatchString(tr.Proxy)},
		{"a user of no proxy", tr.Proxy != "none" || tr.ProxyUser == "" && tr.ProxyPassword.IsZero() && tr.ProxyCAFile == ""},
		{"a proxy's user that basic authentication cannot carry", !strings.ContainsAny(tr.ProxyUser, ":\x00\r\n")},
		{"a proxy's password without a user", tr.ProxyPassword.IsZero() || tr.ProxyUser != ""},
		{"a relative CA file of the proxy", tr.ProxyCAFile == "" || filepath.IsAbs(tr.ProxyCAFile)},
		{"a relative CA file", tr.CAFile == "" || filepath.IsAbs(tr.CAFile)},
		{"a time-out without end", within(tr.ConnectTimeout, 1, time.Hour) && within(tr.ResponseTimeout, 1, time.Hour)},
		{"a keep alive that CONNECT cannot carry", within(tr.KeepAlive, 0, 1177*time.Second) && tr.KeepAlive%time.Second == 0},
		{"an unknown policy", slices.Contains([]string{"always", "verify", "if-needed"}, c.Provisioning.OnBoot)},
		{"an interval that is a burden", c.Provisioning.Interval == 0 || within(c.Provisioning.Interval, 10*time.Minute, 365*24*time.Hour)},
		{"an endless boot delay", within(c.Provisioning.BootDelayMax, 0, 24*time.Hour)},
		{"transient delays out of order", within(c.Retry.Initial, 1, c.Retry.Max) && c.Retry.Max <= 24*time.Hour},
		{"refused delays out of order", within(c.Retry.RefusedInitial, 1, c.Retry.RefusedMax)},
		{"offline delays out of range", within(c.Retry.OfflineMax, 1, 24*time.Hour)},
		{"a relative state directory", filepath.IsAbs(c.State.Directory)},
		{"another mode", c.State.Mode == 0o644 || c.State.Mode == 0o640},
		{"a relative socket", filepath.IsAbs(c.Control.Socket) && len(c.Control.Socket) <= 107},
		{"runtime and state in one directory", filepath.Dir(c.Control.Socket) != c.State.Directory},
		{"an unknown request of a certificate", slices.Contains([]string{"", "required", "when-offered"}, c.Certificate.Request)},
		{"half a table of the certificate", c.Certificate == config.Certificate{} || c.Certificate.Request != "" && c.Certificate.KeyType != "" && c.Certificate.Group != ""},
		{"an unknown type of key", slices.Contains([]string{"", "ec-p256", "ec-p384", "rsa-2048"}, c.Certificate.KeyType)},
		{"a renewal outside of the lifetime", c.Certificate.Request == "" || c.Certificate.RenewAt >= 10 && c.Certificate.RenewAt <= 95},
		{"a group that is no name", !strings.ContainsAny(c.Certificate.Group, ":/ \x00")},
		{"an API version without certificates", c.Certificate.Request == "" || c.DPS.APIVersion >= "2025-07-01-preview"},
		{"a registration ID that no certificate contains", c.Certificate.Request == "" || len(strings.NewReplacer("%m", strings.Repeat("m", 32), "%H", "h").Replace(r.Template)) <= 64},
		{"an unknown policy for refusals", slices.Contains([]string{"reprovision", "report"}, c.Provisioning.OnRefusal)},
		{"an unknown check of the hub", slices.Contains([]string{"off", "https"}, c.Provisioning.HubCheck)},
		{"an unknown level", slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level)},
	} {
		if !p.ok {
			return p.what
		}
	}
	for _, credential := range c.Credentials {
		if credential == nil || len(credential.References()) == 0 {
			return "a credential without a reference"
		}
	}
	names, modules := map[string]bool{}, map[string]bool{}
	for _, one := range c.Consumers {
		module := strings.HasPrefix(one.Scope, "module:")
		switch {
		case one.Name == "" || one.Name[0] == '.' || strings.ContainsAny(one.Name, "/:%\\ \x00") || len(one.Name) > 64:
			return "a consumer whose name is not a file name"
		case names[one.Name]:
			return "two consumers with the same name"
		case !module && one.Scope != "device" && one.Scope != "device/messages/events":
			return "a consumer with an unknown scope"
		case module && (one.Module() == "" || strings.HasPrefix(one.Module(), "$") || strings.ContainsAny(one.Module(), "/+# \x00") || len(one.Module()) > 128):
			return "a module whose ID breaks a topic"
		case module && modules[one.Module()]:
			return "two consumers that disconnect each other"
		case !within(one.Lifetime, time.Minute, time.Hour) || one.Lifetime%time.Second != 0:
			return "a token that does not expire"
		case one.Certificate && one.Scope != "device":
			return "a certificate that exceeds the scope"
		}
		names[one.Name], modules[one.Module()] = true, true
	}
	return ""
}
