package daemon

import (
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/dpsd-project/dpsd/fault"
)

func TestAPayloadFileThatIsAFIFOIsAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json")
		if err := syscall.Mkfifo(g.Settings.PayloadFile, 0o600); err != nil {
			t.Fatal(err)
		}
		g.run()
		g.until("fault", 1) // the attempt does not wait for a writer
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.InputInvalid)
		if g.dials != 0 {
			t.Errorf("%d connections for a payload that cannot be read", g.dials)
		}
	})
}
