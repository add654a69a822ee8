// Package input reads the files that people put on a gateway: keys, certificates,
// passwords, a payload, a serial number, the configuration. Only regular files of limited
// size are read, and opening never waits. A byte order mark is removed, and UTF-16 is
// named. Line ends are left as they are: whoever uses a text accepts those of Windows.
package input

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

var (
	// ErrNotRegular says that the path names a directory, a FIFO, a socket or a device.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge says that the file is larger than it may be.
	ErrTooLarge = errors.New("the file is too large")
	// ErrUTF16 says that the file is UTF-16 text.
	ErrUTF16 = errors.New("the file is UTF-16 text, not UTF-8")
)

// Read returns the text of a regular file of at most limit bytes, as Text does. The error
// is ErrNotRegular, ErrTooLarge, a *Mistake, a *LinkError or an error of the file system.
func Read(path string, limit int) ([]byte, error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: it has more than %s", ErrTooLarge, size(limit))
	}
	text, err := Text(data)
	return text, About(path, err)
}

// Open opens a regular file for reading. If the user is root, it follows only links that
// root may trust; see LinkError.
func Open(path string) (*os.File, error) {
	if os.Geteuid() == 0 {
		return openTrusted(path)
	}
	// Opening a device may have an effect, so the file is looked at first; the second look
	// is for a file that is exchanged in between.
	info, err := os.Stat(path)
	if err != nil {
		return nil, opening(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	return regular(os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0))
}

// OpenOwn opens a regular file that dpsd itself has written, in a directory that the user of
// the service may change. The path must name the file itself: a link could lead to any other
// file, which a command that root runs would then read.
func OpenOwn(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, opening(path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w but a link", ErrNotRegular)
	}
	return regular(f, err)
}

// opening is the error of stat(2), which is a step of opening here.
func opening(path string, err error) error {
	var of *fs.PathError
	if errors.As(err, &of) {
		return &fs.PathError{Op: "open", Path: path, Err: of.Err}
	}
	return err
}

// regular closes what is no regular file.
func regular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(info.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func notRegular(mode fs.FileMode) error {
	kind := "a device"
	switch {
	case mode.IsDir():
		kind = "a directory"
	case mode&fs.ModeSymlink != 0:
		kind = "a link"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return fmt.Errorf("%w but %s", ErrNotRegular, kind)
}

func size(bytes int) string {
	switch {
	case bytes >= 1<<20 && bytes%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", bytes>>20)
	case bytes >= 1<<10 && bytes%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// byteOrderMark is that of UTF-8, which editors on Windows write.
var byteOrderMark = []byte("\ufeff")

// Text returns data without a byte order mark. The error is a *Mistake around ErrUTF16.
func Text(data []byte) ([]byte, error) {
	if utf16(data) {
		return nil, &Mistake{
			What:    ErrUTF16.Error(),
			Command: "cp -p FILE FILE.orig && iconv -f UTF-16" + byteOrder(data) + " -t UTF-8 FILE.orig >FILE",
			Err:     ErrUTF16,
		}
	}
	return bytes.TrimPrefix(data, byteOrderMark), nil
}

// utf16 recognizes UTF-16 by its byte order mark, or by a zero in place of every second
// byte, which text in a western language has. DER and keys in binary form have neither.
func utf16(data []byte) bool {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		return true
	}
	return byteOrder(data) != ""
}

// byteOrder is what iconv has to be told about text without a byte order mark; "" for
// any other.
func byteOrder(data []byte) string {
	const shortest, look = 8, 64 // bytes
	if len(data) < shortest {
		return ""
	}
	zeros := [2]int{}
	data = data[:min(len(data), look)&^1]
	for i, c := range data {
		if c == 0 {
			zeros[i%2]++
		}
	}
	switch half := len(data) / 2; {
	case zeros[0] == 0 && zeros[1] == half:
		return "LE"
	case zeros[0] == half && zeros[1] == 0:
		return "BE"
	}
	return ""
}
