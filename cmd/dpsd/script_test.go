package main_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/test/pair"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// patience is the time limit of a script for an expected event. A test that passes takes much
// less time.
const patience = 30 * time.Second

// TestScript runs testdata/script/*.txtar: the built dpsd with the built dpsd-sim. In addition
// to the commands of testscript, scripts can use:
//
//	sim [SCENARIO]         starts the simulator, or a new one at the same ports, with the scenario
//	                       in the file, and completes dpsd.toml; without a scenario, the simulator
//	                       assigns immediately
//	complete               adds the missing tables to dpsd.toml
//	record                 writes the record of an earlier assignment to state/
//	fault CODE STAGE       runs the daemon with an empty state directory and with a record; expects
//	                       this fault first and unchanged files; if there is a third argument, the
//	                       advice must match it instead of the catalogue
//	unharmed               checks that the files in state/ and run/ are those of the last record, or
//	                       that there are none without a record
//	start NAME COMMAND...  starts a command; its standard error goes to the file NAME
//	send SIGNAL NAME       sends a signal to the command: HUP, TERM, STOP, KILL
//	ended CODE NAME        waits for the end of the command and checks its exit code
//	terminate NAME         send TERM and ended 0
//	exits CODE COMMAND...  runs a command to its end and checks its exit code
//	tells REGEXP COMMAND...  runs a command repeatedly until a line of its output matches
//	waitfor FILE REGEXP    waits until a line of the file matches
//	certificate ID DAYS    creates ID.pem and ID.key, issued by the device CA and valid for one day from
//	                       DAYS days from now; with the third argument self, it is self-signed
//	issued BEGIN END       writes an issued certificate to state/, with a record; BEGIN and END are
//	                       durations from now, such as -48h
//	conforms SCHEMA FILE   checks that the JSON in the file conforms to the schema, a file of docs/
//	member FILE PATH JSON  checks that the value at PATH of the JSON in the file equals JSON; dots separate
//	                       the names and indexes of PATH
//	proxy STATUS           starts an HTTP proxy, $PROXY, that answers CONNECT with this status; with 200
//	                       it connects to the simulator
//	tinyproxy [USER:PASSWORD]
//	                       starts Debian's proxy, $PROXY, which resolves the name of the service to the
//	                       simulator; $SECURE_PROXY is the same proxy with TLS and a certificate issued
//	                       by proxy-ca.pem; its log is the file tinyproxy.log
//	tpm start|kill|restart|clear
//	                       starts a software TPM, $TPM; ends it; starts it again with the same seeds, or
//	                       with new ones, as after a user has cleared it
//
// ended and exits also check that the output of a command contains no key and no token.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			s := &gateway{t: e.T().(testing.TB), processes: map[string]*exec.Cmd{}}
			e.Values[gatewayKey{}] = s
			// sim replaces these values.
			for name, value := range map[string]string{"PROTOCOLS": `"mqtt"`, "MQTT_PORT": "8883", "WEBSOCKET_PORT": "443", "ID_SCOPE": "0ne00000000"} {
				e.Setenv(name, value)
			}
			e.Defer(s.end)
			return os.CopyFS(filepath.Join(e.WorkDir, "simulator"), os.DirFS(shop.simulator))
		},
		Condition: condition,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"sim":         command(0, 1, (*gateway).sim),
			"complete":    command(0, 0, func(g *gateway, ts *testscript.TestScript, _ []string) { g.complete(ts) }),
			"record":      command(0, 0, (*gateway).record),
			"fault":       command(2, 3, (*gateway).fault),
			"unharmed":    command(0, 0, (*gateway).unharmed),
			"start":       command(2, 99, (*gateway).start),
			"send":        command(2, 2, (*gateway).send),
			"ended":       command(2, 2, (*gateway).ended),
			"terminate":   command(1, 1, (*gateway).terminate),
			"exits":       command(2, 99, exits),
			"tells":       command(2, 99, tells),
			"waitfor":     command(2, 2, func(_ *gateway, ts *testscript.TestScript, args []string) { waitFor(ts, args[0], args[1]) }),
			"certificate": command(2, 3, certificate),
			"issued":      command(2, 2, issued),
			"conforms":    command(2, 2, conforms),
			"member":      command(3, 3, member),
			"proxy":       command(1, 1, (*gateway).proxy),
			"tinyproxy":   command(0, 1, (*gateway).tinyproxy),
			"tpm":         command(1, 1, (*gateway).useTPM),
		},
	})
}

// command checks the number of arguments.
func command(least, most int, do func(*gateway, *testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < least || len(args) > most {
			ts.Fatalf("takes no ! and %d to %d arguments", least, most)
		}
		do(ts.Value(gatewayKey{}).(*gateway), ts, args)
	}
}

// condition evaluates [mounts]: root or a user namespace can mount a private tmpfs; [root]:
// the tests run as root; and [tinyproxy], [swtpm], [openssl]: the program is installed. If CI
// is set, a condition that is not met is an error.
func condition(name string) (bool, error) {
	switch name {
	case "mounts":
	case "root":
		if os.Geteuid() != 0 && os.Getenv("CI") == "true" {
			return false, fmt.Errorf("the test needs root")
		}
		return os.Geteuid() == 0, nil
	case "tinyproxy", "swtpm", "openssl":
		_, err := exec.LookPath(name)
		if err != nil && os.Getenv("CI") == "true" {
			return false, fmt.Errorf("the test needs %s: %w", name, err)
		}
		return err == nil, nil
	default:
		return false, fmt.Errorf("no such condition")
	}
	out, err := exec.Command("unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", "/mnt").CombinedOutput()
	if err != nil && os.Getenv("CI") == "true" {
		return false, fmt.Errorf("the test needs a private mount: %w: %s", err, out)
	}
	return err == nil, nil
}

// gateway is the state of one script.
type gateway struct {
	t         testing.TB // of the script
	tpm       *tpmtest.Software
	simulator *simulated
	processes map[string]*exec.Cmd
	proxies   []io.Closer
	logs      int               // number of commands started
	before    map[string]string // files of the last record
}

// gatewayKey is the key of the script's gateway.
type gatewayKey struct{}

func (g *gateway) end() {
	for _, p := range g.processes {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	if g.simulator != nil {
		g.simulator.kill()
	}
	for _, p := range g.proxies {
		_ = p.Close()
	}
}

func (g *gateway) sim(ts *testscript.TestScript, args []string) {
	scenario := ""
	if len(args) > 0 {
		scenario = ts.ReadFile(args[0])
	}
	if !strings.Contains(scenario, "[settings]") {
		scenario = prompt + scenario
	}
	file := ts.MkAbs(".scenario.toml")
	ts.Check(os.WriteFile(file, []byte(scenario), 0o600))
	more := []string{"--scenario", file}
	if g.simulator != nil {
		g.simulator.kill()
		more = append(more, "--mqtt", "localhost:"+ts.Getenv("MQTT_PORT"), "--websocket", "localhost:"+ts.Getenv("WEBSOCKET_PORT"))
	}
	var err error
	g.simulator, err = startSimulator(ts.MkAbs("simulator"), ts.MkAbs("packets"), more...)
	ts.Check(err)
	for name, value := range g.simulator.variables() {
		ts.Setenv(name, value)
	}
	g.complete(ts)
}

func (g *gateway) complete(ts *testscript.TestScript) {
	file := ts.MkAbs("dpsd.toml")
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		ts.Check(err)
	}
	ts.Check(os.WriteFile(file, []byte(complete(string(text), ts.Getenv)), 0o600))
}

func (g *gateway) record(ts *testscript.TestScript, _ []string) {
	state := ts.MkAbs("state")
	ts.Check(os.RemoveAll(state))
	ts.Check(os.CopyFS(state, os.DirFS(shop.record)))
	g.before = published(ts)
	if g.before["state/state.json"] == "" || g.before["state/state.env"] == "" {
		ts.Fatalf("a file of the record is missing: %v", slices.Sorted(maps.Keys(g.before)))
	}
}

// published returns every file that a reader of the state may read, by its name: inode, time
// of change and contents.
func published(ts *testscript.TestScript) map[string]string {
	files := map[string]string{}
	for _, dir := range []string{"state", "run"} {
		entries, err := os.ReadDir(ts.MkAbs(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			ts.Check(err)
		}
		for _, e := range entries {
			name := dir + "/" + e.Name()
			switch {
			case !strings.HasPrefix(e.Name(), "state.") && !strings.HasPrefix(e.Name(), ".state."):
				continue // not part of the record
			case e.IsDir():
				ts.Fatalf("%s is a directory", name)
			}
			info, err := e.Info()
			ts.Check(err)
			files[name] = fmt.Sprintf("inode %d, %s\n%s", info.Sys().(*syscall.Stat_t).Ino, info.ModTime(), ts.ReadFile(name))
		}
	}
	return files
}

func (g *gateway) unharmed(ts *testscript.TestScript, _ []string) {
	now := published(ts)
	if maps.Equal(now, g.before) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if now[name] != g.before[name] {
			ts.Logf("%s is new or has changed: %s", name, now[name])
		}
	}
	ts.Fatalf("the published files were %q, and now are %q", slices.Sorted(maps.Keys(g.before)), slices.Sorted(maps.Keys(now)))
}

// event contains the fields of a line of dpsd's log that scripts use.
type event struct {
	Event, Fault, Stage, Class, Lane, Advice, Cause string
}

func (g *gateway) fault(ts *testscript.TestScript, args []string) {
	code, stage := fault.Code(args[0]), args[1]
	want := fault.Describe(code)
	if want.Code != code {
		ts.Fatalf("there is no fault %q", code)
	}
	for _, recorded := range []bool{false, true} {
		ts.Check(os.RemoveAll(ts.MkAbs("state")))
		ts.Check(os.RemoveAll(ts.MkAbs("run")))
		g.before = nil
		if recorded {
			g.record(ts, nil)
		}
		log := fmt.Sprintf("log-%d", g.logs)
		g.start(ts, []string{log, "dpsd", "run", "--config", "dpsd.toml"})
		line := waitFor(ts, log, `"event":"fault"`)
		g.unharmed(ts, nil)
		g.terminate(ts, []string{log})
		g.unharmed(ts, nil)

		var e event
		ts.Check(json.Unmarshal([]byte(line), &e))
		if e.Fault != string(code) || e.Stage != stage {
			ts.Fatalf("the fault is %s in stage %s (%s), want %s in %s", e.Fault, e.Stage, e.Cause, code, stage)
		}
		if e.Class != string(want.Class) || (len(args) < 3 && e.Advice != want.Advice && e.Advice != want.Instead) || e.Cause == "" || e.Lane == "" {
			ts.Fatalf("the fault is not logged as in the catalogue: %s", line)
		}
		if len(args) > 2 && !regexp.MustCompile(args[2]).MatchString(e.Advice) {
			ts.Fatalf("the advice is %q, which does not match %s", e.Advice, args[2])
		}
		ts.Logf("%s: %s", code, e.Cause)
	}
}

// start runs a command in the background, with the variables of the script's environment that
// dpsd reads.
func (g *gateway) start(ts *testscript.TestScript, args []string) {
	name := args[0]
	if g.processes[name] != nil {
		ts.Fatalf("%s runs already", name)
	}
	c := exec.Command(args[1], args[2:]...)
	c.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", "HOME", "TMPDIR", "WORK", "CREDENTIALS_DIRECTORY", "HTTPS_PROXY", "NO_PROXY"} {
		if value := ts.Getenv(v); value != "" {
			c.Env = append(c.Env, v+"="+value)
		}
	}
	log, err := os.Create(ts.MkAbs(name))
	ts.Check(err)
	defer log.Close()
	c.Stderr = log
	ts.Check(c.Start())
	g.processes[name] = c
	g.logs++
}

// secretless checks that the output of a command contains no keys and tokens.
func secretless(ts *testscript.TestScript, name string) {
	key, err := os.ReadFile(filepath.Join(shop.simulator, device+".key"))
	ts.Check(err)
	text := ts.ReadFile(name)
	for _, secret := range []string{strings.TrimSpace(string(key)), "SharedAccessSignature", "PRIVATE KEY"} {
		if strings.Contains(text, secret) {
			ts.Fatalf("%s contains a secret:\n%s", name, text)
		}
	}
}

func (g *gateway) process(ts *testscript.TestScript, name string) *exec.Cmd {
	c := g.processes[name]
	if c == nil {
		ts.Fatalf("%s does not run", name)
	}
	return c
}

func (g *gateway) send(ts *testscript.TestScript, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "STOP": syscall.SIGSTOP, "KILL": syscall.SIGKILL}
	s, known := signals[args[0]]
	if !known {
		ts.Fatalf("no signal %q", args[0])
	}
	ts.Check(g.process(ts, args[1]).Process.Signal(s))
}

func (g *gateway) ended(ts *testscript.TestScript, args []string) {
	code, name := args[0], args[1]
	c := g.process(ts, name)
	late := time.AfterFunc(patience, func() { _ = c.Process.Kill() })
	defer late.Stop()
	_ = c.Wait()
	delete(g.processes, name)
	secretless(ts, name)
	if got := strconv.Itoa(c.ProcessState.ExitCode()); got != code {
		ts.Fatalf("%s ended with %s (%s), want %s:\n%s", name, got, c.ProcessState, code, ts.ReadFile(name))
	}
}

func (g *gateway) terminate(ts *testscript.TestScript, args []string) {
	g.send(ts, []string{"TERM", args[0]})
	g.ended(ts, []string{"0", args[0]})
}

func exits(_ *gateway, ts *testscript.TestScript, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	secretless(ts, "stdout")
	secretless(ts, "stderr")
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func issued(_ *gateway, ts *testscript.TestScript, args []string) {
	now := time.Now()
	var times [2]time.Time
	for n, text := range args {
		d, err := time.ParseDuration(text)
		ts.Check(err)
		times[n] = now.Add(d)
	}
	_, err := pair.PublishWithRecord(ts.MkAbs("state"), pair.Certificate{RegistrationID: device, NotBefore: times[0], NotAfter: times[1]})
	ts.Check(err)
}

func conforms(_ *gateway, ts *testscript.TestScript, args []string) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join(shop.docs, args[0]))
	ts.Check(err)
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(ts.ReadFile(args[1])))
	ts.Check(err)
	ts.Check(schema.Validate(document))
}

func member(_ *gateway, ts *testscript.TestScript, args []string) {
	value := func(text string) any {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		ts.Check(err)
		return v
	}
	at := value(ts.ReadFile(args[0]))
	for name := range strings.SplitSeq(args[1], ".") {
		there := false
		switch within := at.(type) {
		case map[string]any:
			at, there = within[name]
		case []any:
			i, err := strconv.Atoi(name)
			if there = err == nil && 0 <= i && i < len(within); there {
				at = within[i]
			}
		}
		if !there {
			ts.Fatalf("%s has no %s: %q is missing", args[0], args[1], name)
		}
	}
	if want := value(args[2]); !reflect.DeepEqual(at, want) {
		ts.Fatalf("%s in %s is %v, want %v", args[1], args[0], at, want)
	}
}

func tells(_ *gateway, ts *testscript.TestScript, args []string) {
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...) // only the output matters
		secretless(ts, "stdout")
		if text := ts.ReadFile("stdout"); re.MatchString(text) {
			return
		} else if time.Now().After(limit) {
			ts.Fatalf("nothing matches %s in:\n%s", args[0], text)
		}
	}
}

// waitFor waits for a matching line of the file and returns it.
func waitFor(ts *testscript.TestScript, name, pattern string) string {
	re, err := regexp.Compile(pattern)
	ts.Check(err)
	var text []byte
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		text, err = os.ReadFile(ts.MkAbs(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			ts.Check(err)
		}
		for line := range bytes.Lines(text) {
			if bytes.HasSuffix(line, []byte("\n")) && re.Match(line) {
				return string(line)
			}
		}
	}
	ts.Fatalf("no line of %s matches %s:\n%s", name, pattern, text)
	return ""
}

func certificate(_ *gateway, ts *testscript.TestScript, args []string) {
	id := args[0]
	days, err := strconv.Atoi(args[1])
	ts.Check(err)
	decode := func(name string) []byte {
		block, _ := pem.Decode([]byte(ts.ReadFile(name)))
		if block == nil {
			ts.Fatalf("%s contains no PEM", name)
		}
		return block.Bytes
	}
	ca, err := x509.ParseCertificate(decode("simulator/device-ca.pem"))
	ts.Check(err)
	caKey, err := x509.ParsePKCS8PrivateKey(decode("simulator/device-ca.key"))
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	from := time.Now().AddDate(0, 0, days)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: id},
		NotBefore: from, NotAfter: from.AddDate(0, 0, 1),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if slices.Contains(args[2:], "self") {
		ca, caKey = template, key
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(id+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(id+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// proxy starts a proxy that serves CONNECT. With 200, it connects to the simulator at the
// requested port, regardless of the requested host. It writes the requests to the file proxied.
func (g *gateway) proxy(ts *testscript.TestScript, args []string) {
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	notes, err := os.Create(ts.MkAbs("proxied"))
	ts.Check(err)
	serve := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(notes, "%s %s\n", r.Method, r.Host)
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		_, port, _ := net.SplitHostPort(r.Host)
		there, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer here.Close()
		fmt.Fprintf(here, "HTTP/1.1 200 Connection established\r\nDate: %s\r\n\r\n", time.Now().UTC().Format(http.TimeFormat))
		go func() {
			_, _ = io.Copy(there, buffered)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
	}
	s := &http.Server{Handler: http.HandlerFunc(serve), ReadHeaderTimeout: patience}
	go func() { _ = s.Serve(l) }()
	g.proxies = append(g.proxies, s)
	ts.Defer(func() { notes.Close() })
	ts.Setenv("PROXY", "http://"+l.Addr().String())
}

// useTPM controls a software TPM.
func (g *gateway) useTPM(ts *testscript.TestScript, args []string) {
	switch args[0] {
	case "start":
		g.tpm = tpmtest.Start(g.t)
		ts.Setenv("TPM", g.tpm.Socket)
	case "kill":
		g.tpm.Kill()
	case "restart":
		g.tpm.Restart()
	case "clear":
		g.tpm.Clear()
	default:
		ts.Fatalf("tpm start, kill, restart or clear")
	}
}
