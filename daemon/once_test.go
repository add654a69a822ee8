package daemon

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestOnceThatIsStoppedIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Silent: true})
		g.Once = true
		g.run()
		g.until("connected", 1)
		if err := g.end(); !errors.Is(err, ErrStopped) || IsRefusal(err) {
			t.Errorf("Run returned %v, want ErrStopped", err)
		}
	})
}
