package daemon

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/hub"
)

// A server first reads the assignment from the board, and then requests a signature.
func TestNoKeySignsForAnAssignmentThatHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		g.serves("a")
		s := g.supervised()
		g.within(time.Minute, "module-created", 1)
		synctest.Wait()
		now := s.consumers.board.State().Hub
		for _, id := range []string{"", "a"} {
			of := now
			of.ModuleID = id
			if mac, err := s.mac(t.Context(), of, []byte("statement")); err != nil || len(mac) != 32 {
				t.Errorf("%+v: %x, %v", of, mac, err)
			}
			for _, of := range []hub.Identity{{Host: "before", DeviceID: of.DeviceID, ModuleID: id}, {Host: of.Host, DeviceID: "before", ModuleID: id}, {ModuleID: id}} {
				if mac, err := s.mac(t.Context(), of, []byte("statement")); !errors.Is(err, errMoved) || mac != nil {
					t.Errorf("%+v: %x, %v", of, mac, err)
				}
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// A request may wait while another one uses a slow key.
func TestAKeyOfAnEarlierAssignmentSignsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		s := g.supervised()
		g.until("assigned", 1)
		synctest.Wait()
		before := s.consumers.board.State().Hub
		s.consumers.turn <- struct{}{}
		failed := make(chan error)
		go func() {
			_, err := s.mac(t.Context(), before, []byte("statement"))
			failed <- err
		}()
		synctest.Wait()
		moved := *s.consumers.signing.Load()
		moved.device.Host = "other.azure-devices.net"
		s.consumers.signing.Store(&moved)
		<-s.consumers.turn
		if err := <-failed; !errors.Is(err, errMoved) {
			t.Errorf("%v", err)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// If the loop did not sleep, virtual time would stand still.
func TestTheLoopSleepsWhenTheLastConsumerIsRemovedWhileTheClockIsImplausible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.Settings.OnBoot = PolicyIfNeeded
		without := g.Settings
		g.Settings = withModules(g.Settings, "a")
		hangup, file := g.reloads()
		g.BuiltAt = time.Now().Add(time.Hour)
		g.run()
		time.Sleep(time.Minute)
		file.contains(&without)
		hangup <- os.Interrupt
		time.Sleep(2 * time.Hour)
		g.wantAsked(t)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
