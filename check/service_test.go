package check_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

func TestAnUnresolvedFaultOfTheServiceFailsTheCheck(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	refused := control.Fault{
		Code: string(fault.Unauthorized), Stage: string(fault.StageRegister), Summary: "s", Cause: "dps: answered 401,\nerror 401002", Advice: "Correct the key.",
		First: now.Add(-3 * time.Hour), Last: now.Add(-time.Minute), Count: 12, Unresolved: true,
	}
	resolved, storage := refused, refused
	resolved.Unresolved = false
	storage.Code, storage.Stage, storage.Cause, storage.Count = string(fault.StateUnwritable), string(fault.StageState), "", 1
	status := func(faults ...control.Fault) control.Status {
		return control.Status{StartedAt: now.Add(-4 * time.Hour), Now: now, Text: "Assigned to hub", Faults: faults,
			Next: &control.Next{At: now.Add(5 * time.Minute), In: 300}}
	}
	attempting := status(refused)
	attempting.Next = nil
	soon := status(refused)
	soon.Next = &control.Next{At: now, In: 0.4}
	for _, test := range []struct {
		says   string
		status control.Status
		err    error
		want   check.Result
	}{
		{"a fault, its age and the next attempt", status(refused), nil, check.Result{Status: check.Failed, Code: fault.Unauthorized, Advice: "Correct the key.",
			Detail: "while registering: dps: answered 401, error 401002; for 3h0m, 12 times; next attempt in 5m0s, at 12:05:00 UTC"}},
		{"a fault that dpsd is retrying now", attempting, nil, check.Result{Status: check.Failed, Code: fault.Unauthorized, Advice: "Correct the key.",
			Detail: "while registering: dps: answered 401, error 401002; for 3h0m, 12 times; an attempt is under way"}},
		{"an unresolved fault after a resolved one", status(resolved, storage), nil, check.Result{Status: check.Failed, Code: fault.StateUnwritable, Advice: "Correct the key.",
			Detail: "while saving the assignment: s; for 3h0m; next attempt in 5m0s, at 12:05:00 UTC"}},
		{"a fault that dpsd retries within a second", soon, nil, check.Result{Status: check.Failed, Code: fault.Unauthorized, Advice: "Correct the key.",
			Detail: "while registering: dps: answered 401, error 401002; for 3h0m, 12 times; the next attempt starts now"}},
		{"a resolved fault is not a failure", status(resolved), nil, check.Result{Status: check.OK, Detail: "running for 4 hours, no unresolved faults: Assigned to hub"}},
		{"no fault", status(), nil, check.Result{Status: check.OK, Detail: "running for 4 hours, no unresolved faults: Assigned to hub"}},
		{"a dpsd that does not run is not checked", control.Status{}, control.ErrNotRunning, check.Result{Status: check.Skipped, Detail: "not checked: dpsd is not running"}},
		{"one that does not answer", control.Status{}, errors.New("timeout"), check.Result{Status: check.Warning, Detail: "cannot query the running dpsd: timeout", Advice: "journalctl -u dpsd"}},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{Invalid: errors.New("none"), Ask: func(context.Context) (control.Status, error) { return test.status, test.err }}
			test.want.Name = check.Service
			if r := run(t, g, check.Service); len(r) != 1 || r[0] != test.want {
				t.Errorf("got  %+v\nwant %+v", r, test.want)
			}
		})
	}
}

func TestAConfigurationThatTheServiceHasNotLoadedIsAWarning(t *testing.T) {
	file := control.Configuration{File: "/etc/dpsd/dpsd.toml", Fingerprint: "sha256:2"}
	for _, test := range []struct {
		says   string
		runs   *control.Configuration
		ready  bool
		advice string // "" if there is no warning
	}{
		{"the same", &control.Configuration{File: file.File, Fingerprint: file.Fingerprint}, true, ""},
		{"an older one, which a reload replaces", &control.Configuration{File: file.File, Fingerprint: "sha256:1"}, true, "systemctl reload dpsd; "},
		{"an older one before READY, when dpsd applies a change automatically", &control.Configuration{File: file.File, Fingerprint: "sha256:1"}, false, "dpsd applies it automatically within seconds; after a change to [state], [control], [tpm], [log] or the group in [certificate]: systemctl restart --no-block dpsd"},
		{"the same after a rejection", &control.Configuration{File: file.File, Fingerprint: file.Fingerprint, Refused: "typo"}, true, ""},
		{"another file is not compared", &control.Configuration{File: "/tmp/dpsd.toml", Fingerprint: "sha256:1"}, true, ""},
		{"an older dpsd, which does not report its configuration", nil, true, ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{
				Installed: true, Systemctl: systemd(t, "", "LoadState=loaded\nActiveState=active\n"),
				Settings: &daemon.Settings{RegistrationID: attest.RegistrationID{Template: "gw-1"}, Dialer: &transport.Dialer{Host: "localhost"}, Configuration: &file},
				Ask: func(context.Context) (control.Status, error) {
					return control.Status{Ready: test.ready, Configuration: test.runs}, nil
				},
				StateDirectory: t.TempDir(),
			}
			results := run(t, g, check.Service)
			last := results[len(results)-1]
			warned := len(results) == 2 && last.Status == check.Warning && last.Subject == file.File && strings.HasPrefix(last.Advice, test.advice)
			if warned != (test.advice != "") || test.advice == "" && len(results) != 1 {
				t.Errorf("%+v", results)
			}
		})
	}
}

func TestAConfigurationThatTheRunningDpsdHasRejectedIsAWarning(t *testing.T) {
	const refusal = "/etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key"
	invalid := errors.New(refusal)
	file := control.Configuration{File: "/etc/dpsd/dpsd.toml", Fingerprint: "sha256:2"}
	runs := &control.Configuration{File: file.File, Fingerprint: "sha256:1", Refused: refusal}
	valid := &daemon.Settings{RegistrationID: attest.RegistrationID{Template: "gw-1"}, Dialer: &transport.Dialer{Host: "localhost"}, Configuration: &file}
	for _, test := range []struct {
		says     string
		ready    bool
		settings *daemon.Settings
		faults   []control.Fault
		service  bool // dpsd.service reads the file
		advice   string
	}{
		{"before READY, when a correction needs no command", false, nil, nil, true, "Correct it; dpsd applies the correction automatically"},
		{"after READY", true, nil, nil, true, "Correct it; then run: systemctl reload dpsd"},
		{"without systemd", true, nil, nil, false, "Correct it; then run: kill -HUP 7"},
		{"in addition to a fault", false, nil, []control.Fault{{Code: string(fault.Unauthorized), Unresolved: true}}, true, "Correct it; dpsd applies the correction automatically"},
		{"a valid one that changes [state]", true, valid, nil, true, "systemctl reload dpsd; after a change to [state], [control], [tpm], [log] or the group in [certificate]: systemctl restart --no-block dpsd"},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{File: file.File, Settings: test.settings, StateDirectory: t.TempDir(), Installed: test.service,
				Ask: func(context.Context) (control.Status, error) {
					return control.Status{PID: 7, Ready: test.ready, Configuration: runs, Faults: test.faults}, nil
				}}
			if test.service {
				g.Systemctl = systemd(t, "", "LoadState=loaded\nActiveState=active\n")
			}
			if test.settings == nil {
				g.Invalid = invalid
			}
			results := run(t, g, check.Service)
			if len(results) != 1+len(test.faults) {
				t.Fatalf("%+v", results)
			}
			last := results[len(results)-1]
			if last.Status != check.Warning || !strings.HasSuffix(last.Detail, "refused the file and uses the previous configuration: "+refusal) || last.Advice != test.advice {
				t.Errorf("%+v", last)
			}
		})
	}
}

func TestTheAdviceToCorrectTheConfigurationEndsWithTheCommandForTheService(t *testing.T) {
	const correction = "Correct dpsd.toml at the place named in the message"
	for _, test := range []struct {
		says, unit string
		installed  bool
		advice     string
	}{
		{"nothing while it starts", "ActiveState=activating\nSubState=start\n", true, correction},
		{"a reload while it is active", "ActiveState=active\nSubState=running\n", true, correction + "; then run: systemctl reload dpsd"},
		{"a restart when it has failed", "ActiveState=failed\nSubState=failed\n", true, correction + "; then run: systemctl restart --no-block dpsd"},
		{"a restart when it was stopped", "ActiveState=inactive\nSubState=dead\n", true, correction + "; then run: systemctl restart --no-block dpsd"},
		{"a restart between two starts", "ActiveState=activating\nSubState=auto-restart\n", true, correction + "; then run: systemctl restart --no-block dpsd"},
		{"nothing for another file", "ActiveState=active\nSubState=running\n", false, correction},
		{"nothing without systemd", "", true, correction},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{File: "dpsd.toml", Invalid: errors.New("dpsd.toml:1:1: wrong"), Installed: test.installed}
			if test.unit != "" {
				g.Systemctl = systemd(t, "", "LoadState=loaded\n"+test.unit)
			}
			if r := run(t, g, check.Configuration); len(r) != 1 || r[0].Advice != test.advice {
				t.Errorf("%+v", r)
			}
		})
	}
}

// saved saves a record for each hub with the store. Later records replace earlier ones.
func saved(state, runtime string, hubs ...string) error {
	s, err := store.Open(store.Options{Directory: state, RuntimeDirectory: runtime}, time.Now())
	if err != nil {
		return err
	}
	for _, hub := range hubs {
		_, refused := s.Save(store.Record{AssignedHub: hub, DeviceID: "gw", RegistrationID: "gw", IDScope: "0ne", Endpoint: "localhost"}, time.Now())
		err = errors.Join(err, refused)
	}
	return errors.Join(err, s.Close())
}

func TestTheAdviceForADamagedRecordSaysWhatDpsdDoesWhenItStarts(t *testing.T) {
	const one, other = "one.azure-devices.net", "other.azure-devices.net"
	for _, c := range []struct {
		expect string
		make   func(state, runtime string) error
		advice string
	}{
		{"without another record it registers again", func(state, runtime string) error { return nil }, "dpsd registers again when it starts: "},
		{"it restores the previous record", func(state, runtime string) error { return saved(state, runtime, one, other) }, "dpsd restores the previous record when it starts: "},
		{"a damaged previous record is not restored", func(state, runtime string) error {
			return os.WriteFile(filepath.Join(state, "state.json.prev"), []byte("{"), 0o600)
		}, "dpsd registers again when it starts: "},
		{"it writes the record of the runtime directory", func(state, runtime string) error {
			if err := saved(filepath.Join(state, "no", "such"), runtime, one); err == nil {
				return errors.New("the record was saved")
			}
			return nil
		}, "dpsd restores the record from RUNTIME when it starts: "},
	} {
		t.Run(c.expect, func(t *testing.T) {
			state, runtime := t.TempDir(), t.TempDir()
			if err := errors.Join(c.make(state, runtime), os.WriteFile(filepath.Join(state, "state.json"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			g := &check.Gateway{StateDirectory: state, RuntimeDirectory: runtime, Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}}
			advice := strings.ReplaceAll(c.advice, "RUNTIME", runtime) + "systemctl restart --no-block dpsd"
			if r := run(t, g, check.Record); len(r) != 1 || r[0].Status != check.Warning || r[0].Advice != advice {
				t.Errorf("%+v\nwant %s", r, advice)
			}
		})
	}
}

func TestAMissingRecordIsReportedAsRemovedOnlyIfItExistedBefore(t *testing.T) {
	assignment := func(durable bool) *control.Status {
		return &control.Status{Identity: &control.Identity{AssignedHub: "hub", DeviceID: "gw", Durable: durable}}
	}
	for _, test := range []struct {
		expect         string
		status         *control.Status // status of the running dpsd; nil if dpsd does not run
		make           func(state, runtime string) error
		want           check.Status
		detail, advice string
	}{
		{"there is no trace of a record", nil, nil, check.OK,
			"there is no record yet; the first assignment writes it", ""},
		{"the running dpsd was not assigned", &control.Status{}, nil, check.OK,
			"there is no record yet; the first assignment writes it", ""},
		{"it was never written because the disk is not writable", assignment(false), nil, check.Warning,
			"there is no record: the running dpsd is assigned to hub as gw but could not write it", "dpsd writes it automatically"},
		{"the running dpsd has written it", assignment(true), nil, check.Warning,
			"the record was removed: the running dpsd is assigned to hub as gw and has written it", "dpsd writes it again automatically within a minute. If it does not: dpsd reprovision"},
		{"only attempts that failed are recorded", nil, func(_, runtime string) error {
			r := store.Recorder{RuntimeDirectory: runtime}
			return r.Add(store.Attempt{Outcome: "fault"}, time.Now())
		}, check.OK, "there is no record yet; the first assignment writes it", ""},
		{"the previous record exists", nil, func(state, runtime string) error {
			return errors.Join(saved(state, runtime, "one.azure-devices.net", "other.azure-devices.net"), os.Remove(filepath.Join(state, "state.json")))
		}, check.Warning, "the record was removed: STATE/state.json.prev still exists", "dpsd restores the previous record when it starts: systemctl restart --no-block dpsd"},
		{"the previous record is damaged", nil, func(state, _ string) error {
			return os.WriteFile(filepath.Join(state, "state.json.prev"), nil, 0o600)
		}, check.Warning, "the record was removed: STATE/state.json.prev still exists", "dpsd registers again when it starts: systemctl restart --no-block dpsd"},
		{"state.env exists", nil, func(state, _ string) error {
			return os.WriteFile(filepath.Join(state, "state.env"), nil, 0o600)
		}, check.Warning, "the record was removed: STATE/state.env still exists", "systemctl restart --no-block dpsd"},
		{"an attempt that saved a record is recorded", nil, func(state, _ string) error {
			r := store.Recorder{RuntimeDirectory: state}
			return r.Add(store.Attempt{Outcome: "assigned", At: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}, time.Now())
		}, check.Warning, "the record was removed, or [state] directory has changed: this gateway was assigned on 2026-11-01", "systemctl restart --no-block dpsd"},
		{"it is only in the runtime directory", nil, func(state, runtime string) error {
			if err := saved(filepath.Join(state, "no", "such"), runtime, "hub.azure-devices.net"); err == nil {
				return errors.New("the record was saved")
			}
			return nil
		}, check.Warning, "there is no record here: the record of hub.azure-devices.net as gw is only in RUNTIME, which is cleared at the next boot", "systemctl restart --no-block dpsd"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			state, runtime := t.TempDir(), t.TempDir()
			if test.make != nil {
				if err := test.make(state, runtime); err != nil {
					t.Fatal(err)
				}
			}
			g := &check.Gateway{StateDirectory: state, RuntimeDirectory: runtime,
				Settings: &daemon.Settings{RegistrationID: attest.RegistrationID{Template: "gw-1"}, Dialer: &transport.Dialer{Host: "localhost"}}}
			asked := 0
			g.Ask = func(context.Context) (control.Status, error) {
				asked++
				if test.status == nil {
					return control.Status{}, control.ErrNotRunning
				}
				return *test.status, nil
			}
			detail := strings.NewReplacer("STATE", state, "RUNTIME", runtime).Replace(test.detail)
			r := run(t, g, check.Record)
			if len(r) != 1 || r[0].Status != test.want || r[0].Detail != detail || !strings.Contains(r[0].Advice, test.advice) || (test.advice == "") != (r[0].Advice == "") {
				t.Errorf("%+v\nwant %s, %s", r, test.want, detail)
			}
			if asked != 1 {
				t.Errorf("the running dpsd was queried %d times", asked)
			}
			g.Skip = map[string]bool{check.Service: true}
			if run(t, g, check.Record); asked != 1 {
				t.Error("the running dpsd was queried although the step is skipped")
			}
		})
	}
}

func TestTheUsedFeaturesOfTheServiceManagerAreReportedAndOptional(t *testing.T) {
	running := func(m *control.ServiceManager) func(context.Context) (control.Status, error) {
		return func(context.Context) (control.Status, error) { return control.Status{ServiceManager: m}, nil }
	}
	stopped := func(context.Context) (control.Status, error) { return control.Status{}, control.ErrNotRunning }
	for _, test := range []struct {
		says   string
		ask    func(context.Context) (control.Status, error)
		booted bool // systemd runs
		want   check.Result
	}{
		{"with systemd", running(&control.ServiceManager{Notification: true, Watchdog: 30, Credentials: "/run/credentials/dpsd.service", Log: "journal"}), true,
			check.Result{Status: check.OK, Detail: "notification: yes; watchdog: every 30s; credentials: /run/credentials/dpsd.service; log: journal"}},
		{"in a container", running(&control.ServiceManager{Log: "json"}), false, check.Result{Status: check.OK, Detail: "notification: none; watchdog: none; credentials: none; log: json"}},
		{"by an earlier version", running(nil), false, check.Result{Status: check.Skipped, Detail: "not checked: the running dpsd is an earlier version"}},
		{"without systemd, before the start", stopped, false,
			check.Result{Status: check.OK, Detail: `systemd is not running: dpsd works without notification, watchdog and journal, and reads a "credential:" from /etc/credstore`}},
		{"with systemd, before the start", stopped, true, check.Result{Status: check.Skipped, Detail: "not checked: dpsd is not running, or does not answer"}},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{Ask: test.ask, StateDirectory: t.TempDir(), Secrets: attest.Secrets{Directories: []string{"/etc/credstore"}}}
			if test.booted {
				g.Systemctl = systemd(t, "", "LoadState=loaded\nActiveState=active\n")
			}
			test.want.Name = check.Manager
			if r := run(t, g, check.Manager); len(r) != 1 || r[0] != test.want {
				t.Errorf("got  %+v\nwant %+v", r, test.want)
			}
		})
	}
}
