package main

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/simulator"
)

// good returns a set of results within all budgets.
func good() []result {
	var results []result
	for _, v := range variants() {
		s := sample{
			cpu: 14 * time.Millisecond, peak: 9e6, first: 10 * time.Millisecond, beyond: 50 * time.Millisecond,
			bytesUp: 1100, bytesDown: 1700, connections: 1, packetsUp: 5, packetsDown: 6, roundTrips: 3 + v.polls,
			smallest: 1050, allRoundTrips: v.roundTrips(),
		}
		results = append(results, result{v, []sample{s, s, s}})
	}
	return results
}

func TestBudgets(t *testing.T) {
	const size = 9e6
	change := func(runs int, f func(*sample)) func([]result) {
		return func(results []result) {
			for i := range runs {
				f(&results[0].samples[i])
			}
		}
	}
	for _, test := range []struct {
		says      string
		size      int64
		change    func([]result)
		over      bool
		disturbed bool
		lenient   bool // exceeded in CI too
	}{
		{"a result within all budgets passes", size, func([]result) {}, false, false, false},
		{"a program of more than 12 MB is over", 12_000_001, func([]result) {}, true, false, true},
		{"one slow run is the machine's affair", size, change(1, func(s *sample) { s.beyond = time.Second }), false, false, false},
		{"slow in every run is over, and measured again", size, change(3, func(s *sample) { s.beyond = 101 * time.Millisecond }), true, true, false},
		{"CPU of one run is the machine's affair", size, change(1, func(s *sample) { s.cpu = time.Second }), false, false, false},
		{"CPU over in every run is over, and measured again", size, change(3, func(s *sample) { s.cpu = 17 * time.Millisecond }), true, true, false},
		{"memory over in most runs is over, and measured again", size, change(2, func(s *sample) { s.peak = 13_100_000 }), true, true, false},
		{"a second connection in one run is over", size, change(1, func(s *sample) { s.connections = 2 }), true, false, true},
		{"a byte too many in one run is over", size, change(1, func(s *sample) { s.bytesUp = 1201 }), true, false, true},
		{"a late first byte in every run is over, and measured again", size, change(3, func(s *sample) { s.first = 16 * time.Millisecond }), true, true, false},
		{"a round trip too many below MQTT is over", size, change(1, func(s *sample) { s.allRoundTrips++ }), true, false, true},
		{"a tenth more than the smallest possible is over", size, change(2, func(s *sample) { s.smallest = 999 }), true, false, true},
		{"a round trip too many in one run is over", size, change(1, func(s *sample) { s.roundTrips++ }), true, false, true},
		{"bytes over are not measured again because time is over too", size, change(3, func(s *sample) { s.bytesUp, s.beyond = 1201, time.Second }), true, false, true},
	} {
		t.Run(test.says, func(t *testing.T) {
			results := good()
			test.change(results)
			all := budgets(test.size, results)
			text, over := verdicts(all, false)
			if _, inCI := verdicts(all, true); inCI != test.lenient {
				t.Errorf("in CI it is over: %t, want %t", inCI, test.lenient)
			}
			if over != test.over || strings.Contains(text, "| over |") != test.over || disturbed(all) != test.disturbed {
				t.Errorf("over %t, disturbed %t:\n%s", over, disturbed(all), text)
			}
		})
	}
	t.Run("bytes of a certificate, of WebSocket and of a second poll have no budget", func(t *testing.T) {
		results := good()
		for i := range results {
			if results[i].variant.credential == "key" && results[i].variant.protocol == "mqtt" && results[i].variant.polls == 1 {
				continue
			}
			results[i].samples[0].bytesUp, results[i].samples[0].smallest = 2000, 2000
		}
		if text, over := verdicts(budgets(size, results), false); over {
			t.Error(text)
		}
	})
}

func TestTableShowsMedianAndWorst(t *testing.T) {
	results := good()[:1]
	results[0].samples[0].bytesUp = 1000
	results[0].samples[1].bytesUp = 1300
	if text := table(results); !strings.Contains(text, "| 1100 (1300) | 4.8 (23.8) | 1700 | 1 |") {
		t.Error(text)
	}
}

func TestRoundTrips(t *testing.T) {
	var entries []simulator.Entry
	for _, direction := range []string{"", "up", "down", "up", "", "down", "down", "up", "up", "down", "up", ""} {
		entries = append(entries, simulator.Entry{Direction: direction})
	}
	if n := roundTrips(entries); n != 3 {
		t.Errorf("%d round trips counted, want 3: each change from up to down", n)
	}
}

// The records of this registration can be counted by hand.
func TestSmallest(t *testing.T) {
	c := content{identity: dps.Identity{IDScope: "0ne", RegistrationID: "gw"}, port: "443", operation: "4.op"}
	if n := clientHello(); n != 201 {
		t.Errorf("a ClientHello has %d bytes, want 201", n)
	}
	if got, want := packets(variant{"certificate", "mqtt", "1.2", 1}, content{identity: c.identity, chain: []int{1}, operation: c.operation}), []int{
		2 + 10 + 4 + 2 + len("0ne/registrations/gw/api-version=2019-03-31"),
		2 + 2 + 2 + 24 + 1,
		2 + 2 + 46 + len(`{"registrationId":"gw"}`),
		2 + 2 + 57 + len("&operationId=4.op"),
		2,
	}; !slices.Equal(got, want) {
		t.Errorf("packets of %d bytes, want %d", got, want)
	}
	key := smallest(variant{"key", "mqtt", "1.2", 1}, c)
	for _, test := range []struct {
		says    string
		variant variant
		chain   []int
		want    int
	}{
		{"a poll more is a record more", variant{"key", "mqtt", "1.2", 2}, nil, key + 29 + 2 + 2 + 57 + len("&operationId=4.op")},
		// Three messages of 12, 37 and 45 bytes are replaced by an encrypted one with 8 and 36, and
		// six further records have 7 bytes less.
		{"over TLS 1.3", variant{"key", "mqtt", "1.3", 1}, nil, key - (12 + 37 + 45) + (22 + 8 + 36) - 6*7},
	} {
		t.Run(test.says, func(t *testing.T) {
			c.chain = test.chain
			if n := smallest(test.variant, c); n != test.want {
				t.Errorf("%d bytes, want %d", n, test.want)
			}
		})
	}
	t.Run("crypto/tls with the smallest possible offer sends more than the model", func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		go func() {
			_ = tls.Client(there, &tls.Config{ServerName: "localhost", CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, MinVersion: tls.VersionTLS12}).Handshake()
			there.Close()
		}()
		hello := make([]byte, 2000)
		if n, err := here.Read(hello); err != nil || n <= clientHello() {
			t.Errorf("it sends %d bytes, the model says %d (%v)", n, clientHello(), err)
		}
	})
}

func TestAllRoundTripsIncludesThoseOfTheHandshakes(t *testing.T) {
	for _, test := range []struct {
		says, detail string
		want         int
	}{
		{"TLS 1.2 takes two", "TLS 1.2 TLS_X for localhost", 1 + 2 + 1},
		{"a session of TLS 1.2 that is resumed one", "TLS 1.2 TLS_X resumed for localhost", 1 + 1 + 1},
		{"TLS 1.3 one", "TLS 1.3 TLS_X for localhost", 1 + 1 + 1},
	} {
		t.Run(test.says, func(t *testing.T) {
			entries := []simulator.Entry{{Packet: "OPEN"}, {Packet: "TLS", Detail: test.detail}, {Packet: "CONNECT", Direction: "up"}, {Packet: "CONNACK", Direction: "down"}}
			if n := allRoundTrips(entries); n != test.want {
				t.Errorf("%d, want %d with TCP and CONNECT", n, test.want)
			}
		})
	}
}

// The peak of the shell is a megabyte or two, and that of this process is larger. If the child
// were charged with it, its peak would be at least as high.
func TestRunChargesTheProgramAlone(t *testing.T) {
	if err := adoptOrphans(); err != nil {
		t.Fatal(err)
	}
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	log := filepath.Join(t.TempDir(), "log")
	u, err := run(time.Minute, nil, log, "/bin/sh", "-c", "echo said; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if u.status.ExitStatus() != 3 || u.peak <= 0 || u.elapsed <= 0 {
		t.Errorf("usage is %+v, want exit status 3", u)
	}
	if u.peak > 32<<20 {
		t.Errorf("a shell that prints a word is charged with %d bytes; this process has %d more", u.peak, len(ballast))
	}
	if said, err := os.ReadFile(log); err != nil || string(said) != "said\n" {
		t.Errorf("the output is %q (%v)", said, err)
	}
}
