package main

import (
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestDevice(t *testing.T) {
	polls := 1
	s := simulator.Start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &polls, RetryAfter: "0"}}})
	dir := t.TempDir()
	for name, text := range map[string]string{
		"endpoint.json": `{"mqtt":"` + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.MQTTPort)) + `","idScope":"` + s.IDScope() + `"}`,
		"group-key":     s.GroupKey() + "\n",
		"ca.pem":        string(s.CA()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	service := &service{dir: dir}
	if err := service.read(); err != nil {
		t.Fatal(err)
	}
	t.Run("a device completes a registration and violates no rule", func(t *testing.T) {
		d, err := service.dial(7)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.register(); err != nil {
			t.Error(err)
		}
		d.close()
		s.Close()
		sum := simulator.Summarize(s.Log())
		if len(sum.Violations) > 0 || len(sum.Registers) != 1 || len(sum.Polls) != 1 {
			t.Errorf("%+v", sum)
		}
		for _, e := range s.Log() {
			if e.Packet == "DISCONNECT" {
				return
			}
		}
		t.Error("no DISCONNECT")
	})
}

func TestDeviceRefused(t *testing.T) {
	t.Run("a device that is not assigned is an error, not a registration", func(t *testing.T) {
		none := 0
		s := simulator.Start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &none}}})
		key, err := base64.StdEncoding.DecodeString(s.GroupKey())
		if err != nil {
			t.Fatal(err)
		}
		service := &service{scope: s.IDScope(), key: append([]byte("other"), key[5:]...)}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), s.CA(), 0o600); err != nil {
			t.Fatal(err)
		}
		service.address = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: s.MQTTPort}
		if service.tls, err = trust(filepath.Join(dir, "ca.pem")); err != nil {
			t.Fatal(err)
		}
		d, err := service.dial(7)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		if err := d.register(); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("%v", err)
		}
	})
}

func TestReport(t *testing.T) {
	l := &load{devices: 10000, registering: 6000}
	good := memory{idle: 20e6, connected: 400e6, peak: 480e6, took: 9 * time.Second}
	at := func(rate int, others time.Duration) throughput {
		return throughput{registrations: 10 * rate, took: 10 * time.Second, simulator: 6 * time.Second, clients: 5 * time.Second, others: others}
	}
	for _, c := range []struct {
		name string
		m    memory
		t    throughput
		want bool
	}{
		{"the promised rate is sufficient", good, at(wantRate, 0), false},
		{"fewer registrations on a quiet machine are short", good, at(wantRate-1, 0), true},
		{"a lower rate because of other load is judged by the remaining time", good, at(wantRate-1, 9*time.Second), false},
		{"far fewer are short all the same", good, at(100, 9*time.Second), true},
		{"more memory is short", memory{peak: (wantMemory + 1) * megabyte}, at(900, 0), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if text, missed := l.report(c.m, c.t); missed != c.want || strings.Contains(text, "| missed |") != c.want {
				t.Errorf("%v\n%s", missed, text)
			}
		})
	}
	t.Run("a registration that costs the simulator more CPU time is short, also with -short", func(t *testing.T) {
		expensive := at(900, 0)
		expensive.simulator = 11 * time.Second
		for _, short := range []bool{false, true} {
			l := &load{devices: 10000, registering: 6000, short: short}
			if text, missed := l.report(good, expensive); !missed || !strings.Contains(text, "| 2.20 | 2.0 | missed |") {
				t.Errorf("%v\n%s", missed, text)
			}
		}
	})
	t.Run("with -short, the report shows a rate that is too low, and it is no failure", func(t *testing.T) {
		l := &load{devices: 10000, registering: 6000, short: true}
		if text, missed := l.report(good, at(wantRate-1, 0)); missed || !strings.Contains(text, "| missed |") {
			t.Errorf("%v\n%s", missed, text)
		}
		if text, missed := l.report(memory{peak: (wantMemory + 1) * megabyte}, at(wantRate, 0)); !missed {
			t.Error(text)
		}
	})
}

func TestDescriptors(t *testing.T) {
	t.Run("a limit that is too low is named, with the required number", func(t *testing.T) {
		err := raiseDescriptors(1 << 40)
		if err == nil || !strings.Contains(err.Error(), "1099511627776 file descriptors are required") {
			t.Error(err)
		}
	})
}
