package input_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf16"

	"github.com/dpsd-project/dpsd/input"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// asUTF16 encodes text as UTF-16 in a byte order, with or without a mark.
func asUTF16(text string, big, mark bool) string {
	var b strings.Builder
	if mark {
		text = "\ufeff" + text
	}
	for _, u := range utf16.Encode([]rune(text)) {
		if high, low := byte(u>>8), byte(u); big {
			b.Write([]byte{high, low})
		} else {
			b.Write([]byte{low, high})
		}
	}
	return b.String()
}

func TestOnlyRegularFilesOfLimitedSizeAreRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	socket, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := errors.Join(syscall.Mkfifo(at("fifo"), 0o600), os.Symlink("fifo", at("link-to-fifo")), os.Symlink("gone", at("dangling")),
		os.Symlink("loop", at("loop")), os.Symlink("full", at("link")), os.Symlink(dir, at("directory"))); err != nil {
		t.Fatal(err)
	}
	write(t, at("full"), strings.Repeat("x", 1024))
	write(t, at("over"), strings.Repeat("x", 1025))
	for _, test := range []struct {
		expect, name string
		want         error
		says         string
	}{
		{"a file of the limit is read", "full", nil, ""},
		{"a file behind links of one's own is read", "directory/link", nil, ""},
		{"a byte more is too large", "over", input.ErrTooLarge, "the limit is 1 KiB"},
		{"a directory is refused", ".", input.ErrNotRegular, "a directory"},
		{"a FIFO without a writer is rejected immediately", "fifo", input.ErrNotRegular, "a FIFO"},
		{"a link to a FIFO is rejected immediately", "link-to-fifo", input.ErrNotRegular, "a FIFO"},
		{"a socket is refused", "socket", input.ErrNotRegular, "a socket"},
		{"a missing file is missing", "gone", fs.ErrNotExist, ""},
		{"a link to nowhere is a missing file", "dangling", fs.ErrNotExist, ""},
		{"a link to itself is an error", "loop", syscall.ELOOP, ""},
		{"a file in the place of a directory is an error", "full/x", syscall.ENOTDIR, ""},
	} {
		t.Run(test.expect, func(t *testing.T) {
			text, err := input.Read(at(test.name), 1024)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if err == nil && len(text) != 1024 {
				t.Errorf("got %d bytes", len(text))
			}
			if err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%q does not say %q", err, test.says)
			}
		})
	}
	t.Run("a device without an end is rejected", func(t *testing.T) {
		if _, err := input.Read("/dev/zero", 1024); !errors.Is(err, input.ErrNotRegular) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOpenOwnFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("file"), "content")
	if err := errors.Join(os.Symlink("file", at("link")), syscall.Mkfifo(at("fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	read := func(name string) (text []byte, err error) {
		f, err := input.OpenOwn(at(name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(f)
	}
	if text, err := read("file"); string(text) != "content" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	for name, kind := range map[string]string{"link": "a link", "fifo": "a FIFO", ".": "a directory"} {
		if text, err := read(name); !errors.Is(err, input.ErrNotRegular) || !strings.Contains(err.Error(), kind) {
			t.Errorf("%s: got %q, %v", kind, text, err)
		}
	}
}

func TestRootDoesNotFollowALinkToAFileOfAThirdUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has files of several users")
	}
	const service, somebody = 65534, 65533
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, owner := range map[string]int{"roots": 0, "services": service, "somebodys": somebody} {
		if err := os.Chown(write(t, at(name), "content of "+name), owner, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("data"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(name, to string, owner int) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, at(name)), os.Lchown(at(name), owner, -1)); err != nil {
			t.Fatal(err)
		}
	}
	link("by-root", "roots", 0)
	link("by-root-to-services", at("services"), 0)
	link("own", "services", service)
	link("theft", "roots", service)
	link("theft-of-another", at("somebodys"), service)
	link("data/up", "../roots", service)
	link("directory", ".", service)
	link("chain", "theft", 0)
	for name, refused := range map[string]bool{
		"by-root": false, "by-root-to-services": false, "own": false,
		"theft": true, "theft-of-another": true, "data/up": true, "directory/roots": true, "directory/services": false, "chain": true,
	} {
		text, err := input.Read(at(name), 100)
		var foreign *input.LinkError
		if errors.As(err, &foreign) != refused || (err == nil) == refused {
			t.Errorf("%s: got %q, %v", name, text, err)
			continue
		}
		if refused && (foreign.Owner != service || !strings.HasPrefix(foreign.Remedy(), "chown -h root: "+dir)) {
			t.Errorf("%s: the error is %v, the remedy %q", name, err, foreign.Remedy())
		}
	}
}

func TestAByteOrderMarkIsRemovedAndLineEndingsAreKept(t *testing.T) {
	for text, want := range map[string]string{
		"\ufeffkey\r\n": "key\r\n",
		"key\r\n":       "key\r\n",
		"\ufeff":        "",
		"":              "",
		"\ufeff\ufeffx": "\ufeffx", // the second is not a byte order mark
	} {
		if got, err := input.Text([]byte(text)); string(got) != want || err != nil {
			t.Errorf("of %q: %q, %v", text, got, err)
		}
	}
}

func TestTheAdviceForUTF16ConvertsTheFileToUTF8(t *testing.T) {
	const text = "c2VjcmV0LWtleS1vZi1nYXRld2F5LTE=\n"
	for _, big := range []bool{false, true} {
		for _, mark := range []bool{false, true} {
			t.Run(fmt.Sprintf("big endian %v, with a mark %v", big, mark), func(t *testing.T) {
				path := write(t, filepath.Join(t.TempDir(), "it's a key"), asUTF16(text, big, mark))
				_, err := input.Read(path, 1024)
				var m *input.Mistake
				if !errors.As(err, &m) || !errors.Is(err, input.ErrUTF16) || !strings.Contains(err.Error(), "UTF-16") {
					t.Fatalf("got %v", err)
				}
				if _, err := exec.LookPath("iconv"); err != nil && os.Getenv("CI") == "" {
					t.Skip("iconv is not installed")
				}
				if out, err := exec.Command("sh", "-c", m.Remedy()).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", m.Remedy(), err, out)
				}
				if got, err := input.Read(path, 1024); string(got) != text || err != nil {
					t.Errorf("%s: %q, %v", m.Remedy(), got, err)
				}
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("the mode has become %v, %v", info.Mode(), err)
				}
			})
		}
	}
	t.Run("data that only resembles UTF-16 is accepted", func(t *testing.T) {
		for _, data := range []string{"serial\x00", "A\x00B\x00", "\x30\x82\x01\x00\x02\x01\x00\x30\x0d\x06", strings.Repeat("\x00", 100), "grüße\n"} {
			if _, err := input.Text([]byte(data)); err != nil {
				t.Errorf("%q: %v", data, err)
			}
		}
	})
}

func TestARemedyNamesTheFileOrTheSystemdCredential(t *testing.T) {
	for _, test := range []struct {
		expect string
		m      input.Mistake
		want   string
	}{
		{"a file", input.Mistake{Command: "cp -p FILE FILE.orig && x -in FILE.orig >FILE", File: "/etc/dpsd/keys/a.key"},
			"cp -p /etc/dpsd/keys/a.key /etc/dpsd/keys/a.key.orig && x -in /etc/dpsd/keys/a.key.orig >/etc/dpsd/keys/a.key"},
		{"a file with a name that the shell would split", input.Mistake{Command: "x FILE DIR/*", File: "/a b/it's"}, `x '/a b/it'\''s' '/a b'/*`},
		{"a command and what follows", input.Mistake{Command: "x FILE", Then: "do that", File: "/k"}, "x /k; then do that"},
		{"no command", input.Mistake{Then: "do that", File: "/k"}, "do that"},
		{"nothing", input.Mistake{What: "x", Credential: "k"}, ""},
		{"a credential", input.Mistake{Command: "x FILE DIR/*", Credential: "key"},
			"x FILE /etc/credstore/*, where FILE is the file that dpsd.service loads as the credential key (systemctl cat dpsd); then run: systemctl restart --no-block dpsd"},
		{"a credential without a command", input.Mistake{Then: "do that", Credential: "key"}, "do that; then run: systemctl restart --no-block dpsd"},
	} {
		if got := test.m.Remedy(); got != test.want {
			t.Errorf("%s: got\n%s\nwant\n%s", test.expect, got, test.want)
		}
	}
}
