package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/test/sdk"
)

// asked is the delay that the service requests in the comparison. The live service uses the
// same one.
const asked = 3 * time.Second

// roundTripTimes are the round-trip times for which the time to assigned is compared.
func roundTripTimes() []time.Duration {
	return []time.Duration{time.Millisecond, 50 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond}
}

// contestant is a program that registers a gateway.
type contestant struct {
	name, version string
	register      func(s *service) (usage, error)
}

// contestants returns dpsd and the SDKs that are installed in dir.
func (b *bench) contestants(dir string) ([]contestant, error) {
	all := []contestant{{"dpsd", b.version, func(s *service) (usage, error) {
		if err := s.anew(); err != nil {
			return usage{}, err
		}
		return s.once(b.program)
	}}}
	for _, k := range []sdk.SDK{sdk.Node(), sdk.Python()} {
		if what := k.Missing(); what != "" {
			return nil, fmt.Errorf("%s is required for Microsoft's SDK for %s", what, k.Name)
		}
		at := filepath.Join(dir, k.Name)
		if err := k.Install(context.Background(), ".", at); err != nil {
			return nil, err
		}
		version, err := k.Version(at)
		if err != nil {
			return nil, err
		}
		all = append(all, contestant{"SDK for " + k.Name, version, func(s *service) (usage, error) { return s.bySDK(k, at) }})
	}
	return all, nil
}

// bySDK registers with an SDK that is installed in dir.
func (s *service) bySDK(k sdk.SDK, dir string) (usage, error) {
	device := sdk.Case{RegistrationID: registrationID, Protocol: s.variant.protocol}
	if s.variant.credential == "key" {
		device.Key = s.server.DeviceKey(registrationID)
	} else {
		device.CertificateFile, device.PrivateKeyFile = s.path("device.pem"), s.path("device.key")
	}
	cases, err := json.Marshal([]sdk.Case{device})
	if err != nil {
		return usage{}, err
	}
	if err := os.WriteFile(s.path("cases.json"), cases, 0o600); err != nil {
		return usage{}, err
	}
	simulated := func() (string, error) { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), nil }
	var failures []error
	proxy, err := sdk.Listen(simulated, simulated, func(err error) { failures = append(failures, err) })
	if err != nil {
		return usage{}, err
	}
	environment := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir,
		"DPS_ENDPOINT=localhost", "DPS_CA_FILE=" + s.path("ca.pem"), "DPS_ID_SCOPE=" + s.server.IDScope(),
		"DPS_MQTT_PORT=" + strconv.Itoa(s.port), "DPS_WEBSOCKET_PORT=" + strconv.Itoa(s.port),
	}
	command := append([]string{"/bin/sh", "-c", `cd "$0" && exec "$@"`, dir}, k.Command(s.path("cases.json"), proxy.Port())...)
	u, err := run(sdk.Limit, environment, s.path("log"), command...)
	proxy.Close()
	if err == nil {
		err = errors.Join(failures...)
	}
	if err != nil {
		return u, s.failed(err)
	}
	said, err := os.ReadFile(s.path("log"))
	if err != nil {
		return u, err
	}
	if err := registered(said, u.status.ExitStatus()); err != nil {
		return u, s.failed(fmt.Errorf("the SDK for %s did not register: %w", k.Name, err))
	}
	return u, nil
}

// registered returns nil if an SDK has exited with 0 and reported the assignment of its device.
func registered(said []byte, status int) error {
	var line sdk.Line
	err := json.NewDecoder(bytes.NewReader(said)).Decode(&line)
	switch {
	case status != 0:
		return fmt.Errorf("exit status %d", status)
	case errors.Is(err, io.EOF):
		return errors.New("it printed nothing")
	case err != nil:
		return err
	case line.Status != "assigned":
		return fmt.Errorf("status %q, error %q: %s", line.Status, line.Error, line.Message)
	}
	return nil
}

// contest registers once with one of the contestants.
func (s *service) contest(c contestant) (sample, error) {
	var u usage
	entries, _, err := s.serve(func() (err error) {
		u, err = c.register(s)
		return err
	})
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w", c.name, err)
	}
	sum := simulator.Summarize(entries)
	if len(sum.Violations) > 0 || len(sum.Registers) != 1 || len(sum.Polls) != s.variant.polls {
		return sample{}, s.failed(fmt.Errorf("%s: %d register requests, %d polls, violations %q", c.name, len(sum.Registers), len(sum.Polls), sum.Violations))
	}
	return sample{
		cpu: u.cpu, peak: u.peak, elapsed: u.elapsed, beyond: u.elapsed - waited(entries),
		bytesUp: sum.BytesUp, bytesDown: sum.BytesDown,
		connections: sum.Connections,
		packetsUp:   sum.PacketsUp, packetsDown: sum.PacketsDown,
		roundTrips: roundTrips(entries), allRoundTrips: allRoundTrips(entries),
	}, nil
}

// waited returns how long a device waited between answers and polls, up to the requested delay.
func waited(entries []simulator.Entry) (total time.Duration) {
	var answered time.Time
	for _, e := range entries {
		switch {
		case e.Packet != "PUBLISH":
		case e.Direction == "down":
			answered = e.Time
		case !answered.IsZero():
			total += min(asked, e.Time.Sub(answered))
		}
	}
	return total
}

// round holds all samples of one variant by contestant.
type round struct {
	variant variant
	results []result
}

// compare registers with each of the contestants in turn, and returns the report.
func (b *bench) compare(dir string, drawing string) (string, error) {
	contestants, err := b.contestants(dir)
	if err != nil {
		return "", err
	}
	var rounds []round
	for _, credential := range []string{"key", "certificate"} {
		for _, protocol := range []string{"mqtt", "websocket"} {
			v := variant{credential, protocol, "1.2", 1}
			r, err := b.contest(filepath.Join(dir, credential+"-"+protocol), v, 0, contestants)
			if err != nil {
				return "", err
			}
			rounds = append(rounds, r)
		}
	}
	var far []round
	for _, rtt := range roundTripTimes() {
		r, err := b.contest(filepath.Join(dir, rtt.String()), variant{"key", "mqtt", "1.2", 1}, rtt, contestants)
		if err != nil {
			return "", err
		}
		far = append(far, r)
	}
	if drawing != "" {
		if err := drawComparison(drawing, contestants, rounds[0], far); err != nil {
			return "", err
		}
	}
	versions := make([]string, 0, len(contestants))
	for _, c := range contestants {
		versions = append(versions, c.version)
	}
	return fmt.Sprintf("dpsd %s; on %s.\n\nMedian of %d runs each, alternating; × is the ratio to dpsd; MB are 10⁶ bytes.\n\n%s\n%s",
		strings.Join(versions, "; "), machine(), b.runs, comparison(contestants, rounds), distances(contestants, far)), nil
}

// contest registers with all contestants in turn in one variant.
func (b *bench) contest(dir string, v variant, roundTrip time.Duration, contestants []contestant) (round, error) {
	r := round{variant: v, results: make([]result, len(contestants))}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return r, err
	}
	s, err := newServiceOf(v, dir, &simulator.Scenario{Settings: simulator.Settings{Polls: &v.polls, RetryAfter: fmt.Sprint(asked.Seconds())}})
	if err != nil {
		return r, err
	}
	defer s.server.Close()
	s.version, s.roundTrip = b.version, roundTrip
	for range b.runs {
		for i, c := range contestants {
			got, err := s.contest(c)
			if err != nil {
				return r, err
			}
			r.results[i].variant = v
			r.results[i].samples = append(r.results[i].samples, got)
		}
	}
	return r, nil
}

// comparison returns the table of the cost of a registration.
func comparison(contestants []contestant, rounds []round) string {
	columns := []struct {
		name string
		of   func(sample) float64
		form string
	}{
		{"CPU ms", cpu, "%.0f"}, {"peak MB", peak, "%.1f"}, {"bytes up", up, "%.0f"}, {"bytes down", down, "%.0f"},
		{"connections", opened, "%.0f"}, {"packets up", sent, "%.0f"}, {"packets down", received, "%.0f"},
		{"round trips, including TCP and TLS", func(s sample) float64 { return float64(s.allRoundTrips) }, "%.0f"},
		{"time beyond waits ms", beyond, "%.0f"},
	}
	var b strings.Builder
	b.WriteString("| credential | protocol | program |")
	for _, c := range columns {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n| --- | --- | --- |" + strings.Repeat(" --: |", len(columns)) + "\n")
	for _, r := range rounds {
		for i, c := range contestants {
			fmt.Fprintf(&b, "| %s | %s | %s |", r.variant.credential, r.variant.protocol, c.name)
			for _, column := range columns {
				value := median(r.results[i].values(column.of))
				fmt.Fprintf(&b, " "+column.form, value)
				if own := median(r.results[0].values(column.of)); i > 0 && own > 0 && ratio(value/own) != "1.0" {
					b.WriteString(" (× " + ratio(value/own) + ")")
				}
				b.WriteString(" |")
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// ratio returns two significant digits.
func ratio(x float64) string {
	if x >= 9.95 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.1f", x)
}

func elapsed(s sample) float64 { return s.elapsed.Seconds() }

// distances returns the table of the time to assigned.
func distances(contestants []contestant, far []round) string {
	var b strings.Builder
	b.WriteString("| time from the start of the program to its end, key, mqtt; simulated round-trip time |")
	for _, c := range contestants {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n| --: |" + strings.Repeat(" --: |", len(contestants)) + "\n")
	for i, rtt := range roundTripTimes() {
		fmt.Fprintf(&b, "| %d ms |", rtt.Milliseconds())
		for _, r := range far[i].results {
			fmt.Fprintf(&b, " %.2f s |", median(r.values(elapsed)))
		}
		b.WriteByte('\n')
	}
	b.WriteString("| round trips that explain the difference between first and last |")
	times := roundTripTimes()
	span := (times[len(times)-1] - times[0]).Seconds()
	for i := range contestants {
		first, last := median(far[0].results[i].values(elapsed)), median(far[len(far)-1].results[i].values(elapsed))
		fmt.Fprintf(&b, " %.1f |", (last-first)/span)
	}
	b.WriteByte('\n')
	return b.String()
}

// medians returns the medians of one property by contestant.
func (r round) medians(of func(sample) float64) []float64 {
	all := make([]float64, 0, len(r.results))
	for _, result := range r.results {
		all = append(all, median(result.values(of)))
	}
	return slices.Clip(all)
}
