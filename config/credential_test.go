package config_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/transport"
)

// ticket is a credential of a type that dpsd does not have.
type ticket struct{ stub, secret attest.Reference }

func (ticket) Type() attest.Type {
	return attest.NewType("ticket", func(c *ticket) []attest.Key {
		return []attest.Key{{Name: "stub", Reference: &c.stub}, {Name: "secret", Reference: &c.secret, Secret: true}}
	}, func(registrationID string) (detail, advice string) {
		return "tickets for " + registrationID + " are rare", "Buy another ticket."
	})
}

func (c ticket) Prove(context.Context, attest.Subject, attest.Secrets, time.Time) (attest.Proof, error) {
	return attest.Proof{Password: "ticket"}, nil
}

func (c ticket) References() []attest.Reference { return []attest.Reference{c.stub, c.secret} }

func (c ticket) String() string { return "ticket " + c.stub.String() }

func TestOneRegistryEntryDescribesATypeOfCredentialForParserShowAndCheck(t *testing.T) {
	dir := t.TempDir()
	stub, secret := filepath.Join(dir, "stub"), filepath.Join(dir, "secret")
	for _, file := range []string{stub, secret} {
		if err := os.WriteFile(file, []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, 0o644); err != nil { // regardless of the umask
			t.Fatal(err)
		}
	}
	types := append(slices.Clone(types), ticket{}.Type())
	text := minimal + "[[credential]]\ntype = \"ticket\"\nstub = \"file:" + stub + "\"\nsecret = \"file:" + secret + "\"\n"
	want := ticket{attest.Reference{File: stub}, attest.Reference{File: secret}}

	cfg, settings, err := config.ParseTypes("dpsd.toml", strings.NewReader(text), types)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("the parser returns the credential", func(t *testing.T) {
		if len(cfg.Credentials) != 2 || cfg.Credentials[1] != attest.Credential(want) {
			t.Errorf("got %v", cfg.Credentials)
		}
	})
	for name, c := range map[string]struct{ text, want string }{
		"the parser requires its keys":              {strings.Replace(text, "secret = ", "#", 1), `dpsd.toml:7:3: credential.secret: is missing; a credential of type "ticket" needs it`},
		"the parser requires references":            {strings.Replace(text, "file:"+secret, "inline", 1), `dpsd.toml:10:1: credential.secret: not a reference: `},
		"its keys have no meaning for another type": {minimal + "stub = \"file:/s\"\n", `dpsd.toml:7:1: credential.stub: does not apply to type "symmetric-key"`},
		"its name is suggested":                     {strings.Replace(text, "\"ticket\"", "\"tickets\"", 1), `dpsd.toml:8:1: credential.type: "tickets" is unknown; did you mean "ticket"? write "symmetric-key", "x509" or "ticket"`},
		"it is among the types that can be set":     {minimalDPS, `, or with type = "x509", certificate and private_key, or with type = "ticket", stub and secret`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := config.ParseTypes("dpsd.toml", strings.NewReader(c.text), types); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("the settings contain its keys with their positions", func(t *testing.T) {
		shown := slices.DeleteFunc(settings, func(s config.Setting) bool { return s.Table != "credential" || s.Element != 1 })
		if diff := cmp.Diff([]config.Setting{
			{Table: "credential", Element: 1, Key: "type", Value: "ticket", Line: 8, Column: 1},
			{Table: "credential", Element: 1, Key: "stub", Value: "file:" + stub, Line: 9, Column: 1},
			{Table: "credential", Element: 1, Key: "secret", Value: "file:" + secret, Line: 10, Column: 1},
		}, shown); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("check warns about a world-readable secret and reports the warning of the type", func(t *testing.T) {
		gateway := check.Gateway{
			Settings:       &daemon.Settings{IDScope: "0ne00000000", RegistrationID: cfg.DPS.RegistrationID, Credentials: cfg.Credentials[1:], Dialer: &transport.Dialer{Host: "localhost"}},
			StateDirectory: t.TempDir(),
		}
		var got []string
		gateway.Run(t.Context(), true, func(r check.Result) {
			if r.Subject == want.String() {
				got = append(got, string(r.Status)+": "+r.Detail+" → "+r.Advice)
			}
		})
		if diff := cmp.Diff([]string{
			"ok: usable → ",
			"warning: " + secret + " has mode 0644: every user can read it → chown root:dpsd-keys " + secret + " && chmod 0640 " + secret,
			"warning: tickets for gw-1 are rare → Buy another ticket.",
		}, got); diff != "" {
			t.Error(diff)
		}
	})
}
