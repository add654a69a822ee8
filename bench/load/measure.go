package main

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// handshakes is how many devices are in their handshake at the same time if they connect as
// fast as possible.
const handshakes = 16

// attempts is how often a rate that is too low, or a peak that is too high, is measured. Other
// load on the machine only decreases the rate.
const attempts = 3

// memory is the memory for many connected devices.
type memory struct {
	idle, connected, peak int64 // of the simulator, bytes
	took                  time.Duration
}

// hold connects all devices, and measures the simulator while they are connected.
func (l *load) hold() (m memory, err error) {
	s, err := l.start()
	if err != nil {
		return m, err
	}
	defer s.close()
	if m.idle, _, err = s.memory(); err != nil {
		return m, err
	}
	devices := make([]*device, l.devices)
	defer func() {
		for _, d := range devices {
			if d != nil {
				d.close()
			}
		}
	}()
	failures := make([]error, handshakes)
	begun := time.Now()
	var next atomic.Int64
	var all sync.WaitGroup
	for i := range handshakes {
		all.Go(func() {
			for n := int(next.Add(1)) - 1; n < l.devices && failures[i] == nil; n = int(next.Add(1)) - 1 {
				if devices[n], failures[i] = s.dial(n); failures[i] == nil {
					devices[n].rest()
				}
			}
		})
	}
	all.Wait()
	m.took = time.Since(begun)
	if err := errors.Join(failures...); err != nil {
		return m, err
	}
	// All devices are still served: the first and the last get an answer.
	for _, d := range []*device{devices[0], devices[l.devices-1]} {
		if _, _, _, err := d.ask(2, "$dps/registrations/PUT/iotdps-register/?$rid=1", ""); err != nil {
			return m, err
		}
	}
	m.connected, m.peak, err = s.memory()
	return m, err
}

// throughput is the cost of registrations.
type throughput struct {
	registrations      int
	took               time.Duration
	simulator, clients time.Duration // CPU of both processes
	others             time.Duration // CPU of everything else on the machine, and what it was denied
	peak               int64         // of the simulator, bytes
}

// rate returns the number of registrations per second.
func (t throughput) rate() float64 { return float64(t.registrations) / t.took.Seconds() }

// share returns a fraction of all processors, 0 to 1.
func (t throughput) share(cpu time.Duration) float64 {
	return cpu.Seconds() / t.took.Seconds() / float64(runtime.NumCPU())
}

// alone returns the rate without the other load on the machine: the same work in the time in
// which the processors were available.
func (t throughput) alone() float64 { return t.rate() / (1 - min(t.share(t.others), 0.99)) }

// register has devices register continuously, and counts for some time when all of them have
// started.
func (l *load) register() (t throughput, err error) {
	s, err := l.start()
	if err != nil {
		return t, err
	}
	defer s.close()
	var (
		next, done atomic.Int64
		all        sync.WaitGroup
		stop       = make(chan struct{})
		failed     = make(chan error, 1)
		entrance   = make(chan struct{}, handshakes)
	)
	one := func() error {
		entrance <- struct{}{}
		d, err := s.dial(int(next.Add(1)))
		<-entrance
		if err != nil {
			return err
		}
		defer d.close()
		return d.register()
	}
	for range l.registering {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := one(); err != nil {
					select {
					case failed <- err:
					default:
					}
					return
				}
				done.Add(1)
			}
		})
	}
	defer all.Wait()
	defer close(stop)
	type moment struct {
		done             int64
		at               time.Time
		theirs, ours, of time.Duration
	}
	look := func() (m moment, err error) {
		m.done, m.at = done.Load(), time.Now()
		if m.theirs, err = s.cpu(); err != nil {
			return m, err
		}
		if m.ours, err = ownCPU(); err != nil {
			return m, err
		}
		m.of, err = machineCPU()
		return m, err
	}
	wait := func(d time.Duration) error {
		select {
		case err := <-failed:
			return err
		case <-time.After(d):
			return nil
		}
	}
	// This waits until the first devices have registered a second time.
	for done.Load() < int64(l.registering) {
		if err := wait(100 * time.Millisecond); err != nil {
			return t, err
		}
	}
	for range attempts {
		begun, err := look()
		if err != nil {
			return t, err
		}
		if err := wait(l.measured); err != nil {
			return t, err
		}
		ended, err := look()
		if err != nil {
			return t, err
		}
		got := throughput{
			registrations: int(ended.done - begun.done), took: ended.at.Sub(begun.at),
			simulator: ended.theirs - begun.theirs, clients: ended.ours - begun.ours,
		}
		got.others = max(0, ended.of-begun.of-got.simulator-got.clients)
		if t.registrations == 0 || got.rate() > t.rate() {
			t = got
		}
		if t.rate() >= wantRate {
			break
		}
	}
	_, t.peak, err = s.memory()
	return t, err
}
