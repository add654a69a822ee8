package transport_test

import (
	"errors"
	"net/url"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

func TestRoute(t *testing.T) {
	through := func(address string) func(*url.URL) (*url.URL, error) {
		return func(target *url.URL) (*url.URL, error) {
			if target.Host == "dps.test:443" {
				return nil, nil
			}
			return url.Parse(address)
		}
	}
	for _, test := range []struct {
		says     string
		proxy    func(*url.URL) (*url.URL, error)
		protocol transport.Protocol
		want     transport.Route
		stage    transport.Stage // stage of the error
	}{
		{"straight", nil, transport.MQTT, transport.Route{Address: "dps.test:8883"}, ""},
		{"the proxy is returned without user name and password", through("http://user:secret@proxy.test"), transport.MQTT, transport.Route{Address: "dps.test:8883", Proxy: "proxy.test:80"}, ""},
		{"each protocol has its own route", through("http://proxy.test"), transport.WebSocket, transport.Route{Address: "dps.test:443"}, ""},
		{"a proxy of an unknown kind", through("socks5://proxy.test"), transport.MQTT, transport.Route{}, transport.StageProxy},
		{"a proxy that cannot be determined", func(*url.URL) (*url.URL, error) { return nil, transport.ErrProxyAddress }, transport.MQTT, transport.Route{}, transport.StageProxy},
		{"an unknown protocol", nil, "carrier pigeon", transport.Route{}, transport.StageTCP},
	} {
		t.Run(test.says, func(t *testing.T) {
			got, err := (&transport.Dialer{Host: "dps.test", Proxy: test.proxy}).Route(test.protocol)
			var e *transport.Error
			if errors.As(err, &e) != (test.stage != "") || e != nil && e.Stage != test.stage || got != test.want {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}
