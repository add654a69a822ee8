package check_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

func TestTheServicesUnresolvedFaultFailsTheCheck(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	refused := control.Fault{
		Code: string(fault.Unauthorized), Stage: string(fault.StageRegister), Summary: "s", Cause: "dps: answered 401,\nerror 401002", Advice: "Correct the key.",
		First: now.Add(-3 * time.Hour), Last: now.Add(-time.Minute), Count: 12, Standing: true,
	}
	resolved, storage := refused, refused
	resolved.Standing = false
	storage.Code, storage.Stage, storage.Cause, storage.Count = string(fault.StateUnwritable), string(fault.StageState), "", 1
	status := func(faults ...control.Fault) control.Status {
		return control.Status{StartedAt: now.Add(-4 * time.Hour), Now: now, Text: "Assigned to hub", Faults: faults,
			Next: &control.Next{At: now.Add(5 * time.Minute), In: 300}}
	}
	attempting := status(refused)
	attempting.Next = nil
	for _, test := range []struct {
		says   string
		status control.Status
		err    error
		want   check.Result
	}{
		{"a fault, its age and the next attempt", status(refused), nil, check.Result{Status: check.Failed, Code: fault.Unauthorized, Advice: "Correct the key.",
			Detail: "while registering: dps: answered 401, error 401002; for 3h0m, 12 times; next attempt in 5m0s, at 12:05:00 UTC"}},
		{"one that is being tried again now", attempting, nil, check.Result{Status: check.Failed, Code: fault.Unauthorized, Advice: "Correct the key.",
			Detail: "while registering: dps: answered 401, error 401002; for 3h0m, 12 times; an attempt is under way"}},
		{"one that stands behind one that is resolved", status(resolved, storage), nil, check.Result{Status: check.Failed, Code: fault.StateUnwritable, Advice: "Correct the key.",
			Detail: "while saving the assignment: s; for 3h0m; next attempt in 5m0s, at 12:05:00 UTC"}},
		{"one that is resolved is none", status(resolved), nil, check.Result{Status: check.OK, Detail: "running for 4 hours, no unresolved fault: Assigned to hub"}},
		{"no fault", status(), nil, check.Result{Status: check.OK, Detail: "running for 4 hours, no unresolved fault: Assigned to hub"}},
		{"a dpsd that does not run says nothing", control.Status{}, control.ErrNotRunning, check.Result{Status: check.Skipped, Detail: "not checked: dpsd is not running"}},
		{"one that does not answer", control.Status{}, errors.New("timeout"), check.Result{Status: check.Warning, Detail: "the running dpsd does not answer: timeout", Advice: "journalctl -u dpsd"}},
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

func TestAFileThatIsNewerThanWhatTheServiceRunsIsAWarning(t *testing.T) {
	file := control.Configuration{File: "/etc/dpsd/dpsd.toml", Fingerprint: "sha256:2"}
	for _, test := range []struct {
		says   string
		runs   *control.Configuration
		ready  bool
		advice string // "": no warning
	}{
		{"the same", &control.Configuration{File: file.File, Fingerprint: file.Fingerprint}, true, ""},
		{"an older one, which a reload replaces", &control.Configuration{File: file.File, Fingerprint: "sha256:1"}, true, "systemctl reload dpsd; "},
		{"an older one before READY, when a reload would wait", &control.Configuration{File: file.File, Fingerprint: "sha256:1"}, false, "systemctl restart --no-block dpsd"},
		{"another file is not compared", &control.Configuration{File: "/tmp/dpsd.toml", Fingerprint: "sha256:1"}, true, ""},
		{"a dpsd of before, which does not say", nil, true, ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := &check.Gateway{
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
