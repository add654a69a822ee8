package setup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/setup"
)

func TestThePlaceOfTheKeyDependsOnTheUserAndThePackage(t *testing.T) {
	const file = "/etc/dpsd/dpsd.toml"
	installed := func(string) (int, error) { return 7, nil }
	missing := func(string) (int, error) { return 0, errors.New("unknown group") }
	for _, row := range []struct {
		name    string
		machine setup.Machine
		group   int
		notes   []string
		state   string
	}{
		{"root with the package", setup.Machine{UID: 0, Group: installed}, 7, nil, "/var/lib/dpsd"},
		{"root without the package", setup.Machine{UID: 0, Group: missing}, -1, []string{"dpsd-keys does not exist", "dpsd must run as root"}, "/var/lib/dpsd"},
		{"the user of a container", setup.Machine{UID: 65532, Group: missing, Writable: func(string) bool { return true }}, -1, []string{"only user 65532"}, "/var/lib/dpsd"},
		{"another user", setup.Machine{UID: 1000, Group: installed, Writable: func(string) bool { return false }}, -1, []string{"only user 1000", "/etc/dpsd/state"}, "/etc/dpsd/state"},
	} {
		p := setup.PlaceFor(file, row.machine)
		files, err := p.Files(setup.Answers{IDScope: "0ne1", RegistrationID: "gw-1", Credential: &setup.Credential{Key: make([]byte, 32)}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		mode := fs.FileMode(0o600)
		if row.group >= 0 {
			mode = 0o640
		}
		if f := files[0]; f.Path != "/etc/dpsd/keys/device.key" || f.Mode != mode || f.Group != row.group || !f.Secret {
			t.Errorf("%s: the key is %s, mode %04o, group %d", row.name, f.Path, f.Mode, f.Group)
		}
		if f := files[1]; f.Path != file || f.Mode != 0o644 || f.Group != -1 || f.Secret {
			t.Errorf("%s: the configuration is %s, mode %04o, group %d", row.name, f.Path, f.Mode, f.Group)
		}
		c, err := config.Parse(file, strings.NewReader(string(files[1].Text)))
		if err != nil || c.State.Directory != row.state {
			t.Errorf("%s: the state directory is %v, %v", row.name, c, err)
		}
		for _, note := range row.notes {
			if !strings.Contains(p.Note, note) {
				t.Errorf("%s: the note is %q, want %q", row.name, p.Note, note)
			}
		}
		if row.notes == nil && p.Note != "" {
			t.Errorf("%s: the note is %q", row.name, p.Note)
		}
	}
}

func TestTheConfigurationKeepsWhatTheAnswersDoNotContain(t *testing.T) {
	previous, err := setup.ParsePrevious("dpsd.toml", []byte(`[log]
level = "debug"
[dps]
id_scope = "0ne1"
registration_id = "gw-1"
payload_file = "/etc/payload.json"
[[credential]]
type = "symmetric-key"
key = "file:/old.key"
[[credential]]
type = "x509"
certificate = "file:/old.pem"
private_key = "file:/old-key.pem"
[transport]
proxy = "http://old:1"
mqtt_port = 1
`))
	if err != nil {
		t.Fatal(err)
	}
	more := filepath.Join(t.TempDir(), "more.toml")
	read := func(text string) (setup.Extra, error) {
		t.Helper()
		if err := os.WriteFile(more, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return setup.ReadExtra(more)
	}
	extra, err := read("[transport]\nproxy = \"http://new:2\"\n")
	if err != nil {
		t.Fatal(err)
	}
	p := setup.PlaceFor("/etc/dpsd/dpsd.toml", setup.Machine{UID: 1, Writable: func(string) bool { return false }})
	text := func(a setup.Answers, extra setup.Extra) string {
		t.Helper()
		files, err := p.Files(a, previous, extra)
		if err != nil {
			t.Fatal(err)
		}
		return string(files[len(files)-1].Text)
	}
	const rest = `payload_file = "/etc/payload.json"
`
	const old = `
[[credential]]
type = "symmetric-key"
key = "file:/old.key"

[[credential]]
type = "x509"
certificate = "file:/old.pem"
private_key = "file:/old-key.pem"
`
	const end = `
[transport]
proxy = "http://new:2"
mqtt_port = 1

[log]
level = "debug"

[state]
directory = "/etc/dpsd/state"

[control]
socket = "/etc/dpsd/run/dpsd.sock"
`
	const begin = "# Written by \"dpsd init\". man dpsd.toml describes every key.\n\n[dps]\n"
	want := begin + "id_scope = \"0ne2\"\nregistration_id = \"gw-1\"\nendpoint = \"x.example\"\n" + rest + old + end
	if got := text(previous.Complete(setup.Answers{IDScope: "0ne2", Endpoint: "x.example"}), extra); got != want {
		t.Errorf("the configuration is:\n%s\nwant:\n%s", got, want)
	}
	want = begin + "id_scope = \"0ne1\"\nregistration_id = \"gw-2\"\n" + rest + "\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/etc/dpsd/keys/device.key\"\n" + end
	if got := text(previous.Complete(setup.Answers{RegistrationID: "gw-2", Credential: &setup.Credential{GroupKey: make([]byte, 64)}}), extra); got != want {
		t.Errorf("the configuration is:\n%s\nwant:\n%s", got, want)
	}
	if !previous.Keeps("gw-1") || previous.Keeps("gw-2") || (*setup.Previous)(nil).Keeps("") {
		t.Error("the key of one registration ID is used for another")
	}
	const credential = "[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/x\"\n"
	const complete = "must consist of complete tables other than [dps] and [[credential]]"
	for wrong, want := range map[string]string{
		"[transport]\nprxy = 1\n":                    ":2:1: transport.prxy: unknown key",
		"[dps]\nendpoint = \"x\"\n":                  complete,
		"dps.id_scope = \"0ne1\"":                    complete,
		"[log]\nlevel = \"debug\"\n" + credential:    complete,
		strings.TrimSuffix(credential, "\n"):         complete,
		"[transport]\nca_file = \"\"\"/etc/ca.pem\n": complete,
	} {
		if _, err := read(wrong); !errors.As(err, new(config.Errors)) || !strings.HasPrefix(err.Error(), more+":") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", wrong, err, want)
		}
	}
}

func TestTheConsumersStayUnlessTheExtraSettingsContainOthers(t *testing.T) {
	previous, err := setup.ParsePrevious("dpsd.toml", []byte("[dps]\nid_scope = \"0ne1\"\nregistration_id = \"gw-1\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/old.key\"\n"+
		"[[consumer]]\nname = \"a\"\nscope = \"module:a\"\n[[consumer]]\nname = \"b\"\nscope = \"module:b\"\nlifetime = \"1h\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	more := filepath.Join(t.TempDir(), "more.toml")
	const other = "[[consumer]]\nname = \"c\"\nscope = \"device\"\n"
	if err := os.WriteFile(more, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	replaced, err := setup.ReadExtra(more)
	if err != nil {
		t.Fatal(err)
	}
	const kept = "[[consumer]]\nname = \"a\"\nscope = \"module:a\"\n\n[[consumer]]\nname = \"b\"\nscope = \"module:b\"\nlifetime = \"1h\"\n"
	for want, extra := range map[string]setup.Extra{kept: nil, other: replaced} {
		p := setup.PlaceFor("/etc/dpsd/dpsd.toml", setup.Machine{UID: 1, Writable: func(string) bool { return true }})
		files, err := p.Files(previous.Complete(setup.Answers{}), previous, extra)
		if err != nil {
			t.Fatal(err)
		}
		text := string(files[len(files)-1].Text)
		if !strings.HasSuffix(text, "\n"+want) || strings.Count(text, "[[consumer]]") != strings.Count(want, "[[consumer]]") {
			t.Errorf("the configuration is:\n%s\nwant at its end:\n%s", text, want)
		}
	}
}

func TestTheSourceOfTheRegistrationIDStaysIfTheIDIsTheSame(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "id"), []byte("gw-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const key = "type = \"symmetric-key\"\nkey = \"file:/old.key\"\n"
	file := func(name string) string { return fmt.Sprintf("registration_id_file = %q\n", filepath.Join(dir, name)) }
	const literal = "registration_id = \"gw-1\"\n"
	replaced := setup.Answers{RegistrationID: "gw-1", Credential: &setup.Credential{Key: make([]byte, 32)}}
	for _, row := range []struct {
		name, source, credential string
		answers                  setup.Answers
		want                     string
	}{
		{"a file", file("id"), key, setup.Answers{IDScope: "0ne2"}, file("id")},
		{"a file that does not exist yet", file("none"), key, setup.Answers{IDScope: "0ne2"}, file("none")},
		{"a file, and the key is replaced", file("id"), key, replaced, file("id")},
		{"a file with another ID", file("none"), key, replaced, literal},
		{"the certificate", "", "type = \"x509\"\ncertificate = \"file:/none.pem\"\nprivate_key = \"file:/none.pem\"\n", setup.Answers{IDScope: "0ne2"}, ""},
		{"the certificate, which is replaced", "", "type = \"x509\"\ncertificate = \"file:/none.pem\"\nprivate_key = \"file:/none.pem\"\n", replaced, literal},
	} {
		previous, err := setup.ParsePrevious("dpsd.toml", []byte("[dps]\nid_scope = \"0ne1\"\n"+row.source+"[[credential]]\n"+row.credential))
		if err != nil {
			t.Fatal(err)
		}
		p := setup.PlaceFor("/etc/dpsd/dpsd.toml", setup.Machine{UID: 1, Writable: func(string) bool { return true }})
		files, err := p.Files(previous.Complete(row.answers), previous, nil)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		got := ""
		for line := range strings.Lines(string(files[len(files)-1].Text)) {
			if strings.HasPrefix(line, "registration_id") {
				got += line
			}
		}
		if got != row.want {
			t.Errorf("%s: the source is %q, want %q", row.name, got, row.want)
		}
	}
}

func TestAConfigurationThatCannotBeReadIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, read := range []func() error{
		func() error {
			_, err := setup.PlaceFor(dir, setup.Machine{UID: 1, Writable: func(string) bool { return true }}).Previous()
			return err
		},
		func() error {
			_, err := setup.ReadExtra(dir)
			return err
		},
	} {
		if err := read(); err == nil || !strings.HasPrefix(err.Error(), dir+": not a regular file") {
			t.Errorf("a directory: %v", err)
		}
	}
}

// tree returns the files below a directory with their modes and texts.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = fmt.Sprintf("%04o %s", info.Mode().Perm(), text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestFilesAreWrittenCompletelyOrNotAtAll(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // the modes do not depend on it
	dir := t.TempDir()
	files := func(text string) []setup.File {
		return []setup.File{
			{Path: filepath.Join(dir, "etc/keys/device.key"), Text: []byte("key " + text), Mode: 0o640, Group: os.Getgid(), Secret: true},
			{Path: filepath.Join(dir, "etc/dpsd.toml"), Text: []byte("toml " + text), Mode: 0o644, Group: -1},
		}
	}
	expect := func(when string, want map[string]string) {
		t.Helper()
		if got := tree(t, dir); !maps.Equal(got, want) {
			t.Errorf("%s: the files are %q, want %q", when, got, want)
		}
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := setup.Write(canceled, files("1"), false); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	expect("interrupted", map[string]string{})

	if copies, err := setup.Write(t.Context(), files("1"), false); err != nil || copies != nil {
		t.Fatal(copies, err)
	}
	one := map[string]string{"etc/keys/device.key": "0640 key 1", "etc/dpsd.toml": "0644 toml 1"}
	expect("new", one)
	for name, mode := range map[string]fs.FileMode{"etc": 0o755, "etc/keys": 0o750} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}

	exists := (*setup.ExistsError)(nil)
	if _, err := setup.Write(t.Context(), files("2"), false); !errors.As(err, &exists) || !strings.HasSuffix(exists.Path, "device.key") {
		t.Errorf("existing files: %v", err)
	}
	expect("existing files", one)

	// The last file cannot be replaced, so the first one is not written either.
	if err := os.Remove(filepath.Join(dir, "etc/keys/device.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.Write(t.Context(), files("2"), false); !errors.As(err, &exists) || !strings.HasSuffix(exists.Path, "dpsd.toml") {
		t.Errorf("an existing configuration: %v", err)
	}
	expect("an existing configuration", map[string]string{"etc/dpsd.toml": "0644 toml 1"})

	// A link to another partition remains a link.
	data := filepath.Join(dir, "data.toml")
	if err := errors.Join(os.Rename(filepath.Join(dir, "etc/dpsd.toml"), data), os.Symlink(data, filepath.Join(dir, "etc/dpsd.toml"))); err != nil {
		t.Fatal(err)
	}
	copies, err := setup.Write(t.Context(), files("2"), true)
	if err != nil || !slices.Equal(copies, []string{data + ".orig"}) {
		t.Errorf("replaced: %q, %v", copies, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "etc/dpsd.toml")); to != data {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if got := tree(t, dir); got["data.toml"] != "0644 toml 2" || got["data.toml.orig"] != "0644 toml 1" || got["etc/keys/device.key"] != "0640 key 2" {
		t.Errorf("replaced: the files are %q", got)
	}
	if copies, err := setup.Write(t.Context(), files("2"), true); err != nil || copies != nil {
		t.Errorf("the same again: %q, %v", copies, err)
	}

	// A file appears while the others are replaced, which is undone. A process that was
	// killed has left a file, and an editor too.
	for _, name := range []string{"etc/keys/.device.key.1.new", "etc/keys/.device.key.swp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("key"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, dir)
	last := setup.File{Path: filepath.Join(dir, "etc/keys/device.key.orig"), Group: -1, Mode: 0o600}
	if _, err := setup.Write(t.Context(), slices.Insert(files("3"), 1, last), true); !errors.As(err, &exists) || exists.Path != last.Path {
		t.Errorf("a file that appears: %v", err)
	}
	delete(before, "etc/keys/.device.key.1.new")
	delete(before, "data.toml.orig") // it was the copy of an earlier file
	expect("a file that appears", before)

	// Others could read the previous key.
	if err := os.Chmod(filepath.Join(dir, "etc/keys/device.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.Write(t.Context(), files("3"), true); err != nil {
		t.Error(err)
	}
	if got := tree(t, dir)["etc/keys/device.key.orig"]; got != "0640 key 2" {
		t.Errorf("the copy of a key that others could read is %q", got)
	}
}
