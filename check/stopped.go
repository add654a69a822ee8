package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/store"
)

// Reason is a code for the reason why dpsd does not run. Programs read it.
type Reason string

// Reasons. The meaning of a value never changes.
const (
	NoConfiguration      Reason = "no-configuration"      // dpsd.toml is missing
	ConfigurationInvalid Reason = "configuration-invalid" // dpsd.toml cannot be used, or could not be at the last start
	NoCredential         Reason = "no-credential"         // systemd cannot provide a credential
	NotInstalled         Reason = "not-installed"         // systemd cannot load dpsd.service
	Masked               Reason = "masked"
	Disabled             Reason = "disabled"      // systemd does not keep the result of the last run of such a unit
	NeverStarted         Reason = "never-started" // since boot
	ConditionUnmet       Reason = "condition-unmet"
	Stopped              Reason = "stopped"        // on request
	Restarting           Reason = "restarting"     // systemd restarts it after a failure
	Failing              Reason = "failed"         // systemd does not restart it
	NoAnswer             Reason = "no-answer"      // according to systemd it runs, but it does not answer
	SocketUnknown        Reason = "socket-unknown" // it may run, but the configuration that sets its control socket cannot be used
	Unknown              Reason = "unknown"        // systemd does not run or was not queried
)

// Stop is the reason why dpsd does not run and the advice.
type Stop struct {
	Reason Reason `json:"reason"`
	Detail string `json:"detail"`
	Advice string `json:"advice"`
}

// Exit statuses with a special meaning (systemd.exec(5), sysexits.h).
const (
	exitConfiguration = "78"
	exitNamespace     = "226"
	exitCredentials   = "243"
)

const (
	startCommand   = "systemctl start --no-block dpsd"
	restartCommand = "systemctl restart --no-block dpsd"
	reloadCommand  = "systemctl reload dpsd"
	enableCommand  = "systemctl enable --now --no-block dpsd"
)

// withoutSystemd replaces the commands of systemd.
var withoutSystemd = strings.NewReplacer(
	"run: "+restartCommand, "restart dpsd", restartCommand, "restart dpsd",
	startCommand, "start dpsd",
	"run: "+reloadCommand, "send SIGHUP to dpsd", reloadCommand, "send SIGHUP to dpsd",
	"journalctl -u dpsd", "Read the log of dpsd.",
	"systemctl stop 'dpsd-hub@*.socket' dpsd", "stop dpsd",
	"systemctl stop dpsd", "stop dpsd",
	"rm -f /etc/machine-id && systemd-machine-id-setup", "write 32 random hexadecimal digits to /etc/machine-id, or in a container, mount that of the host",
)

// WithoutSystemd returns advice for a machine on which systemd does not run.
func WithoutSystemd(advice string) string { return withoutSystemd.Replace(advice) }

// Unreachable returns a Stop for a dpsd that runs but could not create its control socket: it
// has locked the state directory, and this process cannot create files in the directory of the
// socket either. found is false if there is no such dpsd, or if this user cannot see it.
func Unreachable(state, runtime string) (s Stop, found bool) {
	locked, is := errors.AsType[*store.LockedError](store.Holder(state))
	if !is || runtime == "" {
		return Stop{}, false
	}
	err := unix.Access(runtime, unix.W_OK)
	if err == nil {
		return Stop{}, false
	}
	return Stop{NoAnswer, fmt.Sprintf("dpsd is running (process %d), but has no control socket, because it cannot create files in %s: %v", locked.PID, runtime, err),
		"Create the directory, and make it writable by the user that dpsd runs as; in a container, mount a tmpfs there. Then restart dpsd."}, true
}

// InstalledFile is the configuration of dpsd.service.
const InstalledFile = "/etc/dpsd/dpsd.toml"

// Question is the input of WhyStopped: what is known if dpsd does not answer.
type Question struct {
	// Systemctl is Gateway.Systemctl, or nil if dpsd.service does not matter.
	Systemctl func(ctx context.Context, args ...string) ([]byte, error)
	// File is the configuration. Invalid is the reason why dpsd or this user cannot use it, or
	// nil.
	File    string
	Invalid error
	// SocketUnknown means that the file may set the control socket. Then dpsd may run although
	// it does not answer at the default socket.
	SocketUnknown bool
}

// WhyStopped returns the reason why dpsd does not answer.
func WhyStopped(ctx context.Context, q Question) Stop {
	if q.Systemctl == nil {
		return q.withoutSystemd("no running dpsd uses this configuration", "")
	}
	const orStart = ", or if systemd is running: " + startCommand
	u, err := askUnit(ctx, q.Systemctl)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return q.withoutSystemd("systemd did not answer within "+systemctlLimit.String(), orStart)
	case errors.Is(err, errNotInstalled):
		return Stop{NotInstalled, err.Error(), "Install the package dpsd, or correct the unit: systemctl status dpsd"}
	case err != nil:
		return q.withoutSystemd("cannot query systemd: "+err.Error(), orStart)
	}
	return u.stopped(q)
}

// withoutSystemd returns the reason according to the configuration alone.
func (q Question) withoutSystemd(otherwise, orStart string) Stop {
	if q.SocketUnknown {
		return q.socketUnknown("dpsd may be running, but", "")
	}
	if s, found := q.unusable(""); found {
		return s
	}
	return Stop{Unknown, otherwise, "dpsd run --config " + q.File + orStart}
}

// unusable returns the Stop for a configuration that cannot be used. A configuration that
// this user may not read is a reason only if this user is root, who also checks the
// permissions of the service's user. apply is the command to run after the correction, or "".
func (q Question) unusable(apply string) (Stop, bool) {
	if q.Invalid == nil || errors.Is(q.Invalid, fs.ErrPermission) && !errors.As(q.Invalid, new(*ClosedError)) {
		return Stop{}, false
	}
	s := Stop{Reason: ConfigurationInvalid, Detail: "the configuration is invalid: " + oneLine(q.Invalid)}
	s.Advice = corrected("Correct it until "+With(q.File, "dpsd check --offline")+" finds no error", apply)
	if errors.Is(q.Invalid, fs.ErrNotExist) {
		s.Reason, s.Detail = NoConfiguration, "there is no configuration: "+oneLine(q.Invalid)
		s.Advice = corrected("Create "+q.File, apply)
	}
	var known interface {
		Problem() string
		Remedy() string
	}
	if errors.As(q.Invalid, &known) {
		s.Detail, s.Advice = "there is no usable configuration: "+known.Problem(), corrected(known.Remedy(), apply)
	}
	return s, true
}

// socketUnknown returns the Stop for a dpsd that cannot be queried. state is the beginning of
// the detail, to which socketUnknown adds the reason.
func (q Question) socketUnknown(state, apply string) Stop {
	s := Stop{Reason: SocketUnknown, Advice: "sudo " + With(q.File, "dpsd status")}
	why := "this user cannot read it"
	if unusable, found := q.unusable(apply); found {
		why, s.Advice = unusable.Detail, unusable.Advice
	}
	s.Detail = state + " the path of its control socket is in " + q.File + ": " + why
	return s
}

// With adds the configuration to a command if it is not the service's.
func With(file, command string) string {
	if file == InstalledFile {
		return command
	}
	return command + " --config " + file
}

// corrected adds the command to run after the correction, if any, to the advice about a
// configuration.
func corrected(remedy, apply string) string {
	if apply == "" {
		return remedy
	}
	return remedy + "; then run: " + apply
}

// applying returns the command after which the service uses a corrected dpsd.toml. It returns
// "" before READY, when dpsd applies the correction automatically, and if u is nil.
func (u *unit) applying() string {
	switch {
	case u == nil:
		return ""
	case slices.Contains([]string{"active", "reloading"}, u.properties["ActiveState"]):
		return reloadCommand
	case u.properties["ActiveState"] == "activating" && !u.restarting():
		return ""
	}
	return restartCommand
}

// restarting reports whether systemd waits before it restarts the service.
func (u *unit) restarting() bool { return strings.HasPrefix(u.properties["SubState"], "auto-restart") }

// oneLine returns the first of several errors and the number of the others.
func oneLine(err error) string {
	var several interface{ Unwrap() []error }
	if !errors.As(err, &several) || len(several.Unwrap()) < 2 {
		return err.Error()
	}
	all := several.Unwrap()
	return fmt.Sprintf("%v (and %d more)", all[0], len(all)-1)
}

// stopped returns the reason why a unit does not run. A reason that would prevent a start
// has precedence over the reason why the last run ended.
func (u *unit) stopped(q Question) Stop {
	p := u.properties
	again := u.restarting()
	exited := p["ExecMainCode"] == "1" // CLD_EXITED
	const invalidThen = "it exited with status 78 because its configuration was invalid"
	invalidFile, isInvalid := q.unusable(u.applying())
	switch {
	case p["LoadState"] == "masked":
		return Stop{Masked, unitName + " is masked, so systemd does not start it", "systemctl unmask dpsd && " + enableCommand}
	case u.running() && !again && q.SocketUnknown:
		return q.socketUnknown(fmt.Sprintf("%s is %s (%s), but", unitName, p["ActiveState"], p["SubState"]), u.applying())
	case !again && slices.Contains([]string{"active", "activating", "reloading", "deactivating"}, p["ActiveState"]):
		return Stop{NoAnswer, fmt.Sprintf("systemd reports that it is %s (%s), but it does not answer", p["ActiveState"], p["SubState"]),
			"journalctl -u dpsd -e; if it still does not answer after a minute: " + restartCommand}
	case isInvalid:
		return invalidFile
	case exited && p["ExecMainStatus"] == exitConfiguration && p["ActiveState"] != "inactive":
		// The configuration may have been corrected in the meantime.
		if errors.Is(q.Invalid, fs.ErrPermission) {
			return Stop{ConfigurationInvalid, invalidThen, "sudo dpsd check --offline; after fixing the problem: " + startCommand}
		}
		return Stop{ConfigurationInvalid, invalidThen + "; the configuration is valid now", startCommand}
	case exited && p["ExecMainStatus"] == exitCredentials && (again || p["ActiveState"] == "failed"):
		return u.noCredential()
	case again:
		return Stop{Restarting, "its last run ended: " + u.ending() + "; systemd restarts it after " + p["RestartUSec"], "journalctl -u dpsd -e"}
	case p["ActiveState"] == "failed":
		return Stop{Failing, "its last run ended: " + u.ending(), "journalctl -u dpsd -e; after fixing the problem: " + restartCommand}
	case p["ConditionResult"] == "no" && happened(p["ConditionTimestampMonotonic"]):
		return Stop{ConditionUnmet, "systemd did not start it because a condition of the unit was not met; usually " + q.File + " was missing", startCommand}
	case happened(p["InactiveExitTimestampMonotonic"]):
		stopped := Stop{Stopped, "it was stopped", startCommand}
		if at := p["InactiveEnterTimestamp"]; at != "" {
			stopped.Detail += " at " + at
		}
		if p["UnitFileState"] == "disabled" {
			stopped.Detail, stopped.Advice = stopped.Detail+" and does not start at boot", enableCommand
		}
		return stopped
	case p["UnitFileState"] == "disabled":
		return Stop{Disabled, "it is disabled, so systemd does not start it at boot, and it was not started or was stopped", enableCommand}
	}
	return Stop{NeverStarted, "it has not been started since boot", startCommand}
}

// happened reports whether a timestamp of systemd is set.
func happened(monotonic string) bool { return monotonic != "" && monotonic != "0" }

// noCredential returns the Stop for the exit status 243: systemd does not start a service
// with a credential that it cannot read or decrypt.
func (u *unit) noCredential() Stop {
	again := " && " + restartCommand
	names := []string{}
	for _, c := range u.credentials {
		if !filepath.IsAbs(c.path) {
			continue
		}
		names = append(names, c.name)
		if _, err := os.Lstat(c.path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		advice := "install -m 0600 KEY-FILE " + c.path + again
		if c.encrypted {
			advice = c.seal() + again
		}
		return Stop{NoCredential, "systemd has no credential " + c.name + ": " + c.path + " does not exist", advice}
	}
	for _, c := range u.credentials {
		if c.encrypted && filepath.IsAbs(c.path) {
			return Stop{NoCredential, "systemd cannot decrypt a credential (" + strings.Join(names, ", ") + "): it is damaged, or it was encrypted on a different machine or under a different name",
				c.seal() + again}
		}
	}
	return Stop{NoCredential, "systemd cannot provide a credential that dpsd.service requests", "systemctl status dpsd; after fixing the problem: " + restartCommand}
}

// ending describes how the last run ended.
func (u *unit) ending() string {
	p := u.properties
	status := p["ExecMainStatus"]
	switch p["Result"] {
	case "timeout":
		return "systemd killed it because it took too long to start or to stop"
	case "watchdog":
		return "systemd killed it because it hung (watchdog)"
	case "oom-kill":
		return "the kernel killed it because memory ran out"
	case "signal", "core-dump":
		return "killed by signal " + signalName(status)
	case "exit-code":
		if status == exitNamespace {
			return "systemd could not set up its sandbox (226), usually because a directory of ReadWritePaths= is missing"
		}
		return "exit status " + status
	case "success":
		if p["ExecMainCode"] != "1" && status != "0" && status != "" {
			return "killed by signal " + signalName(status)
		}
		return "exit status 0"
	}
	return p["Result"]
}

// signalName returns the name of a signal, or its number if it has none.
func signalName(number string) string {
	if n, err := strconv.Atoi(number); err == nil && n != 0 {
		return fmt.Sprintf("%d (%s)", n, syscall.Signal(n))
	}
	return number
}
