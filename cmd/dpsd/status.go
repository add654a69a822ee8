package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
)

// askLimit is the time limit for an answer of the running daemon, which answers from memory.
const askLimit = 5 * time.Second

// statusReport is the output of --json. docs/status.schema.json describes it.
type statusReport struct {
	Running bool `json:"running"` // the daemon has answered; otherwise the status comes from the files
	control.Status
	Stopped *check.Stop     `json:"stopped,omitempty"` // reason why it does not run
	History []store.Attempt `json:"history,omitempty"` // with --attempts, in chronological order
}

func statusCommand() *cobra.Command {
	var asJSON, attempts bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the identity of this gateway and the state of dpsd",
		Long: `Show the identity of this gateway, whether DPS has confirmed it, what dpsd is
doing now, the last faults with advice, and the next attempt.

If dpsd is not running, the command reads the state files, and shows why dpsd is
not running and which command fixes that.

Exit codes: 0 if an identity is published, even if DPS has not confirmed it
since dpsd started; 3 if no identity is published; 1 if the status is unknown.`,
		Example: `  dpsd status
  dpsd status --attempts    # with the last attempts, step by step
  dpsd status --json | jq -r .identity.assignedHub`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return status(installationOf(cmd), asJSON, attempts)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&attempts, "attempts", false, "also print the last attempts")
	return cmd
}

func status(places installation, asJSON, attempts bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	s, running, err := places.status(ctx)
	if err != nil {
		return &exitError{exitFailed, err, "sudo dpsd check, which checks the files and the service"}
	}
	report := statusReport{Running: running, Status: s}
	if !running {
		why := places.whyStopped(ctx)
		report.Stopped = &why
	}
	if bootedSystemctl() == nil {
		for n := range report.Faults {
			report.Faults[n].Advice = check.WithoutSystemd(report.Faults[n].Advice)
		}
	}
	if attempts {
		report.History = store.Attempts(places.state, places.runtime)
	}
	if err := report.show(terminalOn(os.Stdout), asJSON); err != nil {
		return failed(err)
	}
	if places.note != nil && !running {
		fmt.Fprintln(os.Stderr, "Using the default paths, because the configuration cannot be used:", places.note)
	}
	if s.Identity == nil {
		return &exitError{exitNone, nil, ""}
	}
	return nil
}

// show prints the report. It escapes all text of the daemon and its files, because an attacker
// who controls them could otherwise control root's terminal.
func (r statusReport) show(out *terminal, asJSON bool) error {
	foreign.Strings(&r, foreign.MaxFault)
	if asJSON {
		return writeJSON(out, r)
	}
	return r.print(out)
}

// print prints the report for people.
func (r statusReport) print(out *terminal) error {
	var b strings.Builder
	line := out.rows(&b)
	words := map[control.Health]struct {
		colour colour
		text   string
	}{
		control.OK:            {green, "assigned, and confirmed by DPS"},
		control.Cached:        {yellow, "assigned, but not confirmed by DPS since dpsd started"},
		control.Degraded:      {yellow, "assigned, but there is a problem"},
		control.Unprovisioned: {red, "not provisioned"},
	}
	head := words[r.Health]
	if !r.Running && r.Health == control.Cached {
		head.text = "assigned, according to the state files"
		if r.Phase.Name == phaseStopped {
			head.text += ": " + notRunning
		}
	}
	fmt.Fprintln(&b, out.paint(head.colour, head.text))
	if i := r.Identity; i != nil {
		line("hub", "%s", i.AssignedHub)
		line("device ID", "%s", i.DeviceID)
		line("registration", "%s in %s at %s", i.RegistrationID, i.IDScope, i.Endpoint)
		line("generation", "%d, since %s", i.Generation, i.ProvisionedAt.UTC().Format(time.RFC3339))
		if !i.Durable {
			line("", "%s", out.paint(yellow, "not on disk: it would be lost in a power failure"))
		}
		if i.Foreign {
			line("", "%s", out.paint(yellow, "it belongs to a different configuration than the current one"))
		}
	}
	if r.Confirmed != nil {
		line("confirmed", "%s ago, at %s", span(r.Now.Sub(*r.Confirmed)), r.Confirmed.UTC().Format(time.RFC3339))
	}
	line("now", "%s", r.now())
	if c := r.Configuration; c != nil && c.Refused != "" && !strings.Contains(r.Text, oneLine(c.Refused)) {
		line("", "configuration refused: %s; the previous one stays in effect", printable(oneLine(c.Refused)))
	}
	if s := r.Stopped; s != nil {
		line("", "why: %s", printable(s.Detail))
		line("", "what to do: %s", out.paint(bold, printable(s.Advice)))
	}
	if n := r.Next; n != nil {
		line("next", "in %s, at %s: %s", span(time.Duration(n.In*float64(time.Second))), n.At.UTC().Format(time.RFC3339), n.Why)
	}
	if c := r.Connection; c != nil {
		through := ""
		if c.Proxy != "" {
			through = " through " + c.Proxy
		}
		line("connection", "%s to %s%s, %s ago", c.Protocol, c.Address, through, span(r.Now.Sub(c.At)))
	}
	if c := r.Certificate; c != nil {
		line("certificate", "device certificate, valid until %s", c.NotAfter.UTC().Format(time.RFC3339))
	}
	if c := r.IssuedCertificate; c != nil {
		text, paint := summary(*c, r.Running, r.Now)
		line("certificate", "issued certificate, %s", out.paint(paint, text))
	}
	for _, c := range r.Consumers {
		line("consumer", "%s", r.consumer(c, out))
		if last := c.Report; last != nil {
			line("", "it reported %s %s ago: %s", last.Code, span(r.Now.Sub(last.At)), last.Because)
		}
	}
	for _, f := range r.Faults {
		when, colour := "resolved, last at", faint
		if f.Unresolved {
			when, colour = "since "+f.First.UTC().Format(time.RFC3339)+", last at", red
		}
		times := ""
		if f.Count > 1 {
			times = fmt.Sprintf(", %d times", f.Count)
		}
		line("fault", "%s while %s, %s %s%s", out.paint(colour, f.Code), fault.Stage(f.Stage).Doing(), when, f.Last.UTC().Format(time.RFC3339), times)
		line("", "%s", f.Summary)
		if f.Cause != "" {
			line("", "cause: %s", f.Cause)
		}
		switch {
		case f.TrackingID != "":
			line("", "errorCode %d, trackingId %s", f.ServiceCode, f.TrackingID)
		case f.ServiceCode != 0: // the hub sends no tracking ID
			line("", "errorCode %d", f.ServiceCode)
		}
		if f.Unresolved {
			line("", "what to do: %s", f.Advice)
		}
	}
	if len(r.History) > 0 {
		fmt.Fprintln(&b)
		printAttempts(&b, r.History)
	}
	_, err := fmt.Fprint(out, b.String())
	return err
}

// consumer describes a local service that uses the hub.
func (r statusReport) consumer(c control.Consumer, out *terminal) string {
	text := c.Name + ": " + cmp.Or(c.Scope, out.paint(yellow, "dpsd.toml has no [[consumer]] with this name"))
	switch {
	case !c.Listening:
		return text + ", " + out.paint(yellow, "no socket; run: systemctl enable dpsd-hub@"+c.Name+".socket && systemctl restart --no-block dpsd")
	case c.Scope == "":
		return text
	case c.Name == aisapi.Listener:
		text = fmt.Sprintf("%s: read-only, for programs of the Azure IoT Identity Service, requests: %d", c.Name, c.Requests)
	case c.LastToken == nil:
		text += ", no token since dpsd started"
	default:
		text += fmt.Sprintf(", last token %s ago", span(r.Now.Sub(*c.LastToken)))
		if left := c.TokenExpiry.Sub(r.Now); left > 0 {
			text += ", valid for " + span(left)
		} else {
			text += ", expired"
		}
	}
	switch c.Module {
	case "", control.ModuleReady:
	case control.ModulePending:
		text += ", its module does not exist at the hub yet"
	default:
		text += ", " + out.paint(red, "its module cannot be used: "+c.Module)
	}
	if c.Limited > 0 {
		text += fmt.Sprintf(", requests beyond the limits: %d", c.Limited)
	}
	if c.Refusals > 0 {
		text += fmt.Sprintf(", reports that the hub refuses it or is not working: %d", c.Refusals)
	}
	return text
}

// now returns the text of STATUS= without the cause of the unresolved fault, which is printed
// below with the other details of the fault.
func (r statusReport) now() string {
	if len(r.Faults) == 0 || !r.Faults[0].Unresolved || r.Faults[0].Cause == "" {
		return r.Text
	}
	named := oneLine(foreign.Line(r.Faults[0].Code+": "+r.Faults[0].Cause, control.MaxCause))
	return strings.Replace(r.Text, named, r.Faults[0].Code, 1)
}

// oneLine joins the lines of a text, as in STATUS=.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// printAttempts writes a line for each attempt with the durations of its steps.
func printAttempts(b *strings.Builder, attempts []store.Attempt) {
	for _, a := range attempts {
		steps := make([]string, 0, len(a.Steps))
		for _, s := range a.Steps {
			steps = append(steps, fmt.Sprintf("%s %s", s.Stage, span(time.Duration(s.Milliseconds)*time.Millisecond)))
		}
		fmt.Fprintf(b, "%s  %-20s %s; %d B up, %d B down", a.At.UTC().Format(time.RFC3339), cmp.Or(a.Fault, a.Outcome), strings.Join(steps, ", "), a.Sent, a.Received)
		if a.Clock != "plausible" {
			fmt.Fprintf(b, "; clock %s", a.Clock)
		}
		fmt.Fprintln(b)
	}
}

// span returns a duration for people with at most two units.
func span(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	days := d / (24 * time.Hour)
	return fmt.Sprintf("%d days %d h", days, (d-days*24*time.Hour)/time.Hour)
}
