package update_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/shipped"
	"github.com/dpsd-project/dpsd/test/update"
)

const (
	// rounds is how often the gateway starts, alternating between the earlier and the current version.
	rounds = 20
	// patience ends a wait that lasts too long.
	patience = 2 * time.Minute
)

// programs are the built versions: 0 is the earlier version, and 1 the current version with its simulator.
var programs = sync.OnceValues(func() (built struct {
	dpsd [2]string
	sim  string
}, err error) {
	dir, err := os.MkdirTemp("", "dpsd-update-")
	if err != nil {
		return built, err
	}
	scratch = dir
	if _, built.dpsd[0], err = update.Earlier(filepath.Join(dir, "earlier"), update.BeforeCertificates); err != nil {
		return built, err
	}
	current := filepath.Join(dir, "current")
	built.dpsd[1], built.sim = filepath.Join(current, "dpsd"), filepath.Join(current, "dpsd-sim")
	return built, shipped.Build(current)
})

// scratch is the directory of the programs.
var scratch string

func TestMain(m *testing.M) {
	status := m.Run()
	if scratch != "" {
		_ = os.RemoveAll(scratch)
	}
	os.Exit(status)
}

// gateway is a machine with two slots. The state directory and the key are on a separate partition.
// Each slot has its own dpsd.toml.
type gateway struct {
	t    *testing.T
	dir  string
	dpsd [2]string

	sim      *exec.Cmd
	simFlags []string // of its ports
}

// newGateway returns a gateway and the service to which it is enrolled. The text is added to the
// dpsd.toml of the current version.
func newGateway(t *testing.T, current string) *gateway {
	t.Helper()
	built, err := programs()
	if errors.Is(err, update.ErrNoHistory) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "dpsd-") // the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &gateway{t: t, dir: dir, dpsd: built.dpsd, simFlags: []string{"--mqtt", "localhost:0"}}
	for _, sub := range []string{"state", "sim"} {
		if err := os.Mkdir(g.path(sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	g.write("scenario.toml", "[settings]\npolls = 0\n")
	g.assign("first.azure-devices.net")
	t.Cleanup(g.stopService)
	var endpoint struct {
		MQTT, IDScope, CAFile string
		MQTTPort              int
	}
	if err := json.Unmarshal(g.read("sim/endpoint.json"), &endpoint); err != nil {
		t.Fatal(err)
	}
	g.simFlags = []string{"--mqtt", endpoint.MQTT}
	if out, err := exec.Command(built.sim, "credentials", "--dir", g.path("sim"), "--registration-id", "gw-1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for version, more := range []string{"", current} {
		g.write(fmt.Sprintf("dpsd-%d.toml", version), fmt.Sprintf(`[dps]
id_scope = %q
registration_id = "gw-1"
endpoint = "localhost"
[[credential]]
type = "symmetric-key"
key = "file:%[4]s/sim/gw-1.key"
[transport]
protocols = ["mqtt"]
mqtt_port = %[2]d
proxy = "none"
ca_file = %[3]q
[state]
directory = "%[4]s/state"
[control]
socket = "%[4]s/run/dpsd.sock"
%[5]s`, endpoint.IDScope, endpoint.MQTTPort, endpoint.CAFile, dir, more))
	}
	return g
}

func (g *gateway) path(name string) string { return filepath.Join(g.dir, name) }

func (g *gateway) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(g.path(name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) read(name string) []byte {
	g.t.Helper()
	data, err := os.ReadFile(g.path(name))
	if err != nil {
		g.t.Fatal(err)
	}
	return data
}

// assign restarts the service with an allocation that assigns the gateway to the hub.
func (g *gateway) assign(hub string) {
	g.t.Helper()
	g.stopService()
	g.write("sim/enrollments.toml", fmt.Sprintf("[[group]]\nname = \"keys\"\ntype = \"symmetric-key\"\nprimary_key_file = \"group-key\"\nhubs = [%q]\n", hub))
	built, err := programs()
	if err != nil {
		g.t.Fatal(err)
	}
	g.sim = exec.Command(built.sim, append([]string{"serve", "--dir", g.path("sim"), "--scenario", g.path("scenario.toml"),
		"--websocket", "", "--service", "", "--quiet"}, g.simFlags...)...)
	g.sim.Stderr = os.Stderr
	out, err := g.sim.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.sim.Start(); err != nil {
		g.t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		g.t.Fatalf("dpsd-sim does not get ready: %v", err)
	}
}

func (g *gateway) stopService() {
	if g.sim == nil {
		return
	}
	_ = g.sim.Process.Signal(syscall.SIGTERM)
	_ = g.sim.Wait()
	g.sim = nil
}

// running is a started dpsd.
type running struct {
	g        *gateway
	cmd      *exec.Cmd
	log      string
	messages *net.UnixConn // of sd_notify(3)
}

// boot starts a version after a reboot: /run is empty.
func (g *gateway) boot(version int) *running {
	g.t.Helper()
	if err := errors.Join(os.RemoveAll(g.path("run")), os.Mkdir(g.path("run"), 0o700), os.RemoveAll(g.path("notify"))); err != nil {
		g.t.Fatal(err)
	}
	messages, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: g.path("notify"), Net: "unixgram"})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := messages.SetReadDeadline(time.Now().Add(patience)); err != nil {
		g.t.Fatal(err)
	}
	r := &running{g: g, log: g.path("log"), messages: messages}
	log, err := os.Create(r.log)
	if err != nil {
		g.t.Fatal(err)
	}
	defer log.Close()
	r.cmd = exec.Command(g.dpsd[version], "run", "--config", g.path(fmt.Sprintf("dpsd-%d.toml", version)))
	r.cmd.Env, r.cmd.Stderr = []string{"NOTIFY_SOCKET=" + g.path("notify")}, log
	if err := r.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { // without effect if it has ended
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		messages.Close()
	})
	return r
}

// until reads messages until one contains the text.
func (r *running) until(text string) {
	r.g.t.Helper()
	message := make([]byte, 4096)
	for {
		n, err := r.messages.Read(message)
		if err != nil {
			log, _ := os.ReadFile(r.log)
			r.g.t.Fatalf("no %s: %v\n%s", text, err, log)
		}
		if strings.Contains(string(message[:n]), text) {
			return
		}
	}
}

// end sends a signal, and waits until the process has ended.
func (r *running) end(signal syscall.Signal) {
	r.g.t.Helper()
	if err := r.cmd.Process.Signal(signal); err != nil {
		r.g.t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil && signal == syscall.SIGTERM {
		log, _ := os.ReadFile(r.log)
		r.g.t.Fatalf("after SIGTERM: %v\n%s", err, log)
	}
	r.messages.Close()
}

// files returns the files below a directory, with links as their targets. It leaves out what
// describes attempts instead of the identity.
func (g *gateway) files(directory string) map[string]string {
	g.t.Helper()
	all := make(map[string]string)
	root := g.path(directory)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || slices.Contains([]string{"lock", "transport", "attempts.json"}, entry.Name()) {
			return err
		}
		if strings.HasPrefix(entry.Name(), ".") { // temporary: a process that was killed leaves it, and the next one removes it
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if entry.Type() == fs.ModeSymlink {
			all[name], err = os.Readlink(path)
			return err
		}
		data, err := os.ReadFile(path)
		all[name] = string(data)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return all
}

// watch reads the record continuously, as a service would, until the function that it returns is
// called. At any time, the record is complete, its generation has not decreased, and the same
// generation means the same identity.
func (g *gateway) watch() (stop func()) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		next := time.NewTicker(time.Millisecond)
		defer next.Stop()
		var last store.Record
		for reads := 0; ctx.Err() == nil; reads++ {
			<-next.C
			rec, err := store.Read(g.path("state"))
			switch {
			case err != nil:
				g.t.Errorf("after %d reads: %v", reads, err)
				return
			case rec.Generation < last.Generation:
				g.t.Errorf("after %d reads, the generation is %d, and it was %d", reads, rec.Generation, last.Generation)
				return
			case rec.Generation == last.Generation && (rec.AssignedHub != last.AssignedHub || rec.DeviceID != last.DeviceID):
				g.t.Errorf("generation %d is %s at %s, and it was %s at %s", rec.Generation, rec.DeviceID, rec.AssignedHub, last.DeviceID, last.AssignedHub)
				return
			}
			last = rec
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// record returns the record on the disk.
func (g *gateway) record() store.Record {
	g.t.Helper()
	rec, err := store.Read(g.path("state"))
	if err != nil {
		g.t.Fatal(err)
	}
	return rec
}

// ended is the way in which a round ends: a shutdown or a power cut.
func ended(round int) syscall.Signal {
	if round%3 == 2 {
		return syscall.SIGKILL
	}
	return syscall.SIGTERM
}

func TestAlternatingVersionsKeepTheRecordAndWriteItOnlyIfTheIdentityChanges(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "")
	first := g.boot(0)
	first.until("READY=1")
	first.end(syscall.SIGTERM)
	stop := g.watch()
	defer stop()
	want := g.record()
	hubs := map[int]string{7: "second.azure-devices.net", 14: "third.azure-devices.net"} // one for each version
	for round := range rounds {
		version := (round + 1) % 2
		before := g.files("state")
		if hub := hubs[round]; hub != "" {
			g.assign(hub)
			want.AssignedHub, want.Generation = hub, want.Generation+1
		}
		if round%5 == 4 { // the power fails while it starts
			interrupted := g.boot(version)
			interrupted.until("STATUS=")
			interrupted.end(syscall.SIGKILL)
		}
		r := g.boot(version)
		r.until("READY=1")
		r.end(ended(round))
		rec := g.record()
		if rec.Generation != want.Generation || rec.AssignedHub != want.AssignedHub || rec.DeviceID != want.DeviceID {
			t.Fatalf("round %d: generation %d is %s at %s, want generation %d, %s at %s", round,
				rec.Generation, rec.DeviceID, rec.AssignedHub, want.Generation, want.DeviceID, want.AssignedHub)
		}
		if after := g.files("state"); hubs[round] == "" && !maps.Equal(before, after) {
			t.Fatalf("round %d: the identity is the same, and the files have changed from\n%q\nto\n%q", round, before, after)
		}
	}
}

func TestAnEarlierVersionKeepsTheIssuedCertificateAndTheCurrentOneUsesItAgain(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "[certificate]\nkey_type = \"ec-p256\"\n")
	first := g.boot(1)
	first.until("READY=1")
	first.end(syscall.SIGTERM)
	pair := g.files("state/certificate")
	if pair["current"] != "1" || pair["1/key.pem"] == "" {
		t.Fatalf("the current version has published %q", slices.Collect(maps.Keys(pair)))
	}
	certificate := g.record().Certificate
	if certificate == nil {
		t.Fatal("the record of the current version has no certificate")
	}
	stop := g.watch()
	defer stop()
	for round := range rounds {
		version := round % 2
		r := g.boot(version)
		r.until("READY=1")
		r.end(ended(round))
		if now := g.files("state/certificate"); !maps.Equal(now, pair) {
			t.Fatalf("round %d: the files of the certificate have changed from\n%q\nto\n%q", round, pair, now)
		}
		if now := g.record().Certificate; version == 1 && (now == nil || *now != *certificate) {
			t.Fatalf("round %d: the certificate of the record is %+v, want %+v", round, now, certificate)
		}
	}
	// The earlier version writes the record once without the certificate, and the current one adds it.
	if n := g.record().Generation; n > 3 {
		t.Errorf("after %d starts, the generation is %d, want at most 3", rounds+1, n)
	}
}

// This is why dpsd.toml belongs in the image.
func TestAnEarlierVersionRefusesTheConfigurationOfALaterOne(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "")
	g.write("dpsd-0.toml", string(g.read("dpsd-1.toml"))+"[certificate]\n")
	r := g.boot(0)
	var exit *exec.ExitError
	if err := r.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 78 {
		log, _ := os.ReadFile(r.log)
		t.Errorf("the earlier version ends with %v, want exit status 78\n%s", err, log)
	}
}

// The test writes files of a later version, whose format neither version knows.
func TestBothVersionsLeaveANewerSchemaAlone(t *testing.T) {
	t.Parallel()
	g := newGateway(t, "")
	g.write("state/state.json", `{
  "schema": 2,
  "generation": 7,
  "status": "assigned",
  "assignedHub": "later.azure-devices.net"
}
`)
	g.write("state/state.json.prev", "a previous record in the newer schema\n")
	g.write("state/state.env", "DPSD_ASSIGNED_HUB=\"later.azure-devices.net\"\nDPSD_GENERATION=\"7\"\n")
	before := g.files("state")
	for round := range rounds {
		r := g.boot(round % 2)
		r.until("state-newer-schema")
		r.end(ended(round))
		if after := g.files("state"); !maps.Equal(before, after) {
			t.Fatalf("round %d: the files have changed from\n%q\nto\n%q", round, before, after)
		}
		rec, err := store.Read(g.path("run"))
		if err != nil || rec.AssignedHub != "first.azure-devices.net" || rec.Generation <= 7 {
			t.Fatalf("round %d: the runtime directory has generation %d at %q, %v", round, rec.Generation, rec.AssignedHub, err)
		}
	}
}
