package check_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/fault"
)

// remedied is an error of a configuration with a remedy.
type remedied struct{ error }

func (remedied) Problem() string { return "dpsd.yaml exists, but dpsd does not read it" }
func (remedied) Remedy() string  { return "mv dpsd.yaml dpsd.toml" }
func (remedied) Unwrap() error   { return fs.ErrNotExist }

func TestWhyDpsdDoesNotRun(t *testing.T) {
	missing := fmt.Errorf("open /etc/dpsd/dpsd.toml: %w", fs.ErrNotExist)
	unreadable := fmt.Errorf("open /etc/dpsd/dpsd.toml: %w", fs.ErrPermission)
	wrong := errors.Join(errors.New("dpsd.toml:2:1: dps.id_scop: unknown key"), errors.New("dpsd.toml:3:1: another"))
	inactive := "LoadState=loaded\nUnitFileState=enabled\nActiveState=inactive\nSubState=dead\nResult=success\n"
	failed := "LoadState=loaded\nUnitFileState=enabled\nActiveState=failed\nSubState=failed\n"
	again := "LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\nSubState=auto-restart\nRestartUSec=5s\n"
	exited := func(status string) string { return "Result=exit-code\nExecMainCode=1\nExecMainStatus=" + status + "\n" }
	stoppedAt := "InactiveEnterTimestamp=Sun 2026-11-29 06:46:27 UTC\nInactiveExitTimestampMonotonic=5\nExecMainCode=1\nExecMainStatus=0\n"
	for _, test := range []struct {
		says    string
		answer  string
		invalid error
		reason  check.Reason
		detail  string
		advice  string
	}{
		{"there is no configuration", inactive + "ConditionResult=no\nConditionTimestampMonotonic=7\n", missing, check.NoConfiguration, "there is no configuration: open /etc/dpsd/dpsd.toml", "Create /etc/dpsd/dpsd.toml; then run: systemctl restart --no-block dpsd"},
		{"the configuration has another name", inactive, remedied{missing}, check.NoConfiguration, "dpsd.yaml exists", "mv dpsd.yaml dpsd.toml"},
		{"the configuration was written after the start that needed it", inactive + "ConditionResult=no\nConditionTimestampMonotonic=7\n", nil, check.ConditionUnmet, "/etc/dpsd/dpsd.toml was missing", "systemctl start --no-block dpsd"},
		{"it has exited with 78, and the file is invalid", failed + exited("78"), wrong, check.ConfigurationInvalid, "the configuration is invalid: dpsd.toml:2:1: dps.id_scop: unknown key (and 1 more)", "dpsd check --offline"},
		{"it has exited with 78, and the file was corrected", failed + exited("78"), nil, check.ConfigurationInvalid, "the configuration is valid now", "systemctl start --no-block dpsd"},
		{"it has exited with 78, and this user may not read the file", failed + exited("78"), unreadable, check.ConfigurationInvalid, "it exited with status 78", "sudo dpsd check --offline"},
		{"the file became invalid while it was stopped", inactive + stoppedAt, wrong, check.ConfigurationInvalid, "unknown key", "dpsd check --offline"},
		{"it has exited with 78, and the service's user may not read the file that root can read", failed + exited("78"), &check.ClosedError{Path: "/etc/dpsd/dpsd.toml", Account: "dpsd", Err: fs.ErrPermission}, check.ConfigurationInvalid, "the user dpsd, cannot: permission denied", "; then run: systemctl restart --no-block dpsd"},
		{"it was stopped on request", inactive + stoppedAt, nil, check.Stopped, "it was stopped at Sun 2026-11-29 06:46:27 UTC", "systemctl start --no-block dpsd"},
		{"it was stopped and disabled", strings.Replace(inactive, "enabled", "disabled", 1) + stoppedAt, nil, check.Stopped, "does not start at boot", "systemctl enable --now --no-block dpsd"},
		{"this user may not read the file, which is not the reason", inactive + stoppedAt, unreadable, check.Stopped, "it was stopped", "systemctl start --no-block dpsd"},
		{"it was never started", inactive + "ConditionResult=no\nConditionTimestampMonotonic=0\nInactiveExitTimestampMonotonic=0\n", nil, check.NeverStarted, "has not been started since boot", "systemctl start --no-block dpsd"},
		{"it is disabled", strings.Replace(inactive, "enabled", "disabled", 1), nil, check.Disabled, "does not start it at boot", "systemctl enable --now --no-block dpsd"},
		{"it is masked", strings.Replace(inactive, "LoadState=loaded\nUnitFileState=enabled", "LoadState=masked\nUnitFileState=masked", 1), wrong, check.Masked, "masked", "systemctl unmask dpsd && systemctl enable --now --no-block dpsd"},
		{"there is no unit", "LoadState=not-found\n", nil, check.NotInstalled, "not installed (not-found)", "Install the package dpsd"},
		{"the unit is invalid", "LoadState=bad-setting\n", nil, check.NotInstalled, "bad-setting", "systemctl status dpsd"},
		{"it fails and is restarted", again + exited("1"), nil, check.Restarting, "its last run ended: exit status 1; systemd restarts it after 5s", "journalctl -u dpsd -e"},
		{"it ran out of memory", again + "Result=oom-kill\nExecMainCode=2\nExecMainStatus=9\n", nil, check.Restarting, "memory ran out", "journalctl -u dpsd -e"},
		{"the watchdog has killed it", again + "Result=watchdog\nExecMainCode=2\nExecMainStatus=6\n", nil, check.Restarting, "hung (watchdog)", "journalctl -u dpsd -e"},
		{"its start took too long", again + "Result=timeout\nExecMainCode=2\nExecMainStatus=9\n", nil, check.Restarting, "took too long", "journalctl -u dpsd -e"},
		{"a signal has killed it", again + "Result=core-dump\nExecMainCode=3\nExecMainStatus=11\n", nil, check.Restarting, "killed by signal 11 (segmentation fault)", "journalctl -u dpsd -e"},
		{"SIGPIPE, which is success for systemd, has ended it", again + "Result=success\nExecMainCode=2\nExecMainStatus=13\n", nil, check.Restarting, "killed by signal 13 (broken pipe)", "journalctl -u dpsd -e"},
		{"a directory of the sandbox is missing", again + exited("226"), nil, check.Restarting, "ReadWritePaths=", "journalctl -u dpsd -e"},
		{"it has failed permanently", failed + exited("1"), nil, check.Failing, "exit status 1", "systemctl restart --no-block dpsd"},
		{"it starts, and does not answer yet", "LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\nSubState=start\n", nil, check.NoAnswer, "activating (start)", "journalctl -u dpsd -e"},
	} {
		t.Run(test.says, func(t *testing.T) {
			s := check.WhyStopped(t.Context(), check.Question{Systemctl: systemd(t, "", test.answer), File: "/etc/dpsd/dpsd.toml", Invalid: test.invalid})
			if s.Reason != test.reason || !strings.Contains(s.Detail, test.detail) || !strings.Contains(s.Advice, test.advice) {
				t.Errorf("%+v", s)
			}
			if strings.Contains(s.Detail+s.Advice, "\n") {
				t.Errorf("more than one line: %+v", s)
			}
		})
	}
}

func TestWhySystemdHasNoCredential(t *testing.T) {
	dir := t.TempDir()
	there, gone := filepath.Join(dir, "there"), filepath.Join(dir, "gone")
	if err := os.WriteFile(there, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ says, unit, detail, advice string }{
		{"an encrypted one is missing", "LoadCredential=dps-primary-key\nLoadCredentialEncrypted=dps-primary-key:" + gone, gone + " does not exist", "systemd-creds encrypt --name=dps-primary-key KEY-FILE " + gone + " && systemctl restart --no-block dpsd"},
		{"a plain one is missing at its path", "LoadCredential=dps-primary-key:" + gone, gone + " does not exist", "install -m 0600 KEY-FILE " + gone},
		{"an encrypted one cannot be decrypted", "LoadCredential=proxy-password\nLoadCredentialEncrypted=dps-primary-key:" + there, "cannot decrypt a credential (dps-primary-key)", "systemd-creds encrypt --name=dps-primary-key KEY-FILE " + there},
		{"it is none of these", "LoadCredential=dps-primary-key", "cannot provide a credential", "systemctl status dpsd"},
	} {
		t.Run(test.says, func(t *testing.T) {
			for _, state := range []string{"ActiveState=activating\nSubState=auto-restart\n", "ActiveState=failed\nSubState=failed\n"} {
				answer := "LoadState=loaded\nUnitFileState=enabled\nResult=exit-code\nExecMainCode=1\nExecMainStatus=243\n" + state
				s := check.WhyStopped(t.Context(), check.Question{Systemctl: systemd(t, "[Service]\n"+test.unit+"\n", answer), File: "/etc/dpsd/dpsd.toml"})
				if s.Reason != check.NoCredential || !strings.Contains(s.Detail, test.detail) || !strings.Contains(s.Advice, test.advice) {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

func TestTheReasonWhyDpsdDoesNotRunIsReportedWithoutSystemdToo(t *testing.T) {
	for says, systemctl := range map[string]func(context.Context, ...string) ([]byte, error){
		"no systemd runs":          nil,
		"systemd does not answer":  func(context.Context, ...string) ([]byte, error) { return nil, context.DeadlineExceeded },
		"systemctl is not allowed": func(context.Context, ...string) ([]byte, error) { return nil, errors.New("no bus") },
	} {
		t.Run(says, func(t *testing.T) {
			if s := check.WhyStopped(t.Context(), check.Question{Systemctl: systemctl, File: "my.toml"}); s.Reason != check.Unknown || s.Detail == "" || !strings.Contains(s.Advice, "dpsd run --config my.toml") {
				t.Errorf("%+v", s)
			}
			if s := check.WhyStopped(t.Context(), check.Question{Systemctl: systemctl, File: "my.toml", Invalid: errors.New("my.toml:1:1: wrong")}); s.Reason != check.ConfigurationInvalid || !strings.Contains(s.Detail, "my.toml:1:1: wrong") || strings.Contains(s.Advice, "systemctl") {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestADpsdWhoseSocketIsInAnUnusableConfigurationIsNotReportedAsStopped(t *testing.T) {
	missing := fmt.Errorf("open /etc/dpsd/dpsd.toml: %w", fs.ErrNotExist)
	unreadable := fmt.Errorf("open /etc/dpsd/dpsd.toml: %w", fs.ErrPermission)
	unit := func(active, sub string) func(context.Context, ...string) ([]byte, error) {
		return systemd(t, "", "LoadState=loaded\nUnitFileState=enabled\nActiveState="+active+"\nSubState="+sub+"\n")
	}
	for _, test := range []struct {
		says      string
		systemctl func(context.Context, ...string) ([]byte, error)
		invalid   error
		reason    check.Reason
		detail    string
		advice    string // the whole advice
	}{
		{"it is unknown whether it runs", nil, missing, check.SocketUnknown, "dpsd may be running, but the path of its control socket is in /etc/dpsd/dpsd.toml: there is no configuration", "Create /etc/dpsd/dpsd.toml"},
		{"systemd knows that it runs", unit("active", "running"), missing, check.SocketUnknown, "dpsd.service is active (running), but the path of its control socket is in /etc/dpsd/dpsd.toml: there is no configuration", "Create /etc/dpsd/dpsd.toml; then run: systemctl reload dpsd"},
		{"systemd knows that it starts", unit("activating", "start"), missing, check.SocketUnknown, "dpsd.service is activating (start), but", "Create /etc/dpsd/dpsd.toml"},
		{"systemd knows that it does not run", unit("failed", "failed"), missing, check.NoConfiguration, "there is no configuration", "Create /etc/dpsd/dpsd.toml; then run: systemctl restart --no-block dpsd"},
		{"systemd knows that it waits for a restart", unit("activating", "auto-restart"), missing, check.NoConfiguration, "there is no configuration", "Create /etc/dpsd/dpsd.toml; then run: systemctl restart --no-block dpsd"},
		{"this user may not read the file", unit("active", "running"), unreadable, check.SocketUnknown, "this user cannot read it", "sudo dpsd status"},
	} {
		t.Run(test.says, func(t *testing.T) {
			s := check.WhyStopped(t.Context(), check.Question{Systemctl: test.systemctl, File: "/etc/dpsd/dpsd.toml", Invalid: test.invalid, SocketUnknown: true})
			if s.Reason != test.reason || !strings.Contains(s.Detail, test.detail) || s.Advice != test.advice {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestTheSchemaOfStatusNamesEveryReason(t *testing.T) {
	schema, err := os.ReadFile("../docs/status.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range []check.Reason{
		check.NoConfiguration, check.ConfigurationInvalid, check.NoCredential, check.NotInstalled, check.Masked, check.Disabled, check.NeverStarted,
		check.ConditionUnmet, check.Stopped, check.Restarting, check.Failing, check.NoAnswer, check.SocketUnknown, check.Unknown,
	} {
		if !strings.Contains(string(schema), " "+string(reason)+":") && !strings.Contains(string(schema), " "+string(reason)+",") && !strings.Contains(string(schema), `"`+string(reason)+":") {
			t.Errorf("docs/status.schema.json does not name %s", reason)
		}
	}
}

func TestWithoutSystemdAdviceNamesNoSystemdCommand(t *testing.T) {
	for advice, want := range map[string]string{
		"dpsd registers again when it starts: systemctl restart --no-block dpsd": "dpsd registers again when it starts: restart dpsd",
		"Correct it; then run: systemctl restart --no-block dpsd":                "Correct it; then restart dpsd",
		"Correct it; then run: systemctl reload dpsd":                            "Correct it; then send SIGHUP to dpsd",
		"journalctl -u dpsd": "Read the log of dpsd.",
		"Enable the enrollment in DPS. dpsd retries automatically.":                   "Enable the enrollment in DPS. dpsd retries automatically.",
		"systemctl start --no-block dpsd":                                             "start dpsd",
		"systemctl stop dpsd":                                                         "stop dpsd",
		"Create a new machine ID: rm -f /etc/machine-id && systemd-machine-id-setup.": "Create a new machine ID: write 32 random hexadecimal digits to /etc/machine-id, or in a container, mount that of the host.",
	} {
		if got := check.WithoutSystemd(advice); got != want {
			t.Errorf("%q becomes %q, want %q", advice, got, want)
		}
	}
	// Of the advice of the faults, only that about the environment of the service names systemctl.
	for _, entry := range fault.Catalogue() {
		for _, advice := range []string{entry.Advice, entry.Instead} {
			if got := check.WithoutSystemd(advice); strings.Contains(got, "systemctl") && !strings.Contains(got, "systemctl edit dpsd") {
				t.Errorf("%s: %s", entry.Code, got)
			}
		}
	}
}
