package simulator_test

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestAnAddedFaultPrecedesTheScenarioAndRestartsNoCounter(t *testing.T) {
	bubble(t, "faults", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(2), Times: 1})
		connack := func(want byte) {
			t.Helper()
			c := dial(t, s)
			c.send(goodConnect(s, device)...)
			c.expect("the CONNACK", 0x20, 2, 0, want)
			c.conn.Close()
		}
		connack(2)
		connack(0)
		number, err := s.AddFault(simulator.Rule{On: "connect", Connack: new(3), Times: 2})
		if err != nil {
			t.Fatal(err)
		}
		connack(3)
		if all := s.Faults(); len(all) != 1 || all[0].Number != number || all[0].Acted != 1 || *all[0].Rule.Connack != 3 {
			t.Errorf("%+v", all)
		}
		if !s.RemoveFault(number) || s.RemoveFault(number) {
			t.Error("a fault is removed once")
		}
		connack(0)
		if s.RemoveFault(0) {
			t.Error("a rule of the scenario was removed")
		}
		if _, err := s.AddFault(simulator.Rule{On: "nowhere"}); err == nil {
			t.Error("an invalid rule was added")
		}
	})
}

func TestTheTimesOfAnAddedFaultCountFromItsAddition(t *testing.T) {
	bubble(t, "until", func(t *testing.T) {
		s := script(t)
		connack := func(want byte) {
			t.Helper()
			c := dial(t, s)
			c.send(goodConnect(s, device)...)
			c.expect("the CONNACK", 0x20, 2, 0, want)
			c.conn.Close()
		}
		time.Sleep(patience)
		if _, err := s.AddFault(simulator.Rule{On: "connect", Connack: new(3), Until: patience}); err != nil {
			t.Fatal(err)
		}
		connack(3)
		time.Sleep(patience)
		connack(0)
	})
}
