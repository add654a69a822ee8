package hub_test

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator/hub"
)

// The older connection may notice its replacement later than the hub.
func TestANewerConnectionReceivesTheMessagesBeforeTheOlderOneHasEnded(t *testing.T) {
	var m hub.Messages
	u, now := hub.User{Hub: "h", Device: "d"}, time.Now()
	older, newer := &hub.Receiver{Wake: func() {}}, &hub.Receiver{Wake: func() {}}
	take := func(r *hub.Receiver, want int) []hub.Delivery {
		t.Helper()
		all, _ := m.Take(u, r, now)
		if len(all) != want {
			t.Fatalf("%+v, want %d messages", all, want)
		}
		return all
	}
	m.Subscribe(u, older)
	for range 2 {
		if refused := m.Send(u, []byte("x")); refused != nil {
			t.Fatalf("%+v", refused)
		}
	}
	before := take(older, 2)
	m.Subscribe(u, newer)
	take(older, 0)
	after := take(newer, 2)
	if m.Complete(u, before[0].Lock, now) {
		t.Error("the older connection has completed a message of the newer one")
	}
	m.Release(u, older)
	take(newer, 0)
	if after[1].Number != 2 || after[1].Deliveries != 1 || !m.Complete(u, after[1].Lock, now) {
		t.Errorf("%+v", after[1])
	}
	m.Release(u, newer)
	if d, found := m.Receive(u, now); !found || d.Number != 1 || d.Deliveries != 2 {
		t.Errorf("%+v", d)
	}
}
