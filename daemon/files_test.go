package daemon

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/simulator"
)

// The second credential ends each round at this gateway; the first was refused
// by the service all the same.
func TestAMissingSecondKeyDoesNotMakeTrafficOfAFileThatChangesAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"})
		missing := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "missing.key")}}
		g.Settings.Credentials = append(g.Settings.Credentials, missing)
		changed := make(chan struct{})
		g.Watch = func(context.Context, ...string) (<-chan struct{}, error) { return changed, nil }
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

func TestAKeyThatAppearsWhileItsAbsenceIsToldIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		key := attest.Reference{Credential: "device-key"}
		first, second := filepath.Join(g.dir, "first"), filepath.Join(g.dir, "second")
		g.Secrets = attest.Secrets{Directories: []string{first, second}}
		g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: key}}
		var watched [][]string
		g.Watch = func(_ context.Context, paths ...string) (<-chan struct{}, error) {
			watched = append(watched, paths)
			return nil, nil
		}
		g.run()
		g.until("fault", 1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		// One watch of every place: between two there is a moment that nobody sees.
		want := []string{filepath.Join(first, "device-key"), filepath.Join(second, "device-key")}
		if len(watched) != 1 || !slices.Equal(watched[0], want) {
			t.Errorf("watched %q, want once %q", watched, want)
		}
	})
}
