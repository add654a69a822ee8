package fleet

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
)

// Write writes the result of a rehearsal for people.
func (r *Result) Write(w io.Writer) error {
	var b strings.Builder
	f := &r.Fleet
	row := func(name, form string, values ...any) {
		fmt.Fprintf(&b, "%-44s "+form+"\n", append([]any{name}, values...)...)
	}
	f.describe(&b)
	for _, share := range []float64{50, 90, 99, 100} {
		row(fmt.Sprintf("%g %% provisioned after", share), "%s", r.after(share))
	}
	if f.Service.Quota > 0 {
		row("shortest time that the quota allows", "%s", f.Minimum().Round(time.Second))
	}
	row("registration requests per gateway", "%.2f, at most %d", r.RegistersEach(), r.MostRegisters)
	row("peak request rate", "%d per second, %s after the start", r.Peak, r.PeakAt)
	row("429 responses", "%d", r.Throttled)
	row("5xx responses", "%d", r.Failed)
	if r.Refused > 0 {
		row("401 responses", "%d", r.Refused)
	}
	row("connections per gateway", "%.2f", float64(r.Connections)/float64(f.Devices))
	_, err := io.WriteString(w, b.String())
	return err
}

// RegistersEach returns the mean number of register requests of a gateway.
func (r *Result) RegistersEach() float64 { return float64(r.Registers) / float64(r.Fleet.Devices) }

func (r *Result) after(percent float64) string {
	after, ever := r.Until(percent)
	if !ever {
		return "never"
	}
	return after.Round(time.Second).String()
}

// describe describes the scenario and the model.
func (f *Fleet) describe(b *strings.Builder) {
	s := &f.Service
	fmt.Fprintf(b, "%d gateways with %s boot within %s", f.Devices, f.Client, f.Boot)
	if f.Client == Dpsd {
		fmt.Fprintf(b, "; on_boot %s, boot_delay_max %s, interval %s", f.OnBoot, f.BootDelayMax, f.Interval)
	}
	b.WriteString(".\n")
	switch {
	case s.DownUntil > 0:
		fmt.Fprintf(b, "The service refuses connections for %s; times count from the end of the outage.\n", s.DownUntil)
	case s.KeyRightAt > 0:
		fmt.Fprintf(b, "The group key is wrong for %s; times count from its correction.\n", s.KeyRightAt)
	case s.MovedAt > 0:
		fmt.Fprintf(b, "After %s, all gateways are moved to another hub; times count from the move.\n", s.MovedAt)
	}
	fmt.Fprintf(b, "The service (a model): %d registrations a minute (%s) × %d, 429 with Retry-After %s, 5xx above %d requests a second.\n\n",
		s.Quota, s.Throttle, s.Instances, s.RetryAfter, s.Capacity*s.Instances)
}

// WriteCurve writes the result as CSV, with a row for each second in which something
// happened: the second since the start, the requests that reached the service in that second,
// and the number of gateways that were provisioned at its end.
func (r *Result) WriteCurve(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "second,registers,polls,throttled,failed,provisioned")
	provisioned := uint32(0)
	for n, s := range r.Seconds {
		provisioned += s.Provisioned
		if s != (Second{}) {
			fmt.Fprintf(out, "%d,%d,%d,%d,%d,%d\n", n, s.Registers, s.Polls, s.Throttled, s.Failed, provisioned)
		}
	}
	return out.Flush()
}
