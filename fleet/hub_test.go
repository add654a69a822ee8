package fleet

import (
	"slices"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/refusal"
)

// The rows of the table in docs/refusals.md, for 10,000 gateways whose services fail within 10 s.
func TestAFailingHubCausesNoStormOfRegistrations(t *testing.T) {
	const devices = 10_000
	for _, tt := range []struct {
		of          Case
		first, last time.Duration // of the registrations
		most        int           // registrations of one gateway
		all         int           // registrations of all gateways; 0: not checked
		checks      int           // of all gateways; 0: not checked
		recovered   int           // gateways whose service can use a hub at the end
		by          time.Duration // the latest time of the recovery, since the trouble began
	}{
		// The services of all gateways report for an hour, which allows one registration.
		{of: HubRefuses, first: 15 * time.Minute, last: 33 * time.Minute, most: 1, all: devices, checks: devices, recovered: devices, by: time.Hour + 2*time.Minute},
		// Two hours allow two: after 30 min, and an hour after that.
		{of: HubFails, first: 30 * time.Minute, last: 2*time.Hour + 15*time.Minute, most: 2, recovered: devices, by: 2*time.Hour + 2*time.Minute},
		{of: HubDeleted, first: 30 * time.Minute, last: 48 * time.Minute, most: 1, all: devices, checks: devices, recovered: devices, by: 50 * time.Minute},
		// One in an hour, for six hours.
		{of: HubLost, first: 30 * time.Minute, last: 6 * time.Hour, most: 6},
		{of: DeviceDisabled, first: 15 * time.Minute, last: 6 * time.Hour, most: 6, checks: 5},
	} {
		t.Run(string(tt.of), func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, NewCase(tt.of, devices))
			first, last := r.Span()
			if first < tt.first || last > tt.last {
				t.Errorf("the registrations take place %s to %s after the beginning, want %s to %s", first, last, tt.first, tt.last)
			}
			if r.MostRegisters > tt.most || tt.all > 0 && r.Registers != tt.all || tt.checks > 0 && r.HubChecks != tt.checks {
				t.Errorf("%d registrations, at most %d of one gateway, and %d checks", r.Registers, r.MostRegisters, r.HubChecks)
			}
			if n := r.Busiest(); n > r.Fleet.Service.Quota {
				t.Errorf("%d registrations in a minute are more than the quota", n)
			}
			if r.Throttled > 0 || r.Failed > 0 || r.Early > 0 {
				t.Errorf("%d requests are answered 429, %d 5xx, and %d are early", r.Throttled, r.Failed, r.Early)
			}
			if len(r.Recovered) != tt.recovered {
				t.Fatalf("the services of %d gateways can use a hub, want %d", len(r.Recovered), tt.recovered)
			}
			if tt.recovered > 0 {
				if at := slices.Max(r.Recovered) - r.Fleet.Hub.From; at > tt.by {
					t.Errorf("the last service can use a hub after %s, want %s", at, tt.by)
				}
			}
			if tt.of == DeviceDisabled && r.Registers != r.MostRegisters {
				t.Errorf("%d registrations, of which the gateway whose device is disabled makes %d", r.Registers, r.MostRegisters)
			}
		})
	}
}

func TestWithThePolicyReportAFleetNeverRegisters(t *testing.T) {
	for _, c := range Cases() {
		f := NewCase(c, 500)
		f.Hub.Policy = refusal.ReportOnly
		if r := rehearse(t, f); r.Registers > 0 || r.HubChecks > 0 {
			t.Errorf("%s: %d registrations, %d checks", c, r.Registers, r.HubChecks)
		}
	}
}

// With hub_check = "https", a check after the end of the refusals shows that the hub accepts the device.
func TestACheckOverHTTPSAvoidsARegistrationAfterTheEndOfTheRefusals(t *testing.T) {
	f := NewCase(HubRefuses, 2000)
	f.Hub.Until = f.Hub.From + 20*time.Minute
	without := rehearse(t, f)
	f.Hub.Check = true
	with := rehearse(t, f)
	if without.Registers != 2000 || with.Registers == 0 || with.Registers > 1200 || with.HubChecks != 2000 {
		t.Errorf("%d registrations without, and %d with; %d checks", without.Registers, with.Registers, with.HubChecks)
	}
}
