package simulator_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestDrainWaitsForTheConnectionsOfAProgramThatHasExited(t *testing.T) {
	bubble(t, "until they have ended", func(t *testing.T) {
		s := start(t, simulator.Options{})
		first, second := ready(t, s), dial(t, s).connect(s, "another")
		drained := make(chan bool)
		go func() { s.Drain(t.Context()); close(drained) }()
		synctest.Wait()
		first.conn.Close()
		synctest.Wait()
		select {
		case <-drained:
			t.Fatal("it does not wait for the second connection")
		default:
		}
		second.conn.Close()
		<-drained
	})
	bubble(t, "or until the context is done", func(t *testing.T) {
		s := start(t, simulator.Options{})
		ready(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		s.Drain(ctx)
		if d := time.Since(begun); d != time.Second {
			t.Errorf("it returns after %v", d)
		}
	})
	bubble(t, "and returns if there are none", func(t *testing.T) {
		start(t, simulator.Options{}).Drain(t.Context())
	})
}
