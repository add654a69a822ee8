package daemon

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/transport"
)

func TestAnIDScopeThatIsNotLikeAzuresIsDoubtful(t *testing.T) {
	for _, test := range []struct {
		scope, host string
		doubtful    bool
	}{
		{"0ne00000000", global, false},
		{"0ne00000000", "localhost", false},
		{"0NE00000000", global, true},
		{"One00000000", global, true},
		{"one00000000", global, true},
		{"my-dps-service", global, true},
		{"my-dps-service", "localhost", true},
		{"0cn00000000", "global.azure-devices-provisioning.cn", false},
		{"0ne00000000", "global.azure-devices-provisioning.cn", true},
		{"0cn00000000", global, true},
	} {
		s := Settings{IDScope: test.scope, Dialer: &transport.Dialer{Host: test.host}}
		what, advice := s.Doubt()
		if (what != "") != test.doubtful || (advice != "") != test.doubtful || what != "" && !strings.Contains(what, test.scope) {
			t.Errorf("%s at %s: %q, %q", test.scope, test.host, what, advice)
		}
	}
	long := Settings{IDScope: strings.Repeat("k", 44), Dialer: &transport.Dialer{}}
	if what, _ := long.Doubt(); strings.Contains(what, long.IDScope) {
		t.Errorf("what may be a key is repeated: %q", what)
	}
}

func TestADoubtfulIDScopeIsLoggedAtTheStart(t *testing.T) {
	for scope, want := range map[string]int{"0ne00000000": 0, "One00000000": 1} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			g.Settings.IDScope = scope
			g.run()
			g.until(event.Connected, 1)
			if got := g.log.FilterMessage(event.ConfigurationDoubtful).Len(); got != want {
				t.Errorf("%s: logged %d times, expected %d", scope, got, want)
			}
			_ = g.end()
		})
	}
}
