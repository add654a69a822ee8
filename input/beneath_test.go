package input_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/input"
)

func TestAFileBelowADirectoryIsReadWithoutFollowingLinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.MkdirAll(at("state/pair/1"), 0o700), os.MkdirAll(at("elsewhere/1"), 0o700), os.Symlink(at("state"), at("link"))); err != nil {
		t.Fatal(err)
	}
	write(t, at("state/pair/1/key"), "right")
	write(t, at("elsewhere/1/key"), "wrong")
	if err := errors.Join(
		os.Symlink(at("elsewhere"), at("state/other")), os.Symlink("1", at("state/pair/current")), os.Symlink(at("elsewhere/1/key"), at("state/pair/1/moved")),
		os.Symlink("key", at("state/pair/1/same")), syscall.Mkfifo(at("state/pair/1/fifo"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		expect, directory, path string
		want                    error
		says                    string
	}{
		{"a file is read", "state", "pair/1/key", nil, ""},
		{"the directory itself may be a link", "link", "pair/1/key", nil, ""},
		{"a directory that is a link is refused", "state", "other/1/key", syscall.ENOTDIR, "/state/other: not a directory"},
		{"a link within the directory is refused", "state", "pair/current/key", syscall.ENOTDIR, "/pair/current: not a directory"},
		{"a link at the end is refused", "state", "pair/1/moved", input.ErrNotRegular, "a link"},
		{"a link to a file beside it is refused", "state", "pair/1/same", input.ErrNotRegular, "a link"},
		{"a FIFO is refused without waiting for a writer", "state", "pair/1/fifo", input.ErrNotRegular, "a FIFO"},
		{"a directory is refused", "state", "pair/1", input.ErrNotRegular, "a directory"},
		{"a missing file is missing", "state", "pair/2/key", fs.ErrNotExist, "/state/pair/2: no such file"},
		{"a missing directory is missing", "gone", "pair/1/key", fs.ErrNotExist, "/gone: no such file"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			f, err := input.OpenBeneath(at(test.directory), test.path)
			if test.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if text, err := io.ReadAll(f); err != nil || string(text) != "right" {
					t.Errorf("the text is %q, %v", text, err)
				}
				return
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	t.Run("a link is described as a link", func(t *testing.T) {
		info, err := input.StatBeneath(at("state"), "pair/current")
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("%v, %v", info, err)
		}
	})
	t.Run("a directory is listed, but not through a link", func(t *testing.T) {
		names, err := input.ListBeneath(at("state"), "pair", 100)
		slices.Sort(names)
		if err != nil || !slices.Equal(names, []string{"1", "current"}) {
			t.Errorf("%q, %v", names, err)
		}
		if names, err := input.ListBeneath(at("state"), "other", 100); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%q, %v", names, err)
		}
	})
}
