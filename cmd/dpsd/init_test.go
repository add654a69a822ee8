package main_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// person is a user at a terminal on which a program runs.
type person struct {
	t       *testing.T
	command *exec.Cmd
	screen  *os.File    // the terminal's other side
	display chan []byte // what the program prints
	seen    string      // everything that was displayed
	read    int         // the part of it that the person has read
	secrets canaries    // must not be displayed
}

// theEnd is what the terminal displays after the end of the program. No program prints it.
const theEnd = "\x00"

// atTerminal runs a program on a new terminal.
func atTerminal(t *testing.T, secrets canaries, name string, args ...string) *person {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &person{t: t, command: exec.Command(name, args...), screen: screen, display: make(chan []byte, 64), secrets: secrets}
	p.command.Stdin, p.command.Stdout, p.command.Stderr = terminal, terminal, terminal
	p.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.command.Env = append(os.Environ(), "NO_COLOR=1", "TERM=xterm")
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = p.command.Wait()
		// What the program has printed may be lost if its terminal is closed before it is read.
		_, _ = io.WriteString(terminal, theEnd)
		close(ended)
	}()
	go func() {
		defer close(p.display)
		for {
			text := make([]byte, 4096)
			n, err := screen.Read(text)
			shown, _, end := bytes.Cut(text[:n], []byte(theEnd))
			p.display <- shown
			if end || err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill()
		<-ended
		_, _ = terminal.Close(), p.screen.Close()
	})
	return p
}

// reads waits until a text is displayed after what was read before.
func (p *person) reads(text string) {
	p.t.Helper()
	for limit := time.After(patience); ; {
		if at := strings.Index(p.seen[p.read:], text); at >= 0 {
			p.read += at + len(text)
			return
		}
		select {
		case more, open := <-p.display:
			if !open {
				p.t.Fatalf("the program has ended, and did not print %q:\n%s", text, p.seen)
			}
			p.seen += string(more)
		case <-limit:
			p.t.Fatalf("the program did not print %q:\n%s", text, p.seen)
		}
	}
}

// types types a text.
func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.screen, text); err != nil {
		p.t.Fatal(err)
	}
}

// count returns how often a text is in a list.
func count(list []string, text string) (times int) {
	for _, one := range list {
		if one == text {
			times++
		}
	}
	return times
}

// nothing means that a text is not a question, and gets no answer.
const nothing = "nothing"

// interrupt is Ctrl+C, which needs no Enter key.
const interrupt = "\x03"

// answers answers questions: pairs of a text that is displayed, and the answer without the
// Enter key.
func (p *person) answers(pairs ...string) {
	p.t.Helper()
	for n := 0; n < len(pairs); n += 2 {
		p.reads(pairs[n])
		switch pairs[n+1] {
		case nothing:
		case interrupt:
			p.types(interrupt)
		default:
			p.types(pairs[n+1] + "\n")
		}
	}
}

// leaves waits until the program has ended.
func (p *person) leaves() {
	p.t.Helper()
	for limit := time.After(patience); p.display != nil; {
		select {
		case more, open := <-p.display:
			p.seen += string(more)
			if !open {
				p.display = nil
			}
		case <-limit:
			p.t.Fatalf("the program did not end:\n%s", p.seen)
		}
	}
}

// ends waits for the end of the program, and checks its exit status and that no secret was
// displayed. It returns everything that was displayed.
func (p *person) ends(status int) string {
	p.t.Helper()
	p.leaves()
	if code := p.command.ProcessState.ExitCode(); code != status {
		p.t.Errorf("the exit status is %d, want %d:\n%s", code, status, p.seen)
	}
	if found := p.secrets.in(p.seen); found != nil {
		p.t.Errorf("the terminal displays %q:\n%s", found, p.seen)
	}
	return p.seen
}

// newcomer is a gateway without a configuration.
type newcomer struct {
	t         *testing.T
	dir       string
	file      string // dpsd.toml, which does not exist yet
	simulator *simulated
	key       string // of gw-1, as the portal shows it
	groupKey  string
	secrets   canaries
}

// newNewcomer starts a simulator that has an enrollment group.
func newNewcomer(t *testing.T) *newcomer {
	t.Helper()
	// Other users run dpsd as well.
	dir, err := os.MkdirTemp("", "dpsd-init-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &newcomer{t: t, dir: dir, file: filepath.Join(dir, "etc", "dpsd.toml")}
	if err := errors.Join(os.Chmod(dir, 0o777), os.CopyFS(n.path("simulator"), os.DirFS(shop.simulator)), os.WriteFile(n.path("scenario.toml"), []byte(prompt), 0o600)); err != nil {
		t.Fatal(err)
	}
	if n.simulator, err = startSimulator(n.path("simulator"), n.path("packets"), "--scenario", n.path("scenario.toml")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.simulator.kill)
	n.key, n.groupKey = strings.TrimSpace(n.text("simulator/gw-1.key")), strings.TrimSpace(n.text("simulator/group-key"))
	n.secrets = canaries{{"the key of gw-1", n.key}, {"the group key", n.groupKey}}
	n.write("settings.toml", fmt.Sprintf("[transport]\nprotocols = [\"mqtt\"]\nmqtt_port = %d\nca_file = %q\n[retry]\ninitial = \"100ms\"\nmax = \"1s\"\n[state]\ndirectory = %q\n[control]\nsocket = %q\n",
		n.simulator.address.MQTTPort, n.path("simulator/ca.pem"), n.path("state"), n.path("run/dpsd.sock")))
	return n
}

// restart restarts the simulator on the same port with a scenario.
func (n *newcomer) restart(scenario string, more ...string) {
	n.t.Helper()
	n.simulator.kill()
	port := n.simulator.address.MQTTPort
	simulator, err := startSimulator(n.path("simulator"), n.path("packets"), append([]string{"--scenario", n.write("scenario.toml", scenario), "--mqtt", fmt.Sprintf("localhost:%d", port)}, more...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.simulator = simulator
	n.t.Cleanup(simulator.kill)
}

func (n *newcomer) path(name string) string { return filepath.Join(n.dir, name) }

func (n *newcomer) text(name string) string {
	n.t.Helper()
	text, err := os.ReadFile(n.path(name))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *newcomer) write(name, text string) string {
	n.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(n.path(name)), 0o755), os.WriteFile(n.path(name), []byte(text), 0o644)); err != nil {
		n.t.Fatal(err)
	}
	return n.path(name)
}

// flags returns the flags that every journey needs to use the simulator.
func (n *newcomer) flags(more ...string) []string {
	return append([]string{"init", "--config", n.file, "--endpoint", "localhost", "--settings", n.path("settings.toml")}, more...)
}

// sits starts "dpsd init" on a terminal.
func (n *newcomer) sits(more ...string) *person {
	n.t.Helper()
	return atTerminal(n.t, n.secrets, "dpsd", n.flags(more...)...)
}

// toKey answers the questions before the key.
func (n *newcomer) toKey(p *person, enrollment, id string) {
	n.t.Helper()
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", enrollment, "Number [1]: ", "1", "or a number: ", id, "Number [1]: ", "1")
}

// files lists the files of the gateway with their modes.
func (n *newcomer) files() (all []string) {
	n.t.Helper()
	err := filepath.WalkDir(n.path("etc"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		name, _ := filepath.Rel(n.path("etc"), path)
		all = append(all, fmt.Sprintf("%04o %s", info.Mode().Perm(), name))
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return all
}

func (n *newcomer) has(want ...string) {
	n.t.Helper()
	if found := n.files(); !slices.Equal(found, want) {
		n.t.Errorf("the files are %q, want %q", found, want)
	}
}

// registers registers the gateway with the files that were written.
func (n *newcomer) registers(id string) {
	n.t.Helper()
	out, err := exec.Command("dpsd", "run", "--once", "--timeout", "30s", "--config", n.file).CombinedOutput()
	if err != nil {
		n.t.Errorf("dpsd run: %v\n%s", err, out)
	}
	if found := n.secrets.in(string(out)); found != nil {
		n.t.Errorf("the log contains %q", found)
	}
	if env := n.text("state/state.env"); !strings.Contains(env, `DPSD_DEVICE_ID="`+id+`"`) {
		n.t.Errorf("the device ID is not %s:\n%s", id, env)
	}
}

// bulk creates the enrollments in lines of JSON with one request to the service API.
func (n *newcomer) bulk(lines string) {
	n.t.Helper()
	connection := map[string]string{}
	for part := range strings.SplitSeq(strings.TrimSpace(n.text("simulator/service-connection-string")), ";") {
		name, value, _ := strings.Cut(part, "=")
		connection[name] = value
	}
	key, err := base64.StdEncoding.DecodeString(connection["SharedAccessKey"])
	if err != nil {
		n.t.Fatal(err)
	}
	resource, expiry := url.QueryEscape(connection["HostName"]), time.Now().Add(time.Hour).Unix()
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", resource, expiry)
	body := `{"mode":"create","enrollments":[` + strings.Join(strings.Split(strings.TrimSpace(lines), "\n"), ",") + "]}"
	r, err := http.NewRequest(http.MethodPost, "http://"+connection["HostName"]+"/enrollments?api-version=2021-10-01", strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=%s", resource,
		url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), expiry, connection["SharedAccessKeyName"]))
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK || !strings.Contains(string(text), `"isSuccessful":true`) {
		n.t.Fatalf("the service API answers %s: %s, %v", reply.Status, text, err)
	}
}

// keyFiles are the files of a gateway with a symmetric key.
var keyFiles = []string{"0644 dpsd.toml", "0600 keys/device.key"}

func TestATechnicianSetsUpAGatewayWithValuesFromThePortal(t *testing.T) {
	n := newNewcomer(t)
	p := n.sits()
	p.answers(`Copy it from the "Overview" page of the DPS instance.`, "", "The ID Scope is missing", n.simulator.address.IDScope)
	p.answers(`The "Manage enrollments" page has two tabs.`, "3", "Enter a number from 1 to 2", "", "Attestation mechanism", "")
	p.answers("Copy it from the page of the enrollment.", "gw-1", "Primary key", "1", "Primary key (not shown): ", n.key, "Write these files? [Y/n]", "")
	p.reads("wrote " + n.path("etc/keys/device.key"))
	p.reads("wrote " + n.file)
	p.reads("none failed")
	p.reads("No service manager runs dpsd with this configuration. Start dpsd with:")
	p.reads("dpsd run --config " + n.file)
	p.ends(0)
	n.has(keyFiles...)
	n.registers("gw-1")
}

func TestEachTypicalMistakeWithAKeyIsRecognizedAndCorrected(t *testing.T) {
	const hidden = "(not shown): "
	for _, journey := range []struct {
		name       string
		enrollment string
		answers    func(n *newcomer) []string // after "Paste it here"
	}{
		{"a key in quotes is accepted without them", "1", func(n *newcomer) []string {
			return []string{hidden, `"` + n.key + `",`, "removed the quotes", nothing}
		}},
		{"a key with its name is accepted without it", "1", func(n *newcomer) []string {
			return []string{hidden, `"primaryKey": "` + n.key + `"`, "removed the quotes", nothing}
		}},
		{"a key with line breaks is put together", "1", func(n *newcomer) []string {
			return []string{hidden, n.key[:20] + "\n" + n.key[20:], "20 so far", nothing}
		}},
		{"a key with line breaks and quotes is put together", "1", func(n *newcomer) []string {
			return []string{hidden, "'" + n.key[:30] + "\n" + n.key[30:] + "'", "so far", nothing, "removed the quotes", nothing}
		}},
		{"the key of the group becomes that of the gateway", "2", func(n *newcomer) []string {
			return []string{hidden, n.groupKey, "does not store the group key", nothing}
		}},
		{"a key of the group whose first line is itself base64 is put together before it is used", "2", func(n *newcomer) []string {
			return []string{hidden, n.groupKey[:64] + "\n" + n.groupKey[64:], "64 so far", nothing, "does not store the group key", nothing}
		}},
		{"a key that is already derived is accepted in a group", "2", func(n *newcomer) []string {
			return []string{hidden, n.key, "derived for the Registration ID gw-1", nothing, "Number [1]: ", "1"}
		}},
		{"the connection string of a device is refused", "1", func(n *newcomer) []string {
			return []string{hidden, "HostName=hub.azure-devices.net;DeviceId=gw-1;SharedAccessKey=" + n.key, "connection string of a device in an IoT hub", nothing, hidden, n.key}
		}},
		{"the connection string of a policy is refused", "1", func(n *newcomer) []string {
			return []string{hidden, "HostName=x.azure-devices-provisioning.net;SharedAccessKeyName=owner;SharedAccessKey=" + n.groupKey, "Never store it on a gateway", nothing, hidden, n.key}
		}},
		{"a SAS token is refused", "1", func(n *newcomer) []string {
			return []string{hidden, "SharedAccessSignature sr=x&sig=" + url.QueryEscape(n.key) + "&se=1", "a SAS token, which expires", nothing, hidden, n.key}
		}},
		{"hexadecimal digits are refused", "1", func(n *newcomer) []string {
			raw, _ := base64.StdEncoding.DecodeString(n.key)
			return []string{hidden, hex.EncodeToString(raw), "64 so far", "", "64 hexadecimal digits", nothing, hidden, n.key}
		}},
		{"two keys are refused", "1", func(n *newcomer) []string {
			return []string{hidden, n.key + " " + n.key, "The text contains more than one key", nothing, hidden, n.key}
		}},
		{"Ctrl+Z does not stop the program, because the shell would display the rest of the key", "1", func(n *newcomer) []string {
			return []string{hidden, n.key[:20] + "\x1a" + n.key[20:], "removed the quotes", nothing}
		}},
		{"the private key of a certificate is refused, and none of its lines is displayed", "1", func(n *newcomer) []string {
			text := n.text("simulator/gw-1-key.pem")
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "-----") {
					n.secrets = append(n.secrets, canary{"a line of the private key", strings.TrimSpace(line)})
				}
			}
			return []string{hidden, text, "in PEM format", nothing, hidden, n.key}
		}},
		{"the rest of a paste is discarded after a complete key", "1", func(n *newcomer) []string {
			return []string{hidden, n.key + "\n" + n.groupKey + "\ny"}
		}},
		{"an incomplete key is refused", "1", func(n *newcomer) []string {
			return []string{hidden, n.key[:41], "41 so far", "", "cut off", nothing, hidden, n.key}
		}},
	} {
		t.Run(journey.name, func(t *testing.T) {
			t.Parallel()
			n := newNewcomer(t)
			answers := journey.answers(n)
			p := n.sits()
			n.toKey(p, journey.enrollment, "gw-1")
			p.answers(answers...)
			p.answers("files?", "y")
			p.ends(0)
			n.has(keyFiles...)
			for text, times := range map[string]int{hidden: count(answers, hidden), "files?": 1} {
				if found := strings.Count(p.seen, text); found != times {
					t.Errorf("the question %q is asked %d times, want %d:\n%s", text, found, times, p.seen)
				}
			}
			if got := strings.TrimSpace(n.text("etc/keys/device.key")); got != n.key {
				t.Error("the file does not contain the key of gw-1")
			}
			n.registers("gw-1")
		})
	}
}

func TestAMistypedIDScopeIsExplainedAndNotRepeated(t *testing.T) {
	n := newNewcomer(t)
	p := n.sits()
	p.answers("ID Scope: ", "my-dps.azure-devices-provisioning.net", `"Service endpoint" of a DPS instance`, nothing)
	p.answers("ID Scope: ", "hub-1.azure-devices.net", "host name of an IoT hub", nothing)
	p.answers("ID Scope: ", "7a0f1d3c-2b4e-4f60-8a1b-0c2d3e4f5a6b", "the ID of a subscription", nothing)
	p.answers("ID Scope: ", "0ne 123", "is not an ID scope", nothing)
	p.answers("ID Scope: ", "One00123456", "begins with the letter O", nothing, "anyway? [y/N]", "")
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Enrollment", nothing)
	p.types(interrupt)
	p.ends(1)
	n.has()
}

func TestAKeyInTheWrongPlaceIsNotRepeated(t *testing.T) {
	n := newNewcomer(t)
	p := n.sits()
	p.reads("ID Scope: ")
	n.secrets = nil // the terminal displays what the person types here
	p.secrets = nil
	p.types(n.key + "\n")
	p.reads("This looks like a key")
	p.reads("If anyone else may have seen it, create a new key in the portal.")
	if times := strings.Count(p.seen, n.key); times != 1 {
		t.Errorf("the terminal displays the key %d times, want only what was typed", times)
	}
	p.types("\x04")
	p.ends(1)
	for _, flag := range []string{"--registration-id", "--id-scope", "--key-file", "--group-key-file"} {
		out, err := exec.Command("dpsd", n.flags(flag, n.key)...).CombinedOutput()
		if err == nil || strings.Contains(string(out), n.key) || !strings.Contains(string(out), flag+": this looks like a key") {
			t.Errorf("a key in an argument: %v\n%s", err, out)
		}
	}
	p = n.sits()
	p.secrets = nil
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", "1", "Number [1]: ", "1", "or a number: ", "gw-1", "Number [1]: ", "2", "File: ", n.key, "This looks like a key", nothing, "File: ", "\x04")
	p.ends(1)
	if times := strings.Count(p.seen, n.key); times != 1 {
		t.Errorf("the terminal displays the key %d times, want only what was typed", times)
	}
}

func TestAWrongIDScopeIsFoundByTheCheckAndCorrectedWithoutTheKey(t *testing.T) {
	n := newNewcomer(t)
	p := n.sits()
	p.answers("ID Scope: ", "0ne00000001", "Number [1]: ", "1", "Number [1]: ", "1", "or a number: ", "gw-1", "Number [1]: ", "1", "(not shown): ", n.key, "files?", "")
	p.reads("failed   connect")
	p.reads("id_scope")
	p.reads("the configuration was written, but the check failed")
	p.ends(1)
	n.has(keyFiles...)
	key := n.text("etc/keys/device.key")

	p = n.sits("--replace", "--id-scope", n.simulator.address.IDScope)
	p.reads("kept the previous file as " + n.file + ".orig")
	p.reads("none failed")
	p.ends(0)
	n.has("0644 dpsd.toml", "0644 dpsd.toml.orig", "0600 keys/device.key")
	if n.text("etc/keys/device.key") != key {
		t.Error("the key has changed")
	}
	n.registers("gw-1")
}

func TestAnUpperCaseRegistrationIDIsUsedInLowerCase(t *testing.T) {
	n := newNewcomer(t)
	p := n.sits()
	n.toKey(p, "2", "GW-1")
	p.answers("(not shown): ", n.groupKey, "files?", "")
	p.ends(0)
	if !strings.Contains(p.seen, "uses the Registration ID gw-1 in lower case") {
		t.Errorf("the terminal displays:\n%s", p.seen)
	}
	if strings.TrimSpace(n.text("etc/keys/device.key")) != n.key {
		t.Error("the key is not that of gw-1")
	}
	n.registers("gw-1")
}

func TestExistingFilesAreNotReplacedAndTheirSettingsAreKept(t *testing.T) {
	n := newNewcomer(t)
	const own = "# mine\n[dps]\nid_scope = \"0ne1\"\nregistration_id = \"gw-0\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/nowhere\"\n[provisioning]\ninterval = \"24h\"\n"
	n.write("etc/dpsd.toml", own)
	p := n.sits()
	p.reads("exists; dpsd init changes it only with --replace")
	p.ends(1)
	if n.text("etc/dpsd.toml") != own {
		t.Error("the configuration has changed")
	}

	p = n.sits("--replace")
	p.answers("ID Scope [0ne1]: ", n.simulator.address.IDScope, "Number [1]: ", "", "Number [1]: ", "", "or a number [gw-0]: ", "gw-1", "Number [1]: ", "", "(not shown): ", n.key)
	p.answers("interval = \"24h\"", nothing, "files?", "")
	p.reads("kept the previous file as")
	p.ends(0)
	if text := n.text("etc/dpsd.toml"); !strings.Contains(text, "[provisioning]\ninterval = \"24h\"\n") || strings.Contains(text, "nowhere") {
		t.Errorf("the configuration is:\n%s", text)
	}
	if n.text("etc/dpsd.toml.orig") != own {
		t.Error("the copy is not the previous configuration")
	}
	n.registers("gw-1")

	// Each answer can stay the same.
	p = n.sits("--replace")
	p.answers("ID Scope [", "", "Number [1]: ", "", "Number [1]: ", "", "or a number [gw-1]: ", "", "Keep the current key", "", "files?", "")
	p.ends(0)
	n.registers("gw-1")

	// A key is not replaced either if there is no configuration.
	for _, name := range []string{"etc/dpsd.toml", "etc/dpsd.toml.orig"} {
		if err := os.Remove(n.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	p = n.sits()
	n.toKey(p, "1", "gw-1")
	p.answers("(not shown): ", n.key, "files?", "")
	p.reads("keys/device.key exists; nothing was changed")
	p.ends(1)
	n.has("0600 keys/device.key")
}

func TestWithoutANetworkTheFilesAreWrittenAndTheFaultIsNamed(t *testing.T) {
	n := newNewcomer(t)
	n.simulator.kill()
	p := n.sits()
	n.toKey(p, "1", "gw-1")
	p.answers("(not shown): ", n.key, "files?", "")
	p.reads("tcp-refused")
	p.reads("the configuration was written, but")
	p.ends(1)
	n.has(keyFiles...)
}

func TestAnInterruptionAtAnyQuestionChangesNothing(t *testing.T) {
	n := newNewcomer(t)
	answers := []string{"ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", "1", "Number [1]: ", "1", "or a number: ", "gw-1", "Number [1]: ", "1",
		"(not shown): ", n.key[:20], "if there is none: ", n.key[20:], "files? [Y/n] ", ""}
	for _, end := range []string{interrupt, "\x04", "\x1c"} {
		for count := 0; count < len(answers); count += 2 {
			p := n.sits()
			p.answers(answers[:count]...)
			p.reads(answers[count])
			p.types(end)
			if end == "\x04" { // the kernel discards output after an interrupt
				p.reads("stopped; nothing was written")
			}
			p.leaves()
			settings, err := unix.IoctlGetTermios(int(p.screen.Fd()), unix.TCGETS)
			if err != nil || settings.Lflag&unix.ECHO == 0 {
				t.Errorf("after %q at %q, the terminal displays nothing: %v", end, answers[count], err)
			}
			p.ends(1)
			n.has()
		}
	}
	p := n.sits()
	p.answers(answers[:len(answers)-2]...)
	p.answers("files? [Y/n] ", "n")
	p.reads("stopped; nothing was written")
	p.ends(1)
	n.has()
}

func TestAFullDiskChangesNothing(t *testing.T) {
	if met, err := condition("mounts"); err != nil || !met {
		if err != nil {
			t.Fatal(err)
		}
		t.Skip("unshare cannot create a private mount")
	}
	for _, free := range []string{"0", "1"} { // pages: the key is the first file
		n := newNewcomer(t)
		n.write("full.sh", `mkdir etc && mount -t tmpfs -o size=16k,mode=755 none etc || exit 99
cat /dev/zero >etc/filler 2>/dev/null
truncate -s $((16384 - 4096 * `+free+`)) etc/filler
"$@"
code=$?
echo "left: $(find etc -type f | tr '\n' ' ')"
exit $code
`)
		// The shell interprets the path of dpsd.toml in its own directory.
		p := atTerminal(t, n.secrets, "unshare", append([]string{"--mount", "--map-root-user", "sh", "-c", `cd "$0" && . ./full.sh`, n.dir, "dpsd"}, n.flags()...)...)
		n.toKey(p, "1", "gw-1")
		p.answers("(not shown): ", n.key, "files?", "")
		p.reads("no space left on device; nothing was changed")
		p.reads("left: etc/filler \r\n")
		p.ends(1)
	}
}

func TestACertificateIsInstalledFromPEMFilesAndAPFXIsExplained(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	n := newNewcomer(t)
	openssl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	certificate, key := n.path("simulator/gw-1.pem"), n.path("simulator/gw-1-key.pem")
	openssl("pkcs12", "-export", "-in", certificate, "-inkey", key, "-out", n.path("gw.pfx"), "-passout", "pass:")
	openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", n.path("locked.pem"))
	openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", n.path("other.pem"))

	p := n.sits()
	n.toKey(p, "1", "gw-1")
	p.types(interrupt) // at the paste of a key
	p.ends(1)

	// The technician names a PFX instead of a symmetric key.
	p = n.sits()
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", "1", "Number [1]: ", "1", "or a number: ", "gw-1", "Number [1]: ", "2")
	p.answers("File: ", n.path("none.key"), "no such file or directory", nothing)
	p.answers("File: ", n.path("gw.pfx"), "a PKCS#12 archive (PFX)", nothing, `choose "X.509"`, nothing, "File: ", interrupt)
	p.ends(1)

	// DPS ignores the case of the common name.
	openssl("req", "-x509", "-key", n.path("other.pem"), "-subj", "/CN=GW-2", "-out", n.path("other.crt"))
	p = n.sits("--registration-id", "GW-2")
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", "1", "Number [1]: ", "2")
	p.answers("Certificate file: ", certificate, "same file: ", n.path("simulator/gw-1-key.pem"), `the certificate is "gw-1", not the Registration ID "gw-2"`, nothing)
	p.answers("Certificate file: ", n.path("other.crt"), "same file: ", n.path("other.pem"), "The Registration ID is GW-2.", nothing, "files?", interrupt)
	p.ends(1)

	p = n.sits()
	p.answers("ID Scope: ", n.simulator.address.IDScope, "Number [1]: ", "1", "Number [1]: ", "2")
	p.answers("Certificate file: ", n.path("gw.pfx"), "same file: ", "", "a PKCS#12 archive (PFX)", nothing, "openssl pkcs12 -nodes", nothing)
	p.answers("Certificate file: ", certificate, "same file: ", n.path("locked.pem"), "protected by a passphrase", nothing, "openssl pkey", nothing)
	p.answers("Certificate file: ", certificate, "same file: ", n.path("other.pem"), "does not belong to the certificate", nothing)
	// The technician runs the command that dpsd has printed.
	openssl("pkcs12", "-nodes", "-in", n.path("gw.pfx"), "-out", n.path("gw.pem"), "-passin", "pass:")
	p.answers("Certificate file: ", n.path("gw.pem"), "same file: ", "", "The Registration ID is gw-1.", nothing, "files?", "")
	p.ends(0)
	n.has("0644 dpsd.toml", "0600 keys/device-key.pem", "0600 keys/device.pem")
	n.registers("gw-1")
}

func TestAnOrdinaryUserWritesFilesThatOnlyThisUserCanRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	n := newNewcomer(t)
	n.write("settings.toml", strings.Split(n.text("settings.toml"), "[state]")[0])
	if err := errors.Join(os.Mkdir(n.path("etc"), 0o755), os.Chown(n.path("etc"), 65534, 65534), os.Chmod(n.path("simulator"), 0o755), os.Chmod(n.path("simulator/ca.pem"), 0o644)); err != nil {
		t.Fatal(err)
	}
	other := []string{"--reuid=65534", "--regid=65534", "--clear-groups", "dpsd"}
	p := atTerminal(t, n.secrets, "setpriv", append(other, n.flags()...)...)
	n.toKey(p, "1", "gw-1")
	p.answers("(not shown): ", n.key, "You are not root, so only user 65534 can read the key", nothing, "dpsd stores its state in "+n.path("etc/state"), nothing, "files?", "")
	p.ends(0)
	n.has(keyFiles...)
	out, err := exec.Command("setpriv", append(other, "run", "--once", "--timeout", "30s", "--config", n.file)...).CombinedOutput()
	if err != nil {
		t.Errorf("dpsd run: %v\n%s", err, out)
	}

	if err := os.Chown(n.path("etc"), 0, 0); err != nil {
		t.Fatal(err)
	}
	p = atTerminal(t, n.secrets, "setpriv", append(other, "init", "--config", n.path("etc/other/dpsd.toml"), "--id-scope", "0ne1", "--registration-id", "gw-1", "--key-file", n.write("key", n.key))...)
	p.reads("permission denied; nothing was changed")
	p.reads("sudo dpsd init")
	p.ends(1)
	if err := os.Chmod(n.file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(n.file, 0, 0); err != nil {
		t.Fatal(err)
	}
	p = atTerminal(t, n.secrets, "setpriv", append(other, n.flags("--replace")...)...)
	p.reads("dpsd.toml: permission denied")
	p.reads("sudo dpsd init")
	p.ends(1)
}

func TestAScriptSetsUpAGatewayWithFlagsAlone(t *testing.T) {
	n := newNewcomer(t)
	run := func(stdin string, status int, args ...string) string {
		t.Helper()
		cmd := exec.Command("dpsd", n.flags(args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != status {
			t.Errorf("%q: the exit status is %d, want %d:\n%s", args, code, status, out)
		}
		if found := n.secrets.in(string(out)); found != nil {
			t.Errorf("the output contains %q", found)
		}
		return string(out)
	}
	says := func(out, text string) {
		t.Helper()
		if !strings.Contains(out, text) {
			t.Errorf("the output does not contain %q:\n%s", text, out)
		}
	}
	scope := []string{"--id-scope", n.simulator.address.IDScope}
	says(run("", 2), "there is no terminal to ask on; missing: --id-scope, --registration-id, --key-file, --group-key-file or --certificate")
	says(run("", 2, "--id-scope", "hub.azure-devices.net"), "--id-scope: this is the host name of an IoT hub")
	says(run("", 2, "--private-key", "x"), "--private-key: requires --certificate")
	says(run("", 2, "--key-file", "x", "--certificate", "y"), "none of the others can be")
	says(run("", 1, append(scope, "--registration-id", "gw-1", "--key-file", n.path("missing"))...), "missing: no such file or directory")
	says(run("", 1, append(scope, "--registration-id", "gw-2", "--certificate", n.path("simulator/gw-1.pem"), "--private-key", n.path("simulator/gw-1-key.pem"))...), `the common name of the certificate is "gw-1", not the Registration ID "gw-2"`)
	n.has()

	out := run(n.key, 0, append(scope, "--registration-id", "gw-1", "--key-file", "-", "--dry-run")...)
	says(out, "registration_id = \"gw-1\"")
	says(out, "not shown, because it is secret")
	n.has()

	const derived = "warning: the key has 44 characters, like a derived key"
	says(run(n.key, 0, append(scope, "--registration-id", "gw-1", "--group-key-file", "-", "--dry-run")...), derived)
	out = run(n.groupKey, 0, append(scope, "--registration-id", "GW-1", "--group-key-file", "-", "--offline")...)
	says(out, "wrote "+n.file)
	if strings.Contains(out, derived) {
		t.Errorf("the key of a group is doubted:\n%s", out)
	}
	n.has(keyFiles...)
	n.registers("gw-1")
	says(run(n.key, 1, append(scope, "--registration-id", "gw-1", "--key-file", "-")...), "exists; dpsd init changes it only with --replace")
	says(run("", 2, "--replace", "--registration-id", "gw-2"), "the current key does not belong to the Registration ID gw-2")
	run("", 0, append(scope, "--replace", "--certificate", n.path("simulator/gw-1.pem"), "--private-key", n.path("simulator/gw-1-key.pem"))...)
	n.has("0644 dpsd.toml", "0644 dpsd.toml.orig", "0600 keys/device-key.pem", "0600 keys/device.key", "0600 keys/device.pem")
	n.registers("gw-1")

	// The ID still comes from the certificate if the configuration does not contain it.
	n.write("etc/dpsd.toml", strings.Replace(n.text("etc/dpsd.toml"), "registration_id = \"gw-1\"\n", "", 1))
	run("", 0, append(scope, "--replace", "--offline")...)
	if text := n.text("etc/dpsd.toml"); strings.Contains(text, "registration_id") || !strings.Contains(text, "x509") {
		t.Errorf("the configuration is:\n%s", text)
	}
	n.registers("gw-1")
}

// manager is a substitute for systemctl and for dpsd's init script, in a private mount. It starts
// dpsd as root. /etc is a copy with the group dpsd-keys.
const manager = `cp -a /etc machine && mkdir -p machine/init.d && mount --bind machine /etc && mount -t tmpfs -o mode=755 none /run || exit 99
printf 'root:x:0:\ndpsd-keys:x:64322:\n' >/etc/group
mkdir bin
cat >bin/systemctl <<'END'
#!/bin/sh
echo "systemctl $*" >>calls
case "$*" in
"show --property=LoadState --value dpsd.service") echo loaded ;;
*enable*) ;;
*restart*) dpsd run </dev/null >/dev/null 2>log & echo $! >pid ;;
*) exit 1 ;;
esac
END
sed 's/^echo "systemctl/echo "script/' bin/systemctl >/etc/init.d/dpsd
chmod +x bin/systemctl /etc/init.d/dpsd
case $1 in
systemd) mkdir /run/systemd /run/systemd/system ;;
none) rm /etc/init.d/dpsd ;;
esac
shift
PATH=$PWD/bin:$PATH "$@"
code=$?
cp -a /etc/dpsd etc
if [ -e pid ]; then kill $(cat pid); fi
exit $code
`

func TestTheServiceIsStartedAndTheAssignmentIsAwaited(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount over /etc/dpsd")
	}
	for _, row := range []struct {
		name, manager, calls string
		trouble              string // what prevents the assignment
		says                 []string
	}{
		{"systemd", "systemd", "--quiet enable dpsd.service\nsystemctl --no-block restart dpsd.service", "", []string{"Waiting", "Assigned to dpsd-sim.azure-devices.net as gw-1."}},
		{"a script of OpenRC or procd", "script", "script restart", "", []string{"Waiting", "Assigned to dpsd-sim.azure-devices.net as gw-1."}},
		{"no service manager", "none", "", "", []string{"No service manager runs dpsd with this configuration. Start dpsd with:\r\n  dpsd run\r\n"}},
		{"no enrollment", "systemd", "restart", "refused", []string{"enrollment-not-found: ", "Try: dpsd status"}},
		{"a failing DPS", "systemd", "restart", "failing", []string{"not assigned within 1s; dpsd keeps trying", "Try: dpsd status"}},
		{"the key of the group instead of that of the gateway", "systemd", "restart", "group key", []string{"unauthorized: ", "If this is the key of the enrollment group", "Try: dpsd status"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := newNewcomer(t)
			n.write("manager.sh", manager)
			scenario, key, status := "[settings]\npolls = 1\n", n.key, 0 // one poll takes two seconds
			timeout := "2m"
			switch row.trouble {
			case "refused":
				scenario, status = scenario+"[[rule]]\non = \"register\"\nstatus = 404\nerror_code = 404201\n", 1
			case "group key":
				key, status = n.groupKey, 1
			case "failing":
				scenario, status, timeout = scenario+"[[rule]]\non = \"register\"\nstatus = 500\n", 4, "1s"
			}
			n.restart(scenario)
			p := atTerminal(t, n.secrets, "unshare", "--mount", "sh", "-c", `cd "$0" && . ./manager.sh`, n.dir, row.manager,
				"dpsd", "init", "--endpoint", "localhost", "--settings", n.path("settings.toml"), "--timeout", timeout)
			n.toKey(p, "1", "gw-1")
			p.answers("(not shown): ", key, "/etc/dpsd/keys/device.key (mode 0640: only root and the service can read it)", nothing, "files?", "")
			p.reads("none failed")
			for _, text := range row.says {
				p.reads(text)
			}
			if p.ends(status); status == 0 && row.manager != "none" && !strings.Contains(p.seen, "Other services read the identity in "+n.path("state")+"/state.env.") {
				t.Errorf("the terminal does not say where the result is:\n%s", p.seen)
			}
			n.has("0644 dpsd.toml", "0640 keys/device.key")
			for name, mode := range map[string]fs.FileMode{"keys": 0o750, "keys/device.key": 0o640} {
				info, err := os.Stat(n.path("etc/" + name))
				if err != nil {
					t.Fatal(err)
				}
				if group := info.Sys().(*syscall.Stat_t).Gid; group != 64322 || info.Mode().Perm() != mode {
					t.Errorf("the group of %s is %d, want 64322, and its mode %04o, want %04o", name, group, info.Mode().Perm(), mode)
				}
			}
			if row.manager == "none" {
				return
			}
			calls := n.text("calls")
			if found := n.secrets.in(n.text("log") + calls); found != nil {
				t.Errorf("the log or an argument contains %q", found)
			}
			if !strings.Contains(calls, row.calls) {
				t.Errorf("the calls are %q, want %q", calls, row.calls)
			}
		})
	}
}

func TestTheGatewayRegistersWithThePrintedEnrollment(t *testing.T) {
	n := newNewcomer(t)
	info := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("dpsd", append([]string{"enroll-info", "--config", n.file}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if found := n.secrets.in(string(out)); found != nil {
			t.Errorf("the output contains %q", found)
		}
		return string(out)
	}
	contains := func(out string, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("the output does not contain %q:\n%s", text, out)
			}
		}
	}
	set := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("dpsd", n.flags(append(args, "--id-scope", n.simulator.address.IDScope, "--offline")...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	set("--registration-id", "gw-1", "--key-file", n.path("simulator/gw-1.key"))
	contains(info(), "Registration ID          gw-1", "Attestation mechanism    Symmetric key", "ID Scope                 "+n.simulator.address.IDScope)
	if got, want := info("--json"), `{"registrationId":"gw-1","attestation":{"type":"symmetricKey","symmetricKey":{}}}`+"\n"; got != want {
		t.Errorf("the JSON is %s, want %s", got, want)
	}
	contains(info("--csv"), "registrationId,attestation,sha1Thumbprint,sha256Thumbprint,issuer,notAfter\r\ngw-1,symmetricKey,,,,\r\n")
	contains(info("--registration-id", "gw-9", "--json"), `"gw-9"`)
	for _, command := range []string{"enroll-info", "init"} {
		for _, wrong := range []string{"gw 9", "%q"} {
			out, err := exec.Command("dpsd", command, "--config", n.path("none"), "--registration-id", wrong).CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.HasPrefix(string(out), "dpsd: --registration-id: not a valid ") {
				t.Errorf("%s with the ID %q: %v\n%s", command, wrong, err, out)
			}
		}
	}

	set("--replace", "--certificate", n.path("simulator/gw-1.pem"), "--private-key", n.path("simulator/gw-1-key.pem"))
	block, _ := pem.Decode([]byte(n.text("simulator/gw-1.pem")))
	one, two := sha1.Sum(block.Bytes), sha256.Sum256(block.Bytes)
	thumbprints := []string{strings.ToUpper(hex.EncodeToString(one[:])), strings.ToUpper(hex.EncodeToString(two[:]))}
	contains(info(), append(thumbprints, "X.509 client certificates", "Issuer")...)
	contains(info("--csv"), "gw-1,x509,"+thumbprints[0]+","+thumbprints[1]+",")

	// The service API accepts the line, and the gateway registers with only this enrollment.
	line := info("--json")
	n.write("simulator/enrollments.toml", "")
	n.restart(prompt, "--service", "localhost:0")
	n.bulk(line)
	n.registers("gw-1")
}
