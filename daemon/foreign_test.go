package daemon

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// assignedWith returns the body of a reply with additional members in its registrationState.
func assignedWith(more string) *string {
	return text(`{"operationId":"5.1","status":"assigned","registrationState":{"registrationId":"` + device + `","status":"assigned",` +
		`"assignedHub":"hub.azure-devices.net"` + more + `}}`)
}

func TestAReplyOf1MiBIsPublishedAndALargerOneIsRefused(t *testing.T) {
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		for name, more := range map[string]struct {
			with func(n int) string
			size int
			code fault.Code // "" for an assignment
		}{
			"blanks":               {func(n int) string { return strings.Repeat(" ", n) }, 1 << 20, ""},
			"an unknown member":    {func(n int) string { return `,"padding":"` + strings.Repeat("x", n-13) + `"` }, 1 << 20, ""},
			"blanks up to 1.5 MiB": {func(n int) string { return strings.Repeat(" ", n) }, 3 << 19, fault.ProtocolViolation},
		} {
			t.Run(string(protocol)+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const id = `,"deviceId":"gw-7"`
					body := assignedWith(id + more.with(more.size-len(*assignedWith(id))))
					if len(*body) != more.size {
						t.Fatalf("the body has %d bytes", len(*body))
					}
					g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 200, Body: body})
					g.Settings.Dialer.Protocols = []transport.Protocol{protocol}
					g.run()
					if more.code == "" {
						g.until("assigned", 1)
						if rec, err := g.record(); rec.DeviceID != "gw-7" {
							t.Errorf("the device ID is %q, %v", rec.DeviceID, err)
						}
					} else {
						g.until("fault", 1)
						if got := g.faults()[0]; got != string(more.code) {
							t.Errorf("the fault is %s, want %s", got, more.code)
						}
					}
					if err := g.end(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestAnUnsafeReplyIsReportedAsMalformed(t *testing.T) {
	deep := strings.Repeat("[", 101) + strings.Repeat("]", 101)
	for name, more := range map[string]string{
		"a device ID with an override of the direction": `,"deviceId":"a\u202eb"`,
		"a device ID with a line separator":             `,"deviceId":"a\u2028b"`,
		"a device ID with a byte-order mark":            `,"deviceId":"\ufeffa"`,
		"a device ID with a blank in front":             `,"deviceId":" a"`,
		"a device ID with a blank behind":               `,"deviceId":"a "`,
		"a payload of 101 levels":                       `,"deviceId":"a","payload":` + deep,
		"a payload of more than 128 KiB":                `,"deviceId":"a","payload":"` + strings.Repeat("p", 128<<10) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 200, Body: assignedWith(more)})
				g.run()
				g.until("fault", 1)
				if got := g.faults()[0]; got != string(fault.MalformedReply) {
					t.Errorf("the fault is %s", got)
				}
				if rec, err := g.record(); !errors.Is(err, store.ErrNoRecord) {
					t.Errorf("it is published: %+v, %v", rec, err)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAConnectionProfileOf256BytesIsPublishedAndALongerOneIsCut(t *testing.T) {
	for name, tt := range map[string]struct{ profile, want string }{
		"256 bytes":                    {strings.Repeat("p", 256), strings.Repeat("p", 256)},
		"257 bytes":                    {strings.Repeat("p", 257), strings.Repeat("p", 241) + "… (257 bytes)"},
		"an override of the direction": {`a\u202eb`, `a\u202eb`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				long := strings.Repeat("e", 600)
				g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 200, Body: assignedWith(
					`,"deviceId":"a","connectionProfile":"` + tt.profile + `","substatus":"` + long + `","etag":"` + long + `"`)})
				g.run()
				g.until("assigned", 1)
				rec, err := g.record()
				if err != nil || rec.ConnectionProfile != tt.want || len(rec.Substatus) > 512 || len(rec.ETag) > 512 {
					t.Errorf("%v, connection profile %q, substatus of %d bytes, etag of %d", err, rec.ConnectionProfile, len(rec.Substatus), len(rec.ETag))
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
