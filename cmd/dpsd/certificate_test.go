package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/store"
)

var issueTime = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

const week = 7 * 24 * time.Hour

// weekly returns a certificate that is valid for a week.
func weekly(state string) control.IssuedCertificate {
	begin, end, renew := issueTime, issueTime.Add(week), issueTime.Add(4*24*time.Hour)
	return control.IssuedCertificate{
		State: state, Request: "required", NotBefore: &begin, NotAfter: &end, RenewAt: &renew, Serial: "1f", SHA256: "00ff", Issuer: "CN=Issuing CA",
	}
}

func TestTheMarginIsADurationOrAPercentageOfTheLifetime(t *testing.T) {
	for _, c := range []struct {
		text          string
		left          time.Duration
		reached, fail bool
	}{
		{"", 0, false, false},
		{"72h", 72 * time.Hour, true, false},
		{"72h", 72*time.Hour + 1, false, false},
		{"90m", time.Hour, true, false},
		{"20%", week / 5, true, false},
		{"20%", week/5 + time.Second, false, false},
		{"0.5%", week / 200, true, false},
		{"0.5%", week/200 + time.Second, false, false},
		{"0%", 0, false, true},
		{"100%", 0, false, true},
		{"-5%", 0, false, true},
		{"NaN%", 0, false, true},
		{"%", 0, false, true},
		{"0s", 0, false, true},
		{"-1h", 0, false, true},
		{"20", 0, false, true},
		{"soon", 0, false, true},
	} {
		m, err := parseMargin(c.text)
		if (err != nil) != c.fail {
			t.Errorf("%q: %v", c.text, err)
		}
		if err == nil && m.reached(c.left, week) != c.reached {
			t.Errorf("%q with %s left: reached is %t", c.text, c.left, !c.reached)
		}
	}
}

func TestTheExitCodeAndTheFirstLineSayWhetherTheCertificateIsValid(t *testing.T) {
	for _, c := range []struct {
		expect string
		state  string // of the status
		now    time.Time
		soon   string
		want   string // state
		code   int
		first  string
	}{
		{"valid", "valid", issueTime.Add(24 * time.Hour), "", "valid", exitOK, "valid until 2026-12-02T12:00:00Z, for 6 days 0 h"},
		{"valid, and not within the margin", "valid", issueTime.Add(24 * time.Hour), "72h", "valid", exitOK, "valid until 2026-12-02T12:00:00Z, for 6 days 0 h"},
		{"valid, but within the margin", "valid", issueTime.Add(5 * 24 * time.Hour), "72h", "valid", exitFailed, "expires at 2026-12-02T12:00:00Z, in 2 days 0 h, which is within 72h"},
		{"valid, but within the share", "valid", issueTime.Add(6 * 24 * time.Hour), "20%", "valid", exitFailed, "expires at 2026-12-02T12:00:00Z, in 24h0m, which is within 20%"},
		{"expired", "expired", issueTime.Add(8 * 24 * time.Hour), "", "expired", exitFailed, "expired at 2026-12-02T12:00:00Z, 24h0m ago"},
		{"expired since the status was posted", "valid", issueTime.Add(week), "", "expired", exitFailed, "expired at 2026-12-02T12:00:00Z, 0s ago"},
		{"not yet valid", "valid", issueTime.Add(-5 * time.Minute), "", "not-yet-valid", exitFailed, "not valid before 2026-11-25T12:00:00Z, in 5m0s"},
		{"missing", "missing", issueTime, "", "missing", exitNone, "there is no issued certificate"},
		{"missing within the margin", "missing", issueTime, "72h", "missing", exitNone, "there is no issued certificate"},
		{"unreadable", "unreadable", issueTime, "", "unreadable", exitFailed, "the files of the issued certificate cannot be read"},
		{"foreign", "foreign", issueTime, "", "foreign", exitFailed, "the issued certificate is for a different registration ID, device ID or hub"},
		{"a state of a later dpsd", "revoked", issueTime, "", "revoked", exitFailed, "revoked"},
	} {
		t.Run(c.expect, func(t *testing.T) {
			soon, err := parseMargin(c.soon)
			if err != nil {
				t.Fatal(err)
			}
			issued := weekly(c.state)
			r := reportOn(control.Status{Now: c.now, IssuedCertificate: &issued}, true, nil, soon)
			if r.State != c.want || r.code() != c.code {
				t.Errorf("the state is %q and the exit code %d, want %q and %d", r.State, r.code(), c.want, c.code)
			}
			var out bytes.Buffer
			if err := r.show(&terminal{Writer: &out}, false); err != nil {
				t.Fatal(err)
			}
			if first, _, _ := strings.Cut(out.String(), "\n"); first != c.first && c.expect != "a state of a later dpsd" {
				t.Errorf("the first line is %q, want %q", first, c.first)
			}
		})
	}
	t.Run("a status without a certificate", func(t *testing.T) {
		if r := reportOn(control.Status{Now: issueTime}, false, nil, margin{}); r.State != "missing" || r.code() != exitNone {
			t.Errorf("%+v", r)
		}
	})
}

func TestTheTextNamesValidityRenewalIssuerSerialAndFiles(t *testing.T) {
	published := &store.Certificate{CertificateFile: "/no/such/chain.pem", PrivateKeyFile: "/no/such/key.pem", SHA256: "00ff"}
	show := func(running bool, c control.IssuedCertificate) string {
		var out bytes.Buffer
		if err := reportOn(control.Status{Now: issueTime.Add(24 * time.Hour), IssuedCertificate: &c}, running, published, margin{}).show(&terminal{Writer: &out}, false); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	want := `valid until 2026-12-02T12:00:00Z, for 6 days 0 h
validity      from 2026-11-25T12:00:00Z to 2026-12-02T12:00:00Z
remaining     6 days 0 h of 7 days 0 h (85 %)
renewal       at 2026-11-29T12:00:00Z, in 3 days 0 h
issuer        CN=Issuing CA
serial        1f
SHA-256       00ff
certificate   /no/such/chain.pem
private key   /no/such/key.pem
`
	if got := show(true, weekly("valid")); got != want {
		t.Errorf("the text is\n%swant\n%s", got, want)
	}
	later := issueTime.Add(25 * time.Hour)
	for _, c := range []struct {
		running bool
		change  func(*control.IssuedCertificate)
		want    string
		status  string // the line of dpsd status
	}{
		{false, func(*control.IssuedCertificate) {}, "renewal       dpsd is not running, so it requests no certificate\n", "valid until 2026-12-02T12:00:00Z"},
		{true, func(c *control.IssuedCertificate) { c.Request = "" }, "renewal       none: dpsd.toml has no table [certificate]\n",
			"valid until 2026-12-02T12:00:00Z; not renewed, because dpsd.toml has no table [certificate]"},
		{true, func(c *control.IssuedCertificate) { c.Due, c.NotBeforeNextRequest = "the key type has changed", &later },
			"renewal       due: the key type has changed\nrenewal       not before 2026-11-26T13:00:00Z, in 1h0m\n",
			"valid until 2026-12-02T12:00:00Z; renewal due: the key type has changed; renewal not before 2026-11-26T13:00:00Z, in 1h0m"},
		{true, func(c *control.IssuedCertificate) {
			*c = control.IssuedCertificate{State: "missing", Request: "when-offered", Due: "DPS sent no certificate"}
		}, "there is no issued certificate\nrenewal       due: DPS sent no certificate\n", "missing; request due: DPS sent no certificate"},
		{true, func(c *control.IssuedCertificate) { c.State = "foreign" }, "renewal ", "for a different registration ID, device ID or hub; renewal at 2026-11-29T12:00:00Z, in 3 days 0 h"},
		{false, func(c *control.IssuedCertificate) { c.State = "unreadable" }, "", "its files cannot be read"},
	} {
		changed := weekly("valid")
		c.change(&changed)
		if got := show(c.running, changed); !strings.Contains(got, c.want) {
			t.Errorf("the text is\n%swithout\n%s", got, c.want)
		}
		if got, _ := summary(changed, c.running, issueTime.Add(24*time.Hour)); got != c.status {
			t.Errorf("dpsd status prints %q, want %q", got, c.status)
		}
	}
	t.Run("the files are those of the same certificate only", func(t *testing.T) {
		other := weekly("valid")
		other.SHA256 = "11"
		if got := show(true, other); strings.Contains(got, "/no/such") {
			t.Error(got)
		}
	})
}

func TestTheTextOfACertificateIsEscaped(t *testing.T) {
	c := weekly("valid")
	c.Issuer, c.Serial, c.Due, c.State = "CN=\x1b[2J", "\x1b]0;x\a", "\u202e", "valid"
	published := &store.Certificate{CertificateFile: "/\x1b[31m", PrivateKeyFile: "/\u009b2J", SHA256: c.SHA256}
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		if err := reportOn(control.Status{Now: issueTime, IssuedCertificate: &c}, true, published, margin{}).show(&terminal{Writer: &out}, asJSON); err != nil {
			t.Fatal(err)
		}
		if dirt := unclean(out.String()); dirt != "" || !strings.Contains(out.String(), "CN=") {
			t.Errorf("JSON %t: %q in\n%s", asJSON, dirt, out.String())
		}
	}
}

func TestTheSchemaDescribesEveryMemberOfTheReport(t *testing.T) {
	var described struct {
		Properties map[string]any
		Required   []string
	}
	text, err := os.ReadFile("../../docs/certificate.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &described)
	}
	if err != nil {
		t.Fatal(err)
	}
	members := func(r certificateReport) map[string]any {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]any{}
		if err := json.Unmarshal(text, &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	c := weekly("valid")
	c.Due, c.NotBeforeNextRequest = "renewal", &issueTime
	whole := members(reportOn(control.Status{Now: issueTime, IssuedCertificate: &c}, true, &store.Certificate{CertificateFile: "/c", PrivateKeyFile: "/k", SHA256: c.SHA256}, margin{}))
	for name := range whole {
		if described.Properties[name] == nil {
			t.Errorf("%s is not described", name)
		}
	}
	for name := range described.Properties {
		if _, found := whole[name]; !found {
			t.Errorf("%s is described but does not exist", name)
		}
	}
	empty := members(reportOn(control.Status{}, false, nil, margin{}))
	for _, name := range described.Required {
		if _, found := empty[name]; !found {
			t.Errorf("%s is required but may be absent", name)
		}
	}
	if len(empty) != len(described.Required) {
		t.Errorf("always present are %v, required %v", empty, described.Required)
	}
}

// fakeDaemon serves a control socket, and calls renew for each request for a certificate.
func fakeDaemon(t *testing.T, first control.Status, renew func(*control.Board)) installation {
	t.Helper()
	dir, err := os.MkdirTemp("", "dpsd-") // the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	places := installation{file: "dpsd.toml", state: filepath.Join(dir, "state"), runtime: dir, socket: filepath.Join(dir, "s")}
	board := &control.Board{}
	board.Post(first)
	l, err := control.Listen(places.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := control.Server{Board: board, RenewCertificate: func(context.Context) (control.Reprovision, error) {
		s, _ := board.Look(time.Now())
		defer renew(board)
		return control.Reprovision{StartedAt: s.StartedAt, Confirmations: s.Confirmations, Failed: s.Attempts.Failed}, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return places
}

// first returns the status of a daemon with a certificate that is valid now.
func first() control.Status {
	c := weekly("valid")
	begin, end := time.Now().Add(-time.Hour), time.Now().Add(week)
	c.NotBefore, c.NotAfter = &begin, &end
	return control.Status{StartedAt: issueTime, IssuedCertificate: &c, Faults: []control.Fault{}}
}

func TestARequestedRenewalEndsWithTheNextCertificateOrTheFault(t *testing.T) {
	with := func(s control.Status, change func(*control.IssuedCertificate)) control.Status {
		c := *s.IssuedCertificate
		change(&c)
		s.IssuedCertificate = &c
		return s
	}
	next := func(c *control.IssuedCertificate) { c.SHA256, c.Issued = "11", c.Issued+1 }
	rejected := control.Fault{Code: "certificate-rejected", Cause: "it is for a different key", Advice: "Report it.", Unresolved: true, Last: time.Now()}
	for _, c := range []struct {
		expect string
		renew  func(board *control.Board, s control.Status)
		code   int
		says   string
	}{
		{"the next certificate", func(b *control.Board, s control.Status) { b.Post(with(s, next)) }, exitOK, ""},
		{"the next certificate after a restart", func(b *control.Board, s control.Status) {
			s.StartedAt = s.StartedAt.Add(time.Hour)
			b.Post(s)
			b.Post(with(s, next))
		}, exitOK, ""},
		{"the next certificate after an unrelated registration", func(b *control.Board, s control.Status) {
			s.Confirmations, s.Attempts.Assigned = 1, 1
			b.Post(s)
			b.Post(with(s, next))
		}, exitOK, ""},
		{"a rejected chain", func(b *control.Board, s control.Status) {
			s.Faults = []control.Fault{rejected}
			b.Post(with(s, func(c *control.IssuedCertificate) { c.Failed++ }))
		}, exitFailed, "certificate-rejected: it is for a different key\nReport it."},
		{"an assignment without a certificate", func(b *control.Board, s control.Status) {
			b.Post(with(s, func(c *control.IssuedCertificate) { c.Failed, c.Due = c.Failed+1, "the renewal is due" }))
		}, exitFailed, "DPS has issued no certificate: the renewal is due"},
		{"a refused registration", func(b *control.Board, s control.Status) {
			s.Attempts.Failed, s.Next = 1, control.Due(time.Now().Add(time.Hour), "after a fault", "refused")
			s.Faults = []control.Fault{{Code: "enrollment-disabled", Cause: "disabled", Advice: "Enable the enrollment.", Unresolved: true}}
			b.Post(s)
		}, exitFailed, "enrollment-disabled: disabled\nEnable the enrollment."},
		{"a disk that refuses the pair", func(b *control.Board, s control.Status) {
			s.Faults = []control.Fault{{Code: "state-unwritable", Class: "storage", Cause: "no space", Advice: "Free up space.", Unresolved: true, Last: time.Now().Add(time.Second)}}
			b.Post(s)
		}, exitFailed, "state-unwritable: no space\nFree up space."},
	} {
		t.Run(c.expect, func(t *testing.T) {
			s := first()
			places := fakeDaemon(t, s, func(b *control.Board) { c.renew(b, s) })
			err := renewCertificate(places, true, time.Minute)
			exit, _ := errors.AsType[*exitError](err)
			code := exitOK
			if exit != nil {
				code = exit.code
			}
			if code != c.code || c.says != "" && fmt.Sprint(err) != c.says {
				t.Errorf("exit code %d, %v; want %d, %s", code, err, c.code, c.says)
			}
		})
	}
	t.Run("nothing happens before the timeout", func(t *testing.T) {
		places := fakeDaemon(t, first(), func(*control.Board) {})
		exit, _ := errors.AsType[*exitError](renewCertificate(places, true, time.Second))
		if exit == nil || exit.code != exitTimeout || !strings.HasPrefix(exit.Error(), "no certificate within 1s") {
			t.Errorf("%v", exit)
		}
	})
	t.Run("without --wait, the command only asks", func(t *testing.T) {
		if err := renewCertificate(fakeDaemon(t, first(), func(*control.Board) {}), false, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestAWaitForACertificateEndsWhenOneIsValid(t *testing.T) {
	none := first()
	none.IssuedCertificate = &control.IssuedCertificate{State: "missing", Request: "when-offered", Due: "DPS sent no certificate"}
	t.Run("one is valid", func(t *testing.T) {
		if err := wait(fakeDaemon(t, first(), nil), forIssued, 0, time.Minute); err != nil {
			t.Error(err)
		}
	})
	t.Run("an identity without a certificate is not enough, and the reason is given", func(t *testing.T) {
		s := none
		s.Identity = &control.Identity{Generation: 1}
		exit, _ := errors.AsType[*exitError](wait(fakeDaemon(t, s, nil), forIssued, 0, 2*time.Second))
		const want = "no valid certificate within 2s: the issued certificate: missing; request due: DPS sent no certificate"
		if exit == nil || exit.code != exitTimeout || exit.Error() != want {
			t.Errorf("%v, want %s", exit, want)
		}
	})
	t.Run("without the table, the reason is the configuration", func(t *testing.T) {
		if got := uncertified(control.Status{}); got != control.ErrNotConfigured.Error() {
			t.Error(got)
		}
	})
	t.Run("one that is published later", func(t *testing.T) {
		places := fakeDaemon(t, none, func(b *control.Board) { b.Post(first()) })
		ended := make(chan error, 1)
		go func() { ended <- wait(places, forIssued, 0, time.Minute) }()
		if _, err := places.client().RenewCertificate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
