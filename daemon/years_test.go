package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

const day = 24 * time.Hour

// span is a part of a gateway's life.
type span struct{ from, until time.Time }

func (s span) contains(t time.Time) bool { return !t.Before(s.from) && t.Before(s.until) }

// A gateway runs for five years with short-lived certificates. It is restarted at random, its
// clock is wrong after every tenth start, DPS is unavailable for five months altogether, and its
// certificates are revoked twice: the first time, nobody notices; the second time, a program that
// the hub refuses runs "dpsd certificate renew". The certificate is always valid, or is replaced
// soon after the cause has ended.
func TestForFiveYearsTheCertificateIsValidOrRestoredAutomatically(t *testing.T) {
	long(t)
	for _, life := range []time.Duration{7 * day, 90 * day} {
		t.Run(life.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				y := newYears(t, life)
				y.live()
				y.report()
			})
		})
	}
}

// years is the life of a gateway.
type years struct {
	*certified
	random *rand.Rand
	life   time.Duration
	end    time.Time

	outages     []span
	revocations []time.Time
	wrong       span // the clock is wrong

	boots, issued int
	valid         map[string]bool // certificates that were issued since the last revocation, by serial number
	invalid       time.Time       // since when the published certificate is not valid; zero: it is
	excused       time.Time       // until when there was a reason for it
	gaps          []string        // times without a valid certificate
	running       *supervisor
	loaded        *x509.Certificate
	target        string
	worst         time.Duration // from the end of the last reason to a valid certificate
}

func newYears(t *testing.T, life time.Duration) *years {
	y := &years{random: seeded(uint64(life)), life: life, valid: map[string]bool{}}
	y.certified = newCertifiedAt(t, simulator.Options{
		Seed: 1, DiscardLog: true, Scenario: &simulator.Scenario{Settings: simulator.Settings{CertificateLife: life}},
		OnIssue: func(i simulator.Issued) {
			y.issued++
			y.valid[i.Certificate.SerialNumber.Text(16)] = true
		},
	})
	y.Settings.Retry.Max = 30 * time.Minute // fewer attempts in a month without DPS
	y.end = y.start.Add(5 * 365 * day)
	for range 5 {
		from := y.start.Add(time.Duration(y.random.Int64N(int64(5*365*day - 40*day))))
		y.outages = append(y.outages, span{from, from.Add(30 * day)})
	}
	for range 2 {
		y.revocations = append(y.revocations, y.start.Add(time.Duration(y.random.Int64N(int64(5*365*day-100*day)))+day))
	}
	slices.SortFunc(y.revocations, time.Time.Compare)
	dial := y.Settings.Dialer.DialContext
	y.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if y.unavailable(time.Now()) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		return dial(ctx, network, address)
	}
	return y
}

func (y *years) unavailable(now time.Time) bool {
	return slices.ContainsFunc(y.outages, func(o span) bool { return o.contains(now) })
}

// boot starts the daemon. After every tenth start, its clock is wrong for two days.
func (y *years) boot() {
	now := time.Now()
	offset := time.Duration(0)
	if y.wrong.until.After(y.wrong.from) {
		y.excused = later(y.excused, now) // its clock was wrong until now
	}
	y.wrong = span{}
	if y.boots++; y.boots%10 == 0 {
		offset = []time.Duration{-56 * 365 * day, 73 * 365 * day, 40 * day, -40 * day}[y.boots/10%4]
		y.wrong = span{now, now.Add(2 * day)}
	}
	clock := func() time.Time { return time.Now().Add(offset) }
	y.Now, y.Settings.Dialer.Now = clock, clock
	y.log.TakeAll()
	y.running = y.supervisedAt(clock())
}

func (y *years) shutDown() {
	y.stop()
	if err := <-y.done; err != nil {
		y.t.Error(err)
	}
	synctest.Wait() // until the lock is released
}

// live goes through the years in steps of an hour, or of a minute while the certificate is not
// valid without a reason.
func (y *years) live() {
	y.boot()
	next := y.start.Add(20 * day)
	for time.Now().Before(y.end) {
		step := time.Hour
		if now := time.Now(); !y.invalid.IsZero() && !y.unavailable(now) && !y.wrong.contains(now) {
			step = time.Minute
		}
		time.Sleep(step)
		synctest.Wait()
		now := time.Now()
		if len(y.revocations) > 0 && now.After(y.revocations[0]) {
			y.revocations = y.revocations[1:]
			if !y.sim.RevokeDevice(device) {
				y.t.Error("the device cannot be revoked")
			}
			clear(y.valid)
			y.excused = now.Add(y.life * 67 / 100) // the next renewal
			if len(y.revocations) == 0 {
				answers := make(chan answer, 1)
				y.running.requests <- request{answers, true}
				<-answers
				y.excused = now
			}
		}
		y.look(now)
		if now.After(next) || y.wrong.until.After(y.wrong.from) && now.After(y.wrong.until) {
			y.shutDown()
			y.boot()
			next = now.Add(time.Duration(y.random.Int64N(int64(35 * day)))).Add(5 * day)
		}
	}
	y.shutDown()
	y.sim.Close()
}

// look checks the published certificate.
func (y *years) look(now time.Time) {
	for _, reason := range append([]span{y.wrong, {y.start, y.start.Add(time.Hour)}}, y.outages...) {
		if ended := reason.until; reason.contains(now) {
			y.excused = later(y.excused, now)
		} else if !ended.After(now) {
			y.excused = later(y.excused, ended)
		}
	}
	target, err := os.Readlink(filepath.Join(y.Store.Directory, "certificate", "current"))
	if err == nil && target != y.target {
		y.loaded, err = y.pair()
		y.target = target
	}
	good := err == nil && y.loaded != nil && now.Before(y.loaded.NotAfter) && y.valid[y.loaded.SerialNumber.Text(16)]
	switch {
	case !good && y.invalid.IsZero():
		y.invalid = now
		if errors.Is(err, os.ErrNotExist) && now.Sub(y.start) < time.Hour {
			y.invalid = time.Time{}
		}
	case good && !y.invalid.IsZero():
		y.gaps = append(y.gaps, y.invalid.Format(time.DateOnly)+" for "+now.Sub(y.invalid).String())
		if over := now.Sub(later(y.excused, y.invalid)); over > y.worst {
			y.worst = over
		}
		y.invalid = time.Time{}
	}
	if !y.invalid.IsZero() && now.Sub(later(y.excused, y.invalid)) > 2*time.Hour {
		y.t.Fatalf("on %s the certificate has not been valid since %s, without a reason since %s: %v", now, y.invalid, y.excused, y.faults())
	}
}

func (y *years) report() {
	least := int(5*365*day/(y.life*67/100)) + 1
	y.t.Logf("certificates of %s: %d issued in five years; %d are the least if each is used for 67 %% of its lifetime", y.life, y.issued, least)
	y.t.Logf("%d starts; without a valid certificate: %v; restored at most %s after the cause had ended", y.boots, y.gaps, y.worst)
	if y.issued > least*3/2+200 {
		y.t.Errorf("%d certificates were issued", y.issued)
	}
}
