package main_test

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/test/pair"
)

// canary is a secret of the test with a name.
type canary struct{ name, secret string }

// canaries are secrets that the test searches for in any of their forms.
type canaries []canary

// forms returns the encodings of the secret: unchanged, in base64 (also within a longer text),
// in hex and percent-encoded. For a key in base64, it includes encodings of the decoded bytes.
func (c canary) forms() map[string]string {
	forms := map[string]string{"itself": c.secret}
	escape := func(keep string) string {
		var b strings.Builder
		for i := range len(c.secret) {
			if ch := c.secret[i]; strings.IndexByte(keep, ch) >= 0 {
				b.WriteByte(ch)
			} else {
				fmt.Fprintf(&b, "%%%02X", ch)
			}
		}
		return b.String()
	}
	const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	forms["escaped"], forms["escaped with marks"] = escape(alphanumeric), escape(alphanumeric+"-_.~/")
	secrets := map[string][]byte{"": []byte(c.secret)}
	if raw, err := base64.StdEncoding.DecodeString(c.secret); err == nil && len(raw) > 8 {
		secrets["the bytes "] = raw
	}
	for of, secret := range secrets {
		forms[of+"in hex"] = hex.EncodeToString(secret)
		forms[of+"in capital hex"] = strings.ToUpper(hex.EncodeToString(secret))
		for before := range 3 {
			// The encoding of whole groups of three bytes does not depend on the surrounding bytes.
			whole := secret[(3-before)%3:]
			whole = whole[:len(whole)/3*3]
			forms[fmt.Sprintf("%sin base64, %d", of, before)] = base64.StdEncoding.EncodeToString(whole)
			forms[fmt.Sprintf("%sin base64 for addresses, %d", of, before)] = base64.URLEncoding.EncodeToString(whole)
		}
	}
	return forms
}

// written returns texts that contain the secret in one of its forms.
func (c canary) written() []string {
	forms := c.forms()
	texts := []string{c.secret, forms["in hex"], forms["in capital hex"], forms["escaped"], forms["escaped with marks"]}
	for before := range 3 {
		text := []byte("a: "[:before] + c.secret + "!")
		texts = append(texts, base64.StdEncoding.EncodeToString(text), base64.RawURLEncoding.EncodeToString(text))
	}
	if raw, err := base64.StdEncoding.DecodeString(c.secret); err == nil && len(raw) > 8 {
		texts = append(texts, hex.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw))
	}
	return texts
}

// in lists the canaries that a text contains.
func (all canaries) in(text string) (found []string) {
	for _, c := range all {
		for how, form := range c.forms() {
			if strings.Contains(text, form) {
				found = append(found, c.name+" ("+how+")")
			}
		}
	}
	slices.Sort(found)
	return found
}

// secret returns a unique secret of letters, digits and characters that need escaping.
func secret(t *testing.T) string {
	t.Helper()
	raw := make([]byte, 9)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	return "p&" + base64.RawURLEncoding.EncodeToString(raw) + "/+w="
}

func key(t *testing.T) string {
	t.Helper()
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// echo is an HTTP proxy that requires a password. It rejects the first tunnels with responses
// that contain the credentials it received; then it connects to the simulator.
type echo struct {
	password string
	refuse   atomic.Int32
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	here, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	received := r.Header.Get("Proxy-Authorization")
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte("gateway:"+e.password)); received != want || e.refuse.Add(-1) >= 0 {
		fmt.Fprintf(here, "HTTP/1.1 407 not with %x, %s\r\nProxy-Authenticate: Basic\r\nLocation: http://gateway:%s@elsewhere/\r\nContent-Length: 0\r\n\r\n", e.password, received, e.password)
		return
	}
	_, port, _ := net.SplitHostPort(r.Host)
	there, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return
	}
	defer there.Close()
	fmt.Fprint(here, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		_, _ = io.Copy(there, buffered)
		_ = there.Close()
	}()
	_, _ = io.Copy(here, there)
}

// TestPromise8CanariesStayWhereTheyArePut puts secrets wherever a gateway may have some and
// where an administrator or a peer may have put one by mistake, causes every kind of failure,
// and searches for the secrets in all outputs of dpsd.
func TestPromise8CanariesStayWhereTheyArePut(t *testing.T) {
	for _, environment := range []bool{false, true} {
		t.Run(map[bool]string{false: "a proxy in dpsd.toml", true: "a proxy in the environment"}[environment], func(t *testing.T) {
			plant(t, environment)
		})
	}
}

func plant(t *testing.T, environment bool) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, text string, mode fs.FileMode) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if err := os.CopyFS(path("simulator"), os.DirFS(shop.simulator)); err != nil {
		t.Fatal(err)
	}

	// The secrets.
	right, wrong := strings.TrimSpace(read("simulator/"+device+".key")), key(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	issued, err := pair.Issue(pair.Certificate{RegistrationID: device, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)})
	if err == nil {
		_, err = issued.Publish(path("state"), 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	issuedLines := strings.Split(string(issued.Key), "\n")
	password, inline, commented, remembered := secret(t), key(t), key(t), secret(t)
	signature, given, pin := key(t), key(t), secret(t)
	all := canaries{
		{"the device key", right}, {"the other device key", wrong},
		{"the private key", strings.Join(strings.Split(pemText, "\n")[1:4], "")},
		{"the first line of the private key", strings.Split(pemText, "\n")[1]},
		{"the key of the issued certificate", strings.Join(issuedLines[1:4], "")}, {"the second line of the key of the issued certificate", issuedLines[2]},
		{"the password of the proxy", password},
		{"the inline key", inline}, {"the key that is commented out", commented}, {"the password in a comment", remembered},
		{"the signature that the service repeats", signature}, {"the signature in the payload", given}, {"the PIN in the payload", pin},
	}
	token := func(signature string) string {
		return "SharedAccessSignature sr=0ne%2Fregistrations%2F" + device + "&sig=" + url.QueryEscape(signature) + "&se=1&skn=registration"
	}

	put("wrong.key", wrong+"\n", 0o600)
	put("proxy-password", password+"\n", 0o600)
	put("device.key", pemText, 0o600)
	put("device.pem", read("simulator/"+device+".pem"), 0o600) // a certificate for another key

	proxy := &echo{password: password}
	proxy.refuse.Store(2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: proxy}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	withPassword := "http://gateway:" + url.QueryEscape(password) + "@" + l.Addr().String()

	put("scenario.toml", prompt+fmt.Sprintf(`
[[rule]]
on = "register"
status = 401
error_code = 401002
error_message = '%[1]s'
times = 1
[[rule]]
on = "register"
body = '{"errorCode":500001,"trackingId":"%[1]s","message":"%[1]s"}'
status = 500
times = 1
[[rule]]
on = "register"
payload = '{"place":"hall 7","token":"%[2]s","pin":"%[3]s"}'
`, token(signature), token(given), pin), 0o600)
	sim, err := startSimulator(path("simulator"), path("packets"), "--scenario", path("scenario.toml"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.kill)
	vars := sim.variables()
	vars["WORK"], vars["PROTOCOLS"] = dir, `"mqtt"`
	transport := "proxy = \"http://" + l.Addr().String() + "\"\nproxy_user = \"gateway\"\nproxy_password = \"file:$WORK/proxy-password\"\n"
	if environment {
		transport = "proxy = \"environment\"\n"
	}
	credential := func(key string) string { return "[[credential]]\ntype = \"symmetric-key\"\nkey = \"" + key + "\"\n" }
	text := complete(`# Hall 7. The key was `+commented+` before.
# password: `+remembered+`
[dps]
id_scope = "$ID_SCOPE"
registration_id = "`+device+`"
[transport]
protocols = ["mqtt", "websocket"]
mqtt_port = $MQTT_PORT
websocket_port = $WEBSOCKET_PORT
ca_file = "$WORK/simulator/ca.pem"
`+transport+`
[[credential]]
type = "x509"
certificate = "file:$WORK/device.pem"
private_key = "file:$WORK/device.key"
`+credential("file:$WORK/simulator/"+device+".key")+"#key = \""+commented+"\"\n"+credential("file:$WORK/wrong.key")+`
[log]
level = "debug"
[retry]
initial = "100ms"
max = "1s"
refused_initial = "1s"
refused_max = "1s"
`, func(name string) string { return vars[name] })
	put("dpsd.toml", text, 0o600)
	put("inline.toml", text+credential(inline), 0o600)

	// The tools print text that a journal and a unit may contain.
	if err := os.Mkdir(path("tools"), 0o755); err != nil {
		t.Fatal(err)
	}
	var entries strings.Builder
	for _, c := range all {
		if c.name == "the private key" || c.name == "the key of the issued certificate" || c.name == "the key that is commented out" {
			continue // its lines come from another program, and it is only recognized because it looks like a key
		}
		for _, form := range c.written() {
			if slices.Contains([]string{inline, remembered, given, pin, signature}, c.secret) {
				break
			}
			fmt.Fprintf(&entries, "Nov 25 08:15:42 gateway dpsd[1]: somebody said «%s» here\n", form)
		}
	}
	entries.WriteString(pemText + string(issued.Key) + "POST /?" + token(signature) + "\nContent: " + token(given) + "\n")
	put("tools/journalctl", "#!/bin/sh\ncat <<'END'\n"+entries.String()+"END\n", 0o755)
	put("tools/systemctl", "#!/bin/sh\ncat <<'END'\nEnvironment=\"HTTPS_PROXY="+withPassword+"\" KEY="+right+"\nSetCredential=dps-primary-key:"+right+
		"\n# "+commented+"\nExecStart=/usr/bin/dpsd run\nEND\n", 0o755)
	if found := all.in(entries.String() + read("tools/systemctl") + text + read("inline.toml") + pin); len(found) < 3*len(all) {
		t.Fatalf("of the planted secrets, only these are found: %q", found)
	}

	// dpsd runs and fails in several ways before it is assigned.
	environ := []string{"PATH=" + path("tools") + ":" + os.Getenv("PATH")}
	if environment {
		environ = append(environ, "HTTPS_PROXY="+withPassword)
	}
	log, err := os.Create(path("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	daemon := exec.Command("dpsd", "run", "--config", path("dpsd.toml"))
	daemon.Env, daemon.Stderr = environ, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	said := map[string]string{} // output by its name
	run := func(name string, codes string, args ...string) {
		t.Helper()
		command := exec.Command("dpsd", args...)
		command.Env, command.Dir = environ, dir
		out, err := command.CombinedOutput()
		if code := command.ProcessState.ExitCode(); code < 0 || !strings.Contains(codes, strconv.Itoa(code)) {
			t.Fatalf("%s: %v\n%s\n%s", name, err, out, read("log"))
		}
		said[name] = string(out)
	}
	run("dpsd wait", "0", "wait", "--for", "confirmed", "--timeout", "20s", "--config", "dpsd.toml")

	// The outputs of dpsd.
	proc := fmt.Sprintf("/proc/%d/", daemon.Process.Pid)
	for _, name := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		said[proc+name] = strings.ReplaceAll(string(data), "HTTPS_PROXY="+withPassword, "") // the administrator has set it
	}
	over := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path("run/dpsd.sock"))
	}}}
	defer over.CloseIdleConnections()
	for _, at := range []string{"/v1/status", "/v1/events", "/metrics", "/nowhere"} {
		answer, err := over.Get("http://dpsd" + at)
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		if at == "/v1/events" {
			text, err = bufio.NewReader(answer.Body).ReadBytes('\n') // the stream does not end
		} else {
			text, err = io.ReadAll(answer.Body)
		}
		answer.Body.Close()
		if err != nil {
			t.Fatal(at, ": ", err)
		}
		said[at] = string(text)
	}
	run("dpsd status", "0", "status", "--attempts", "--config", "dpsd.toml")
	run("dpsd check", "01", "check", "--config", "dpsd.toml")
	run("dpsd check of an inline key", "78", "check", "--config", "inline.toml")
	run("dpsd run with an inline key", "78", "run", "--config", "inline.toml")
	run("dpsd certificate status", "013", "certificate", "status", "--config", "dpsd.toml")
	run("dpsd certificate renew", "01", "certificate", "renew", "--config", "dpsd.toml")
	run("dpsd config show", "0", "config", "show", "--config", "dpsd.toml")
	run("dpsd reprovision", "0", "reprovision", "--config", "dpsd.toml")
	for _, config := range []string{"dpsd.toml", "inline.toml"} {
		run("dpsd report with "+config, "0", "report", "--output", "report.tar.gz", "--config", config)
		parts := unpack(t, path("report.tar.gz"))
		for name, text := range parts {
			said["the report with "+config+", "+name] = text
		}
		for _, name := range []string{"README.txt", "journal.txt", "unit.txt", "unit-properties.txt", "check.json", "versions.txt"} {
			if parts[name] == "" {
				t.Errorf("the report with %s has no %s, only %q", config, name, slices.Sorted(maps.Keys(parts)))
			}
		}
	}
	for _, name := range []string{"config.toml", "status.json", "metrics.txt", "attempts.json", "state/state.json", "state/state.env", "state/certificate/chain.pem", "state/certificate/certificate.json"} {
		if said["the report with dpsd.toml, "+name] == "" {
			t.Errorf("the report has no %s", name)
		}
	}
	if err := daemon.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Wait(); err != nil {
		t.Error(err)
	}
	said["the log"] = read("log")
	for _, name := range []string{"state", "run"} {
		said[name] = ""
		err := filepath.WalkDir(path(name), func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name() == "key.pem" {
				return err
			}
			text, err := os.ReadFile(file)
			// A payload is published unchanged, as intended.
			said[name] += file + ": " + strings.NewReplacer(token(given), "", pin, "").Replace(string(text)) + "\n"
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	for _, code := range []string{"proxy-auth", "tls-intercepted", "service-error", "credential"} {
		if !strings.Contains(said["the log"], `"fault":"`+code) {
			t.Errorf("the fault %s did not occur, so the test covers too little", code)
		}
	}
	for where, text := range said {
		if text == "" && where != "dpsd wait" {
			t.Errorf("%s is empty, so nothing was searched", where)
		}
		found := all.in(text)
		if strings.HasPrefix(where, "the report with inline.toml") {
			// The directory of this key is unknown, because the configuration is invalid; here,
			// other programs have written the key to the journal.
			found = slices.DeleteFunc(found, func(of string) bool { return strings.HasPrefix(of, "the second line of the key of the issued") })
		}
		if len(found) > 0 {
			t.Errorf("%s contains %q:\n%.20000s", where, found, text)
		}
	}
}

// unpack returns the files of a report, by their name below its directory.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for archive := tar.NewReader(packed); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		parts[name] = string(text)
	}
}
