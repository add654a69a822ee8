package daemon

import (
	"context"
	"path/filepath"
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
