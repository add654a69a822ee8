package simulator_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestSummarizeDevices(t *testing.T) {
	bubble(t, "connections, round trips, bytes, requests, gaps and violations are each device's own", func(t *testing.T) {
		var log bytes.Buffer
		s := start(t, simulator.Options{PacketLog: &log})
		one := as(t, s, "one", version)
		operation := one.ask("").parse(t).OperationID
		two := as(t, s, "Two", version)
		two.ask("")
		time.Sleep(3 * time.Second)
		one.puback(one.poll("2", operation).id)
		time.Sleep(1500 * time.Millisecond)
		one.conn.Close()
		again := as(t, s, "ONE", version)
		again.puback(again.poll("3", operation).id)
		again.send(0xe0, 0)
		again.expectEnd("after DISCONNECT")
		two.send(publishPacket(0x30, "elsewhere", 0, "")...)
		two.expectEnd("after a violation")
		silent := dial(t, s) // never sends CONNECT
		silent.conn.Close()
		s.Close()

		entries, err := simulator.ReadLog(&log)
		if err != nil {
			t.Fatal(err)
		}
		all := simulator.SummarizeDevices(entries)
		if len(all) != 3 || all[0].RegistrationID != "" || all[1].RegistrationID != "one" || all[2].RegistrationID != "Two" {
			t.Fatalf("%+v", all)
		}
		// CONNECT, SUBSCRIBE, register, poll; CONNECT, SUBSCRIBE, poll.
		if d := all[1]; d.Connections != 2 || d.RoundTrips != 7 || d.Registers != 1 || d.Polls != 2 ||
			fmt.Sprint(d.PollGaps) != "[3 1.5]" || len(d.Violations) != 0 || d.BytesUp < 1000 || d.BytesDown < 1000 {
			t.Errorf("%+v", d)
		}
		if d := all[2]; d.Connections != 1 || d.RoundTrips != 3 || d.Registers != 1 || d.Polls != 0 || len(d.PollGaps) != 0 || len(d.Violations) != 1 {
			t.Errorf("%+v", d)
		}
		if d := all[0]; d.Connections != 1 || d.RoundTrips != 0 || d.BytesUp == 0 {
			t.Errorf("%+v", d)
		}
		sum := simulator.Summarize(entries)
		if up := all[0].BytesUp + all[1].BytesUp + all[2].BytesUp; up != sum.BytesUp {
			t.Errorf("%d bytes up, of all %d", up, sum.BytesUp)
		}
	})
	t.Run("PUBACK and reply are one round trip", func(t *testing.T) {
		all := simulator.SummarizeDevices([]simulator.Entry{
			{Connection: 1, Direction: "up", Packet: "PUBLISH", RegistrationID: "x"},
			{Connection: 1, Direction: "down", Packet: "PUBACK"},
			{Connection: 1, Direction: "down", Packet: "PUBLISH"},
		})
		if len(all) != 1 || all[0].RoundTrips != 1 {
			t.Errorf("%+v", all)
		}
	})
	t.Run("an empty log has no devices", func(t *testing.T) {
		if all := simulator.SummarizeDevices(nil); len(all) != 0 {
			t.Error(all)
		}
	})
}
