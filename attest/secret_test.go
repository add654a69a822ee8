package attest_test

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/input"
)

func TestParseReference(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       attest.Reference
	}{
		{"a file is named by its absolute path", "file:/etc/dpsd/device.key", attest.Reference{File: "/etc/dpsd/device.key"}},
		{"the path is cleaned", "file:/etc/dpsd/../dpsd/./k", attest.Reference{File: "/etc/dpsd/k"}},
		{"a credential is named by its name", "credential:dps-primary-key", attest.Reference{Credential: "dps-primary-key"}},
		{"a path may have a space", "file:/etc/dpsd/device key", attest.Reference{File: "/etc/dpsd/device key"}},
		{"a name may have 255 characters", "credential:" + strings.Repeat("n", 255), attest.Reference{Credential: strings.Repeat("n", 255)}},
		{"a name may have dots and at signs", "credential:key.v2@site_1", attest.Reference{Credential: "key.v2@site_1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := attest.ParseReference(c.text)
			if err != nil || got != c.want {
				t.Fatalf("got %v, %v", got, err)
			}
			again, err := attest.ParseReference(got.String())
			if err != nil || again != got {
				t.Errorf("formatted and parsed again it is %v, %v", again, err)
			}
		})
	}
	for name, text := range map[string]string{
		"an inline key is rejected":                            groupKey,
		"an inline key after credential: is rejected":          "credential:" + groupKey,
		"a padded key after credential: is rejected":           "credential:AAAAAAAAAAAAAAAAAAAAAA==",
		"a key after file: is rejected":                        "file:" + groupKey,
		"a plain path is rejected":                             "/etc/dpsd/S3CRET.key",
		"a relative path is rejected":                          "file:S3CRET.key",
		"a URL is rejected":                                    "file:///etc/S3CRET.key",
		"a line end in a path is rejected":                     "file:/etc/S3CRET\n.key",
		"a DEL in a path is rejected":                          "file:/etc/S3CRET\x7f",
		"a NUL byte in a path is rejected":                     "file:/etc/S3CRET\x00",
		"a credential name with a slash is rejected":           "credential:../S3CRET",
		"a credential called .. is rejected":                   "credential:..",
		"a credential without a name is rejected":              "credential:",
		"a credential name of 256 bytes is rejected":           "credential:" + strings.Repeat("S3CRET", 42) + "S3CR",
		"a file without a path is rejected":                    "file:",
		"another scheme is rejected":                           "env:S3CRET",
		"an empty text is rejected":                            "",
		"a scheme in capitals is refused, as systemd would do": "File:/etc/S3CRET",
	} {
		t.Run(name+" and the error does not contain it", func(t *testing.T) {
			r, err := attest.ParseReference(text)
			if err == nil || !r.IsZero() {
				t.Fatalf("got %v, %v", r, err)
			}
			for _, secret := range []string{"S3CRET", groupKey[:12], "AAAAAAAA"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error contains the text: %v", err)
				}
			}
		})
	}
	t.Run("a credential name consists of letters, digits and four punctuation marks", func(t *testing.T) {
		const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
		for b := range 256 {
			name := "a" + string([]byte{byte(b)}) + "a"
			want := b < 0x80 && strings.ContainsRune(allowed, rune(b))
			if _, err := attest.ParseReference("credential:" + name); (err == nil) != want {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
	t.Run("an inline key is not a reference", func(t *testing.T) {
		if _, err := attest.ParseReference(groupKey); !errors.Is(err, attest.ErrNotReference) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSecretsAreFound(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write(t, filepath.Join(second, "only-second"), "two")
	write(t, filepath.Join(first, "both"), "one")
	write(t, filepath.Join(second, "both"), "two")
	s := attest.Secrets{Directories: []string{first, second}}

	read := func(t *testing.T, name, want, path string) {
		t.Helper()
		r := attest.Reference{Credential: name}
		got, err := s.Read(r)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		if s.Path(r) != path {
			t.Errorf("the file to watch is %s, not %s", s.Path(r), path)
		}
	}
	t.Run("the first directory that has the credential wins", func(t *testing.T) {
		read(t, "both", "one", filepath.Join(first, "both"))
	})
	t.Run("a later directory is searched when the earlier ones have none", func(t *testing.T) {
		read(t, "only-second", "two", filepath.Join(second, "only-second"))
	})
	t.Run("the error about a missing credential names the directories", func(t *testing.T) {
		r := attest.Reference{Credential: "absent"}
		_, err := s.Read(r)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("got %v", err)
		}
		for _, part := range []string{"credential:absent", first, second} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not name %s", err, part)
			}
		}
		if want := filepath.Join(first, "absent"); s.Path(r) != want {
			t.Errorf("the file to watch is %s, not %s", s.Path(r), want)
		}
	})
	t.Run("an encrypted credential explains why there is no other", func(t *testing.T) {
		s := s
		s.Encrypted = []string{t.TempDir()}
		path := filepath.Join(s.Encrypted[0], "sealed")
		write(t, path, "anything")
		_, err := s.Read(attest.Reference{Credential: "sealed"})
		var secret *attest.SecretError
		if !errors.Is(err, attest.ErrEncrypted) || !errors.As(err, &secret) || secret.Path != path {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file that cannot be read ends the search", func(t *testing.T) {
		if err := os.Mkdir(filepath.Join(first, "odd"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(second, "odd"), "two")
		if _, err := s.Read(attest.Reference{Credential: "odd"}); !errors.Is(err, input.ErrNotRegular) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the zero value has no directory for credentials", func(t *testing.T) {
		var s attest.Secrets
		r := attest.Reference{Credential: "x"}
		if _, err := s.Read(r); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "credential:x: ") || s.Path(r) != "" {
			t.Errorf("got %v, path %q", err, s.Path(r))
		}
	})
	t.Run("a credential is watched in every directory, a file at its path, and the zero value has no path", func(t *testing.T) {
		for r, want := range map[attest.Reference]string{
			{Credential: "x"}:    filepath.Join(first, "x") + " " + filepath.Join(second, "x"),
			{File: "/etc/x.key"}: "/etc/x.key",
			{}:                   "",
		} {
			if got := strings.Join(s.Paths(r), " "); got != want {
				t.Errorf("%v: got %s, want %s", r, got, want)
			}
		}
	})
	t.Run("the service searches only $CREDENTIALS_DIRECTORY", func(t *testing.T) {
		if d := attest.SystemSecrets(first).Directories; len(d) != 1 || d[0] != first {
			t.Errorf("it searches %v", d)
		}
	})
	t.Run("a command searches the directory of the service, then the credential stores", func(t *testing.T) {
		want := "/run/credentials/dpsd.service /etc/credstore /run/credstore /usr/lib/credstore"
		if d := strings.Join(attest.SystemSecrets("").Directories, " "); d != want {
			t.Errorf("it searches %s", d)
		}
	})
}

func TestFilesThatAreNotSecretsAreErrors(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink(filepath.Join(dir, "gone"), dangling); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(dir, "full")
	write(t, full, strings.Repeat("x", 64<<10))
	over := filepath.Join(dir, "over")
	write(t, over, strings.Repeat("x", 64<<10+1))
	blank := filepath.Join(dir, "blank")
	write(t, blank, " \n\t\r\n")

	for _, c := range []struct {
		name, path string
		want       error
	}{
		{"a FIFO without a writer is rejected immediately", fifo, input.ErrNotRegular},
		{"a link to a FIFO is rejected immediately", link, input.ErrNotRegular},
		{"a directory is rejected", dir, input.ErrNotRegular},
		{"a socket is rejected", socket, input.ErrNotRegular},
		{"a device without an end is rejected", "/dev/zero", input.ErrNotRegular},
		{"a link to nowhere is a missing file", dangling, fs.ErrNotExist},
		{"a missing file is missing", filepath.Join(dir, "gone"), fs.ErrNotExist},
		{"a file of 64 KiB is read", full, nil},
		{"a byte more is too large", over, input.ErrTooLarge},
		{"white space is nothing", blank, attest.ErrEmpty},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := attest.Secrets{}.Read(attest.Reference{File: c.path})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil {
				return
			}
			var secret *attest.SecretError
			if !errors.As(err, &secret) || secret.Path != c.path {
				t.Fatalf("the error does not say which file: %#v", err)
			}
			if strings.Count(err.Error(), c.path) != 1 {
				t.Errorf("the path is not named exactly once: %v", err)
			}
		})
	}
	t.Run("a file without permission is reported as such", func(t *testing.T) {
		path := filepath.Join(dir, "closed")
		write(t, path, "x")
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		var err error
		unprivileged(t, func() { _, err = attest.Secrets{}.Read(attest.Reference{File: path}) })
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
}

// unprivileged runs f with the file permissions of the user nobody, because root may read
// every file. The goroutine stays locked to the thread, so the thread ends with it.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		const nobody = 65534
		// setfsuid(2) affects only the calling thread and removes CAP_DAC_OVERRIDE from it.
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
			t.Errorf("setfsuid: %v", errno)
		}
		f()
	}()
	<-done
}

func TestEncryptedCredentialsAreRecognized(t *testing.T) {
	// systemd-creds(1): an encrypted credential is base64 text that begins with one of nine
	// identifiers. Its first 21 characters are constant.
	for kind, prefix := range map[string]string{
		"host key":                            "Whxqht+dQJax1aZeCGLxm",
		"null key":                            "BYRp2vb1QySABUnaD46i+",
		"TPM":                                 "DHzAexF2RZGcSwvqCLwg/",
		"TPM with signed PCR":                 "+vfrk0HjQSyhpDb5Wik2L",
		"host and TPM":                        "k6iUCUh0RJCQyvL8k8q1U",
		"host and TPM with signed PCR":        "r0lQqEkTTrGnOEYwT/MMB",
		"scoped host":                         "VbntHThZTUOoMZ0uuzMqx",
		"scoped host and TPM":                 "70rBNnmpSA6n22iJf58WX",
		"scoped host and TPM with signed PCR": "rbxMo++2QgG6iBtvLkCV6",
	} {
		t.Run("ciphertext under "+kind+" is not used as the key", func(t *testing.T) {
			dir := t.TempDir()
			text := prefix + strings.Repeat("AAAA", 40) + "\n"
			write(t, filepath.Join(dir, "dps-primary-key"), text)
			s := attest.Secrets{Directories: []string{dir}}
			for _, r := range []attest.Reference{{Credential: "dps-primary-key"}, {File: filepath.Join(dir, "dps-primary-key")}} {
				data, err := s.Read(r)
				if !errors.Is(err, attest.ErrEncrypted) || data != nil {
					t.Errorf("%v: got %q, %v", r, data, err)
				}
				if err != nil && strings.Contains(err.Error(), prefix) {
					t.Errorf("the error contains the ciphertext: %v", err)
				}
			}
			// The identifier without its last character is not an identifier.
			write(t, filepath.Join(dir, "dps-primary-key"), prefix[:20]+"\n")
			if _, err := s.Read(attest.Reference{Credential: "dps-primary-key"}); err != nil {
				t.Errorf("a text with a similar beginning is rejected: %v", err)
			}
		})
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("file:/etc/dpsd/device.key")
	f.Add("credential:dps-primary-key")
	f.Add("credential:AAAAAAAAAAAAAAAAAAAAAA==")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := attest.ParseReference(s)
		if err != nil {
			if len(s) > 12 && strings.Contains(err.Error(), s) {
				t.Errorf("the error contains %q", s)
			}
			return
		}
		if (r.File == "") == (r.Credential == "") {
			t.Fatalf("%q is %#v, which is not exactly one kind", s, r)
		}
		if r.File != "" && !filepath.IsAbs(r.File) {
			t.Errorf("%q has the path %q", s, r.File)
		}
		if strings.ContainsAny(r.Credential, "/=+") {
			t.Errorf("%q has the name %q", s, r.Credential)
		}
		if again, err := attest.ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q parsed again is %v, %v", r, again, err)
		}
	})
}

func FuzzDecodeKey(f *testing.F) {
	f.Add([]byte(groupKey))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := attest.DecodeKey(bytes.Clone(text))
		if err == nil && (len(key) < 16 || len(key) > 64) {
			t.Errorf("a key of %d bytes is accepted", len(key))
		}
	})
}

func TestPassword(t *testing.T) {
	path := filepath.Join(t.TempDir(), "password")
	reference := attest.Reference{File: path}
	for _, c := range []struct {
		name, text, want string
		err              error
	}{
		{"a password is the text of the file", "S3CRET", "S3CRET", nil},
		{"a final newline is not part of it", "S3CRET\n", "S3CRET", nil},
		{"a final Windows line ending is not part of it", "S3CRET\r\n", "S3CRET", nil},
		{"a byte order mark is not part of it", "\ufeffS3CRET\r\n", "S3CRET", nil},
		{"the error about UTF-16 names it", "\xff\xfeS\x003\x00C\x00R\x00", "", input.ErrUTF16},
		{"white space is part of it", " S3 CRET ", " S3 CRET ", nil},
		{"non-ASCII letters are part of it", "Sécrèt", "Sécrèt", nil},
		{"two lines are not a password", "S3CRET\nS3CRET\n", "", attest.ErrNotPassword},
		{"a password contains no NUL byte", "S3CRET\x00", "", attest.ErrNotPassword},
		{"Latin-1 is not a password", "S3CR\xe8T", "", attest.ErrNotPassword},
		{"an empty file is not a password", "\n", "", attest.ErrEmpty},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := attest.Secrets{}.Password(reference)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v", got, err)
			}
			if secret := (*attest.SecretError)(nil); err != nil && (!errors.As(err, &secret) || secret.Reference != reference || strings.Contains(err.Error(), "S3CR")) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	t.Run("the password of the zero value is empty", func(t *testing.T) {
		if got, err := (attest.Secrets{}).Password(attest.Reference{}); got != "" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
