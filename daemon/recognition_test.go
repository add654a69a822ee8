package daemon

import (
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
)

// slow gives the gateway an identity that takes a while to determine, as with a disk that is slow after
// a start.
func (g *gateway) slow(while time.Duration) {
	g.Settings.RegistrationID = attest.RegistrationID{Template: "%H"}
	g.Host.Hostname = func() (string, error) {
		time.Sleep(while)
		return device, nil
	}
}

func TestAServiceThatConnectsDuringAStartGetsItsTokenAfterTheComparison(t *testing.T) {
	for _, policy := range []Policy{"", PolicyIfNeeded} {
		t.Run("on_boot = "+string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := restarted(t)
				pipe := g.serves("telemetry")["telemetry"]
				g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
				g.Settings.OnBoot, g.Settings.BootDelayMax = policy, time.Hour
				g.slow(4 * time.Second)
				g.run()
				if status, answer := pipe.requested(t, http.MethodPost, "/v1/token", ""); status != http.StatusOK {
					t.Errorf("%d %v", status, answer)
				}
				if waited := time.Since(g.start); waited != 4*time.Second {
					t.Errorf("the answer came after %s", waited)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAServiceIsAnsweredAlthoughTheComparisonHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		g.Settings.BootDelayMax = time.Hour
		g.slow(time.Minute)
		g.run()
		status, answer := pipe.requested(t, http.MethodPost, "/v1/token", "")
		if status != http.StatusServiceUnavailable || answer["code"] != string(consumer.OtherConfiguration) {
			t.Errorf("%d %v", status, answer)
		}
		if waited := time.Since(g.start); waited != overdue {
			t.Errorf("the answer came after %s", waited)
		}
		time.Sleep(time.Minute)
		if status, answer := pipe.requested(t, http.MethodPost, "/v1/token", ""); status != http.StatusOK {
			t.Errorf("after the comparison: %d %v", status, answer)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestDuringAReloadAServiceSeesNoChangeOfAnUnchangedIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		hangup, file := g.reloads()
		s := g.supervised()
		g.until("assigned", 1)
		time.Sleep(time.Hour)
		_, changed := s.consumers.board.Watch()
		g.slow(time.Second)
		same := g.Settings
		same.Interval = time.Hour
		file.contains(&same)
		hangup <- os.Interrupt
		time.Sleep(2 * time.Second)
		select {
		case <-changed:
			t.Errorf("the board has %+v", s.consumers.board.State())
		default:
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
