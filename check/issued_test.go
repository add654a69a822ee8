package check_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/pair"
	"github.com/dpsd-project/dpsd/transport"
)

var (
	beginning = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	day       = 24 * time.Hour
)

// ownGroup returns the name of the group that new files of this process have.
func ownGroup(t *testing.T) string {
	t.Helper()
	g, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	return g.Name
}

// withPair returns a gateway whose state directory has a certificate that is valid for a week.
func withPair(t *testing.T, c pair.Certificate) *check.Gateway {
	t.Helper()
	g := &check.Gateway{
		Settings: &daemon.Settings{
			Dialer: &transport.Dialer{Host: "localhost"}, RegistrationID: attest.RegistrationID{Template: "gw-1"}, APIVersion: "2026-11-01",
			Certificate: &daemon.CertificateSettings{Required: true, KeyType: "ec-p384", RenewAt: 67},
		},
		StateDirectory: t.TempDir(), CertificateGroup: ownGroup(t),
		Now: func() time.Time { return beginning.Add(day) },
	}
	if c.NotBefore.IsZero() {
		c.NotBefore, c.NotAfter = beginning, beginning.Add(7*day)
	}
	if _, err := pair.PublishWithRecord(g.StateDirectory, c); err != nil {
		t.Fatal(err)
	}
	return g
}

// results returns the results of the steps of the issued certificate.
func results(t *testing.T, g *check.Gateway) (all []check.Result) {
	t.Helper()
	g.Run(t.Context(), true, func(r check.Result) {
		if strings.HasPrefix(r.Name, check.Certificate) {
			all = append(all, r)
		}
	})
	return all
}

// expect compares the results with lines of status, step, code, detail and advice: each is a
// part of the text of a result.
func expect(t *testing.T, g *check.Gateway, want ...string) {
	t.Helper()
	all := results(t, g)
	lines := make([]string, len(all))
	for n, r := range all {
		lines[n] = fmt.Sprintf("%s %s %s: %s → %s", r.Status, r.Name, r.Code, r.Detail, r.Advice)
		if (r.Status == check.Failed || r.Status == check.Warning) && r.Advice == "" {
			t.Errorf("there is no advice: %s", lines[n])
		}
	}
	ok := len(lines) == len(want)
	for n := range min(len(lines), len(want)) {
		for part := range strings.SplitSeq(want[n], " … ") {
			ok = ok && strings.Contains(lines[n], part)
		}
	}
	if !ok {
		t.Errorf("the results are\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

const (
	pairOK  = `ok certificate : for "gw-1" with a key of type ec-p384, issued by "CN=Test issuing CA"; the key belongs to the certificate, and each of the 3 certificates is signed by the next`
	datesOK = "ok certificate-dates : valid until 2026-12-02 12:00:00 UTC, for 6 days; dpsd renews it by 2026-11-30 04:33:36 UTC"
	filesOK = "ok certificate-files : owner … mode 0640; only dpsd, root and the members of the group"
	again   = "dpsd requests another certificate when it starts: systemctl restart --no-block dpsd"
)

func TestAPublishedPairIsChecked(t *testing.T) {
	expect(t, withPair(t, pair.Certificate{}), pairOK, datesOK, filesOK)
}

func TestWithoutATableAndWithoutAPairNothingIsReported(t *testing.T) {
	g := withPair(t, pair.Certificate{})
	g.Settings.Certificate, g.CertificateGroup = nil, ""
	expect(t, g, pairOK, "warning certificate : dpsd does not renew it, because dpsd.toml has no table [certificate]",
		"ok certificate-dates : valid until 2026-12-02 12:00:00 UTC, for 6 days → ", "ok certificate-files : owner … mode 0640 → ")
	g.StateDirectory = t.TempDir()
	if err := os.Mkdir(filepath.Join(g.StateDirectory, "certificate"), 0o700); err != nil {
		t.Fatal(err)
	}
	expect(t, g)
}

func TestAMissingPairIsNotAFailure(t *testing.T) {
	none := func(t *testing.T) *check.Gateway {
		g := withPair(t, pair.Certificate{})
		g.StateDirectory = t.TempDir()
		return g
	}
	t.Run("before the first certificate", func(t *testing.T) {
		expect(t, none(t), "ok certificate : there is no issued certificate yet; dpsd requests one with its next registration, using api-version 2026-11-01",
			"skipped certificate-dates", "warning certificate-files : the directory does not exist … → mkdir -p … && chmod 2750 ")
	})
	t.Run("after failed requests", func(t *testing.T) {
		g := none(t)
		g.Ask = func(context.Context) (control.Status, error) {
			return control.Status{IssuedCertificate: &control.IssuedCertificate{State: "missing", Failed: 3}}, nil
		}
		expect(t, g, "warning certificate : there is no issued certificate; failed requests since dpsd started: 3 → dpsd certificate renew --wait", "", "")
	})
	t.Run("after it was removed", func(t *testing.T) {
		g := withPair(t, pair.Certificate{})
		if err := os.RemoveAll(filepath.Join(g.StateDirectory, "certificate")); err != nil {
			t.Fatal(err)
		}
		expect(t, g, "warning certificate : the issued certificate was removed, but the record still describes it → … systemctl restart --no-block dpsd", "", "")
	})
	t.Run("with an api_version without certificate requests", func(t *testing.T) {
		g := none(t)
		g.Settings.APIVersion = "2019-03-31"
		expect(t, g, "failed certificate configuration-invalid: api_version 2019-03-31 does not support certificate requests → Remove api_version from dpsd.toml", "", "")
	})
}

func TestAPairThatIsNotAsDpsdWroteItIsReported(t *testing.T) {
	replaced := func(t *testing.T, change func(*pair.Pair)) func(directory string) error {
		return func(directory string) error {
			p, err := pair.Issue(pair.Certificate{NotBefore: beginning, NotAfter: beginning.Add(7 * day)})
			if err != nil {
				return err
			}
			change(&p)
			_, err = p.Publish(directory, 1)
			return err
		}
	}
	other, err := pair.Issue(pair.Certificate{NotBefore: beginning, NotAfter: beginning.Add(7 * day)})
	if err != nil {
		t.Fatal(err)
	}
	blocks := func(chain []byte) []string { return strings.SplitAfter(string(chain), "-----END CERTIFICATE-----\n") }
	for _, c := range []struct {
		expect string
		change func(directory string) error
		want   string
	}{
		{"a missing key is damage", func(d string) error { return os.Remove(filepath.Join(d, "certificate/1/key.pem")) },
			"warning certificate : open … certificate/1/key.pem: no such file or directory → " + again},
		{"a missing directory is damage", func(d string) error { return os.RemoveAll(filepath.Join(d, "certificate/1")) },
			"warning certificate : open … certificate/1: no such file or directory → " + again},
		{"a changed chain is damage", func(d string) error {
			return os.WriteFile(filepath.Join(d, "certificate/1/chain.pem"), other.Chain, 0o600)
		},
			"warning certificate : … chain.pem: the file has changed: its SHA-256 differs from that in certificate.json → " + again},
		{"a file that is too large is damage", func(d string) error { return os.Truncate(filepath.Join(d, "certificate/1/chain.pem"), 1<<20) },
			"warning certificate : … chain.pem: the file is too large → " + again},
		{"metadata that are not JSON are damage", func(d string) error {
			return os.WriteFile(filepath.Join(d, "certificate/1/certificate.json"), nil, 0o600)
		},
			"warning certificate : … certificate.json: unexpected end of JSON input → " + again},
		{"a dangling link is damage", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "certificate/current")), os.Symlink("7", filepath.Join(d, "certificate/current")))
		}, "warning certificate : open … certificate/7: no such file or directory → " + again},
		{"a link elsewhere is damage", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "certificate/current")), os.Symlink("/etc", filepath.Join(d, "certificate/current")))
		}, `warning certificate : … certificate/current is a link to "/etc", not to the number of a pair → ` + again},
		{"a directory in place of the link is damage", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "certificate/current")), os.Mkdir(filepath.Join(d, "certificate/current"), 0o700))
		}, "warning certificate : readlink … certificate/current: invalid argument → " + again},
		{"a FIFO in place of the key is unreadable", func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "certificate/1/key.pem")), syscall.Mkfifo(filepath.Join(d, "certificate/1/key.pem"), 0o600))
		}, "failed certificate certificate-unreadable: open … certificate/1/key.pem: not a regular file but a FIFO → Restore the file, or move it away … mv … certificate/1/key.pem.aside && systemctl restart --no-block dpsd"},
		{"a link in place of the key is unreadable, even if it leads to a key", func(d string) error {
			path := filepath.Join(d, "certificate/1/key.pem")
			return errors.Join(os.Rename(path, filepath.Join(d, "key")), os.Symlink(filepath.Join(d, "key"), path))
		}, "failed certificate certificate-unreadable: … key.pem: not a regular file but a link"},
		{"a link in place of the directory is unreadable", func(d string) error {
			path := filepath.Join(d, "certificate/1")
			return errors.Join(os.Rename(path, filepath.Join(d, "1")), os.Symlink("../1", path))
		}, "failed certificate certificate-unreadable: open … certificate/1: not a directory"},
		{"the key of another certificate does not fit", replaced(t, func(p *pair.Pair) { p.Key, p.Metadata.KeySHA256 = other.Key, other.Metadata.KeySHA256 }),
			"failed certificate certificate-rejected: … chain.pem: the certificate is for a different key than key.pem → dpsd certificate renew --wait"},
		{"a key that is not one does not fit", replaced(t, func(p *pair.Pair) { setKey(p, "no key") }),
			"failed certificate certificate-rejected: … key.pem: the file contains no key in PEM"},
		{"a chain without certificates does not fit", replaced(t, func(p *pair.Pair) { setChain(p, "") }),
			"failed certificate certificate-rejected: … chain.pem: "},
		{"a chain in another order does not fit", replaced(t, func(p *pair.Pair) { b := blocks(p.Chain); setChain(p, b[0]+b[2]+b[1]) }),
			`failed certificate certificate-rejected: … chain.pem: certificate 2 of 3, "Test root", did not issue the certificate before it: `},
		{"a certificate for another registration ID does not fit", replaced(t, func(p *pair.Pair) { p.Metadata.RegistrationID = "gw-2" }),
			`failed certificate certificate-rejected: … chain.pem: the certificate is for "gw-1", not for the registration ID "gw-2"`},
	} {
		t.Run(c.expect, func(t *testing.T) {
			g := withPair(t, pair.Certificate{})
			if err := c.change(g.StateDirectory); err != nil {
				t.Fatal(err)
			}
			all := results(t, g)
			if len(all) < 3 || all[1].Status != check.Skipped {
				t.Errorf("the dates are checked nevertheless: %+v", all)
			}
			first := all[0]
			line := fmt.Sprintf("%s %s %s: %s → %s", first.Status, first.Name, first.Code, first.Detail, first.Advice)
			for part := range strings.SplitSeq(c.want, " … ") {
				if !strings.Contains(line, part) {
					t.Errorf("the result is\n%s\nwithout\n%s", line, part)
				}
			}
		})
	}
}

func setKey(p *pair.Pair, text string) {
	p.Key = []byte(text)
	p.Metadata.KeySHA256 = pair.Digest(p.Key)
}

func setChain(p *pair.Pair, text string) {
	p.Chain = []byte(text)
	p.Metadata.ChainSHA256 = pair.Digest(p.Chain)
}

func TestAPairThatIsNotForThisGatewayIsAWarning(t *testing.T) {
	for _, c := range []struct {
		expect string
		change func(*check.Gateway) error
		want   string
	}{
		{"another registration ID", func(g *check.Gateway) error { g.Settings.RegistrationID.Template = "gw-2"; return nil },
			`it is for the registration ID "gw-1", not for "gw-2" → dpsd requests another one with its next registration: dpsd reprovision`},
		{"another type of key", func(g *check.Gateway) error { g.Settings.Certificate.KeyType = "rsa-2048"; return nil },
			"its key has the type ec-p384, but dpsd.toml requires rsa-2048"},
		{"another hub", func(g *check.Gateway) error {
			record, err := store.Read(g.StateDirectory)
			record.AssignedHub = "elsewhere.azure-devices.net"
			return errors.Join(err, pair.Record(g.StateDirectory, record, record.Certificate))
		}, "it was issued for gw-1 at dpsd-sim.azure-devices.net, but the gateway is assigned to elsewhere.azure-devices.net as gw-1"},
		{"another certificate in the record", func(g *check.Gateway) error {
			p, err := pair.Issue(pair.Certificate{NotBefore: beginning, NotAfter: beginning.Add(7 * day)})
			if err == nil {
				_, err = p.Publish(g.StateDirectory, 2)
			}
			return err
		}, "state.json describes a different certificate → dpsd corrects that when it starts: systemctl restart --no-block dpsd"},
	} {
		t.Run(c.expect, func(t *testing.T) {
			g := withPair(t, pair.Certificate{})
			if err := c.change(g); err != nil {
				t.Fatal(err)
			}
			expect(t, g, pairOK, "warning certificate : "+c.want, datesOK, filesOK)
		})
	}
}

func TestTheDatesOfTheWholeChainAreChecked(t *testing.T) {
	for _, c := range []struct {
		expect string
		now    time.Time
		issuer time.Time // the end of its certificate
		table  bool
		want   string
	}{
		{"more than an hour before it becomes valid, the clock is wrong", beginning.Add(-2 * time.Hour), time.Time{}, true,
			"failed certificate-dates clock-implausible: the certificate is not valid before 2026-11-25 12:00:00 UTC, and this gateway's clock shows 2026-11-25 10:00:00 UTC"},
		{"shortly before it becomes valid, the user has to wait", beginning.Add(-5 * time.Minute), time.Time{}, true,
			"warning certificate-dates : the certificate is not valid before 2026-11-25 12:00:00 UTC, in 5 minutes → Check this gateway's clock, or wait."},
		{"from the start of its validity, it is valid", beginning, time.Time{}, true, "ok certificate-dates : valid until"},
		{"shortly after its renewal was due, it is valid", beginning.Add(7 * day * 71 / 100), time.Time{}, true, "ok certificate-dates : valid until"},
		{"long after its renewal was due, the renewal is overdue", beginning.Add(7 * day * 73 / 100), time.Time{}, true,
			"warning certificate-dates : valid until 2026-12-02 12:00:00 UTC, for 45 hours; the renewal has been due since 2026-11-30 04:33:36 UTC → dpsd certificate renew --wait"},
		{"without a table, no renewal is due", beginning.Add(7 * day * 73 / 100), time.Time{}, false, "ok certificate-dates : valid until 2026-12-02 12:00:00 UTC, for 45 hours → "},
		{"a second before it expires, it is valid", beginning.Add(7*day - time.Second), time.Time{}, true, "warning certificate-dates : valid until"},
		{"when its validity ends, it has expired", beginning.Add(7 * day), time.Time{}, true,
			"failed certificate-dates certificate-expired: the certificate expired 0 seconds ago, on 2026-12-02 12:00:00 UTC → dpsd certificate renew --wait"},
		{"the certificate of its issuer counts as well", beginning.Add(4 * day), beginning.Add(3 * day), true,
			`failed certificate-dates certificate-expired: certificate 2 of 3, "Test issuing CA", expired 24 hours ago, on 2026-11-28 12:00:00 UTC`},
		{"an issuer that expires first is named", beginning.Add(day), beginning.Add(3 * day), true,
			`ok certificate-dates : valid until 2026-11-28 12:00:00 UTC, for 2 days; certificate 2 of 3, "Test issuing CA", expires first; dpsd renews it by 2026-11-27 12:14:24 UTC`},
	} {
		t.Run(c.expect, func(t *testing.T) {
			g := withPair(t, pair.Certificate{NotBefore: beginning, NotAfter: beginning.Add(7 * day), IssuerNotAfter: c.issuer})
			g.Now = func() time.Time { return c.now }
			want := []string{"ok certificate :", c.want, "ok certificate-files"}
			if !c.table {
				g.Settings.Certificate = nil
				want = []string{"ok certificate :", "warning certificate :", c.want, "ok certificate-files"}
			}
			expect(t, g, want...)
		})
	}
}

func TestTheGroupAndTheModesOfThePairAreChecked(t *testing.T) {
	chmod := func(path string, mode os.FileMode) func(*check.Gateway) error {
		return func(g *check.Gateway) error { return os.Chmod(filepath.Join(g.StateDirectory, path), mode) }
	}
	const newFiles = "dpsd certificate renew --wait, which writes new files"
	for _, c := range []struct {
		expect string
		change func(*check.Gateway) error
		want   string
	}{
		{"a group that does not exist", func(g *check.Gateway) error { g.CertificateGroup = "no-such-group"; return nil },
			"warning certificate-files : the group no-such-group does not exist, so only dpsd and root can read the issued certificate → groupadd --system no-such-group && chown -h dpsd:no-such-group … && chmod 2750 … && systemctl restart --no-block dpsd; then run: dpsd certificate renew --wait"},
		{"a directory of another group", func(g *check.Gateway) error { g.CertificateGroup = "daemon"; return nil },
			"warning certificate-files : … mode 2750: its group must be daemon, which new files inherit → chown -h dpsd:daemon … && chmod 2750 … ; then run: dpsd certificate renew --wait"},
		{"a directory whose new files do not inherit the group", chmod("certificate", 0o750),
			"warning certificate-files : … mode 0750: without the set-group-ID bit, new files do not inherit its group"},
		{"a directory that the group cannot search", chmod("certificate", 0o700|os.ModeSetgid),
			"warning certificate-files : … mode 2700: the members of the group cannot search it"},
		{"a directory in which others can replace the key", chmod("certificate", 0o770|os.ModeSetgid),
			"warning certificate-files : … mode 2770: other users than dpsd can replace the key"},
		{"a pair that the group cannot search", chmod("certificate/1", 0o700),
			"warning certificate-files : group … mode 0700: the members of the group … cannot read it → " + newFiles},
		{"a chain that the group cannot read", chmod("certificate/1/chain.pem", 0o600),
			"warning certificate-files : group … mode 0600: the members of the group … cannot read it → " + newFiles},
		{"a key that the group cannot read", chmod("certificate/1/key.pem", 0o600),
			"warning certificate-files : group … mode 0600: the members of the group … cannot read it → " + newFiles},
		{"a key that every user can read", chmod("certificate/1/key.pem", 0o644),
			"warning certificate-files : mode 0644: every user can read it → " + newFiles + "; other users may know the previous key, so revoke its certificate"},
		{"a key that the group can change", chmod("certificate/1/key.pem", 0o660),
			"warning certificate-files : mode 0660: the members of its group can change it → " + newFiles},
		{"a chain that every user can change", chmod("certificate/1/chain.pem", 0o646),
			"warning certificate-files : mode 0646: every user can change it → " + newFiles},
		{"a chain that every user can read is public", chmod("certificate/1/chain.pem", 0o644), filesOK},
		{"an owner other than the service's user", func(g *check.Gateway) error {
			g.Account = check.Account{Name: "somebody-else", UID: os.Getuid() + 1, GID: os.Getgid(), Groups: []int{os.Getgid()}}
			return os.Chmod(filepath.Dir(g.StateDirectory), 0o755)
		}, "warning certificate-files : … mode 2750: it must belong to somebody-else; otherwise, dpsd cannot store a certificate → chown -h somebody-else:"},
	} {
		t.Run(c.expect, func(t *testing.T) {
			g := withPair(t, pair.Certificate{})
			if err := c.change(g); err != nil {
				t.Fatal(err)
			}
			all := results(t, g)
			last := all[len(all)-1]
			line := fmt.Sprintf("%s %s %s: %s → %s", last.Status, last.Name, last.Code, last.Detail, last.Advice)
			for part := range strings.SplitSeq(c.want, " … ") {
				if !strings.Contains(line, part) {
					t.Errorf("the result is\n%s\nwithout\n%s", line, part)
				}
			}
		})
	}
}

func TestThePackagesFilesCorrectTheDirectoryOfTheIssuedCertificate(t *testing.T) {
	for name, want := range map[string]string{
		"dpsd-certificate": "systemd-sysusers dpsd.conf && systemd-tmpfiles --create dpsd.conf && systemctl restart --no-block dpsd",
		"no-such-group": "groupadd --system no-such-group && echo 'd /var/lib/dpsd/certificate 2750 dpsd no-such-group' >/etc/tmpfiles.d/dpsd-certificate.conf && " +
			"systemd-tmpfiles --create dpsd-certificate.conf && systemctl restart --no-block dpsd",
	} {
		if _, err := user.LookupGroup(name); err == nil {
			continue // this machine has the package
		}
		g := withPair(t, pair.Certificate{})
		g.StateDirectory, g.CertificateGroup = "/var/lib/dpsd", name
		g.Systemctl = systemd(t, "[Service]\n", "LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled\n")
		all := results(t, g)
		if last := all[len(all)-1]; !strings.Contains(last.Detail, "the group "+name+" does not exist") || last.Advice != want {
			t.Errorf("%s: %+v\nwant %s", name, last, want)
		}
	}
}

func TestRootChecksThePairWithTheRightsOfTheService(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the test needs root")
		}
		t.Skip("only root can access files as another user")
	}
	g := withPair(t, pair.Certificate{})
	for d := g.StateDirectory; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const uid, gid = 64321, 64322
	own := func(name string, mode os.FileMode) error {
		path := filepath.Join(g.StateDirectory, name)
		return errors.Join(os.Lchown(path, uid, gid), os.Chmod(path, mode))
	}
	if err := errors.Join(os.Chown(g.StateDirectory, uid, gid), own("state.json", 0o644), own("certificate", 0o750|os.ModeSetgid), own("certificate/1", 0o750),
		own("certificate/1/chain.pem", 0o640), own("certificate/1/certificate.json", 0o640)); err != nil {
		t.Fatal(err)
	}
	g.Account, g.CertificateGroup = check.Account{Name: "dpsd", UID: uid, GID: uid}, "root"
	key := filepath.Join(g.StateDirectory, "certificate/1/key.pem")
	if err := os.Chmod(key, 0o600); err != nil { // it belongs to root
		t.Fatal(err)
	}
	expect(t, g, "failed certificate certificate-unreadable: open "+key+": permission denied → chown -h dpsd "+key+" && systemctl restart --no-block dpsd", "skipped", "warning")
	if err := own("certificate/1/key.pem", 0o640); err != nil {
		t.Fatal(err)
	}
	expect(t, g, pairOK, datesOK, "warning certificate-files : owner 64321, group 64322, mode 2750: its group must be root")
}

// The metadata describe the pair, but their own values are text that the service's user can
// write.
func TestTextOfThePairIsEscaped(t *testing.T) {
	g := withPair(t, pair.Certificate{})
	path := filepath.Join(g.StateDirectory, "certificate/1/certificate.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var metadata map[string]any
	if err := json.Unmarshal(text, &metadata); err != nil {
		t.Fatal(err)
	}
	metadata["issuer"] = "CN=\x1b[2Jx"
	if text, err = json.Marshal(metadata); err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if first := results(t, g)[0]; first.Status != check.OK || strings.Contains(first.Detail, "\x1b") || !strings.Contains(first.Detail, "CN=") {
		t.Errorf("%+v", first)
	}
}

func TestARegistrationIDThatIsTooLongForACertificateIsReported(t *testing.T) {
	g := withPair(t, pair.Certificate{})
	g.Settings.RegistrationID.Template = strings.Repeat("a", 65)
	found := false
	g.Run(t.Context(), true, func(r check.Result) {
		if r.Name == check.Identity && r.Status == check.Failed {
			found = true
			if !strings.Contains(r.Detail, "64") || !strings.Contains(r.Advice, "[certificate]") {
				t.Errorf("%s → %s", r.Detail, r.Advice)
			}
		}
	})
	if !found {
		t.Error("the step identity has not failed")
	}
}
