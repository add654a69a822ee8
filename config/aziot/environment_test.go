package aziot_test

import (
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dpsd-project/dpsd/config/aziot"
	"github.com/dpsd-project/dpsd/test/configuration"
)

const (
	ofIdentityd = "/etc/systemd/system/aziot-identityd.service.d/"
	ofEdged     = "/etc/systemd/system/aziot-edged.service.d/override.conf"
)

// importWith imports with drop-ins, which are pairs of name and text, on a gateway with these
// files.
func importWith(t *testing.T, files map[string]string, dropIns ...[2]string) (proxy string, notes []string) {
	t.Helper()
	find := func(pattern string) (found []aziot.EnvironmentFile, err error) {
		switch text, is := files[pattern]; {
		case pattern == "/etc/proxy.d/*.env":
			return []aziot.EnvironmentFile{{Name: "/etc/proxy.d/1.env", Text: []byte(files["1"])}, {Name: "/etc/proxy.d/2.env", Text: []byte(files["2"])}}, nil
		case is && text == "closed":
			return nil, &fs.PathError{Op: "open", Path: pattern, Err: syscall.EACCES}
		case is:
			return []aziot.EnvironmentFile{{Name: pattern, Text: []byte(text)}}, nil
		}
		return nil, &fs.PathError{Op: "open", Path: pattern, Err: syscall.ENOENT}
	}
	if files == nil {
		find = nil
	}
	var all []aziot.DropIn
	for _, d := range dropIns {
		all = append(all, aziot.DropIn{Name: d[0], Text: strings.NewReader(d[1]), Files: find})
	}
	got, err := aziot.Import("config.toml", strings.NewReader(samples(t)["symmetric-inline.toml"]), all...)
	if err != nil {
		t.Fatal(err)
	}
	if canaries.MatchString(got.TOML) {
		t.Error("a secret is in the result")
	}
	for line := range strings.Lines(got.TOML) {
		if value, is := strings.CutPrefix(line, "proxy = "); is {
			proxy = strings.Trim(value, "\"\n")
		}
	}
	for _, n := range got.Notes {
		if strings.HasPrefix(n.File, "/") {
			notes = append(notes, n.String())
		}
	}
	return proxy, notes
}

func TestAnEnvironmentFileOfADropInIsReadAsSystemdReadsIt(t *testing.T) {
	type files = map[string]string
	const byHand = `; if it sets HTTPS_PROXY, which takes precedence over Environment=, add this line to [transport] in dpsd.toml, in place of any other proxy: proxy = "http://HOST:PORT"`
	for _, c := range []struct {
		says    string
		files   files
		dropIn  string // lines of its section [Service]
		proxy   string
		notes   []string
		already string // an earlier drop-in
	}{
		{says: "its proxy is used", files: files{"/etc/environment": "LANG=C\n# the plant's\nHTTPS_PROXY=http://file.example:3128\n"},
			dropIn: "EnvironmentFile=/etc/environment\n", proxy: "http://file.example:3128",
			notes: []string{`/etc/environment:3: HTTPS_PROXY: is now transport.proxy = "http://file.example:3128"`}},
		{says: "it overrides Environment=, even a later one", files: files{"/etc/environment": "HTTPS_PROXY=http://file.example:3128\n"},
			dropIn: "EnvironmentFile=/etc/environment\nEnvironment=HTTPS_PROXY=http://late.example:3128\n", proxy: "http://file.example:3128",
			already: "Environment=HTTPS_PROXY=http://early.example:3128\n",
			notes:   []string{`/etc/environment:1: HTTPS_PROXY: is now`}},
		{says: "an empty Environment= does not reset it", files: files{"/e": "https_proxy=http://file.example:3128\n"},
			dropIn: "EnvironmentFile=/e\nEnvironment=\n", proxy: "http://file.example:3128", notes: []string{`/e:1: https_proxy: is now`}},
		{says: "an empty EnvironmentFile= resets the previous ones", files: files{"/e": "https_proxy=http://file.example:3128\n"},
			already: "EnvironmentFile=/e\n", dropIn: "EnvironmentFile=\n"},
		{says: "the later of two files is used", files: files{"/a": "https_proxy=http://a.example:3128\n", "/b": "https_proxy=http://b.example:3128\n"},
			already: "EnvironmentFile=/b\n", dropIn: "EnvironmentFile=/a\n", proxy: "http://a.example:3128", notes: []string{`/a:1: https_proxy: is now`}},
		{says: "the last file of a pattern is used", files: files{"1": "https_proxy=http://a.example:3128\n", "2": "https_proxy=http://b.example:3128\n"},
			dropIn: "EnvironmentFile=-/etc/proxy.d/*.env\n", proxy: "http://b.example:3128", notes: []string{`/etc/proxy.d/2.env:1: https_proxy: is now`}},
		{says: "the upper-case name in Environment= overrides the lower-case name in a file", files: files{"/e": "https_proxy=http://file.example:3128\n"},
			dropIn: "EnvironmentFile=/e\nEnvironment=HTTPS_PROXY=http://unit.example:3128\n", proxy: "http://unit.example:3128",
			notes: []string{`/e:1: https_proxy: left out: HTTPS_PROXY in ` + ofIdentityd + `20.conf takes precedence`, ofIdentityd + `20.conf:3: HTTPS_PROXY: is now`}},
		{says: "a percent sign is not a specifier, and a password stays secret", files: files{"/e": "https_proxy=http://gateway:canary%2d9@file.example:3128\n"},
			dropIn: "EnvironmentFile=/e\n", proxy: "http://file.example:3128",
			notes: []string{`/e:1: https_proxy: is now`, `/e:1: https_proxy: to do: put the password`}},
		{says: "a percent sign in its name is doubled", files: files{"/a%b": "https_proxy=http://file.example:3128\n"},
			dropIn: "EnvironmentFile=/a%%b\n", proxy: "http://file.example:3128", notes: []string{`/a%b:1: https_proxy: is now`}},
		{says: "NO_PROXY is left out", files: files{"/e": "NO_PROXY=localhost\n"}, dropIn: "EnvironmentFile=/e\n",
			notes: []string{`/e:1: NO_PROXY: left out: a proxy in dpsd.toml applies to every connection`}},
		{says: "an optional file that is missing is ignored, as by systemd", files: files{}, dropIn: "EnvironmentFile=-/etc/default/aziot\n"},
		{says: "the note about a required file that is missing contains the line to write", files: files{}, dropIn: "EnvironmentFile=/etc/default/aziot\n",
			notes: []string{ofIdentityd + "20.conf:2: EnvironmentFile: left out: /etc/default/aziot cannot be read: no such file or directory" + byHand}},
		{says: "the note about a file that cannot be read contains the line to write", files: files{"/e": "closed"}, dropIn: "EnvironmentFile=-/e\n",
			notes: []string{ofIdentityd + "20.conf:2: EnvironmentFile: left out: /e cannot be read: permission denied" + byHand}},
		{says: "the note about a file that is not text contains the line to write", files: files{"/e": "\xff=\n"}, dropIn: "EnvironmentFile=/e\n",
			notes: []string{ofIdentityd + "20.conf:2: EnvironmentFile: left out: /e cannot be read: it is not UTF-8 text" + byHand}},
		{says: "a file of a copied drop-in is not read, because it may belong to another gateway", dropIn: "EnvironmentFile=/etc/environment\n",
			notes: []string{ofIdentityd + "20.conf:2: EnvironmentFile: left out: /etc/environment is not read, because this drop-in is a copy and may come from another gateway" + byHand}},
		{says: "a specifier in its name is not resolved", files: files{}, dropIn: "EnvironmentFile=/etc/%H.env\n",
			notes: []string{ofIdentityd + `20.conf:2: EnvironmentFile: left out: the name of the file contains a specifier (%), which only systemd can resolve` + byHand}},
		{says: "systemd ignores a relative name", files: files{"e": "https_proxy=http://file.example:3128\n"}, dropIn: "EnvironmentFile=e\n",
			notes: []string{ofIdentityd + `20.conf:2: EnvironmentFile: left out: the name of the file is not absolute, so systemd ignores it`}},
		{says: "a terminal escape in its name does not reach the terminal", files: files{}, dropIn: "EnvironmentFile=/\x1b[31m\n",
			notes: []string{ofIdentityd + `20.conf:2: EnvironmentFile: left out: /`}},
	} {
		t.Run(c.says, func(t *testing.T) {
			proxy, notes := importWith(t, c.files, [2]string{ofIdentityd + "10.conf", "[Service]\n" + c.already}, [2]string{ofIdentityd + "20.conf", "[Service]\n" + c.dropIn})
			if proxy != c.proxy {
				t.Errorf("the proxy is %q, want %q", proxy, c.proxy)
			}
			if diff := cmp.Diff(c.notes, notes, cmpopts.EquateEmpty(), cmp.Comparer(func(x, y string) bool {
				return !strings.Contains(x+y, "\x1b") && (strings.HasPrefix(x, y) || strings.HasPrefix(y, x))
			})); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a file of aziot-edged does not override the drop-ins of aziot-identityd", func(t *testing.T) {
		proxy, _ := importWith(t, files{"/e": "HTTPS_PROXY=http://file.example:3128\n"},
			[2]string{ofEdged, "[Service]\nEnvironmentFile=/e\n"}, [2]string{ofIdentityd + "1.conf", "[Service]\nEnvironment=HTTPS_PROXY=http://unit.example:3128\n"})
		if proxy != "http://unit.example:3128" {
			t.Errorf("the proxy is %q", proxy)
		}
	})
}

// systemd.exec(5), and env-file.c of systemd 257.
func TestTheValuesOfAnEnvironmentFileAreThoseOfSystemd(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"https_proxy=http://p:1\n", "http://p:1"},
		{"https_proxy=http://p:1", "http://p:1"},
		{"  https_proxy = \thttp://p:1 \t\r\n", "http://p:1"},
		{"https_proxy=http://q:1\nhttps_proxy=http://p:1\n", "http://p:1"},
		{"https_proxy=\"http://p:1\"\n", "http://p:1"},
		{"https_proxy='http://p:1' \n", "http://p:1"},
		{"https_proxy=\"http://\"'p:1'\n", "http://p:1"},
		{"https_proxy=\"http://\"p:1\n", "http://p:1"},
		{"https_proxy=\"http://\\\np:1\"\n", "http://p:1"},
		{"https_proxy=http://\\\np:1\n", "http://p:1"},
		{"https_proxy=http:\\/\\/p:1\n", "http://p:1"},
		{"A='\nhttps_proxy=http://q:1\n'\nhttps_proxy=http://p:1\n", "http://p:1"},
		{"A=\"\\\"\nhttps_proxy=http://q:1\n\"\n", ""},
		{"# https_proxy=http://q:1\n; https_proxy=http://q:1\nno assignment\nhttps_proxy=http://p:1\n", "http://p:1"},
		{"export https_proxy=http://q:1\n", ""},
		{"HTTPS_PROXY\n=http://q:1\n", ""},
		{"https_proxy=\n", ""},
		{"https_proxy='http://p:1", "http://p:1"},
		{"https_proxy=http://p:1\\", "http://p:1"},
		{"https_proxy=h\"ttp://p:1\n", ""}, // a quote that is not the first character belongs to the address
	} {
		if proxy, _ := importWith(t, map[string]string{"/e": c.text}, [2]string{ofIdentityd + "1.conf", "[Service]\nEnvironmentFile=/e\n"}); proxy != c.want {
			t.Errorf("%q: the proxy is %q, want %q", c.text, proxy, c.want)
		}
	}
}

func FuzzEnvironmentFile(f *testing.F) {
	f.Add("https_proxy=\"http://a:b@c:1\"\n# x\nA='\n'\\\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := aziot.Import("x", strings.NewReader(samples(t)["symmetric-inline.toml"]), aziot.DropIn{
			Name: "y", Text: strings.NewReader("[Service]\nEnvironmentFile=/z\n"),
			Files: func(string) ([]aziot.EnvironmentFile, error) {
				return []aziot.EnvironmentFile{{Name: "/z", Text: []byte(text)}}, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if broken := configuration.Broken(parse(t, got.TOML)); broken != "" {
			t.Fatalf("%s in %s", broken, got.TOML)
		}
		for _, n := range got.Notes {
			if n.Text == "" || n.Key == "" || strings.ContainsAny(n.String(), "\n\r") {
				t.Fatalf("%+v", n)
			}
		}
	})
}
