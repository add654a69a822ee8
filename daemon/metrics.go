package daemon

import (
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
)

// measures are the metrics in Prometheus text. What a Status says is read from
// the board when somebody asks; the rest is counted here.
type measures struct {
	set        *metrics.Set
	assignTime *metrics.Histogram
}

func newMeasures(board *control.Board) *measures {
	m := &measures{set: metrics.NewSet()}
	m.assignTime = m.set.NewHistogram("dpsd_time_to_assigned_seconds")
	gauge := func(name string, value func(control.Status) float64) {
		m.set.NewGauge(name, func() float64 {
			s, _ := board.Look(time.Now())
			return value(s)
		})
	}
	gauge("dpsd_ready", func(s control.Status) float64 { return truth(s.Ready) })
	gauge("dpsd_provisioned", func(s control.Status) float64 { return truth(s.Identity != nil) })
	gauge("dpsd_confirmed_timestamp_seconds", func(s control.Status) float64 {
		if s.Confirmed == nil {
			return 0
		}
		return seconds(*s.Confirmed)
	})
	gauge("dpsd_generation", func(s control.Status) float64 {
		if s.Identity == nil {
			return 0
		}
		return float64(s.Identity.Generation)
	})
	gauge("dpsd_next_attempt_seconds", func(s control.Status) float64 {
		if s.Next == nil {
			return -1
		}
		return s.Next.In
	})
	gauge("dpsd_certificate_expiry_timestamp_seconds", func(s control.Status) float64 {
		if s.Certificate == nil {
			return 0
		}
		return seconds(s.Certificate.NotAfter)
	})
	gauge("dpsd_fault_standing", func(s control.Status) float64 { return truth(len(s.Faults) > 0 && s.Faults[0].Standing) })
	gauge("dpsd_start_timestamp_seconds", func(s control.Status) float64 { return seconds(s.StartedAt) })
	// All codes are there from the start: a counter that appears with its first
	// event is missed by rate().
	for _, e := range fault.Catalogue() {
		m.fault(e.Code)
	}
	for _, outcome := range []string{"assigned", "fault", "wait"} {
		m.attempts(outcome)
	}
	m.bytes("sent")
	m.bytes("received")
	return m
}

func (m *measures) fault(code fault.Code) *metrics.Counter {
	return m.set.GetOrCreateCounter(fmt.Sprintf("dpsd_faults_total{code=%q}", string(code)))
}

func (m *measures) attempts(outcome string) *metrics.Counter {
	return m.set.GetOrCreateCounter(fmt.Sprintf("dpsd_attempts_total{outcome=%q}", outcome))
}

func (m *measures) bytes(direction string) *metrics.Counter {
	return m.set.GetOrCreateCounter(fmt.Sprintf("dpsd_network_bytes_total{direction=%q}", direction))
}

// add counts an attempt.
func (m *measures) add(a store.Attempt) {
	m.attempts(a.Outcome).Inc()
	if a.Fault != "" {
		m.fault(fault.Code(a.Fault)).Inc()
	}
	m.bytes("sent").Add(int(a.Sent))
	m.bytes("received").Add(int(a.Received))
}

// clock keeps how far this clock is from the service's.
func (m *measures) clock(offset time.Duration) {
	m.set.GetOrCreateGauge("dpsd_clock_offset_seconds", nil).Set(offset.Seconds())
}

func (m *measures) write(w io.Writer) { m.set.WritePrometheus(w) }

// textFile writes the metrics for the textfile collector of node_exporter, which
// may look at any time.
func (m *measures) textFile(path string) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	m.write(f)
	return f.CloseAtomicallyReplace()
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
