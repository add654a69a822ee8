package pace

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/fault"
)

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }

func TestAFailedRenewalIsRepeatedAfterAnHourOrWhenTheCertificateExpires(t *testing.T) {
	for _, tt := range []struct{ left, want time.Duration }{
		{24 * time.Hour, time.Hour}, {time.Hour, time.Hour}, {59 * time.Minute, 59 * time.Minute}, {0, 0}, {-time.Minute, 0},
	} {
		if got := Renewal(tt.left); got != tt.want {
			t.Errorf("with %s left, the delay is %s, want %s", tt.left, got, tt.want)
		}
	}
}

func TestARegistrationWithoutARefusedRequestFollowsSoonButNotBeforeRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		retry Retry
		after time.Duration
		want  time.Duration
	}{
		{Retry{}, 0, time.Second}, {Retry{Initial: 3 * time.Second}, 0, 3 * time.Second},
		{Retry{}, time.Minute, time.Minute}, {Retry{Initial: 2 * time.Minute}, time.Minute, 2 * time.Minute},
	} {
		if got := tt.retry.WithoutRequest(fault.Fault{RetryAfter: tt.after}); got != tt.want {
			t.Errorf("%+v after Retry-After %s: %s, want %s", tt.retry, tt.after, got, tt.want)
		}
	}
}

func TestAnUnansweredRequestWaitsLikeARefusalAndLongerThanTheRegistration(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var h History
	first := Retry{RefusedInitial: 40 * time.Second}.Unanswered(time.Second, &h, random)
	if first < 30*time.Second || first > 50*time.Second {
		t.Errorf("the first delay is %s, want 40 s ± 25 %%", first)
	}
	if second := (Retry{RefusedInitial: 40 * time.Second}).Unanswered(time.Second, &h, random); second < 60*time.Second || second > 100*time.Second {
		t.Errorf("the second delay is %s, want 80 s ± 25 %%", second)
	}
	if got := (Retry{}).Unanswered(time.Hour, &History{}, random); got != time.Hour+time.Second {
		t.Errorf("with the registration in an hour: %s", got)
	}
}

func TestDelays(t *testing.T) {
	after := func(c fault.Class, stage fault.Stage, retryAfter time.Duration) fault.Fault {
		return fault.Fault{Code: "x", Class: c, Stage: stage, RetryAfter: retryAfter}
	}
	for _, tt := range []struct {
		name       string
		fault      fault.Fault
		more       bool
		before     History
		lane       Lane
		least, max time.Duration
	}{
		{"a first transient fault waits half a second to a second", after(fault.Transient, "", 0), false, History{}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"the fourth waits up to eight seconds", after(fault.Transient, "", 0), false, History{transient: 3}, LaneTransient, 4 * time.Second, 8 * time.Second},
		{"a thousandth waits no longer than max", after(fault.Transient, "", 0), false, History{transient: 999}, LaneTransient, 150 * time.Second, 5 * time.Minute},
		{"a Retry-After on a 5xx is a floor, jitter only adds", after(fault.Transient, "", 30*time.Second), false, History{}, LaneTransient, 30 * time.Second, 31 * time.Second},
		{"a Retry-After longer than max is respected", after(fault.Transient, "", time.Hour), false, History{transient: 99}, LaneTransient, time.Hour, time.Hour + 5*time.Minute},
		{"at first, a failed connection waits twenty seconds at most", after(fault.Transient, fault.StageTCP, 0), false, History{transient: 99, transientFor: 2*time.Minute - 1}, LaneTransient, 10 * time.Second, 20 * time.Second},
		{"at first, a name that is not found waits twenty seconds at most", after(fault.Transient, fault.StageName, 0), false, History{transient: 99}, LaneTransient, 10 * time.Second, 20 * time.Second},
		{"at first, an unreachable proxy waits twenty seconds at most", fault.Fault{Code: fault.ProxyUnreachable, Class: fault.Transient, Stage: fault.StageProxy}, false, History{transient: 99}, LaneTransient, 10 * time.Second, 20 * time.Second},
		{"an established connection does not count as a failed one", after(fault.Transient, fault.StageTLS, 0), false, History{transient: 99}, LaneTransient, 150 * time.Second, 5 * time.Minute},
		{"after two minutes a failed connection waits up to max", after(fault.Transient, fault.StageTCP, 0), false, History{transient: 99, transientFor: 2 * time.Minute}, LaneTransient, 150 * time.Second, 5 * time.Minute},
		{"a first failed connection waits half a second to a second", after(fault.Transient, fault.StageTCP, 0), false, History{}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"interception is in the transient class", after(fault.Interception, "", 0), false, History{}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"a full disk is in the transient class", after(fault.Storage, "", 0), false, History{}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"without a route, the limit is ten seconds", after(fault.Offline, "", 0), false, History{offline: 99}, LaneOffline, 5 * time.Second, 10 * time.Second},
		{"hours without a route do not slow the transient class", after(fault.Transient, "", 0), false, History{offline: 99}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"a first 429 waits for the Retry-After and up to half a minute more", after(fault.Throttling, "", 600*time.Second), false, History{}, LaneThrottled, 600 * time.Second, 630 * time.Second},
		{"the tenth up to five minutes more", after(fault.Throttling, "", 600*time.Second), false, History{throttled: 9}, LaneThrottled, 600 * time.Second, 900 * time.Second},
		{"a thousandth an hour", after(fault.Throttling, "", 600*time.Second), false, History{throttled: 999}, LaneThrottled, 600 * time.Second, 600*time.Second + time.Hour},
		{"a 429 without Retry-After also waits", after(fault.Throttling, "", 0), false, History{}, LaneThrottled, time.Second, 31 * time.Second},
		{"connection failures do not slow the first 429", after(fault.Throttling, "", 0), false, History{transient: 99}, LaneThrottled, time.Second, 31 * time.Second},
		{"429s do not slow the first connection failure", after(fault.Transient, "", 0), false, History{throttled: 99}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"after a refused credential, the next is tried immediately", after(fault.Credential, "", 0), true, History{}, LaneNext, 0, 0},
		{"the next credential is not tried before the Retry-After", after(fault.Credential, "", 7*time.Second), true, History{}, LaneNext, 7 * time.Second, 7 * time.Second},
		{"after the last credential was refused, the wait is half a minute", after(fault.Credential, "", 0), false, History{}, LaneRefused, 22500 * time.Millisecond, 37500 * time.Millisecond},
		{"in the first ten minutes, the wait is 90 seconds at most", after(fault.Credential, "", 0), false, History{refused: 99, refusedFor: 10*time.Minute - 1}, LaneRefused, 67500 * time.Millisecond, 112500 * time.Millisecond},
		{"after ten minutes, the wait is up to an hour", after(fault.Credential, "", 0), false, History{refused: 99, refusedFor: 10 * time.Minute}, LaneRefused, 45 * time.Minute, 75 * time.Minute},
		{"after an unreadable key, the next is tried immediately", after(fault.Input, fault.StageCredential, 0), true, History{}, LaneNext, 0, 0},
		{"after a missing serial number, no other credential is tried", after(fault.Input, fault.StageIdentity, 0), true, History{}, LaneRefused, 22500 * time.Millisecond, 37500 * time.Millisecond},
		{"without an enrollment, no other credential is tried", after(fault.Enrollment, "", 0), true, History{}, LaneRefused, 22500 * time.Millisecond, 37500 * time.Millisecond},
		{"a wrong clock is in the refused class", after(fault.Clock, "", 0), true, History{}, LaneRefused, 22500 * time.Millisecond, 37500 * time.Millisecond},
		{"dpsd waits for a TPM for half a minute", fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCredential}, true, History{hardwareFor: 30*time.Second - 1}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"if the TPM is still not available, the next credential is tried immediately", fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCredential}, true, History{hardwareFor: 30 * time.Second}, LaneNext, 0, 0},
		{"the next credential is also tried if the signer fails during a handshake", fault.Fault{Code: fault.SignerFailed, Class: fault.Transient, Stage: fault.StageTLS}, true, History{hardwareFor: 30 * time.Second}, LaneNext, 0, 0},
		{"without another credential, dpsd continues to wait for the TPM", fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCredential}, false, History{transient: 3, hardwareFor: 30 * time.Second}, LaneTransient, 4 * time.Second, 8 * time.Second},
		{"dpsd does not use another credential because of the TPM key of an issued certificate", fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCertificate}, true, History{hardwareFor: 30 * time.Second}, LaneTransient, 500 * time.Millisecond, time.Second},
		{"dpsd does not use another credential because of another transient fault", after(fault.Transient, fault.StageTLS, 0), true, History{transient: 3, hardwareFor: time.Hour}, LaneTransient, 4 * time.Second, 8 * time.Second},
		{"the Retry-After applies to the refused class too", after(fault.Enrollment, "", 24*time.Hour), false, History{}, LaneRefused, 24 * time.Hour, 24 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shortest, longest := tt.max, tt.least
			for seed := range uint64(200) {
				h := tt.before
				wait, lane := Retry{}.After(tt.fault, tt.more, &h, seeded(seed))
				if lane != tt.lane || wait < tt.least || wait > tt.max {
					t.Fatalf("seed %d: %s in class %s, want %s to %s in %s", seed, wait, lane, tt.least, tt.max, tt.lane)
				}
				shortest, longest = min(shortest, wait), max(longest, wait)
			}
			if quarter := (tt.max - tt.least) / 4; shortest > tt.least+quarter || longest < tt.max-quarter {
				t.Errorf("200 gateways wait %s to %s, want nearly %s to %s", shortest, longest, tt.least, tt.max)
			}
		})
	}
}

func TestTheNextCredentialIsTriedAfterHalfAMinuteWithoutTheTPM(t *testing.T) {
	for seed := range uint64(200) {
		var h History
		random, waited := seeded(seed), time.Duration(0)
		for {
			// A failed connection does not count.
			Retry{}.After(fault.Fault{Code: "x", Class: fault.Transient, Stage: fault.StageTCP}, true, &h, random)
			wait, lane := Retry{}.After(fault.Fault{Code: fault.TPMUnavailable, Class: fault.Transient, Stage: fault.StageCredential}, true, &h, random)
			if waited += wait; lane == LaneNext {
				break
			}
			if waited > 5*time.Minute {
				t.Fatal("the next credential is never tried")
			}
		}
		if waited < 30*time.Second {
			t.Errorf("the next credential is tried after %s", waited)
		}
	}
}

func TestDelaysFollowTheConfiguration(t *testing.T) {
	r := Retry{Initial: 10 * time.Second, Max: 15 * time.Second, OfflineMax: 12 * time.Second, RefusedInitial: time.Minute, RefusedMax: time.Minute}
	for _, tt := range []struct {
		class      fault.Class
		least, max time.Duration
	}{
		{fault.Transient, 7500 * time.Millisecond, 15 * time.Second},
		{fault.Offline, 6 * time.Second, 12 * time.Second},
		{fault.Enrollment, 45 * time.Second, 75 * time.Second},
	} {
		h := History{offline: 50, transient: 50, refused: 50}
		if wait, _ := r.After(fault.Fault{Class: tt.class}, false, &h, seeded(1)); wait < tt.least || wait > tt.max {
			t.Errorf("%s: %s, want %s to %s", tt.class, wait, tt.least, tt.max)
		}
	}
}

// The early limits never make a wait shorter than the configured initial delay. Delays that
// they reduce do not count: afterwards, doubling continues from there.
func TestDoublingContinuesAfterTheEarlyLimits(t *testing.T) {
	connect := fault.Fault{Class: fault.Transient, Stage: fault.StageTCP}
	refusal := fault.Fault{Class: fault.Enrollment}
	for _, tt := range []struct {
		name  string
		retry Retry
		fault fault.Fault
		early time.Duration // the period in which the delays are limited
		limit time.Duration // the limit of each delay in that period
		next  time.Duration // the next delay after that period, without jitter
	}{
		{"after failed connections", Retry{}, connect, 2 * time.Minute, 20 * time.Second, 32 * time.Second},
		{"after refusals", Retry{}, refusal, 10 * time.Minute, 90 * time.Second, 2 * time.Minute},
		{"with a long initial", Retry{Initial: time.Minute}, connect, 2 * time.Minute, time.Minute, time.Minute},
		{"with a long refused_initial", Retry{RefusedInitial: 5 * time.Minute}, refusal, 10 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		{"with a short max", Retry{Max: 5 * time.Second}, connect, 2 * time.Minute, 5 * time.Second, 5 * time.Second},
		{"with a short refused_max", Retry{RefusedMax: time.Minute}, refusal, 10 * time.Minute, time.Minute, time.Minute},
	} {
		for seed := range uint64(20) {
			var h History
			random, waited := seeded(seed), time.Duration(0)
			for waited < tt.early {
				wait, _ := tt.retry.After(tt.fault, false, &h, random)
				if wait > tt.limit*5/4 {
					t.Fatalf("%s: a wait of %s within the first %s", tt.name, wait, tt.early)
				}
				waited += wait
			}
			if wait, _ := tt.retry.After(tt.fault, false, &h, random); wait < tt.next/2 || wait > tt.next*5/4 {
				t.Errorf("%s: after %s a wait of %s, want about %s", tt.name, waited, wait, tt.next)
			}
		}
	}
}

// Whatever the faults, no wait is shorter than the Retry-After, and the number of attempts
// in a day of faults is limited.
func TestNoWaitIsShorterThanRetryAfterAndADayHasFewAttempts(t *testing.T) {
	classes := []fault.Class{fault.Offline, fault.Transient, fault.Throttling, fault.Credential, fault.Input, fault.Enrollment, fault.Interception, fault.Clock, fault.Storage}
	for seed := range uint64(50) {
		random, h := seeded(seed), History{}
		day, attempts, sending, tried := time.Duration(0), 0, 0, 0
		for day < 24*time.Hour {
			f := fault.Fault{Class: classes[random.IntN(len(classes))], Stage: fault.StageCredential}
			if random.IntN(4) == 0 {
				f.RetryAfter = time.Duration(random.IntN(86400)) * time.Second
			}
			more := tried < 1
			wait, lane := Retry{}.After(f, more, &h, random)
			if wait < f.RetryAfter {
				t.Fatalf("seed %d: waits %s after a Retry-After of %s", seed, wait, f.RetryAfter)
			}
			if lane == LaneNext {
				tried++
			} else {
				tried = 0
			}
			if lane != LaneOffline {
				sending++
			}
			attempts++
			day += wait
		}
		if sending > 600 {
			t.Errorf("seed %d: %d attempts that send in a day", seed, sending)
		}
	}
}

// Gateways that are throttled together must not return together: the jitter that is added
// to the Retry-After is distributed evenly from zero to the whole spread.
func TestJitterAfter429IsEven(t *testing.T) {
	const gateways, before = 4000, 4
	spread := (before + 1) * 30 * time.Second
	var quarters [4]int
	for seed := range uint64(gateways) {
		h := History{throttled: before}
		wait, _ := Retry{}.After(fault.Fault{Class: fault.Throttling, RetryAfter: time.Hour}, false, &h, seeded(seed))
		quarters[min(3, int(4*(wait-time.Hour)/spread))]++
	}
	for n, got := range quarters {
		if got < gateways/4-150 || got > gateways/4+150 { // five standard deviations
			t.Errorf("quarter %d of the spread has %d of %d gateways", n+1, got, gateways)
		}
	}
}

func TestThePolicies(t *testing.T) {
	for seed := range uint64(200) {
		if d := Boot(time.Hour, seeded(seed)); d < 0 || d > time.Hour {
			t.Errorf("a boot delay of up to an hour is %s", d)
		}
		if d := Regular(24*time.Hour, seeded(seed)); d > 24*time.Hour || d < 24*time.Hour-144*time.Minute {
			t.Errorf("an interval of a day is %s", d)
		}
	}
	var halves [2]int
	for seed := range uint64(1000) {
		d := NetworkChanged(seeded(seed))
		if d < 0 || d > 2*time.Second {
			t.Errorf("the delay after a change of the network is %s", d)
		}
		halves[min(1, d/time.Second)]++
	}
	if halves[0] < 400 || halves[1] < 400 {
		t.Errorf("of 1000 gateways that see a change, %v register in the first and in the second second", halves)
	}
}

func TestADelayReachesFromZeroToItsLimit(t *testing.T) {
	var seen [2]bool
	for seed := range uint64(200) {
		seen[Boot(1, seeded(seed))] = true
	}
	if !seen[0] || !seen[1] {
		t.Errorf("the delays are %v, want 0 and 1", seen)
	}
}

func TestADelayOfZeroDoesNotUseTheRandomSource(t *testing.T) {
	if d := Boot(0, nil); d != 0 {
		t.Errorf("without boot_delay_max the boot delay is %s", d)
	}
}

func TestCountsDoNotWrapAround(t *testing.T) {
	const years = 10_000_000
	h := History{transient: years, throttled: years}
	for range 2 {
		if wait, _ := (Retry{}).After(fault.Fault{Class: fault.Transient}, false, &h, seeded(1)); wait < 150*time.Second {
			t.Errorf("after years of faults the wait is %s", wait)
		}
		if wait, _ := (Retry{}).After(fault.Fault{Class: fault.Throttling}, false, &h, seeded(1)); wait < time.Second || wait > 61*time.Minute {
			t.Errorf("after years of 429s the wait is %s", wait)
		}
	}
	longest := time.Duration(0)
	for seed := range uint64(200) {
		wait, _ := (Retry{}).After(fault.Fault{Class: fault.Throttling}, false, &h, seeded(seed))
		longest = max(longest, wait)
	}
	if longest < 45*time.Minute {
		t.Errorf("after years of 429s no gateway waits longer than %s", longest)
	}
	h = History{transientFor: 1<<63 - 1, refusedFor: 1<<63 - 1, transient: 99, refused: 99}
	for range 2 {
		if wait, _ := (Retry{}).After(fault.Fault{Class: fault.Transient, Stage: fault.StageTCP}, false, &h, seeded(1)); wait < 150*time.Second {
			t.Errorf("after years without a connection the wait is %s", wait)
		}
		if wait, _ := (Retry{}).After(fault.Fault{Class: fault.Enrollment}, false, &h, seeded(1)); wait < 45*time.Minute {
			t.Errorf("after years of refusals the wait is %s", wait)
		}
	}
}
