package dps_test

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/dps"
)

const benchOperation = "5.f4826e5877c1e56c.08f5e9a7-4e41-4ab8-bfeb-ea591a9492e0"

const benchAssigned = `{"operationId":"` + benchOperation + `","status":"assigned","registrationState":{` +
	`"registrationId":"gw-1","createdDateTimeUtc":"2026-11-23T08:00:00.267123Z","assignedHub":"hub.azure-devices.net",` +
	`"deviceId":"gw-1","status":"assigned","substatus":"initialAssignment",` +
	`"lastUpdatedDateTimeUtc":"2026-11-23T08:00:00.5266581Z","etag":"IjY5MDAzNTUyLTAwMDAtMDcwMC0wMDAwLTYyNTlkOGI3MDAwMCI="}}`

func BenchmarkParseReply(b *testing.B) {
	for name, message := range map[string]dps.Message{
		"assigning": reply(202, 1, "3", assigning(benchOperation)),
		"assigned":  reply(200, 3, "", benchAssigned),
		"throttled": reply(429, 1, "30", `{"errorCode":429001,"trackingId":"4c7e","message":"Too many","timestampUtc":"2026-11-23T08:00:00Z"}`),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := dps.ParseReply(message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRegistration measures the protocol's part of a whole exchange: register, two
// polls, assigned.
func BenchmarkRegistration(b *testing.B) {
	replies := []dps.Message{
		reply(202, 1, "3", assigning(benchOperation)),
		reply(202, 2, "3", assigning(benchOperation)),
		reply(200, 3, "", benchAssigned),
	}
	b.ReportAllocs()
	for b.Loop() {
		r := dps.Registration{Identity: dps.Identity{IDScope: "0ne00000000", RegistrationID: "gw-1"}}
		now := start
		step, err := r.Begin(now)
		for _, m := range replies {
			if err != nil || step.Send == nil {
				b.Fatalf("step %+v, %v; want a request", step, err)
			}
			now = now.Add(time.Second)
			if step, err = r.Handle(now, m); err == nil && step.Assignment == nil {
				now = r.Deadline()
				step, err = r.Advance(now)
			}
		}
		if err != nil || step.Assignment == nil {
			b.Fatalf("step %+v, %v; want the assignment", step, err)
		}
	}
}
