package daemon

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/store"
)

// family is a metric with all its label values: a HELP, a TYPE and samples of the Prometheus
// text format.
type family struct {
	name, kind, help string
	// write writes the samples. Without a sample, the family is omitted.
	write func(w io.Writer, m *measures, s control.Status)
}

// families are all metrics, in the order of the documentation and of the output. Their names
// never change, since users' alerts refer to them. Times are in Unix time according to this
// gateway's clock.
var families = []family{
	{"dpsd_build_info", "gauge", "Always 1. The label is the version of dpsd.", func(w io.Writer, _ *measures, s control.Status) {
		sample(w, "dpsd_build_info", 1, "version", s.Version)
	}},
	gauge("dpsd_start_timestamp_seconds", "When this run of dpsd started, in Unix time.", func(s control.Status) float64 { return seconds(s.StartedAt) }),
	gauge("dpsd_ready", "1 if dpsd has sent READY=1 to systemd.", func(s control.Status) float64 { return asNumber(s.Ready) }),
	gauge("dpsd_provisioned", "1 if an identity is published.", func(s control.Status) float64 { return asNumber(s.Identity != nil) }),
	{"dpsd_assignment_info", "gauge", "Always 1. The labels are the published identity. Absent if no identity is published.", func(w io.Writer, _ *measures, s control.Status) {
		if i := s.Identity; i != nil {
			sample(w, "dpsd_assignment_info", 1, "hub", i.AssignedHub, "device_id", i.DeviceID)
		}
	}},
	gauge("dpsd_generation", "The generation of the published identity; 0 if no identity is published.", func(s control.Status) float64 {
		if s.Identity == nil {
			return 0
		}
		return float64(s.Identity.Generation)
	}),
	gauge("dpsd_confirmed_timestamp_seconds", "When DPS last confirmed the identity in this run, in Unix time; 0 if it has not.", func(s control.Status) float64 {
		return secondsOf(s.Confirmed)
	}),
	{"dpsd_interval_seconds", "gauge", "The value of [provisioning] interval; 0 if it is not set.", func(w io.Writer, m *measures, _ control.Status) {
		m.interval.WritePrometheus(w)
	}},
	gauge("dpsd_next_attempt_timestamp_seconds", "When the next attempt is due, in Unix time; 0 if an attempt is running or none is due.", func(s control.Status) float64 {
		if s.Next == nil {
			return 0
		}
		return seconds(s.Next.At)
	}),
	gauge("dpsd_fault_standing", "1 if the last attempt failed and no attempt has succeeded since.", func(s control.Status) float64 {
		return asNumber(unresolved(s) != nil)
	}),
	{"dpsd_fault_info", "gauge", "Always 1. The labels describe the current fault, see dpsd-faults(7). Absent if there is no current fault.", func(w io.Writer, _ *measures, s control.Status) {
		if f := unresolved(s); f != nil {
			sample(w, "dpsd_fault_info", 1, "code", f.Code, "class", f.Class, "stage", f.Stage)
		}
	}},
	counters("dpsd_faults_total", "Failed attempts, by fault code.", func(m *measures) *metrics.Set { return m.faults }),
	counters("dpsd_attempts_total", "Attempts, by outcome: assigned, fault, or wait if DPS asked dpsd to wait.", func(m *measures) *metrics.Set { return m.attempts }),
	counters("dpsd_hub_checks_total", "Checks of the hub because of reports from local services, by finding.", func(m *measures) *metrics.Set { return m.hubChecks }),
	{"dpsd_time_to_assigned_seconds", "histogram", "The time from the first attempt to the assignment, including faults and waits.", func(w io.Writer, m *measures, _ control.Status) {
		m.assignTime.WritePrometheus(w)
	}},
	counters("dpsd_network_bytes_total", "Bytes that all attempts have transferred over TCP, including TLS, by direction.", func(m *measures) *metrics.Set { return m.bytes }),
	gauge("dpsd_certificate_expiry_timestamp_seconds", "When the device certificate or a certificate in its chain expires, whichever is first, in Unix time; 0 if dpsd has not read one.", func(s control.Status) float64 {
		if s.Certificate == nil {
			return 0
		}
		return seconds(s.Certificate.NotAfter)
	}),
	ofIssued("dpsd_issued_certificate_expiry_timestamp_seconds", "gauge", "When the issued certificate or a certificate in its chain expires, whichever is first, in Unix time; 0 if there is none. Absent if no certificate is configured or published.",
		func(c control.IssuedCertificate) float64 { return secondsOf(c.NotAfter) }),
	ofIssued("dpsd_issued_certificate_renewal_timestamp_seconds", "gauge", "When dpsd renews the issued certificate, in Unix time; 0 if there is none, or no table [certificate]. Absent if no certificate is configured or published.",
		func(c control.IssuedCertificate) float64 { return secondsOf(c.RenewAt) }),
	ofIssued("dpsd_issued_certificates_total", "counter", "Issued certificates that dpsd has published. Absent if no certificate is configured or published.",
		func(c control.IssuedCertificate) float64 { return float64(c.Issued) }),
	ofIssued("dpsd_issued_certificate_failures_total", "counter", "Failed attempts to request, receive or publish a certificate. Absent if no certificate is configured or published.",
		func(c control.IssuedCertificate) float64 { return float64(c.Failed) }),
	ofConsumers("dpsd_hub_listening", "gauge", "1 if dpsd has received the socket of this [[consumer]] from systemd. Absent without a [[consumer]] and without a socket.",
		func(c control.Consumer) float64 { return asNumber(c.Listening) }),
	ofConsumers("dpsd_hub_requests_total", "counter", "Requests of a local service on its socket, including those that were refused.",
		func(c control.Consumer) float64 { return float64(c.Requests) }),
	ofConsumers("dpsd_hub_tokens_total", "counter", "Tokens that dpsd has issued to a local service.",
		func(c control.Consumer) float64 { return float64(c.Tokens) }),
	ofConsumers("dpsd_hub_token_timestamp_seconds", "gauge", "When dpsd issued the last token to a local service, in Unix time; 0 if it has not issued one in this run.",
		func(c control.Consumer) float64 { return secondsOf(c.LastToken) }),
	{"dpsd_hub_module_ready", "gauge", "1 if the module identity of a local service exists at the hub with the keys of this gateway. Absent for services without one.", func(w io.Writer, _ *measures, s control.Status) {
		for _, c := range s.Consumers {
			if c.Module != "" {
				sample(w, "dpsd_hub_module_ready", asNumber(c.Module == control.ModuleReady), "consumer", c.Name)
			}
		}
	}},
	ofConsumers("dpsd_hub_limited_total", "counter", "Requests of a local service that dpsd refused because there were too many.",
		func(c control.Consumer) float64 { return float64(c.Limited) }),
	ofConsumers("dpsd_hub_refusals_total", "counter", "Reports from a local service that the hub refuses it or is not working.",
		func(c control.Consumer) float64 { return float64(c.Refusals) }),
	{"dpsd_clock_offset_seconds", "gauge", "How far this gateway's clock is ahead of DPS's, to within about a second. Present only if DPS has sent its time, which it does only over WebSocket.", func(w io.Writer, m *measures, _ control.Status) {
		m.offset.WritePrometheus(w)
	}},
}

// gauge returns a family with one sample, whose value comes from a Status.
func gauge(name, help string, value func(control.Status) float64) family {
	return family{name, "gauge", help, func(w io.Writer, _ *measures, s control.Status) { sample(w, name, value(s)) }}
}

// ofIssued returns a family about the issued certificate, with one sample.
func ofIssued(name, kind, help string, value func(control.IssuedCertificate) float64) family {
	return family{name, kind, help, func(w io.Writer, _ *measures, s control.Status) {
		if c := s.IssuedCertificate; c != nil {
			sample(w, name, value(*c))
		}
	}}
}

// ofConsumers returns a family with a sample for each local service that uses the hub.
func ofConsumers(name, kind, help string, value func(control.Consumer) float64) family {
	return family{name, kind, help, func(w io.Writer, _ *measures, s control.Status) {
		for _, c := range s.Consumers {
			sample(w, name, value(c), "consumer", c.Name)
		}
	}}
}

// counters returns a family whose samples are counters.
func counters(name, help string, of func(*measures) *metrics.Set) family {
	return family{name, "counter", help, func(w io.Writer, m *measures, _ control.Status) { of(m).WritePrometheus(w) }}
}

// measures holds the metrics that are not part of a Status; those of a Status are read from
// the board when the metrics are requested.
type measures struct {
	board *control.Board

	// There is a set for each family, because the library does not write HELP. Its default
	// histogram is not compatible with Prometheus.
	faults, attempts, bytes      *metrics.Set
	hubChecks                    *metrics.Set
	assignTime, interval, offset *metrics.Set

	took *metrics.PrometheusHistogram // of assignTime
}

func newMeasures(board *control.Board) *measures {
	m := &measures{
		board: board, faults: metrics.NewSet(), attempts: metrics.NewSet(), bytes: metrics.NewSet(), hubChecks: metrics.NewSet(),
		assignTime: metrics.NewSet(), interval: metrics.NewSet(), offset: metrics.NewSet(),
	}
	// The buckets range from a second, which DPS itself needs, to a day without a network.
	m.took = m.assignTime.NewPrometheusHistogramExt("dpsd_time_to_assigned_seconds", []float64{1, 2, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400})
	m.asksEvery(0)
	// All label values exist from the start, because increase() ignores the first event of a
	// counter that appears with it.
	for _, e := range fault.Catalogue() {
		m.fault(string(e.Code))
	}
	for _, outcome := range []string{"assigned", "fault", "wait"} {
		m.outcome(outcome)
	}
	for _, f := range refusal.Findings() {
		m.hubCheck(f)
	}
	m.direction("sent")
	m.direction("received")
	return m
}

func (m *measures) fault(code string) *metrics.Counter {
	return m.faults.GetOrCreateCounter(fmt.Sprintf("dpsd_faults_total{code=%q}", code))
}

func (m *measures) outcome(outcome string) *metrics.Counter {
	return m.attempts.GetOrCreateCounter(fmt.Sprintf("dpsd_attempts_total{outcome=%q}", outcome))
}

func (m *measures) hubCheck(f refusal.Finding) *metrics.Counter {
	return m.hubChecks.GetOrCreateCounter(fmt.Sprintf("dpsd_hub_checks_total{finding=%q}", f))
}

func (m *measures) direction(direction string) *metrics.Counter {
	return m.bytes.GetOrCreateCounter(fmt.Sprintf("dpsd_network_bytes_total{direction=%q}", direction))
}

// add counts an attempt.
func (m *measures) add(a store.Attempt) {
	m.outcome(a.Outcome).Inc()
	if a.Fault != "" {
		m.fault(a.Fault).Inc()
	}
	m.direction("sent").Add(int(a.Sent))
	m.direction("received").Add(int(a.Received))
}

// clock sets the difference between this gateway's clock and the service's.
func (m *measures) clock(offset time.Duration) {
	m.offset.GetOrCreateGauge("dpsd_clock_offset_seconds", nil).Set(offset.Seconds())
}

// asksEvery sets the interval of the settings.
func (m *measures) asksEvery(interval time.Duration) {
	m.interval.GetOrCreateGauge("dpsd_interval_seconds", nil).Set(interval.Seconds())
}

// write writes all metrics in the Prometheus text format, with the values of one moment.
func (m *measures) write(w io.Writer) {
	s, _ := m.board.Look(time.Now())
	var samples bytes.Buffer
	for _, f := range families {
		samples.Reset()
		if f.write(&samples, m, s); samples.Len() > 0 {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s", f.name, f.help, f.name, f.kind, samples.Bytes())
		}
	}
}

// textFile replaces the file for the textfile collector of node_exporter, which may read it at
// any time.
func (m *measures) textFile(path string) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }()
	m.write(f)
	return f.CloseAtomicallyReplace()
}

// inLabel escapes a label value for the text format, whose rules differ from those of Go.
var inLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// sample writes a sample. labels alternates between names and values.
func sample(w io.Writer, name string, value float64, labels ...string) {
	var b strings.Builder
	for pair := range slices.Chunk(labels, 2) {
		fmt.Fprintf(&b, `,%s="%s"`, pair[0], inLabel.Replace(pair[1]))
	}
	if b.Len() > 0 {
		name += "{" + b.String()[1:] + "}"
	}
	fmt.Fprintf(w, "%s %s\n", name, number(value))
}

// unresolved returns the current fault, or nil if there is none.
func unresolved(s control.Status) *control.Fault {
	if i := slices.IndexFunc(s.Faults, func(f control.Fault) bool { return f.Unresolved }); i >= 0 {
		return &s.Faults[i]
	}
	return nil
}

func asNumber(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// number formats a value without an exponent, so that times are readable.
func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// secondsOf is seconds for a time that may be nil, for which it returns 0.
func secondsOf(t *time.Time) float64 {
	if t == nil {
		return 0
	}
	return seconds(*t)
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
