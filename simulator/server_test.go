package simulator_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

func TestForms(t *testing.T) {
	bubble(t, "an operation ID is 5.<16 hex>.<guid>, an etag base64 of a quoted text", func(t *testing.T) {
		p := ready(t, start(t, simulator.Options{})).assign()
		b := p.parse(t)
		if !regexp.MustCompile(`^5\.[0-9a-f]{16}\.[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.OperationID) {
			t.Error(b.OperationID)
		}
		var etag string
		_ = json.Unmarshal(b.RegistrationState["etag"], &etag)
		if raw, err := base64.StdEncoding.DecodeString(etag); err != nil || !regexp.MustCompile(`^"[0-9a-f-]{36}"$`).Match(raw) {
			t.Errorf("%q, %v", raw, err)
		}
	})
	bubble(t, "timestamps have up to seven fractional digits and no trailing zeros", func(t *testing.T) {
		s := start(t, simulator.Options{})
		time.Sleep(516335299 * time.Nanosecond)
		p := ready(t, s).assign()
		if got := string(p.parse(t).RegistrationState["createdDateTimeUtc"]); got != `"2000-01-01T00:00:00.5163352Z"` {
			t.Error(got)
		}
		time.Sleep(2*time.Second - 16335299*time.Nanosecond)
		p = ready(t, s).assign()
		if got := string(p.parse(t).RegistrationState["lastUpdatedDateTimeUtc"]); got != `"2000-01-01T00:00:02.5Z"` {
			t.Error(got)
		}
		if got := string(p.parse(t).RegistrationState["createdDateTimeUtc"]); got != `"2000-01-01T00:00:00.5163352Z"` {
			t.Error(got)
		}
	})
	bubble(t, "an ID scope has the expected format", func(t *testing.T) {
		if s := start(t, simulator.Options{Seed: 7}); !regexp.MustCompile(`^0ne[0-9A-F]{8}$`).MatchString(s.IDScope()) {
			t.Error(s.IDScope())
		}
	})
	bubble(t, "a device always gets the same one of several hubs", func(t *testing.T) {
		var e enroll.Enrollments
		probe := start(t, simulator.Options{})
		key := probe.GroupKey() // the seed is 0, so DeviceKey matches
		e.Groups = []enroll.Group{{Name: "g", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: key}, Grant: enroll.Grant{Hubs: []string{"a.example", "b.example", "c.example"}}}}
		seen := map[string]bool{}
		for range 3 {
			s := start(t, simulator.Options{Enrollments: &e})
			seen[string(ready(t, s).assign().parse(t).RegistrationState["assignedHub"])] = true
		}
		if len(seen) != 1 || seen[`"dpsd-sim.azure-devices.net"`] {
			t.Error(seen)
		}
	})
}

// countedPipe counts the server's writes.
type countedPipe struct {
	net.Conn
	writes atomic.Int64
}

func (c *countedPipe) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err == nil {
		c.writes.Add(1)
	}
	return n, err
}

func TestWrites(t *testing.T) {
	open := func(t *testing.T, s *simulator.Server) (*countedPipe, *client) {
		mine, theirs := net.Pipe()
		counted := &countedPipe{Conn: theirs}
		go s.ServeMQTT(counted)
		conn := tls.Client(mine, clientConfig(s))
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		return counted, newClient(t, conn)
	}
	bubble(t, "PUBACK and reply leave in one write, so that Nagle's algorithm causes no delay", func(t *testing.T) {
		s := start(t, simulator.Options{})
		pipe, c := open(t, s)
		c.connect(s, device).subscribe()
		synctest.Wait()
		before := pipe.writes.Load()
		c.send(publishPacket(0x32, registerTopic("1"), 9, "")...)
		c.expect("PUBACK", 0x40, 2, 0, 9)
		c.expectPublish("the reply")
		synctest.Wait()
		if n := pipe.writes.Load() - before; n != 1 {
			t.Errorf("%d writes", n)
		}
	})
	bubble(t, "byte_by_byte at accept also applies to the handshake", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", ByteByByte: true})
		pipe, c := open(t, s)
		c.connect(s, device)
		c.send(0xe0, 0) // a clean end, so that the server's last bytes are read
		_, _ = io.Copy(io.Discard, c.conn)
		c.conn.Close()
		synctest.Wait()
		log := s.Log()
		if last := log[len(log)-1]; pipe.writes.Load() != last.BytesDown || last.BytesDown < 500 {
			t.Errorf("%d writes, %+v", pipe.writes.Load(), last)
		}
	})
}

func TestPacketLog(t *testing.T) {
	bubble(t, "the log as JSON lines, the log in memory and the summary agree", func(t *testing.T) {
		var lines bytes.Buffer
		s := start(t, simulator.Options{PacketLog: &lines})
		c := ready(t, s)
		c.assign()
		c.send(0xe0, 0)
		c.expectEnd("the end")
		c.conn.Close()
		synctest.Wait()
		entries, err := simulator.ReadLog(&lines)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s.Log(), entries); d != "" {
			t.Error(d)
		}
		sum := simulator.Summarize(entries)
		// CONNECT, SUBSCRIBE, 3 requests, 3 PUBACKs, DISCONNECT; CONNACK, SUBACK, 3 replies.
		if sum.Connections != 1 || sum.PacketsUp != 9 || sum.PacketsDown != 5 || len(sum.Registers) != 1 || len(sum.Polls) != 2 {
			t.Errorf("%+v", sum)
		}
		mqtt := 0
		for _, e := range entries {
			if e.Direction == "up" {
				mqtt += e.Size
			}
		}
		if sum.BytesUp <= int64(mqtt) || sum.BytesDown <= 500 {
			t.Errorf("%d bytes up for %d of MQTT, %d down", sum.BytesUp, mqtt, sum.BytesDown)
		}
	})
	bubble(t, "no secret is in the log", func(t *testing.T) {
		var lines bytes.Buffer
		s := start(t, simulator.Options{PacketLog: &lines})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, device, userNameOf(s, device), "SharedAccessSignature sr=x&sig=c2VjcmV0&se=1&password=hunter2")...)
		c.expect("passes", 0x20, 2, 0, 0)
		for _, secret := range []string{"SharedAccessSignature", "c2VjcmV0", "hunter2"} {
			if strings.Contains(lines.String(), secret) {
				t.Errorf("%s is in %s", secret, lines.String())
			}
		}
	})
	bubble(t, "DiscardLog keeps nothing in memory", func(t *testing.T) {
		s := start(t, simulator.Options{DiscardLog: true})
		ready(t, s)
		if n := len(s.Log()); n != 0 {
			t.Error(n)
		}
	})
}

func TestSeed(t *testing.T) {
	// played returns everything that a server with a seed shows, except keys of certificates.
	played := func(t *testing.T, seed uint64) (log []simulator.Entry, shown []string) {
		s := start(t, simulator.Options{Seed: seed, Scenario: &simulator.Scenario{Rules: []simulator.Rule{
			{On: "poll", Status: 500, Times: 1},
			{On: "register", Then: "close", Times: 1},
		}}})
		shown = append(shown, s.IDScope(), s.GroupKey())
		for _, id := range []string{"b", "a"} {
			c := dial(t, s).connect(s, id).subscribe()
			shown = append(shown, c.register("1").payload)
			c.expectEnd("closed")
			c.conn.Close()
			synctest.Wait() // otherwise its CLOSE may be logged after the next OPEN
			c = dial(t, s).connect(s, id).subscribe()
			p := c.register("1")
			c.puback(p.id)
			operation := p.parse(t).OperationID
			for range 3 {
				p = c.poll("2", operation)
				c.puback(p.id)
				shown = append(shown, p.payload)
			}
			c.send(0xe0, 0)
			c.expectEnd("the end")
			c.conn.Close()
			synctest.Wait()
		}
		log = s.Log()
		for i := range log {
			// The length of a certificate's signature varies, and so do these.
			log[i].BytesDown, log[i].BytesUp = 0, 0
		}
		return log, shown
	}
	var logs [2][]simulator.Entry
	var shown [3][]string
	bubble(t, "first run", func(t *testing.T) { logs[0], shown[0] = played(t, 42) })
	bubble(t, "second run", func(t *testing.T) { logs[1], shown[1] = played(t, 42) })
	bubble(t, "another seed", func(t *testing.T) { _, shown[2] = played(t, 43) })
	t.Run("the same seed and scenario give the same values and the same log", func(t *testing.T) {
		if d := cmp.Diff(shown[0], shown[1]); d != "" || len(shown[0]) == 0 {
			t.Error(d)
		}
		if d := cmp.Diff(logs[0], logs[1]); d != "" {
			t.Error(d)
		}
	})
	t.Run("another seed gives other values", func(t *testing.T) {
		for i := range shown[0] {
			if shown[0][i] == shown[2][i] {
				t.Errorf("the same: %s", shown[0][i])
			}
		}
	})
}

// Over real sockets.
func TestListeners(t *testing.T) {
	listen := func(t *testing.T, s *simulator.Server) string {
		t.Helper()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- s.AcceptMQTT(l) }()
		t.Cleanup(func() {
			s.Close()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return l.Addr().String()
	}
	t.Run("a listener serves many, and Close ends all", func(t *testing.T) {
		s := start(t, simulator.Options{})
		address := listen(t, s)
		var conns []*client
		for _, id := range []string{"a", "b", "c"} {
			conn, err := tls.Dial("tcp", address, clientConfig(s))
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(t, conn).connect(s, id).subscribe()
			if p := c.assign(); p.parse(t).Status != "assigned" {
				t.Error(p)
			}
			conns = append(conns, c)
		}
		s.Close()
		for _, c := range conns {
			c.expectEnd("closed by the server")
		}
		s.Close() // may be called twice
	})
	t.Run("reset at accept is an RST", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", Reset: true})
		conn, err := net.Dial("tcp", listen(t, s))
		if err != nil {
			if errors.Is(err, syscall.ECONNRESET) {
				return // the reset arrived before the handshake
			}
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	})
	t.Run("a refusal reaches a client that has sent more data in the meantime", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(3)})
		conn, err := tls.Dial("tcp", listen(t, s), clientConfig(s))
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, conn)
		c.send(append(goodConnect(s, device), bytes.Repeat([]byte{0xc0, 0}, 1000)...)...)
		c.expect("CONNACK 3", 0x20, 2, 0, 3)
		c.expectEnd("in good order")
	})
	t.Run("a closed server accepts no connection", func(t *testing.T) {
		s := start(t, simulator.Options{})
		s.Close()
		mine, theirs := net.Pipe()
		s.ServeMQTT(theirs)
		if _, err := mine.Read(make([]byte, 1)); err == nil {
			t.Error("it was served")
		}
	})
}

func TestDirectory(t *testing.T) {
	t.Run("a directory is created on first use and then kept", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "new")
		first := start(t, simulator.Options{Directory: dir})
		modes := map[string]os.FileMode{
			"ca.pem": 0o644, "ca.key": 0o600, "id-scope": 0o644, "group-key": 0o600,
			"device-ca.pem": 0o644, "device-ca.key": 0o600, "enrollments.toml": 0o644,
		}
		before := map[string]string{}
		for name, mode := range modes {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v", name, info, err)
			}
			text, _ := os.ReadFile(filepath.Join(dir, name))
			before[name] = string(text)
		}
		second := start(t, simulator.Options{Directory: dir})
		if first.IDScope() != second.IDScope() || first.GroupKey() != second.GroupKey() || !bytes.Equal(first.CA(), second.CA()) || !bytes.Equal(first.DeviceCA(), second.DeviceCA()) {
			t.Error("different material on the second start")
		}
		for name := range modes {
			if text, _ := os.ReadFile(filepath.Join(dir, name)); string(text) != before[name] {
				t.Errorf("%s was rewritten", name)
			}
		}
		if strings.TrimSpace(before["group-key"]) != first.GroupKey() || strings.TrimSpace(before["id-scope"]) != first.IDScope() || before["ca.pem"] != string(first.CA()) {
			t.Error("the server does not use the files")
		}
	})
	t.Run("key and certificate of the default groups work on a later start", func(t *testing.T) {
		dir := t.TempDir()
		made := start(t, simulator.Options{Directory: dir})
		key, certificate := made.DeviceKey(device), deviceCertificate(t, made, device)
		s := start(t, simulator.Options{Directory: dir})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, device, userNameOf(s, device), token(key, resourceOf(s, device), time.Now().Add(time.Hour), ""))...)
		c.accepted(device)
		with(t, s, device, certificate).accepted(device)
	})
	t.Run("existing enrollments are not replaced", func(t *testing.T) {
		dir := t.TempDir()
		text := []byte("[[individual]]\nregistration_id = \"x\"\ntype = \"symmetric-key\"\nprimary_key = \"" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\"\n")
		if err := os.WriteFile(filepath.Join(dir, "enrollments.toml"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		start(t, simulator.Options{Directory: dir})
		if got, _ := os.ReadFile(filepath.Join(dir, "enrollments.toml")); !bytes.Equal(got, text) {
			t.Errorf("%s", got)
		}
	})
	for _, name := range []string{"group-key", "ca.key", "device-ca.pem"} {
		t.Run("without its "+name+" a used directory is refused, not repaired", func(t *testing.T) {
			dir := t.TempDir()
			start(t, simulator.Options{Directory: dir})
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			_, err := simulator.New(simulator.Options{Directory: dir})
			if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "restore the file") {
				t.Error(err)
			}
		})
	}
	t.Run("a key that does not match the certificate is refused", func(t *testing.T) {
		dir := t.TempDir()
		start(t, simulator.Options{Directory: dir})
		other, _ := os.ReadFile(filepath.Join(dir, "device-ca.key"))
		if err := os.WriteFile(filepath.Join(dir, "ca.key"), other, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := simulator.New(simulator.Options{Directory: dir}); err == nil || !strings.Contains(err.Error(), "private key does not match public key") {
			t.Error(err)
		}
	})
}

func TestParseEnrollments(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, c := range []struct{ name, text, want string }{
		{"an unknown key", "[[group]]\nnme = \"x\"\n", "e.toml:2:1: group.nme: unknown key"},
		{"no type", "[[group]]\nname = \"x\"\n", "e.toml:1:3: group.type: \"\" is neither"},
		{"a group without a name", "[[group]]\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\n", "group.name: is missing"},
		{"a key that is not base64", "[[group]]\nname = \"x\"\ntype = \"symmetric-key\"\nprimary_key = \"not base64\"\n", "e.toml:4:1: group.primary_key: the key is not base64"},
		{"a key that is too short", "[[group]]\nname = \"x\"\ntype = \"symmetric-key\"\nprimary_key = \"AAAA\"\n", "e.toml:4:1: group.primary_key: the key has 3 bytes"},
		{"a key file that does not exist", "[[group]]\nname = \"x\"\ntype = \"symmetric-key\"\nprimary_key_file = \"nowhere\"\n", "e.toml:4:1: group.primary_key_file:"},
		{"a key and a CA", "[[group]]\nname = \"x\"\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\nca = \"x\"\n", "e.toml:3:1: group.type: a symmetric-key enrollment has no certificates"},
		{"x509 without thumbprint or CA", "[[group]]\nname = \"x\"\ntype = \"x509\"\n", "e.toml:3:1: group.type: an x509 enrollment requires either"},
		{"a CA that is not PEM", "[[group]]\nname = \"x\"\ntype = \"x509\"\nca = \"x\"\n", "group.ca_file: no PEM certificate"},
		{"an invalid thumbprint", "[[individual]]\nregistration_id = \"x\"\ntype = \"x509\"\nthumbprint = \"abc\"\n", "e.toml:4:1: individual.thumbprint: is not a SHA-1 or SHA-256 hash in hex"},
		{"an invalid registration ID", "[[individual]]\nregistration_id = \"x/y\"\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\n", "e.toml:2:1: individual.registration_id: \"x/y\" is not"},
		{"a device enrolled twice", "[[individual]]\nregistration_id = \"x\"\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\n[[individual]]\nregistration_id = \"X\"\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\n", "e.toml:6:1: individual.registration_id: \"X\" is enrolled twice"},
		{"a payload that is not an object", "[[group]]\nname = \"x\"\ntype = \"symmetric-key\"\npayload = \"1\"\nprimary_key = \"" + key + "\"\n", "e.toml:4:1: group.payload: is not a JSON object"},
	} {
		t.Run(c.name+" is refused with its place", func(t *testing.T) {
			_, err := enroll.Parse("e.toml", strings.NewReader(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if err != nil && strings.Contains(c.text, "not base64") && strings.Contains(err.Error(), "not base64\"") {
				t.Error("the key is repeated")
			}
		})
	}
	t.Run("invalid enrollments made in Go are refused", func(t *testing.T) {
		_, err := simulator.New(simulator.Options{Enrollments: &enroll.Enrollments{Groups: []enroll.Group{{}}}})
		var wrong *tomlfile.Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "group[0].name") {
			t.Error(err)
		}
	})
}

// The test checks the documentation against the code.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatch(text, -1)
	var scenarios strings.Builder
	for i, e := range examples {
		if bytes.Contains(e[1], []byte("[[rule]]")) || bytes.Contains(e[1], []byte("[settings]")) {
			if _, err := scenario.Parse("example", bytes.NewReader(e[1])); err != nil {
				t.Errorf("example %d: %v", i, err)
			}
			scenarios.Write(e[1])
		}
	}
	keys := []string{"delay", "reply_delay", "certificate_life", "certificate_delay"}
	for _, s := range []any{simulator.Rule{}, simulator.Settings{}} {
		for f := range reflect.TypeOf(s).Fields() {
			if key := f.Tag.Get("toml"); key != "-" {
				keys = append(keys, key)
			}
		}
	}
	for _, key := range keys {
		if !regexp.MustCompile(`(?m)^` + key + `\s*=`).MatchString(scenarios.String()) {
			t.Errorf("%s has no example", key)
		}
		if !bytes.Contains(text, []byte("`"+key+"`")) {
			t.Errorf("%s is not explained", key)
		}
	}
	for _, s := range []any{enroll.Individual{}, enroll.Group{}, enroll.Attestation{}, enroll.Grant{}, enroll.Hub{}, enroll.Latency{}, enroll.Custom{}} {
		for f := range reflect.TypeOf(s).Fields() {
			key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if key == "-" {
				key = "certificate_life"
			}
			if key != "" && !bytes.Contains(text, []byte("`"+key+"`")) {
				t.Errorf("%s is not explained", key)
			}
		}
	}
}
