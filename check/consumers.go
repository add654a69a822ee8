package check

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/control"
)

// consumers checks the sockets of the local services that use the hub. It reports nothing if there
// is neither a [[consumer]] nor such a socket.
func (i *inspection) consumers(ctx context.Context) {
	if i.leavesOut(Consumers) {
		if len(i.Settings.Consumers) > 0 {
			i.skip(Result{Name: Consumers}, "")
		}
		return
	}
	s, err := i.answer()
	received := func(name string) bool {
		return err != nil || slices.ContainsFunc(s.Consumers, func(one control.Consumer) bool { return one.Name == name && one.Listening })
	}
	for _, c := range i.Settings.Consumers {
		i.consumer(ctx, c.Name, "scope "+c.Scope.String(), received(c.Name))
	}
	for _, c := range s.Consumers {
		switch {
		case c.Listening && c.Name == aisapi.Listener:
			i.consumer(ctx, c.Name, "read-only, for programs of the Azure IoT Identity Service", true)
		case c.Listening && c.Scope == "":
			i.warn(Result{Name: Consumers, Subject: socketUnit(c.Name)}, "dpsd.toml has no [[consumer]] with the name "+c.Name+", so dpsd refuses all requests on this socket",
				"Add one and run: systemctl reload dpsd; or run: systemctl disable --now "+socketUnit(c.Name)+" && systemctl restart --no-block dpsd")
		}
	}
}

// consumer checks one socket. received is false if dpsd is running without it.
func (i *inspection) consumer(ctx context.Context, name, purpose string, received bool) {
	r := Result{Name: Consumers, Subject: socketUnit(name)}
	if i.Systemctl == nil { // another service manager can pass sockets in the same way, sd_listen_fds(3)
		if _, err := i.answer(); err != nil || !received {
			i.skip(r, "systemd is not running, and dpsd has not received the socket from another service manager")
			return
		}
		i.ok(r, purpose+"; dpsd has received the socket")
		return
	}
	detail, advice := i.socket(ctx, name)
	if advice == "" && !received {
		detail, advice = "the running dpsd did not receive the socket from systemd", "systemctl restart --no-block dpsd"
	}
	if advice != "" {
		i.warn(r, detail, advice)
		return
	}
	i.ok(r, purpose+"; "+detail)
}

// socketUnit returns the name of the unit of a consumer's socket.
func socketUnit(name string) string { return "dpsd-hub@" + name + ".socket" }

// socket describes the socket unit of a consumer. advice is "" unless the service cannot connect,
// or every user can.
func (i *inspection) socket(ctx context.Context, name string) (detail, advice string) {
	unit := socketUnit(name)
	p, err := show(ctx, i.Systemctl, unit, "--property=LoadState,UnitFileState,ActiveState,NeedDaemonReload,Listen")
	enable := "systemctl enable " + unit + " && systemctl restart --no-block dpsd"
	// "systemctl restart" of both units would create a job for each, and that of the socket would fail.
	replace := "systemctl stop " + unit + " && systemctl restart --no-block dpsd"
	switch {
	case err != nil:
		return "systemctl: " + err.Error(), "systemctl status " + unit
	case p["LoadState"] == "masked":
		return "the unit is masked", "systemctl unmask " + unit + " && " + enable
	case p["LoadState"] != "loaded":
		return "the unit is not installed", "Install the package dpsd, or copy dpsd-hub@.socket to /etc/systemd/system."
	case p["UnitFileState"] != "enabled" && p["UnitFileState"] != "enabled-runtime":
		return "the socket does not start at boot: " + p["UnitFileState"], enable
	case p["ActiveState"] != "active":
		return "the socket is not open: " + p["ActiveState"], "systemctl restart --no-block dpsd"
	case p["NeedDaemonReload"] == "yes":
		return "the unit file has changed on disk", "systemctl daemon-reload && " + replace
	}
	path, _, _ := strings.Cut(p["Listen"], " ")
	info, err := os.Lstat(path)
	if err != nil {
		return err.Error(), replace
	}
	mode := info.Mode().Perm()
	detail = fmt.Sprintf("%s has mode %04o and the group %s", path, mode, groupName(gidOf(info)))
	if mode&0o002 != 0 {
		return detail + ": every user can connect", "Remove SocketMode= with: systemctl edit " + unit
	}
	return detail, ""
}
