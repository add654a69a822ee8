// Package input reads files that users provide: keys, certificates, passwords, a payload, a
// serial number, the configuration. It reads only regular files of limited size, and
// opening never blocks. It removes a byte order mark and reports UTF-16 as an error. It
// does not change line endings; the callers accept those of Windows.
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
	// ErrNotRegular means that the path leads to a directory, a FIFO, a socket or a device.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge means that the file exceeds the size limit.
	ErrTooLarge = errors.New("the file is too large")
	// ErrUTF16 means that the file is UTF-16 text.
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
		return nil, fmt.Errorf("%w: the limit is %s", ErrTooLarge, size(limit))
	}
	text, err := Text(data)
	return text, About(path, err)
}

// Open opens a regular file for reading. If dpsd runs as root, Open follows only links that
// root may trust; see LinkError.
func Open(path string) (*os.File, error) {
	if os.Geteuid() == 0 {
		return openTrusted(path)
	}
	// Opening a device may have side effects, so the type is checked first. It is checked
	// again after opening, in case the file was replaced in between.
	info, err := os.Stat(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: Cause(err)}
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	return regular(os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0))
}

// OpenOwn opens a regular file that dpsd itself has written, in a directory to which the
// user of the service may write. The path must not be a link: it could lead to any file,
// which a command run by root would then read.
func OpenOwn(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: Cause(err)}
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

// Cause returns an error of package os without the operation and the path, for callers that
// add their own.
func Cause(err error) error {
	if of, is := errors.AsType[*fs.PathError](err); is {
		return of.Err
	}
	return err
}

// regular returns f if it is a regular file, and closes it otherwise.
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

// byteOrderMark is the UTF-8 byte order mark, which editors on Windows write.
var byteOrderMark = []byte("\ufeff")

// Text returns data without a byte order mark. The error is a *Mistake that wraps ErrUTF16.
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

// utf16 reports whether data has a UTF-16 byte order mark or a zero in every second byte,
// as western text in UTF-16 does. DER and binary keys have neither.
func utf16(data []byte) bool {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		return true
	}
	return byteOrder(data) != ""
}

// byteOrder returns the suffix of iconv's encoding name for UTF-16 text without a byte
// order mark, or "" for any other data.
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
