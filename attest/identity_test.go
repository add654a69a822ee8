package attest_test

import (
	"crypto/elliptic"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
)

const machineID = "0123456789abcdef0123456789abcdef"

func TestCheckRegistrationID(t *testing.T) {
	for _, c := range []struct {
		name, id string
		ok       bool
	}{
		{"letters, digits and all four marks are allowed", "Gw-01.a_b:c", true},
		{"one character is enough", "7", true},
		{"128 characters are allowed", strings.Repeat("a", 128), true},
		{"129 characters are too many", strings.Repeat("a", 129), false},
		{"an empty text is not allowed", "", false},
		{"a hyphen may end it", "gw-", true},
		{"a dot may not end it", "gw.", false},
		{"an underscore may not end it", "gw_", false},
		{"a colon may not end it", "gw:", false},
		{"a hyphen may not begin it", "-gw", false},
		{"a dot may not begin it", ".gw", false},
		{"a space is not allowed", "gw 1", false},
		{"a slash is not allowed: it would end the ID in the user name", "gw/1", false},
		{"an ampersand is not allowed", "gw&1", false},
		{"a percent sign is not allowed", "gw%1", false},
		{"an at sign is not allowed", "gw@1", false},
		{"a newline is not allowed", "gw\n", false},
		{"a NUL byte is not allowed", "gw\x00", false},
		{"a letter outside of ASCII is not allowed", "gwä", false},
		{"a digit outside of ASCII is not allowed", "gw٣", false},
		{"invalid UTF-8 is not allowed", "gw\xff1", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := attest.CheckRegistrationID(c.id)
			if (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
			if err != nil && !errors.Is(err, attest.ErrRegistrationID) {
				t.Errorf("%v is not ErrRegistrationID", err)
			}
		})
	}
}

func TestARegistrationIDConsistsOfLettersDigitsAndFourPunctuationMarks(t *testing.T) {
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._:"
	for b := range 256 {
		id := "a" + string([]byte{byte(b)}) + "a"
		want := b < 0x80 && strings.ContainsRune(allowed, rune(b))
		if err := attest.CheckRegistrationID(id); (err == nil) != want {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestParseTemplate(t *testing.T) {
	for _, c := range []struct {
		name, template string
		want           error
	}{
		{"a plain ID is a template", "gw-1", nil},
		{"a machine ID may be at any position", "%m", nil},
		{"a host name may be at any position", "site-%H-%m", nil},
		{"an unknown verb is rejected", "gw-%h", attest.ErrTemplate},
		{"a percent sign at the end is rejected", "gw-%", attest.ErrTemplate},
		{"%% is known, but a registration ID cannot contain a percent sign", "gw-%%-1", attest.ErrRegistrationID},
		{"%%m is a percent sign and an m", "gw-%%m", attest.ErrRegistrationID},
		{"a character that no ID may contain is rejected", "gw %m", attest.ErrRegistrationID},
		{"an end that no ID may have is rejected", "%m.", attest.ErrRegistrationID},
		{"a beginning that no ID may have is rejected", ".%m", attest.ErrRegistrationID},
		{"a template that is too long with the shortest values is rejected", strings.Repeat("a", 97) + "%m", attest.ErrRegistrationID},
		{"a template of the maximum length is accepted", strings.Repeat("a", 96) + "%m", nil},
		{"an empty template is rejected", "", attest.ErrRegistrationID},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := attest.ParseTemplate(c.template); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// host returns a machine with the given names.
func host(hostname, machineID string) attest.Host {
	return attest.Host{
		Hostname:  func() (string, error) { return hostname, nil },
		MachineID: func() (string, error) { return machineID, nil },
	}
}

func TestResolveTemplate(t *testing.T) {
	for _, c := range []struct {
		name, template string
		host           attest.Host
		id             string
		want           error
		source         string
	}{
		{"an ID without verbs does not change", "gw-1", host("", ""), "gw-1", nil, ""},
		{"%m is the unchanged machine ID", "gw-%m", host("", machineID), "gw-" + machineID, nil, ""},
		{"%H is the host name, dots included", "%H-a", host("site1.example", ""), "site1.example-a", nil, ""},
		{"both may be used, more than once", "%H.%m.%H", host("h", machineID), "h." + machineID + ".h", nil, ""},
		{"an empty machine ID is an error", "gw-%m", host("", ""), "", attest.ErrNoMachineID, "%m"},
		{"an uninitialized machine ID is an error", "gw-%m", host("", "uninitialized"), "", attest.ErrNoMachineID, "%m"},
		{"a machine ID of 32 zeros counts as uninitialized", "gw-%m", host("", strings.Repeat("0", 32)), "", attest.ErrNoMachineID, "%m"},
		{"a machine ID of NUL bytes, as after a power failure, is an error", "gw-%m", host("", strings.Repeat("\x00", 32)), "", attest.ErrNoMachineID, "%m"},
		{"a machine ID that is too long is an error", "gw-%m", host("", machineID+"0"), "", attest.ErrNoMachineID, "%m"},
		{"a machine ID that is too short is an error", "gw-%m", host("", machineID[:31]), "", attest.ErrNoMachineID, "%m"},
		{"no host name is an error", "%H", host("", machineID), "", attest.ErrNoHostname, "%H"},
		{"the host name localhost, which every gateway has, is an error", "%H", host("localhost", machineID), "", attest.ErrNoHostname, "%H"},
		{"the long form of localhost in any case is an error", "%H", host("LocalHost.localdomain.", machineID), "", attest.ErrNoHostname, "%H"},
		{"a subdomain of localhost is an error", "%H", host("gw.localhost", machineID), "", attest.ErrNoHostname, "%H"},
		{"a name that only begins like localhost is valid", "%H", host("localhost-7", machineID), "localhost-7", nil, ""},
		{"the kernel's (none) is an error", "%H", host("(none)", machineID), "", attest.ErrNoHostname, "%H"},
		{"a host name that is too long is an error", "%H", host(strings.Repeat("h", 129), ""), "", attest.ErrRegistrationID, "registration_id"},
		{"a host name of other characters is an error", "%H", host("küche", ""), "", attest.ErrRegistrationID, "registration_id"},
		{"an invalid template that was not checked is an error", "gw-%x", host("", ""), "", attest.ErrTemplate, "registration_id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := attest.RegistrationID{Template: c.template}.Resolve(c.host, attest.Secrets{})
			if id != c.id || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %q, %v, want %q, %v", id, err, c.id, c.want)
			}
			var identity *attest.IdentityError
			if err != nil && (!errors.As(err, &identity) || identity.Source != c.source) {
				t.Errorf("got %#v, want the source %s", err, c.source)
			}
		})
	}
	t.Run("an error of the system is an error", func(t *testing.T) {
		refuse := func() (string, error) { return "", syscall.EPERM }
		for template, want := range map[string]error{"%H": attest.ErrNoHostname, "%m": attest.ErrNoMachineID} {
			_, err := attest.RegistrationID{Template: template}.Resolve(attest.Host{Hostname: refuse, MachineID: refuse}, attest.Secrets{})
			if !errors.Is(err, want) || !errors.Is(err, fs.ErrPermission) {
				t.Errorf("%s: got %v", template, err)
			}
		}
	})
	t.Run("without a Host the values of the system are used", func(t *testing.T) {
		want, err := os.ReadFile("/etc/machine-id")
		id, resolved := attest.RegistrationID{Template: "%m"}.Resolve(attest.Host{}, attest.Secrets{})
		if err != nil || len(strings.TrimSpace(string(want))) != 32 {
			if !errors.Is(resolved, attest.ErrNoMachineID) || !strings.Contains(resolved.Error(), "/etc/machine-id") {
				t.Fatalf("this machine has no machine ID, but Resolve returns %q, %v", id, resolved)
			}
			return
		}
		if id != strings.TrimSpace(string(want)) {
			t.Errorf("got %q, %v", id, resolved)
		}
	})
	t.Run("without a source there is no ID", func(t *testing.T) {
		if _, err := (attest.RegistrationID{}).Resolve(attest.Host{}, attest.Secrets{}); !errors.Is(err, attest.ErrNoSource) {
			t.Errorf("got %v", err)
		}
	})
}

func TestResolveFile(t *testing.T) {
	for _, c := range []struct {
		name, text, id string
		want           error
	}{
		{"the first line is the ID", "sn-1\nbatch 7\n", "sn-1", nil},
		{"a file without a newline is accepted", "sn-1", "sn-1", nil},
		{"white space around the ID is removed", " \tsn-1 \r\n", "sn-1", nil},
		{"the NUL byte of a device tree's serial number is removed", "sn-1\x00", "sn-1", nil},
		{"a byte order mark is removed", "\ufeffsn-1\r\n", "sn-1", nil},
		{"an empty file is an error", "", "", attest.ErrEmpty},
		{"an empty first line is an error, whatever follows", "\nsn-1\n", "", attest.ErrRegistrationID},
		{"a percent sign is not a verb in a file", "gw-%m", "", attest.ErrRegistrationID},
		{"a line that is not a valid ID is an error", "Serial: 1\n", "", attest.ErrRegistrationID},
		{"a file over 64 KiB is an error", strings.Repeat("a", 64<<10+1), "", input.ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "serial")
			write(t, path, c.text)
			r := attest.RegistrationID{File: path}
			id, err := r.Resolve(attest.Host{}, attest.Secrets{})
			if id != c.id || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %q, %v, want %q, %v", id, err, c.id, c.want)
			}
			var identity *attest.IdentityError
			if err != nil && (!errors.As(err, &identity) || identity.Path != path || !strings.Contains(err.Error(), path)) {
				t.Errorf("got %#v", err)
			}
		})
	}
	t.Run("the error about a blank first line names the line that has the text", func(t *testing.T) {
		for _, c := range []struct{ text, line string }{{"\nsn-1\n", "line 2"}, {" \t\r\n\r\nsn-1", "line 3"}, {"\ufeff\n\x00\nsn-1", "line 3"}} {
			path := filepath.Join(t.TempDir(), "serial")
			write(t, path, c.text)
			_, err := attest.RegistrationID{File: path}.Resolve(attest.Host{}, attest.Secrets{})
			if err == nil || !strings.Contains(err.Error(), "the first line is blank, and "+c.line+" is not: remove the lines above it") {
				t.Errorf("%q: %v", c.text, err)
			}
		}
	})
	t.Run("the error about a missing file names its path, and the file is watched", func(t *testing.T) {
		r := attest.RegistrationID{File: filepath.Join(t.TempDir(), "serial")}
		_, err := r.Resolve(attest.Host{}, attest.Secrets{})
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), r.File) {
			t.Errorf("got %v", err)
		}
		if p := r.Paths(attest.Secrets{}); len(p) != 1 || p[0] != r.File {
			t.Errorf("the paths to watch are %v", p)
		}
	})
	t.Run("a FIFO is rejected immediately", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "fifo")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (attest.RegistrationID{File: path}).Resolve(attest.Host{}, attest.Secrets{}); !errors.Is(err, input.ErrNotRegular) {
			t.Errorf("got %v", err)
		}
	})
}

func TestResolveFromCertificate(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	for _, c := range []struct {
		name, commonName string
		want             error
	}{
		{"the common name of the leaf is the ID", "gw-1.site", nil},
		{"a common name may have 64 characters", strings.Repeat("a", 64), nil},
		{"an empty common name is an error", "", attest.ErrRegistrationID},
		{"a common name that is not a valid ID is an error", "Gateway 1", attest.ErrRegistrationID},
		{"a common name of 65 characters is an error", strings.Repeat("a", 65), attest.ErrRegistrationID},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := pair(t, certificatePEM(issue(t, nil, c.commonName, key, false)), "")
			r := attest.RegistrationID{FromCertificate: &x}
			id, err := r.Resolve(attest.Host{}, attest.Secrets{})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %q, %v, want %v", id, err, c.want)
			}
			if err == nil && id != c.commonName {
				t.Errorf("got %q", id)
			}
			if p := r.Paths(attest.Secrets{}); len(p) != 1 || p[0] != x.Certificate.File {
				t.Errorf("the paths to watch are %v", p)
			}
		})
	}
	t.Run("the error about a certificate that cannot be read names its path once", func(t *testing.T) {
		x := pair(t, "", "")
		x.Certificate.File += ".gone"
		_, err := attest.RegistrationID{FromCertificate: &x}.Resolve(attest.Host{}, attest.Secrets{})
		var identity *attest.IdentityError
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &identity) || identity.Source != "certificate" {
			t.Fatalf("got %v", err)
		}
		if strings.Count(err.Error(), x.Certificate.File) != 1 {
			t.Errorf("got %v", err)
		}
	})
}

func TestRegistrationIDDescribesItsSource(t *testing.T) {
	x := attest.X509{Certificate: attest.Reference{Credential: "dps-certificate"}}
	for want, r := range map[string]attest.RegistrationID{
		"gw-%m":                     {Template: "gw-%m"},
		"first line of /etc/serial": {File: "/etc/serial"},
		"common name of " + "credential:dps-certificate": {FromCertificate: &x},
		"": {},
	} {
		if got := r.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	t.Run("the machine ID is watched only when it is used", func(t *testing.T) {
		for template, want := range map[string]string{"gw-%m": "/etc/machine-id", "gw-%H": "", "gw-1": "", "gw-%%m": "", "%m%": ""} {
			got := strings.Join(attest.RegistrationID{Template: template}.Paths(attest.Secrets{}), " ")
			if got != want {
				t.Errorf("%s: got %q, want %q", template, got, want)
			}
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"gw-%m", "%H", "%%", "gw-%", "a.%H:%m-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		accepted := attest.ParseTemplate(s) == nil
		id, err := attest.RegistrationID{Template: s}.Resolve(host("h", machineID), attest.Secrets{})
		if s != "" && accepted != (err == nil) {
			t.Fatalf("%q: accepted %v, but resolved to %q, %v", s, accepted, id, err)
		}
		if err == nil && attest.CheckRegistrationID(id) != nil {
			t.Fatalf("%q resolved to %q, which is not a registration ID", s, id)
		}
	})
}
