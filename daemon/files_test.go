package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
)

// At this gateway, the second credential ends each round. The service has refused the first
// one.
func TestAMissingSecondKeyCausesNoTrafficWithAContinuouslyChangingFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"})
		missing := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "missing.key")}}
		g.Settings.Credentials = append(g.Settings.Credentials, missing)
		changed := make(chan struct{})
		g.watching(changed)
		g.run()
		for range 600 {
			changed <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n := len(simulator.Summarize(g.sim.Log()).Registers); n < 2 || n > 7 {
			t.Errorf("%d registers in a minute of changes", n)
		}
	})
}

func TestAKeyThatAppearsWhileItsAbsenceIsLoggedIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		key := attest.Reference{Credential: "device-key"}
		first, second := filepath.Join(g.dir, "first"), filepath.Join(g.dir, "second")
		g.Secrets = attest.Secrets{Directories: []string{first, second}}
		g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: key}}
		g.watching(nil)
		g.run()
		g.until("fault", 1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		// There is one watch of every place. Between two watches, a change would be missed.
		want := []string{filepath.Join(first, "device-key"), filepath.Join(second, "device-key")}
		if len(g.inputs) != 1 || !slices.Equal(g.inputs[0], want) {
			t.Errorf("watched %q, want once %q", g.inputs, want)
		}
	})
}

// If someone removes the state file or the directory, dpsd reacts immediately and not at the
// next registration, which may be a day or a year away.
func TestRemovedStateIsRestoredImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.watching(nil)
		g.run()
		g.until("assigned", 1)
		before, dials := g.wantAssigned(), g.dials
		touch := func() {
			select {
			case g.touched <- struct{}{}:
			default:
				t.Fatal("the changes of the files are not watched")
			}
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		directory := g.Store.Directory

		touch()
		if n := g.log.FilterMessage("state-restored").Len(); n != 0 {
			t.Errorf("state-restored %d times though the files are as they were", n)
		}
		for _, name := range []string{filepath.Join(directory, "state.json"), filepath.Join(directory, "state.env")} {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
			touch()
			if err := readable(name); err != nil {
				t.Errorf("%s was removed: %v", name, err)
			}
		}
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
		touch()
		if after := g.wantAssigned(); after.Generation != before.Generation {
			t.Errorf("generation %d after the directory was removed, want %d", after.Generation, before.Generation)
		}
		if n := g.log.FilterMessage("state-restored").Len(); n != 3 {
			t.Errorf("state-restored %d times, want 3", n)
		}

		// A file blocks the directory, so nothing can be written there; the identity is
		// published elsewhere.
		if err := errors.Join(os.RemoveAll(directory), os.WriteFile(directory, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		touch()
		if codes := slices.Compact(g.faults()); !slices.Equal(codes, []string{string(fault.StateUnwritable)}) {
			t.Errorf("faults %q", codes)
		}
		if rec, err := store.Read(g.Store.RuntimeDirectory); err != nil || rec.Generation != before.Generation {
			t.Errorf("under the runtime directory: generation %d, %v", rec.Generation, err)
		}
		if last := g.lastNote(); !strings.HasPrefix(last, "STATUS=Next attempt to save at ") || !strings.Contains(last, "UTC. Last fault: state-unwritable: ") || !strings.HasSuffix(last, "as gw-1") {
			t.Errorf("the status: %q", last)
		}
		if err := os.Remove(directory); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		g.wantAssigned()
		if last := g.lastNote(); last != "STATUS=Assigned to dpsd-sim.azure-devices.net as gw-1" {
			t.Errorf("the status after the correction: %q", last)
		}
		if g.dials != dials {
			t.Errorf("the service was asked for it")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func readable(name string) error {
	_, err := os.ReadFile(name)
	return err
}
