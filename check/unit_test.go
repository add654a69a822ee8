package check_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

// run runs a check without the network and returns the results of the named step.
func run(t *testing.T, g *check.Gateway, name string) []check.Result {
	t.Helper()
	var found []check.Result
	g.Run(t.Context(), true, func(r check.Result) {
		if r.Detail == "" || (r.Status == check.Failed) != (r.Code != "" && r.Status != check.Warning) {
			t.Errorf("a result without a description: %+v", r)
		}
		if r.Name == name {
			found = append(found, r)
		}
	})
	if len(found) == 0 {
		t.Fatalf("there is no step %s", name)
	}
	return found
}

// systemd returns a function that answers like "systemctl show" for a unit with this text.
func systemd(t *testing.T, text, properties string) func(context.Context, ...string) ([]byte, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dpsd.service")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(_ context.Context, args ...string) ([]byte, error) {
		if args[0] != "show" || args[1] != "dpsd.service" {
			t.Errorf("systemctl is called with %q", args)
		}
		return []byte("FragmentPath=" + file + "\nDropInPaths=\n" + properties), nil
	}
}

const running = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nSubState=running\nResult=success\nNeedDaemonReload=no\n"

func TestUnit(t *testing.T) {
	property := func(old, replacement string) string { return strings.Replace(running, old, replacement, 1) }
	for _, test := range []struct {
		says   string
		answer string
		status check.Status
		detail string
		advice string
	}{
		{"a running service is ok", running, check.OK, "loaded, enabled, active (running)", ""},
		{"a service that waits for DPS is ok", property("ActiveState=active\nSubState=running", "ActiveState=activating\nSubState=start"), check.OK, "activating (start)", ""},
		{"one that does not start at boot", property("=enabled", "=disabled"), check.Warning, "disabled", "systemctl enable --now --no-block dpsd"},
		{"one that is masked", "LoadState=masked\nUnitFileState=masked\nActiveState=inactive\nSubState=dead\n", check.Warning, "masked", "systemctl unmask dpsd"},
		{"one that was stopped", property("ActiveState=active\nSubState=running", "ActiveState=inactive\nSubState=dead"), check.Warning, "inactive (dead)", "systemctl start --no-block dpsd"},
		{"one that has ended with 78", property("ActiveState=active\nSubState=running\nResult=success", "ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=78"), check.Warning, "failed (failed): it exited with status 78", "systemctl start --no-block dpsd"},
		{"one that has failed otherwise", property("ActiveState=active\nSubState=running\nResult=success", "ActiveState=failed\nSubState=failed\nResult=exit-code\nExecMainCode=1\nExecMainStatus=1"), check.Warning, "failed (failed): its last run ended: exit status 1", "journalctl -u dpsd"},
		{"one that systemd restarts repeatedly", property("ActiveState=active\nSubState=running\nResult=success", "ActiveState=activating\nSubState=auto-restart\nResult=signal\nExecMainCode=2\nExecMainStatus=11"), check.Warning, "killed by signal 11 (segmentation fault)", "journalctl -u dpsd"},
		{"one whose files were changed", property("Reload=no", "Reload=yes"), check.Warning, "the unit file has changed on disk", "systemctl daemon-reload"},
		{"one that does not exist", "LoadState=not-found\n", check.Warning, "not installed", "Install the package"},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{Systemctl: systemd(t, "", test.answer)}
			r := run(t, g, check.Unit)[0]
			if r.Status != test.status || !strings.Contains(r.Detail, test.detail) || !strings.Contains(r.Advice, test.advice) || (test.advice == "") != (r.Advice == "") {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Run("a systemd that does not answer is a warning", func(t *testing.T) {
		g := &check.Gateway{Systemctl: func(context.Context, ...string) ([]byte, error) { return nil, context.DeadlineExceeded }}
		if r := run(t, g, check.Unit)[0]; r.Status != check.Warning || !strings.Contains(r.Detail, "within 5s") {
			t.Errorf("%+v", r)
		}
	})
}

func TestCredentialsOfSystemd(t *testing.T) {
	const key = "c2VjcmV0IG9mIHRoaXMgZ2F0ZXdheSBhbmQgbm9uZSBlbHNl"
	const sealed = "Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAADFyIGRYm3dVQcUZQsAAAAA"
	stopped := strings.Replace(running, "ActiveState=active", "ActiveState=inactive", 1)
	for _, test := range []struct {
		says      string
		unit      string
		state     string
		plain     string // content in the store
		encrypted string // content in the store of encrypted credentials
		status    check.Status
		code      fault.Code
	}{
		{"one that the unit provides", "LoadCredential=dps-primary-key", running, key, "", check.OK, ""},
		{"by a path", "LoadCredential=dps-primary-key:/etc/x", running, key, "", check.OK, ""},
		{"by a pattern", "ImportCredential=dps-*", running, key, "", check.OK, ""},
		{"one in a store that the unit does not provide", "LoadCredential=other", running, key, "", check.Failed, fault.CredentialUnreadable},
		{"an encrypted one that the unit declares as plaintext", "LoadCredential=dps-primary-key", stopped, "", sealed, check.Failed, fault.CredentialEncrypted},
		{"an encrypted one that the unit declares as encrypted, while the service is stopped", "LoadCredentialEncrypted=dps-primary-key", stopped, "", sealed, check.Skipped, ""},
		{"an encrypted one that the unit declares as encrypted, but that is missing in the running service", "LoadCredentialEncrypted=dps-primary-key", running, "", sealed, check.Failed, fault.CredentialEncrypted},
		{"none at all", "LoadCredential=dps-primary-key", running, "", "", check.Failed, fault.CredentialUnreadable},
	} {
		t.Run(test.says, func(t *testing.T) {
			secrets := attest.Secrets{Directories: []string{t.TempDir()}, Encrypted: []string{t.TempDir()}}
			for dir, text := range map[string]string{secrets.Directories[0]: test.plain, secrets.Encrypted[0]: test.encrypted} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, "dps-primary-key"), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			g := &check.Gateway{
				Settings: &daemon.Settings{
					RegistrationID: attest.RegistrationID{Template: "gw-1"},
					Credentials:    []attest.Credential{attest.SymmetricKey{Key: attest.Reference{Credential: "dps-primary-key"}}},
					Dialer:         &transport.Dialer{Host: "localhost"},
				},
				StateDirectory: t.TempDir(),
				Secrets:        secrets,
				Systemctl:      systemd(t, "[Service]\n"+test.unit+"\n", test.state),
			}
			r := run(t, g, check.Credential)[0]
			if r.Status != test.status || r.Code != test.code {
				t.Errorf("%+v", r)
			}
			if strings.Contains(r.Detail, key) {
				t.Error("a result contains the key")
			}
		})
	}
}

func TestAKeyThatTheSandboxHidesIsAFailureOfTheService(t *testing.T) {
	hidden, err := os.MkdirTemp("/tmp", "check-") // PrivateTmp= replaces this directory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(hidden) })
	file := filepath.Join(hidden, "key")
	if err := os.WriteFile(file, []byte("c2VjcmV0IG9mIHRoaXMgZ2F0ZXdheSBhbmQgbm9uZSBlbHNl"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		says      string
		installed bool
		systemctl func(context.Context, ...string) ([]byte, error)
		status    check.Status
	}{
		{"in the configuration of the service", true, systemd(t, "", running), check.Failed},
		{"in one that is not installed", false, systemd(t, "", running), check.Warning},
		{"a drop-in has disabled the sandbox", true, systemd(t, "", running+"PrivateTmp=no\n"), check.OK},
		{"a drop-in has disabled another part of the sandbox", true, systemd(t, "", running+"PrivateTmp=yes\nProtectHome=read-only\n"), check.Failed},
		{"without the unit", true, nil, check.OK},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{
				Settings: &daemon.Settings{
					RegistrationID: attest.RegistrationID{Template: "gw-1"},
					Credentials:    []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: file}}},
					Dialer:         &transport.Dialer{Host: "localhost"},
				},
				StateDirectory: t.TempDir(),
				Installed:      test.installed,
				Systemctl:      test.systemctl,
			}
			results := run(t, g, check.Credential)
			last := results[len(results)-1]
			if last.Status != test.status || (last.Status != check.OK) != strings.Contains(last.Detail, "the sandbox of dpsd.service hides /tmp") ||
				(last.Status != check.OK) != strings.Contains(last.Advice, "a key to /etc/dpsd/keys") {
				t.Errorf("%+v", results)
			}
		})
	}
}

func TestAFileThatTheSandboxHidesIsAFailureForEveryFileThatTheServiceReads(t *testing.T) {
	home, err := os.MkdirTemp("/tmp", "check-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	payload, ca := filepath.Join(home, "payload.json"), filepath.Join(home, "ca.pem")
	root, err := os.ReadFile("roots/digicert-global-root-g2.pem")
	if err := errors.Join(err, os.WriteFile(payload, []byte("{}"), 0o600), os.WriteFile(ca, root, 0o600)); err != nil {
		t.Fatal(err)
	}
	for step, s := range map[string]*daemon.Settings{
		check.Identity: {RegistrationID: attest.RegistrationID{Template: "gw-1"}, Dialer: &transport.Dialer{Host: "localhost"}, PayloadFile: payload},
		check.Roots:    {RegistrationID: attest.RegistrationID{Template: "gw-1"}, Dialer: &transport.Dialer{Host: "localhost", CAFile: ca}},
	} {
		g := &check.Gateway{Settings: s, StateDirectory: t.TempDir(), Installed: true, Systemctl: systemd(t, "", running)}
		if r := run(t, g, step)[0]; r.Status != check.Failed || !strings.Contains(r.Detail, "hides /tmp") {
			t.Errorf("%s: %+v", step, r)
		}
	}
}

func TestAStateDirectoryRemovedWhileTheServiceRunsIsAFailure(t *testing.T) {
	g := &check.Gateway{
		Settings: &daemon.Settings{
			RegistrationID: attest.RegistrationID{Template: "gw-1"},
			Dialer:         &transport.Dialer{Host: "localhost"},
		},
		StateDirectory: filepath.Join(t.TempDir(), "gone"),
		Systemctl:      systemd(t, "", running),
	}
	r := run(t, g, check.State)[0]
	if r.Status != check.Failed || r.Code != fault.StateUnwritable || !strings.Contains(r.Advice, "restart") {
		t.Errorf("while it runs: %+v", r)
	}
	g.Systemctl = nil
	if r := run(t, g, check.State)[0]; r.Status != check.OK {
		t.Errorf("without a service: %+v", r)
	}
}
