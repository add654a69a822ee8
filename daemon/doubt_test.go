package daemon

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dpsd-project/dpsd/consumer"
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
		doubts := s.Doubts()
		if (len(doubts) == 1) != test.doubtful || test.doubtful && (doubts[0].Advice == "" || !strings.Contains(doubts[0].What, test.scope)) {
			t.Errorf("%s at %s: %q", test.scope, test.host, doubts)
		}
	}
	long := Settings{IDScope: strings.Repeat("k", 44), Dialer: &transport.Dialer{}}
	if doubts := long.Doubts(); len(doubts) != 1 || strings.Contains(doubts[0].What, long.IDScope) {
		t.Errorf("what may be a key is repeated: %q", doubts)
	}
}

func TestTwoServicesWithTheIdentityOfTheDeviceAreDoubtful(t *testing.T) {
	module := func(name string) consumer.Consumer {
		return consumer.Consumer{Name: name, Scope: consumer.Scope{Module: name}}
	}
	for _, test := range []struct {
		all  []consumer.Consumer
		want string
	}{
		{nil, ""},
		{[]consumer.Consumer{{Name: "a"}, module("b"), module("c")}, ""},
		{[]consumer.Consumer{{Name: "a"}, module("b"), {Name: "c", Scope: consumer.Scope{Events: true}}}, "2 [[consumer]] tables use the identity of the device: a, c; "},
	} {
		s := Settings{IDScope: "0ne00000000", Dialer: &transport.Dialer{}, Consumers: test.all}
		doubts := s.Doubts()
		if (len(doubts) == 1) != (test.want != "") || test.want != "" && !strings.HasPrefix(doubts[0].What, test.want) {
			t.Errorf("%v: %q", test.all, doubts)
		}
	}
}

// Azure Government and China refused 2021-06-01 and 2019-04-15 long after the public cloud had
// started to support them.
func TestANewAPIVersionIsDoubtfulInASovereignCloud(t *testing.T) {
	for _, test := range []struct {
		version, host string
		doubtful      bool
	}{
		{"", "global.azure-devices-provisioning.us", false},
		{"2019-03-31", "global.azure-devices-provisioning.us", false},
		{"2021-06-01", "global.azure-devices-provisioning.us", true},
		{"2021-06-01", "Global.Azure-Devices-Provisioning.US", true},
		{"2026-11-01", "global.azure-devices-provisioning.cn", true},
		{"2021-06-01", global, false},
		{"2021-06-01", "localhost", false},
	} {
		scope := "0ne00000000"
		if strings.HasSuffix(test.host, ".cn") {
			scope = "0cn00000000"
		}
		s := Settings{IDScope: scope, APIVersion: test.version, Dialer: &transport.Dialer{Host: test.host}}
		doubts := s.Doubts()
		if (len(doubts) == 1) != test.doubtful || test.doubtful && (!strings.Contains(doubts[0].What, test.version) || !strings.Contains(doubts[0].Advice, "2019-03-31")) {
			t.Errorf("%s at %s: %q", test.version, test.host, doubts)
		}
	}
}

func TestTheAdviceForASovereignCloudNamesTheTableThatRequiresANewAPIVersion(t *testing.T) {
	s := Settings{IDScope: "0ne00000000", APIVersion: "2026-11-01", Dialer: &transport.Dialer{Host: "global.azure-devices-provisioning.us"}}
	for certificate, want := range map[*CertificateSettings]string{
		nil: "Remove api_version, so that dpsd uses 2019-03-31, ",
		{}:  "Remove api_version and the table [certificate], which requires a newer version, so that dpsd uses 2019-03-31, ",
	} {
		s.Certificate = certificate
		if doubts := s.Doubts(); len(doubts) != 1 || !strings.HasPrefix(doubts[0].Advice, want) {
			t.Errorf("%v: %q", certificate, doubts)
		}
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
