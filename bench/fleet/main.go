// Command fleet rehearses a fleet of gateways (package fleet, dpsd-sim fleet) in the scenarios
// that determined dpsd's default delays, and writes tables and plots. "make fleet" runs it.
//
// Its exit code is 1 if a goal for the default delays is missed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/bench/page"
	"github.com/dpsd-project/dpsd/fleet"
	"github.com/dpsd-project/dpsd/pace"
)

// gateways is the size of the fleet for which the goals apply.
const gateways = 10_000

// bootDelay is the boot_delay_max for which the goals apply.
const bootDelay = 10 * time.Minute

// The goals, as multiples of the quota's minimum and in register requests per gateway.
const (
	goalDelayed  = 1.25 // all are provisioned, with bootDelay
	goalRequests = 1.5  // with bootDelay
)

// The goals for half of the gateways.
const (
	goalOutage     = 15 * time.Second // they are back after an outage of a minute, and
	goalCorrection = time.Minute      // after a correction within ten minutes
)

func main() {
	document := flag.String("document", "", "also write the tables to this `file`, between its fleet markers, and the plots to its directory")
	large := flag.Bool("large", false, "also simulate a million gateways")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	b := &bench{}
	err := b.run(*large)
	fmt.Print(b.text.String())
	if err == nil && *document != "" {
		err = errors.Join(page.Insert(*document, "fleet", b.text.String()), b.draw(filepath.Dir(*document)))
	}
	if err == nil && len(b.missed) > 0 {
		err = errors.New(strings.Join(b.missed, "\n"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// bench holds all rehearsals and their results.
type bench struct {
	text   strings.Builder
	missed []string
	power  []course // for the plot, like the others
	others []course
}

// course is a rehearsal with its name.
type course struct {
	name   string
	result *fleet.Result
}

func (b *bench) run(large bool) error {
	for _, part := range []func() error{
		b.afterPower, b.whateverTheServiceSays, b.spreads, b.outages, b.corrections, b.scenarios, b.hubs,
		func() error { return b.sizes(large) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// rehearse runs one rehearsal of the scenario power.
func rehearse(change func(*fleet.Fleet)) (*fleet.Result, error) {
	f := fleet.New(fleet.Power, gateways)
	if change != nil {
		change(&f)
	}
	return f.Run()
}

// transcript returns the output of dpsd-sim for the fleet for which the goals apply.
func transcript() (string, error) {
	r, err := rehearse(nil)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "```console\n$ dpsd-sim fleet --devices %d\n", gateways)
	err = r.Write(&b)
	b.WriteString("```\n")
	return b.String(), err
}

// plain removes the jitter after a 429, so that the delay is what the service requests.
var plain = pace.Retry{Spread: 1, SpreadMax: 1}

func (b *bench) afterPower() error {
	text, err := transcript()
	if err != nil {
		return err
	}
	fmt.Fprintf(&b.text, "%s\nThe power returns to %d gateways. The shortest time that the quota allows is %s.\n\n", text, gateways, minutes(time.Duration(gateways/1000)*time.Minute))
	b.head("gateways with")
	for _, v := range []struct {
		name   string
		change func(*fleet.Fleet)
	}{
		{"dpsd, boot_delay_max 10m", func(f *fleet.Fleet) { f.BootDelayMax = bootDelay }},
		{"dpsd, defaults", nil},
		{"dpsd without its spread after 429", func(f *fleet.Fleet) { f.Retry = plain }},
		{"SDKs, 2 s (no Retry-After in 429)", func(f *fleet.Fleet) { f.Client, f.Service.RetryAfter = fleet.SDK, "none" }},
		{"SDKs, 30 s (as the 429 requests)", func(f *fleet.Fleet) { f.Client = fleet.SDK }},
	} {
		r, err := rehearse(v.change)
		if err != nil {
			return err
		}
		b.row(v.name, r)
		b.power = append(b.power, course{v.name, r})
	}
	b.goal("with boot_delay_max 10m", b.power[0].result, goalDelayed, goalRequests)
	b.goal("with the defaults", b.power[1].result, 0, 0)
	return nil
}

func (b *bench) whateverTheServiceSays() error {
	b.text.WriteString("\nIt is unknown how the service counts the minute, and which Retry-After its 429 has. All combinations:\n\n" +
		"| minute | Retry-After of a 429 | defaults: all after | requests | 5xx | boot_delay_max 10m: all after | requests | 5xx |\n| --- | --- | --: | --: | --: | --: | --: | --: |\n")
	return services(func(throttle fleet.Throttle, retryAfter string, set func(*fleet.Fleet)) error {
		r, err := rehearse(set)
		if err != nil {
			return err
		}
		delayed, err := rehearse(func(f *fleet.Fleet) { set(f); f.BootDelayMax = bootDelay })
		if err != nil {
			return err
		}
		fmt.Fprintf(&b.text, "| %s | %s | %s | %.2f | %d | %s | %.2f | %d |\n", throttle, retryAfter,
			after(r, 100), r.RegistersEach(), r.Failed, after(delayed, 100), delayed.RegistersEach(), delayed.Failed)
		where := fmt.Sprintf(", %s, Retry-After %s", throttle, retryAfter)
		b.goal("with boot_delay_max 10m"+where, delayed, goalDelayed, goalRequests)
		b.goal("with the defaults"+where, r, 0, 0)
		return nil
	})
}

// services calls f with each service that is consistent with the documentation.
func services(f func(throttle fleet.Throttle, retryAfter string, set func(*fleet.Fleet)) error) error {
	for _, throttle := range []fleet.Throttle{fleet.Bucket, fleet.Window} {
		for _, retryAfter := range []string{"none", "3", "30", "free"} {
			set := func(f *fleet.Fleet) { f.Service.Throttle, f.Service.RetryAfter = throttle, retryAfter }
			if err := f(throttle, retryAfter, set); err != nil {
				return err
			}
		}
	}
	return nil
}

// spreads runs the rehearsals that determined the defaults, and returns the worst result over
// all services.
func (b *bench) spreads() error {
	b.text.WriteString("\nThe jitter after the n-th 429 in a row is drawn from 0 to n × spread, at most the limit. The worst result of the eight services above:\n\n" +
		"| spread | limit | defaults: all after | requests | 5xx | boot_delay_max 10m: all after | requests |\n| --: | --: | --: | --: | --: | --: | --: |\n")
	for _, spread := range []time.Duration{10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute} {
		for _, limit := range []time.Duration{5 * time.Minute, time.Hour} {
			retry := pace.Retry{Spread: spread, SpreadMax: limit}
			var all, delayed time.Duration
			var requests, delayedRequests float64
			failed := 0
			err := services(func(_ fleet.Throttle, _ string, set func(*fleet.Fleet)) error {
				r, err := rehearse(func(f *fleet.Fleet) { set(f); f.Retry = retry })
				if err != nil {
					return err
				}
				d, err := rehearse(func(f *fleet.Fleet) { set(f); f.Retry, f.BootDelayMax = retry, bootDelay })
				if err != nil {
					return err
				}
				last, _ := r.Until(100)
				lastDelayed, _ := d.Until(100)
				all, delayed = max(all, last), max(delayed, lastDelayed)
				requests, delayedRequests = max(requests, r.RegistersEach()), max(delayedRequests, d.RegistersEach())
				failed += r.Failed
				return nil
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(&b.text, "| %s | %s | %s | %.2f | %d | %s | %.2f |\n", minutes(spread), minutes(limit), minutes(all), requests, failed, minutes(delayed), delayedRequests)
		}
	}
	return nil
}

// outages runs the rehearsals that determined the delays after a failed connection.
func (b *bench) outages() error {
	fmt.Fprintf(&b.text, "\nAfter an outage of about a minute, depending on the longest delay after a failed connection in the first two minutes: "+
		"single gateways, and %d gateways that all return at the same time.\n\n"+
		"| longest delay | connection attempts until then | one poll: 50 %% after | 95 %% | two polls: 50 %% after | 95 %% | %[1]d: all after | peak per second | 5xx |\n"+
		"| --: | --: | --: | --: | --: | --: | --: | --: | --: |\n", gateways)
	for _, v := range []struct {
		name  string
		retry pace.Retry
	}{
		{"0:05", pace.Retry{EarlyMax: 5 * time.Second}},
		{"0:10", pace.Retry{EarlyMax: 10 * time.Second}},
		{"0:15", pace.Retry{EarlyMax: 15 * time.Second}},
		{"the default", pace.Retry{}},
		{"0:30", pace.Retry{EarlyMax: 30 * time.Second}},
		{"no limit, as before", pace.Retry{EarlyMax: 5 * time.Minute}},
	} {
		one, err := afterOutage(v.retry, 1)
		if err != nil {
			return err
		}
		two, err := afterOutage(v.retry, 2)
		if err != nil {
			return err
		}
		f := fleet.New(fleet.Brief, gateways)
		f.Retry = v.retry
		r, err := f.Run()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b.text, "| %s | %.1f | %s | %s | %s | %s | %s | %d | %d |\n", v.name, one.connections,
			minutes(one.within(50)), minutes(one.within(95)), minutes(two.within(50)), minutes(two.within(95)), after(r, 100), r.Peak, r.Failed)
		if v.retry == (pace.Retry{}) {
			b.recovered("after an outage of a minute", one, goalOutage)
			b.goal("after an outage of a minute", r, goalDelayed, 0)
		}
	}
	return nil
}

// corrections runs the rehearsals that determined the delays after a refusal.
func (b *bench) corrections() error {
	b.text.WriteString("\nAfter a correction at any time in the first ten minutes of a refusal, depending on the first delay and the longest delay in these minutes:\n\n" +
		"| first delay | longest | refusals until then | 50 % after | 95 % |\n| --: | --: | --: | --: | --: |\n")
	for _, v := range []struct {
		first, longest string
		retry          pace.Retry
	}{
		{"0:15", "1:30", pace.Retry{RefusedInitial: 15 * time.Second}},
		{"0:30", "1:00", pace.Retry{RefusedEarlyMax: time.Minute}},
		{"the default", "the default", pace.Retry{}},
		{"0:30", "2:00", pace.Retry{RefusedEarlyMax: 2 * time.Minute}},
		{"1:00", "1:30", pace.Retry{RefusedInitial: time.Minute}},
		{"1:00", "2:00", pace.Retry{RefusedInitial: time.Minute, RefusedEarlyMax: 2 * time.Minute}},
		{"5:00", "as before", pace.Retry{RefusedInitial: 5 * time.Minute, RefusedEarlyMax: time.Hour}},
	} {
		r, err := afterCorrection(v.retry)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b.text, "| %s | %s | %.1f | %s | %s |\n", v.first, v.longest, r.connections, minutes(r.within(50)), minutes(r.within(95)))
		if v.retry == (pace.Retry{}) {
			b.recovered("after a correction within ten minutes", r, goalCorrection)
		}
	}
	return nil
}

// recovered checks a goal for half of the gateways.
func (b *bench) recovered(name string, r *recovery, limit time.Duration) {
	if half := r.within(50); half > limit {
		b.missed = append(b.missed, fmt.Sprintf("%s: half of the gateways have recovered after %s, the goal is %s", name, minutes(half), minutes(limit)))
	}
}

func (b *bench) scenarios() error {
	fmt.Fprintf(&b.text, "\nThe scenarios, with %d gateways and the defaults. Times count from the end of the cause.\n\n", gateways)
	b.head("scenario")
	for _, s := range fleet.Scenarios() {
		f := fleet.New(s, gateways)
		r, err := f.Run()
		if err != nil {
			return err
		}
		b.row(string(s), r)
		b.others = append(b.others, course{string(s), r})
	}
	return nil
}

// hubs simulates a hub that refuses devices or is not working. The services of the gateways report
// each failed connection; see docs/refusals.md.
func (b *bench) hubs() error {
	fmt.Fprintf(&b.text, "\nThe hub refuses devices or is not working, and the services of %d gateways report this to dpsd ([refusals.md](refusals.md)). The first six hours:\n\n"+
		"| what happens | registrations | most by one gateway | first after | last after | most in a minute | 429 | checks of the hub | all services can use a hub again after |\n"+
		"| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n", gateways)
	for _, c := range fleet.Cases() {
		f := fleet.NewCase(c, gateways)
		r, err := f.Run()
		if err != nil {
			return err
		}
		first, last := r.Span()
		recovered := "never"
		if n := len(r.Recovered); n == f.Hub.Affected {
			recovered = minutes(r.Recovered[n-1] - f.Since)
		}
		fmt.Fprintf(&b.text, "| %s | %d | %d | %s | %s | %d | %d | %d | %s |\n", c, r.Registers, r.MostRegisters, minutes(first), minutes(last),
			r.Busiest(), r.Throttled, r.HubChecks, recovered)
		b.calm(string(c), r)
	}
	return nil
}

// calm checks that a failure of the hub does not cause a failure of DPS.
func (b *bench) calm(name string, r *fleet.Result) {
	if n := r.Busiest(); n > r.Fleet.Service.Quota || r.Throttled > 0 || r.Failed > 0 {
		b.missed = append(b.missed, fmt.Sprintf("%s: %d registrations in a minute, of which %d were answered 429 and %d 5xx; the quota is %d", name, n, r.Throttled, r.Failed, r.Fleet.Service.Quota))
	}
}

func (b *bench) sizes(large bool) error {
	b.text.WriteString("\nOther sizes, in the scenario power, with the defaults, and with a boot_delay_max of the shortest time that the quota allows.\n\n" +
		"| gateways | shortest with the quota | all after | requests | peak per second | 5xx | with boot_delay_max: all after | requests | run time s | heap MB |\n| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n")
	sizes := []int{100, 1000, 2000, 10_000, 100_000}
	if large {
		sizes = append(sizes, 1_000_000)
	}
	for _, n := range sizes {
		f := fleet.New(fleet.Power, n)
		began := time.Now()
		r, err := f.Run()
		if err != nil {
			return err
		}
		took := time.Since(began)
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		f.BootDelayMax = min(f.Minimum(), 24*time.Hour)
		d, err := f.Run()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b.text, "| %d | %s | %s | %.2f | %d | %d | %s | %.2f | %.1f | %d |\n", n, minutes(f.Minimum()), after(r, 100), r.RegistersEach(),
			r.Peak, r.Failed, after(d, 100), d.RegistersEach(), took.Seconds(), memory.HeapSys/1e6)
	}
	return nil
}

func (b *bench) head(first string) {
	fmt.Fprintf(&b.text, "| %s | 50 %% after | 90 %% | 99 %% | 100 %% | requests per gateway (most) | peak per second | 429 | 5xx |\n| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n", first)
}

func (b *bench) row(name string, r *fleet.Result) {
	fmt.Fprintf(&b.text, "| %s | %s | %s | %s | %s | %.2f (%d) | %d | %d | %d |\n", name, after(r, 50), after(r, 90), after(r, 99), after(r, 100),
		r.RegistersEach(), r.MostRegisters, r.Peak, r.Throttled, r.Failed)
}

// goal checks a goal; 0 means no limit for the time or the requests. No gateway may get a 5xx.
func (b *bench) goal(name string, r *fleet.Result, parts, requests float64) {
	last, ever := r.Until(100)
	switch limit := time.Duration(parts * float64(r.Fleet.Minimum())); {
	case !ever, parts > 0 && last > limit:
		b.missed = append(b.missed, fmt.Sprintf("%s: all are provisioned after %s, the goal is %s", name, after(r, 100), minutes(limit)))
	case requests > 0 && r.RegistersEach() >= requests:
		b.missed = append(b.missed, fmt.Sprintf("%s: %.2f requests per gateway, the goal is less than %g", name, r.RegistersEach(), requests))
	case r.Failed > 0:
		b.missed = append(b.missed, fmt.Sprintf("%s: %d requests got a 5xx response", name, r.Failed))
	}
}

func after(r *fleet.Result, percent float64) string {
	d, ever := r.Until(percent)
	if !ever {
		return "never"
	}
	return minutes(d)
}

// minutes formats a time for comparison: 12:05 is minutes and seconds; 1:12:05 includes hours.
func minutes(d time.Duration) string {
	s := int(d.Round(time.Second) / time.Second)
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
