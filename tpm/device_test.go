package tpm_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/tpm"
)

func TestAPathThatIsNotATPMIsUnavailable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, cause := range map[string]error{
		filepath.Join(filepath.Dir(file), "missing"): fs.ErrNotExist,
		file:        nil,
		"/dev/null": nil, // a device that accepts commands, and ends
		"/dev/zero": nil, // a device with empty responses
	} {
		d := &tpm.Device{Path: path}
		_, err := d.Status(t.Context())
		wantKind(t, err, tpm.Unavailable)
		if cause != nil && !errors.Is(err, cause) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestASocketThatOtherProgramsUseIsBusy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	other, err := net.Dial("unix", path) // no program accepts it, so the queue is full
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	d := &tpm.Device{Path: path, Deadline: 50 * time.Millisecond}
	_, err = d.Status(t.Context())
	wantKind(t, err, tpm.Busy)
}

// BenchmarkSign reports the CPU time of this process, without that of swtpm.
func BenchmarkSign(b *testing.B) {
	d, _ := software(b)
	text := must(d.Create(b.Context(), tpm.P256, tpm.Owner))(b)
	f := must(tpm.Parse(text))(b)
	b.Run("signature", func(b *testing.B) {
		k := must(d.Load(b.Context(), f))(b)
		defer k.Close()
		measure(b, func() error { return sign(k) })
	})
	b.Run("attempt", func(b *testing.B) { // a connection, the parent, the key, one signature
		measure(b, func() error {
			k, err := d.Load(b.Context(), f)
			if err != nil {
				return err
			}
			return errors.Join(sign(k), k.Close())
		})
	})
	b.Run("parse", func(b *testing.B) {
		measure(b, func() error { _, err := tpm.Parse(text); return err })
	})
}

func measure(b *testing.B, f func() error) {
	b.ReportAllocs()
	processor := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := processor()
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(processor()-before)/float64(b.N), "cpu-ns/op")
}
