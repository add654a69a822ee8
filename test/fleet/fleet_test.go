// Package fleet_test compares the rehearsal of a fleet (package fleet, dpsd-sim fleet) with many
// processes of the built dpsd and the built dpsd-sim.
package fleet_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/fleet"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/test/shipped"
)

const (
	// few is the number of gateways that every test run can afford; set DPSD_FLEET=200 for more.
	few = 24
	// draws is how often the model is rehearsed: the real fleet must be similar to one of the
	// results.
	draws = 300
	// slack is the additional time for processes, handshakes and disks on a busy machine.
	slack = 4 * time.Second
	// pause is the time between the starts of two processes: if all started together, they
	// would wait
	// for the processors of this machine instead of the service.
	pause = 60 * time.Millisecond
	// patience ends a fleet that does not finish.
	patience = 4 * time.Minute
)

// check is one scenario for both the model and the processes.
type check struct {
	scenario     string // for dpsd-sim serve
	provisioning string // for dpsd.toml
	model        func(*fleet.Fleet)
}

// outage: the service is down for eight units of time. There is no 429. The more processes there
// are on a machine, the longer the unit, so that they wait for the service.
func outage(unit time.Duration) check {
	return check{
		scenario: fmt.Sprintf(`[settings]
polls = 1
retry_after = "2"
[[rule]]
on = "accept"
until = %q
reset = true
`, 8*unit),
		provisioning: fmt.Sprintf(`[provisioning]
boot_delay_max = %q
[retry]
initial = %q
max = %q
`, 2*unit, unit/2, 4*unit),
		model: func(f *fleet.Fleet) {
			f.BootDelayMax, f.Retry = 2*unit, pace.Retry{Initial: unit / 2, Max: 4 * unit}
			f.Service.DownUntil, f.Service.Quota = 8*unit, 0
		},
	}
}

// throttled: half of the fleet is accepted immediately. Most of the other gateways get a 429, and
// retry after their delays.
func throttled(gateways int) check {
	quota := gateways / 2
	return check{
		scenario: fmt.Sprintf(`[settings]
polls = 1
retry_after = "2"
register_limit = %d
throttle_retry_after = "5"
`, quota),
		provisioning: `[provisioning]
boot_delay_max = "10s"
`,
		model: func(f *fleet.Fleet) {
			f.BootDelayMax = 10 * time.Second
			f.Service.Quota, f.Service.RetryAfter = quota, "5"
		},
	}
}

// The predictions of package fleet agree with a real fleet: with the same outage, and with
// DPSD_FLEET the same quota, once with real processes and once in virtual time.
func TestARealFleetBehavesLikeTheRehearsal(t *testing.T) {
	gateways, checks := few, map[string]check{"outage": outage(time.Second)}
	if s := os.Getenv("DPSD_FLEET"); s != "" {
		var err error
		if gateways, err = strconv.Atoi(s); err != nil || gateways < 4 {
			t.Fatalf("DPSD_FLEET=%q is no number of gateways", s)
		}
		checks["outage"], checks["throttled"] = outage(4*time.Second), throttled(gateways)
	}
	bin := t.TempDir()
	if err := shipped.Build(bin); err != nil {
		t.Fatal(err)
	}
	for name, c := range checks {
		t.Run(name, func(t *testing.T) {
			real := c.run(t, bin, gateways)
			var models []*fleet.Result
			for seed := range uint64(draws) {
				f := fleet.New(fleet.Power, gateways)
				f.Seed, f.Starts = seed, real.starts
				f.Service.Polls, f.Service.PollAfter, f.Service.Reply, f.Service.Capacity = 1, 2*time.Second, 0, 0
				f.Service.RoundTripMin, f.Service.RoundTripMax = time.Millisecond, time.Millisecond
				c.model(&f)
				r, err := f.Run()
				if err != nil {
					t.Fatal(err)
				}
				models = append(models, r)
			}
			t.Logf("%d gateways; times since the start of the service; for the model, the median and the extremes of %d draws", gateways, draws)
			for _, percent := range []float64{10, 50, 90, 100} {
				n := (gateways*int(percent) + 99) / 100
				got := real.at[n-1]
				var all []time.Duration
				for _, m := range models {
					all = append(all, m.At[n-1])
				}
				slices.Sort(all)
				least, middle, most := all[0], all[draws/2], all[draws-1]
				t.Logf("%3.0f %% provisioned: real %5.1f s, model %5.1f s (%.1f to %.1f)", percent, got.Seconds(), middle.Seconds(), least.Seconds(), most.Seconds())
				if got < least-time.Second || got > most+slack {
					t.Errorf("%g %% of the real gateways are provisioned after %s, of the rehearsed ones after %s to %s", percent, got, least, most)
				}
			}
			var all []float64
			for _, m := range models {
				all = append(all, m.RegistersEach())
			}
			slices.Sort(all)
			got := float64(real.registers) / float64(gateways)
			t.Logf("registration requests per gateway: real %.3f, model %.3f (%.3f to %.3f)", got, all[draws/2], all[0], all[draws-1])
			if got < all[0]-0.05 || got > all[draws-1]+0.05 {
				t.Errorf("a real gateway makes %.3f registration requests, a rehearsed one %.3f to %.3f", got, all[0], all[draws-1])
			}
		})
	}
}

// observed is the behaviour of real gateways. Times count from when the service was available.
type observed struct {
	starts    []time.Duration
	at        []time.Duration // provisioned, in ascending order
	registers int
}

// output is the output of a dpsd, and the time of its beginning: dpsd logs its start immediately
// before it draws its boot delay.
type output struct {
	text  bytes.Buffer
	first time.Time
}

func (o *output) Write(b []byte) (int, error) {
	if o.first.IsZero() {
		o.first = time.Now()
	}
	return o.text.Write(b)
}

const configuration = `[dps]
id_scope = %q
registration_id = %q
endpoint = "localhost"
[[credential]]
type = "symmetric-key"
key = "file:%s"
[transport]
protocols = ["mqtt"]
mqtt_port = %d
proxy = "none"
ca_file = %q
[state]
directory = "%[6]s/state"
[control]
socket = "%[6]s/run/dpsd.sock"
`

func (c check) run(t *testing.T, bin string, gateways int) observed {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	sim, packets := filepath.Join(dir, "sim"), filepath.Join(dir, "packets")
	serve := func(scenario string, args ...string) (stop func()) {
		service := exec.Command(filepath.Join(bin, "dpsd-sim"), append([]string{"serve", "--dir", sim, "--websocket", "", "--service", "", "--scenario", scenario}, args...)...)
		service.Stderr = os.Stderr
		out, err := service.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := service.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("dpsd-sim does not get ready: %v", err)
		}
		return sync.OnceFunc(func() {
			if err := service.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if err := service.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(sim, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	// It runs once to create its keys and choose a port, so that everything is prepared before
	// the measurement.
	scenario := write("scenario.toml", c.scenario)
	stop := serve(scenario, "--mqtt", "localhost:0")
	t.Cleanup(stop)
	var endpoint struct {
		MQTT, IDScope, CAFile string
		MQTTPort              int
	}
	if err := json.Unmarshal(read("endpoint.json"), &endpoint); err != nil {
		t.Fatal(err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(read("group-key"))))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	var commands []*exec.Cmd
	logs := make([]output, gateways)
	for n := range gateways {
		id := fmt.Sprintf("gw-%03d", n)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id))
		keyFile := write(id+"/key", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		file := write(id+"/dpsd.toml", fmt.Sprintf(configuration, endpoint.IDScope, id, keyFile, endpoint.MQTTPort, endpoint.CAFile, filepath.Join(dir, id))+c.provisioning)
		cmd := exec.Command(filepath.Join(bin, "dpsd"), "run", "--once", "--timeout", patience.String(), "--config", file)
		cmd.Env, cmd.Stdout, cmd.Stderr = []string{}, &logs[n], &logs[n]
		commands = append(commands, cmd)
	}

	stop = serve(scenario, "--mqtt", endpoint.MQTT, "--packet-log", packets)
	t.Cleanup(stop)
	began := time.Now()
	o := observed{starts: make([]time.Duration, gateways), at: make([]time.Duration, gateways)}
	failures := make([]error, gateways)
	var all sync.WaitGroup
	next := time.NewTicker(pause)
	defer next.Stop()
	for n, cmd := range commands {
		<-next.C
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			failures[n] = cmd.Wait()
			o.at[n] = time.Since(began)
		})
	}
	all.Wait()
	stop()
	for n, err := range failures {
		if err != nil {
			t.Fatalf("dpsd %d: %v\n%s", n, err, logs[n].text.String())
		}
		o.starts[n] = logs[n].first.Sub(began)
	}
	slices.Sort(o.at)
	log, err := os.Open(packets)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	entries, err := simulator.ReadLog(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range simulator.SummarizeDevices(entries) {
		o.registers += d.Registers
		for _, v := range d.Violations {
			t.Errorf("%s: %s", d.RegistrationID, v)
		}
	}
	return o
}
