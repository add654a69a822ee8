package operations

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is the timeout for expected events. It is not a measurement.
const patience = 60 * time.Second

// workshop holds what all gateways share: the programs in bin, and the keys of the service and of
// the device in simulator.
const workshopVariable = "DPSD_OPERATIONS_WORKSHOP"

const device = "gw-0001"

// gateway is this process inside its namespaces.
type gateway struct {
	workshop string
	blocks   map[string]string // of the page
	block    string            // the one that is written
	sim      *exec.Cmd
	dpsd     *exec.Cmd
	journal  *journal
	shown    int // entries of the journal that are in a block
}

// must ends a gateway that cannot continue. Its parent process shows the reason.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// separate returns the attributes of a process in its own namespaces, as root in them.
func separate() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
}

// Paths of the substitutes for systemd.
const (
	notifySocket = "/run/systemd/notify"
	tools        = "/run/tools"
)

// newGateway prepares the namespaces.
func newGateway(workshop string) *gateway {
	g := &gateway{workshop: workshop, blocks: map[string]string{}}
	roots, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	must(err)
	ca, err := os.ReadFile(filepath.Join(workshop, "simulator/ca.pem"))
	must(err)
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, dir := range []string{"/etc", "/run"} {
		must(unix.Mount("none", dir, "tmpfs", 0, "size=4m,mode=755"))
	}
	must(unix.Mount("none", "/var/lib", "tmpfs", 0, "size=128m,mode=755"))
	must(os.Mkdir("/var/lib/dpsd", 0o755))
	must(unix.Sethostname([]byte(device)))
	for file, text := range map[string]string{
		"/etc/hosts":         "127.0.0.1 localhost global.azure-devices-provisioning.net dpsd-sim.azure-devices.net\n",
		"/etc/nsswitch.conf": "hosts: files dns\n",
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\n",
		"/etc/group":         "root:x:0:\n",
		// The authority of the service is one of those that this gateway trusts.
		"/etc/ssl/certs/ca-certificates.crt": string(roots) + string(ca),
	} {
		g.write(file, text)
	}
	must(os.MkdirAll("/etc/dpsd/keys", 0o750))
	must(os.CopyFS("/run/simulator", os.DirFS(filepath.Join(workshop, "simulator"))))
	must(os.Mkdir("/run/dpsd", 0o755))
	g.journal = listen("/run/systemd/journal/socket")
	// To dpsd, systemd is running, and dpsd.service is active.
	must(os.Mkdir("/run/systemd/system", 0o755))
	listen(notifySocket)
	g.write(tools+"/systemctl", "#!/bin/sh\nprintf 'LoadState=loaded\\nUnitFileState=enabled\\nActiveState=active\\nSubState=running\\n'\n")
	must(os.Chmod(tools+"/systemctl", 0o755))
	g.must("ip", "link", "set", "lo", "up")
	g.write("/etc/dpsd/keys/device.key", g.read("/run/simulator/"+device+".key"))
	g.configure(`[[credential]]
type = "symmetric-key"
key  = "file:/etc/dpsd/keys/device.key"
`)
	return g
}

func (g *gateway) read(file string) string {
	text, err := os.ReadFile(file)
	must(err)
	return string(text)
}

// write replaces a file atomically. Only the owner and the group may read keys.
func (g *gateway) write(file, text string) {
	mode := os.FileMode(0o644)
	if strings.HasPrefix(file, "/etc/dpsd/keys/") {
		mode = 0o640
	}
	must(os.MkdirAll(filepath.Dir(file), 0o755))
	must(os.WriteFile(file+".new", []byte(text), mode))
	must(os.Rename(file+".new", file))
}

// configure writes dpsd.toml with the given credentials, and default values otherwise.
func (g *gateway) configure(credentials string) {
	scope := strings.TrimSpace(g.read("/run/simulator/id-scope"))
	g.write("/etc/dpsd/dpsd.toml", fmt.Sprintf("[dps]\nid_scope        = %q\nregistration_id = %q\n\n%s", scope, device, credentials))
}

// environment is the environment of the user who types the commands.
func (g *gateway) environment(more ...string) []string {
	return append(more, "PATH="+filepath.Join(g.workshop, "bin")+":"+tools+":"+os.Getenv("PATH"), "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb")
}

func (g *gateway) command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	if !strings.Contains(name, "/") {
		if own := filepath.Join(g.workshop, "bin", name); exists(own) {
			c.Path, c.Err = own, nil
		}
	}
	c.Dir, c.Env = "/run", g.environment()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// must runs a command that is not shown.
func (g *gateway) must(name string, args ...string) {
	if out, err := g.command(name, args...).CombinedOutput(); err != nil {
		panic(fmt.Errorf("%s %q: %w\n%s", name, args, err, out))
	}
}

// serve starts the service, or replaces it. Without specific settings it answers immediately.
func (g *gateway) serve(scenario string) {
	g.stop(&g.sim)
	if !strings.Contains(scenario, "[settings]") {
		scenario = "[settings]\npolls = 0\n" + scenario
	}
	g.write("/run/scenario.toml", scenario)
	g.sim = g.command("dpsd-sim", "serve", "--dir", "/run/simulator", "--mqtt", "127.0.0.1:8883", "--websocket", "127.0.0.1:443",
		"--scenario", "/run/scenario.toml", "--seed", "6", "--hub", "dpsd-sim.azure-devices.net")
	var complaint strings.Builder
	g.sim.Stderr = &complaint
	out, err := g.sim.StdoutPipe()
	must(err)
	must(g.sim.Start())
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		panic(fmt.Errorf("dpsd-sim: %w\n%s", err, complaint.String()))
	}
}

// enroll makes the service read an enrollments file.
func (g *gateway) enroll(text string) {
	g.write("/run/simulator/enrollments.toml", text)
}

// start starts the service of the page. The next entries are new.
func (g *gateway) start() {
	g.shown = g.journal.length()
	log, err := os.Create("/run/dpsd.stderr")
	must(err)
	defer log.Close()
	var stat unix.Stat_t
	must(unix.Fstat(int(log.Fd()), &stat))
	g.dpsd = g.command("dpsd", "run")
	// systemd indicates in the same way that standard error is connected to the journal.
	g.dpsd.Env = append(g.dpsd.Env, fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino), "NOTIFY_SOCKET="+notifySocket, "WATCHDOG_USEC=30000000")
	g.dpsd.Stderr = log
	must(g.dpsd.Start())
}

func (g *gateway) stop(process **exec.Cmd) {
	if *process == nil {
		return
	}
	must((*process).Process.Signal(syscall.SIGTERM))
	_ = (*process).Wait()
	*process = nil
}

// end stops the running processes.
func (g *gateway) end() {
	g.stop(&g.dpsd)
	g.stop(&g.sim)
}

// begin starts a block of the page.
func (g *gateway) begin(name string) { g.block = name }

// show runs a command line and adds it with its output to the block.
func (g *gateway) show(line string) {
	c := g.command("sh", "-c", line)
	out, err := c.CombinedOutput() // some commands report a problem by exit status 1
	if exit := c.ProcessState; exit == nil || exit.ExitCode() > 3 {
		panic(fmt.Errorf("%s: %w\n%s", line, err, out))
	}
	g.add(line, string(out))
}

// status shows dpsd status when one of its lines begins with the given text.
func (g *gateway) status(begin string) {
	var out []byte
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		out, _ = g.command("dpsd", "status").CombinedOutput()
		if bytes.Contains(append([]byte("\n"), out...), []byte("\n"+begin)) {
			g.add("dpsd status", string(out))
			return
		}
	}
	panic(fmt.Errorf("no line of dpsd status begins with %q:\n%s", begin, out))
}

// check shows the problems that dpsd check finds.
func (g *gateway) check() { g.show("dpsd check 2>&1 | grep -v -e ^ok -e ^skipped") }

// log shows the entries since the last call.
func (g *gateway) log() {
	g.add("journalctl -u dpsd -o cat", strings.Join(g.journal.messages(g.shown), "\n")+"\n")
	g.shown = g.journal.length()
}

// last shows the last entry of an event: which entries surround it depends on the timing.
func (g *gateway) last(event string) {
	field := "DPSD_EVENT=" + event
	g.until(field)
	g.add("journalctl -u dpsd -o cat -n 1 "+field, g.journal.last(field)+"\n")
	g.shown = g.journal.length()
}

func (g *gateway) add(line, out string) {
	if g.blocks[g.block] != "" {
		g.blocks[g.block] += "\n"
	}
	g.blocks[g.block] += "# " + line + "\n" + out
}

// until waits for an entry with the field that has not been shown yet.
func (g *gateway) until(field string) {
	if !g.journal.wait(g.shown, field) {
		panic(fmt.Errorf("dpsd has not logged %s; it logged\n%s\n%s", field, strings.Join(g.journal.messages(0), "\n"), g.read("/run/dpsd.stderr")))
	}
}

// authority writes an authority for the service in the files of dpsd-sim, with the name of the
// real one: dpsd reports any other authority that issues certificates for Azure's names as an
// interceptor.
func authority(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"DigiCert Inc"}, CommonName: "DigiCert Global Root G2"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root}), 0o644),
		os.WriteFile(filepath.Join(dir, "ca.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// certificate creates a device certificate that is valid for a year from the given number of days
// ago.
func (g *gateway) certificate(daysAgo int) (cert, key string) {
	decode := func(name string) []byte {
		block, _ := pem.Decode([]byte(g.read(name)))
		return block.Bytes
	}
	ca, err := x509.ParseCertificate(decode("/run/simulator/device-ca.pem"))
	must(err)
	caKey, err := x509.ParsePKCS8PrivateKey(decode("/run/simulator/device-ca.key"))
	must(err)
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	from := time.Now().AddDate(0, 0, -daysAgo)
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: device},
		NotBefore: from, NotAfter: from.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, pair.Public(), caKey)
	must(err)
	der, err := x509.MarshalPKCS8PrivateKey(pair)
	must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// journal is a journald that only receives entries.
type journal struct {
	mu      sync.Mutex
	entries []map[string]string
	more    chan struct{} // closed with the next entry
}

func listen(socket string) *journal {
	must(os.MkdirAll(filepath.Dir(socket), 0o755))
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	must(err)
	j := &journal{more: make(chan struct{})}
	go func() {
		buffer := make([]byte, 1<<20)
		for {
			n, err := l.Read(buffer)
			must(err)
			j.mu.Lock()
			j.entries = append(j.entries, fields(buffer[:n]))
			close(j.more)
			j.more = make(chan struct{})
			j.mu.Unlock()
		}
	}()
	return j
}

// fields parses the native protocol: NAME=value, or NAME, a length in 8 bytes, and the value; see
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL.
func fields(datagram []byte) map[string]string {
	found := map[string]string{}
	for len(datagram) > 0 {
		line, rest, _ := bytes.Cut(datagram, []byte("\n"))
		if name, value, plain := strings.Cut(string(line), "="); plain {
			found[name] = value
			datagram = rest
			continue
		}
		size := binary.LittleEndian.Uint64(rest)
		found[string(line)] = string(rest[8 : 8+size])
		datagram = rest[8+size+1:]
	}
	return found
}

func (j *journal) length() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.entries)
}

func (j *journal) messages(from int) (lines []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries[from:] {
		lines = append(lines, e["MESSAGE"])
	}
	return lines
}

// last returns the message of the last entry with a field.
func (j *journal) last(field string) (message string) {
	name, value, _ := strings.Cut(field, "=")
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		if e[name] == value {
			message = e["MESSAGE"]
		}
	}
	return message
}

func (j *journal) wait(from int, field string) bool {
	name, value, _ := strings.Cut(field, "=")
	late := time.After(patience)
	for {
		j.mu.Lock()
		for _, e := range j.entries[from:] {
			if e[name] == value {
				j.mu.Unlock()
				return true
			}
		}
		more := j.more
		j.mu.Unlock()
		select {
		case <-more:
		case <-late:
			return false
		}
	}
}
