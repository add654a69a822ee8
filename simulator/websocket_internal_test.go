package simulator

import (
	"slices"
	"testing"

	"github.com/dpsd-project/dpsd/simulator/scenario"
)

func TestTheListenerImplementsEveryFormOfFrames(t *testing.T) {
	allowed := []string{"text", "split", "fragments", "ping"}
	for _, name := range scenario.Frames {
		if slices.Contains(allowed, name) == (brokenFrames[name] != nil) {
			t.Errorf("%q is allowed by RFC 6455 and broken, or neither", name)
		}
	}
	if len(scenario.Frames) != len(allowed)+len(brokenFrames) {
		t.Errorf("a scenario may name %d forms, and there are %d", len(scenario.Frames), len(allowed)+len(brokenFrames))
	}
}
