package daemon

import (
	"bytes"
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// gateway is a daemon and a simulated service in one bubble of virtual time, connected by
// net.Pipe.
type gateway struct {
	*Daemon
	t     *testing.T
	sim   *simulator.Server
	dir   string // of the keys
	log   *observer.ObservedLogs
	start time.Time

	logged chan struct{} // has a value if there is another log entry

	stop context.CancelFunc
	done chan error

	inputs  [][]string    // paths that were watched, but for those of the state directory
	touched chan struct{} // reports a change of the state directory

	configured chan struct{}   // has a value if the configuration file has changed
	configures context.Context // ends when the configuration file is no longer watched

	mu    sync.Mutex
	notes []note
	dials int
}

// note is a message to the service manager.
type note struct {
	at    time.Time
	state string
}

const device = "gw-1"

// newGateway returns a gateway with one symmetric key that the service accepts.
func newGateway(t *testing.T, rules ...simulator.Rule) *gateway {
	t.Helper()
	return newGatewayAt(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Rules: rules}})
}

func newGatewayAt(t *testing.T, service simulator.Options) *gateway {
	t.Helper()
	sim, err := simulator.New(service)
	if err != nil {
		t.Fatal(err)
	}
	core, log := observer.New(zapcore.DebugLevel)
	g := &gateway{t: t, sim: sim, dir: t.TempDir(), log: log, start: time.Now(), logged: make(chan struct{}, 1)}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(sim.CA())
	state, boot := t.TempDir(), g.start
	g.Daemon = &Daemon{
		Settings: Settings{
			IDScope:        sim.IDScope(),
			RegistrationID: attest.RegistrationID{Template: device},
			Credentials:    []attest.Credential{g.key("device.key", sim.DeviceKey(device))},
			Dialer: &transport.Dialer{
				Host: "localhost", Roots: roots, DialContext: g.dial,
				Protocols: []transport.Protocol{transport.MQTT}, MQTTPort: 8883, WebSocketPort: 443,
			},
			KeepAlive: time.Minute,
		},
		Store:    store.Options{Directory: filepath.Join(state, "state"), RuntimeDirectory: filepath.Join(state, "run")},
		Log:      zap.New(core, zap.Hooks(g.tell)),
		Rand:     seeded(7),
		BootTime: func() time.Duration { return time.Since(boot) },
		Notify:   g.note,
		Version:  "test",
	}
	return g
}

// tell is called after each log entry.
func (g *gateway) tell(zapcore.Entry) error {
	select {
	case g.logged <- struct{}{}:
	default:
	}
	return nil
}

func (g *gateway) dial(_ context.Context, _, address string) (net.Conn, error) {
	g.mu.Lock()
	g.dials++
	g.mu.Unlock()
	ours, theirs := net.Pipe()
	if strings.HasSuffix(address, ":443") {
		go g.sim.ServeWebSocket(theirs)
	} else {
		go g.sim.ServeMQTT(theirs)
	}
	return newWire(ours), nil
}

// wire adds a send buffer to a net.Pipe, as every kernel has one: if both ends send their last
// bytes at the same time, neither may have to wait for the other to read.
type wire struct {
	net.Conn
	mu     sync.Mutex
	out    chan []byte
	closed bool
}

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c, out: make(chan []byte, 64)}
	go func() {
		defer c.Close()
		for b := range w.out {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	return w
}

func (w *wire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	w.out <- bytes.Clone(b)
	return len(b), nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		close(w.out)
		// A peer that never reads must not block the rest forever.
		return w.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	return nil
}

// The buffer accepts all data immediately, so a write never misses its deadline.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }
func (w *wire) SetDeadline(t time.Time) error    { return w.SetReadDeadline(t) }

// watching makes changed report changes of the files that the settings name.
func (g *gateway) watching(changed <-chan struct{}) {
	g.touched, g.configured = make(chan struct{}, 1), make(chan struct{}, 1)
	g.Watch = func(ctx context.Context, paths ...string) (<-chan struct{}, error) {
		if slices.Equal(paths, []string{g.ConfigurationFile}) {
			g.configures = ctx
			return g.configured, nil
		}
		if slices.Equal(paths, store.Files(g.Store.Directory)) {
			return g.touched, nil
		}
		g.inputs = append(g.inputs, paths)
		return changed, nil
	}
}

func (g *gateway) note(state string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.notes = append(g.notes, note{time.Now(), state})
	return nil
}

// long marks a test that covers days and months. With the race detector it takes minutes, and
// finds nothing that shorter tests do not. "make test" runs it without the race detector.
func long(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("long: make test runs it without the race detector")
	}
}

// lastNote returns the last message.
func (g *gateway) lastNote() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.notes[len(g.notes)-1].state
}

// notified returns how many messages contained the text, and when the first one was sent.
func (g *gateway) notified(text string) (n int, first time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.notes {
		if strings.Contains(m.state, text) {
			if n == 0 {
				first = m.at
			}
			n++
		}
	}
	return n, first
}

// key writes a key file and returns the credential that names it.
func (g *gateway) key(name, text string) attest.Credential {
	g.write(name, text)
	return attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, name)}}
}

// certificate writes a certificate of the simulator and returns the credential.
func (g *gateway) certificate(cn string) attest.Credential {
	certificate, key, err := g.sim.DeviceCertificate(cn)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write("device.pem", string(certificate))
	g.write("device-key.pem", string(key))
	return attest.X509{
		Certificate: attest.Reference{File: filepath.Join(g.dir, "device.pem")},
		PrivateKey:  attest.Reference{File: filepath.Join(g.dir, "device-key.pem")},
	}
}

func (g *gateway) write(name, text string) {
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// run starts the daemon. The end of the test stops the daemon and the simulator.
func (g *gateway) run() {
	ctx, cancel := context.WithCancel(context.Background())
	g.stop, g.done = cancel, make(chan error, 1)
	go func() { g.done <- g.Run(ctx) }()
}

// end stops the daemon and returns the result of Run.
func (g *gateway) end() error {
	g.stop()
	err := <-g.done
	g.sim.Close()
	return err
}

// ends is end for a daemon that returns no error.
func (g *gateway) ends() {
	g.t.Helper()
	if err := g.end(); err != nil {
		g.t.Error(err)
	}
}

// until waits until the event was logged n times, and returns the time of that, counted from
// the start.
func (g *gateway) until(event string, n int) time.Duration {
	g.t.Helper()
	return g.within(30*24*time.Hour, event, n)
}

// within is until for an event that must happen soon.
func (g *gateway) within(patience time.Duration, event string, n int) time.Duration {
	g.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for expired := false; ; {
		synctest.Wait()
		if found := g.log.FilterMessage(event).All(); len(found) >= n {
			return found[n-1].Time.Sub(g.start)
		}
		if expired {
			g.t.Fatalf("%q was not logged %d times within %s; faults: %v", event, n, patience, g.faults())
		}
		select {
		case <-g.logged:
		case <-limit.C:
			expired = true
		}
	}
}

func (g *gateway) faults() (codes []string) {
	for _, e := range g.log.FilterMessage("fault").All() {
		codes = append(codes, e.ContextMap()["fault"].(string))
	}
	return codes
}

// record returns the record that a consumer would read.
func (g *gateway) record() (store.Record, error) { return store.Read(g.Store.Directory) }

func (g *gateway) wantAssigned() store.Record {
	g.t.Helper()
	rec, err := g.record()
	if err != nil {
		g.t.Fatalf("no record can be read: %v", err)
	}
	if rec.DeviceID != device || !strings.HasSuffix(rec.AssignedHub, ".azure-devices.net") {
		g.t.Errorf("assigned to %q as %q", rec.AssignedHub, rec.DeviceID)
	}
	return rec
}

func (g *gateway) wantFaults(want ...fault.Code) {
	g.t.Helper()
	got := g.faults()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != string(want[i]) {
			g.t.Errorf("faults %v, want %v", got, want)
			return
		}
	}
}

func code(n int) *int { return &n }

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, n)) }
