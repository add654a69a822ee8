package check_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/transport"
)

func TestConsumers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "telemetry.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const open = "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nNeedDaemonReload=no\n"
	listening := []control.Consumer{{Name: "telemetry", Scope: "device", Listening: true}}
	const enable = "systemctl enable dpsd-hub@telemetry.socket && systemctl restart --no-block dpsd"
	for _, test := range []struct {
		says    string
		unit    string
		mode    os.FileMode
		status  []control.Consumer
		stopped bool
		want    check.Status
		detail  string
		advice  string
	}{
		{says: "an open socket that dpsd has received is ok", unit: open, mode: 0o660, status: listening, want: check.OK, detail: "scope device; " + path + " has mode 0660 and the group "},
		{says: "while dpsd does not run, an open socket is ok", unit: open, mode: 0o660, stopped: true, want: check.OK, detail: "mode 0660"},
		{says: "one that is not enabled", unit: strings.Replace(open, "=enabled", "=disabled", 1), mode: 0o660, status: listening, want: check.Warning, detail: "disabled", advice: enable},
		{says: "one that is masked", unit: "LoadState=masked\n", mode: 0o660, status: listening, want: check.Warning, detail: "masked", advice: "systemctl unmask dpsd-hub@telemetry.socket && " + enable},
		{says: "a unit that is not installed", unit: "LoadState=not-found\n", mode: 0o660, want: check.Warning, detail: "not installed", advice: "Install the package"},
		{says: "one that is not open", unit: strings.Replace(open, "=active", "=failed", 1), mode: 0o660, want: check.Warning, detail: "failed", advice: "systemctl restart --no-block dpsd"},
		{says: "one that the running dpsd did not receive", unit: open, mode: 0o660, want: check.Warning, detail: "did not receive", advice: "systemctl restart --no-block dpsd"},
		{says: "one that every user can use", unit: open, mode: 0o666, status: listening, want: check.Warning, detail: "mode 0666", advice: "systemctl edit dpsd-hub@telemetry.socket"},
	} {
		t.Run(test.says, func(t *testing.T) {
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			g := &check.Gateway{
				Settings: &daemon.Settings{Dialer: &transport.Dialer{}, Consumers: []consumer.Consumer{{Name: "telemetry"}}},
				Systemctl: func(_ context.Context, args ...string) ([]byte, error) {
					if args[1] != "dpsd-hub@telemetry.socket" {
						return []byte(running), nil
					}
					return []byte(test.unit + "Listen=" + path + " (Stream)\n"), nil
				},
				Ask: func(context.Context) (control.Status, error) {
					if test.stopped {
						return control.Status{}, control.ErrNotRunning
					}
					return control.Status{Consumers: test.status}, nil
				},
			}
			r := run(t, g, check.Consumers)[0]
			if r.Status != test.want || !strings.Contains(r.Detail, test.detail) || !strings.Contains(r.Advice, test.advice) || (test.advice == "") != (r.Advice == "") {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Run("without systemd, dpsd reports whether it has received the socket", func(t *testing.T) {
		for _, test := range []struct {
			status []control.Consumer
			want   check.Status
		}{{listening, check.OK}, {nil, check.Skipped}} {
			g := &check.Gateway{
				Settings: &daemon.Settings{Dialer: &transport.Dialer{}, Consumers: []consumer.Consumer{{Name: "telemetry"}}},
				Ask: func(context.Context) (control.Status, error) {
					return control.Status{Consumers: test.status}, nil
				},
			}
			if r := run(t, g, check.Consumers)[0]; r.Status != test.want || !strings.Contains(r.Detail, "received the socket") {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("the socket for programs of the Identity Service needs no [[consumer]]", func(t *testing.T) {
		if err := os.Chmod(path, 0o660); err != nil {
			t.Fatal(err)
		}
		g := &check.Gateway{
			Settings: &daemon.Settings{Dialer: &transport.Dialer{}},
			Systemctl: func(_ context.Context, args ...string) ([]byte, error) {
				if args[1] != "dpsd-hub@aziot-identity.socket" {
					return []byte(running), nil
				}
				return []byte(open + "Listen=" + path + " (Stream)\n"), nil
			},
			Ask: func(context.Context) (control.Status, error) {
				return control.Status{Consumers: []control.Consumer{{Name: aisapi.Listener, Scope: aisapi.Scope, Listening: true}}}, nil
			},
		}
		if r := run(t, g, check.Consumers)[0]; r.Status != check.OK || !strings.HasPrefix(r.Detail, "read-only, for programs of the Azure IoT Identity Service; "+path+" has mode 0660") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a socket without a [[consumer]] is a warning", func(t *testing.T) {
		g := &check.Gateway{
			Settings: &daemon.Settings{Dialer: &transport.Dialer{}},
			Ask: func(context.Context) (control.Status, error) {
				return control.Status{Consumers: []control.Consumer{{Name: "forgotten", Listening: true}}}, nil
			},
		}
		if r := run(t, g, check.Consumers)[0]; r.Status != check.Warning || r.Subject != "dpsd-hub@forgotten.socket" || !strings.HasSuffix(r.Advice, "; or run: systemctl disable --now dpsd-hub@forgotten.socket && systemctl restart --no-block dpsd") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a step that is excluded runs no systemctl", func(t *testing.T) {
		g := &check.Gateway{
			Settings: &daemon.Settings{Dialer: &transport.Dialer{}, Consumers: []consumer.Consumer{{Name: "telemetry"}}},
			Skip:     map[string]bool{check.Consumers: true},
			Systemctl: func(_ context.Context, args ...string) ([]byte, error) {
				if args[1] == "dpsd-hub@telemetry.socket" {
					t.Errorf("systemctl %q", args)
				}
				return []byte(running), nil
			},
		}
		if r := run(t, g, check.Consumers)[0]; r.Status != check.Skipped || !strings.Contains(r.Detail, "--skip") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("without systemd, the step says that there are no sockets", func(t *testing.T) {
		g := &check.Gateway{Settings: &daemon.Settings{Dialer: &transport.Dialer{}, Consumers: []consumer.Consumer{{Name: "telemetry"}}}}
		if r := run(t, g, check.Consumers)[0]; r.Status != check.Skipped || !strings.Contains(r.Detail, "systemd is not running") {
			t.Errorf("%+v", r)
		}
	})
}
