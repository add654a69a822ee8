package simulator_test

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestTrace(t *testing.T) {
	bubble(t, "a registration goes like the live trace: 202, 202 with a state, 200", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		p := c.register("1")
		if p.topic != "$dps/registrations/res/202/?$rid=1&retry-after=3" || p.flags != 0x02 || p.id != 2 {
			t.Errorf("first reply: %+v", p)
		}
		operation := p.parse(t).OperationID
		if len(p.payload) != 94 || p.payload != `{"operationId":"`+operation+`","status":"assigning"}` {
			t.Errorf("first body of %d bytes: %s", len(p.payload), p.payload)
		}
		c.puback(2)
		p = c.poll("2", operation)
		if p.topic != "$dps/registrations/res/202/?$rid=2&retry-after=3" || p.id != 2 {
			t.Errorf("second reply: %+v", p)
		}
		want := `{"operationId":"` + operation + `","status":"assigning","registrationState":{"registrationId":"sample-device-01","status":"assigning"}}`
		if len(p.payload) != 173 || p.payload != want {
			t.Errorf("second body of %d bytes: %s", len(p.payload), p.payload)
		}
		c.puback(2)
		p = c.poll("3", operation)
		if p.topic != "$dps/registrations/res/200/?$rid=3" || p.id != 2 {
			t.Errorf("third reply: %+v", p)
		}
		got := p.payload
		want = `{"operationId":"` + operation + `","status":"assigned","registrationState":{"registrationId":"sample-device-01","createdDateTimeUtc":"2000-01-01T00:00:00Z","assignedHub":"dpsd-sim.azure-devices.net","deviceId":"sample-device-01","status":"assigned","substatus":"initialAssignment","lastUpdatedDateTimeUtc":"2000-01-01T00:00:00Z","etag":"`
		if !strings.HasPrefix(got, want) {
			t.Errorf("third body:\n%s\nwant\n%s…", got, want)
		}
		c.puback(2)
		c.send(0xe0, 0)
		c.expectEnd("DISCONNECT ends the connection")
		if v := violations(s); v != "" {
			t.Error(v)
		}
	})
}
