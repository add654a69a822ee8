package check

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

func TestTheCloudsRoots(t *testing.T) {
	// Microsoft and DigiCert publish these fingerprints: learn.microsoft.com, "Azure
	// Certificate Authority details", and digicert.com, "DigiCert Root Certificates".
	sums := map[string]string{
		"DigiCert Global Root CA":                       "4348a0e9444c78cb265e058d5e8944b4d84f9662bd26db257f8934a443c70161",
		"DigiCert Global Root G2":                       "cb3ccbb76031e5e0138f8dd39a23f9de47ffc35e43c1144cea27d46a5ab1cb5f",
		"Microsoft RSA Root Certificate Authority 2017": "c741f70f4b2a8d88bf2e71c14122ef53ef10eba0cfa5e64cfa20f418853073e0",
	}
	for _, host := range []string{"global.azure-devices-provisioning.net", "x.azure-devices-provisioning.us", "x.azure-devices-provisioning.cn"} {
		cloud, found := classify.CloudOf(host)
		if !found {
			t.Fatalf("%s belongs to no cloud", host)
		}
		pool := x509.NewCertPool()
		for n, name := range cloud.Roots {
			root := authority(name)
			if root == nil {
				t.Fatalf("%s does not exist", name)
			}
			if sum := sha256.Sum256(root.Raw); hex.EncodeToString(sum[:]) != sums[name] {
				t.Errorf("%s has changed: %x", name, sum)
			}
			if missing := missingRoots(pool, cloud); !slices.Equal(missing, cloud.Roots[n:]) {
				t.Errorf("%s: with %d roots %q are missing", host, n, missing)
			}
			pool.AddCert(root)
		}
		if missing := missingRoots(pool, cloud); len(missing) > 0 {
			t.Errorf("%s: with all roots %q are missing", host, missing)
		}
	}
}

// Every bundle contains the roots of the public cloud. Since April 2026, none contains the
// root of the other clouds.
func TestTheRootsAreThoseOfTheEndpointsCloud(t *testing.T) {
	public, sovereign := x509.NewCertPool(), x509.NewCertPool()
	for _, name := range []string{"DigiCert Global Root G2", "Microsoft RSA Root Certificate Authority 2017"} {
		public.AddCert(authority(name))
		sovereign.AddCert(authority(name))
	}
	sovereign.AddCert(authority("DigiCert Global Root CA"))
	for _, test := range []struct {
		host         string
		pool         *x509.CertPool
		status       Status
		detail, what string
	}{
		{"global.azure-devices-provisioning.net", public, OK, "are trusted", ""},
		{"global.azure-devices-provisioning.us", public, Failed, "DigiCert Global Root CA is not trusted, so the certificates of Azure Government cannot be verified", "ca_file"},
		{"global.azure-devices-provisioning.cn", public, Failed, "DigiCert Global Root CA is not trusted, so the certificates of Azure operated by 21Vianet (China) cannot be verified", "ca_file"},
		{"global.azure-devices-provisioning.us", sovereign, OK, "DigiCert Global Root CA is trusted", ""},
		{"global.azure-devices-provisioning.cn", sovereign, OK, "DigiCert Global Root CA is trusted", ""},
		{"dps.test", public, OK, "are trusted", ""},
	} {
		g := Gateway{Settings: &daemon.Settings{IDScope: "0ne0", Dialer: &transport.Dialer{Host: test.host, Roots: test.pool}}, StateDirectory: t.TempDir()}
		seen := false
		g.Run(t.Context(), true, func(r Result) {
			if r.Name != Roots {
				return
			}
			seen = true
			if r.Status != test.status || !strings.Contains(r.Detail, test.detail) || !strings.Contains(r.Advice, test.what) || r.Status == Failed && r.Code != fault.TLSUntrusted {
				t.Errorf("%s: %+v", test.host, r)
			}
		})
		if !seen {
			t.Errorf("%s: the roots were not checked", test.host)
		}
	}
}

func TestTheServersClock(t *testing.T) {
	server := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		off    time.Duration
		status Status
		code   fault.Code
		detail string
	}{
		{10 * time.Second, OK, "", "this gateway's clock is 10 seconds ahead of that of the server"},
		{-59 * time.Second, OK, "", "this gateway's clock is 59 seconds behind that of the server"},
		{-30 * time.Minute, Warning, "", "this gateway's clock is 30 minutes behind that of the server"},
		{48 * time.Hour, Warning, "", "this gateway's clock is 2 days ahead of that of the server"},
		{-time.Hour, Failed, fault.ClockImplausible, "this gateway's clock is 60 minutes behind that of the server"},
	} {
		r := compare("the server", server, server.Add(test.off))
		if r.Status != test.status || r.Code != test.code || r.Detail != test.detail {
			t.Errorf("%v off: %+v", test.off, r)
		}
	}
}

func TestAClockBeforeTheProgramIsWrong(t *testing.T) {
	built := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for off, want := range map[time.Duration]Status{-time.Hour: Failed, -30 * time.Second: OK, time.Hour: OK} {
		g := Gateway{Invalid: errors.New("none"), BuiltAt: built, Now: func() time.Time { return built.Add(off) }}
		g.Run(t.Context(), true, func(r Result) {
			if r.Name == Clock && (r.Status != want || (r.Code == fault.ClockImplausible) != (want == Failed)) {
				t.Errorf("%v off: %+v", off, r)
			}
		})
	}
}

func TestRootReadsFilesAsTheService(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the test needs root")
		}
		t.Skip("only root can access files as another user")
	}
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	read := func() error { _, err := os.ReadFile(file); return err }
	nobody := Account{Name: "nobody", UID: 65534, GID: 65534}
	if err := nobody.do(read); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("the user nobody can read root's file: %v", err)
	}
	for _, installed := range []bool{true, false} {
		g := Gateway{File: file, Installed: installed, Account: nobody, Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}, StateDirectory: dir}
		g.Run(t.Context(), true, func(r Result) {
			// The service need not be able to read a file that is not its configuration.
			if closed := r.Status == Failed && r.Code == fault.ConfigurationInvalid; r.Name == Configuration && closed != installed {
				t.Errorf("installed %t: %+v", installed, r)
			}
		})
	}
	if err := os.Chown(file, 0, 64321); err != nil {
		t.Fatal(err)
	}
	member := nobody
	member.Groups = []int{64321}
	if err := member.do(read); err != nil {
		t.Errorf("a member of the file's group cannot read the file: %v", err)
	}
	if err := nobody.do(read); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("the account of the previous call is still in use: %v", err)
	}
	if err := read(); err != nil {
		t.Errorf("root can no longer read the file: %v", err)
	}
}

func TestTheServiceHasTheGroupsOfItsUnit(t *testing.T) {
	daemonGroup, err := user.LookupGroup("daemon")
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(daemonGroup.Gid)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(text string, err error) func(context.Context, ...string) ([]byte, error) {
		return func(_ context.Context, args ...string) ([]byte, error) {
			if want := []string{"show", "dpsd.service", "--property=SupplementaryGroups"}; !slices.Equal(args, want) {
				t.Errorf("systemctl is called with %q", args)
			}
			return []byte(text), err
		}
	}
	own, err := LookUpAccount(t.Context(), "root", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		says      string
		systemctl func(context.Context, ...string) ([]byte, error)
		more      []int
	}{
		{"groups are given by name or number; one that does not exist is ignored", answer("SupplementaryGroups=daemon 64399 no-such-group\n", nil), []int{id, 64399}},
		{"none", answer("SupplementaryGroups=\n", nil), nil},
		{"a systemd that does not answer", answer("", context.DeadlineExceeded), nil},
	} {
		t.Run(test.says, func(t *testing.T) {
			got, err := LookUpAccount(t.Context(), "root", test.systemctl)
			if err != nil || !slices.Equal(got.Groups, append(slices.Clone(own.Groups), test.more...)) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	if _, err := LookUpAccount(t.Context(), "no-such-user", nil); err == nil {
		t.Error("a user that does not exist is found")
	}
}
