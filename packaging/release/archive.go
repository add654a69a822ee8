package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goreleaser/nfpm/v2/files"
)

// archive makes the archive for distributions without a package: the program, its manual pages and
// completions below the prefix, the service files, and the install script.
func (j *job) archive(name, root, arch string) error {
	contents, err := j.contents(root, func(path string) (to, kind string) {
		switch {
		case strings.HasPrefix(path, "/usr/share/lintian/"), strings.HasSuffix(path, "/changelog.gz"):
			return "", ""
		case strings.HasPrefix(path, "/usr/share/zsh/vendor-completions/"):
			return strings.Replace(path, "/usr/share/zsh/vendor-completions", "share/zsh/site-functions", 1), files.TypeFile
		case strings.HasPrefix(path, "/usr/bin/"), strings.HasPrefix(path, "/usr/share/"):
			return strings.TrimPrefix(path, "/usr/"), files.TypeFile
		case strings.HasPrefix(path, "/usr/lib/systemd/"):
			return "service/systemd/" + filepath.Base(path), files.TypeFile
		case strings.HasPrefix(path, "/usr/lib/"):
			return "service/" + strings.TrimPrefix(path, "/usr/lib/"), files.TypeFile
		}
		return "", ""
	})
	if err != nil {
		return err
	}
	contents = append(contents, j.program("packaging/release/scripts/install", "install"))
	if name == "dpsd" {
		init, err := j.contents(filepath.Join(j.tree, "packaging/init"), func(path string) (to, kind string) {
			if strings.Count(path, "/") == 1 || strings.HasPrefix(path, "/procd/") { // OpenWrt has a package
				return "", ""
			}
			return "service" + path, files.TypeFile
		})
		if err != nil {
			return err
		}
		contents = append(contents, init...)
	}
	slices.SortFunc(contents, func(a, b *files.Content) int { return strings.Compare(a.Destination, b.Destination) })

	base := fmt.Sprintf("%s-%s-linux-%s", name, j.version, arch)
	out, err := os.Create(filepath.Join(j.dist, base+".tar.gz"))
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(out)
	w := tar.NewWriter(zip)
	seen := map[string]bool{}
	for _, c := range contents {
		err = errors.Join(err, j.directories(w, seen, filepath.Dir(base+"/"+c.Destination)), j.member(w, base+"/"+c.Destination, c))
	}
	return errors.Join(err, w.Close(), zip.Close(), out.Close())
}

// directories writes a directory that is not yet in the archive, after its parents.
func (j *job) directories(w *tar.Writer, seen map[string]bool, path string) error {
	if path == "." || seen[path] {
		return nil
	}
	seen[path] = true
	if err := j.directories(w, seen, filepath.Dir(path)); err != nil {
		return err
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: 0o755, ModTime: j.time, Uname: "root", Gname: "root"})
}

func (j *job) member(w *tar.Writer, name string, c *files.Content) error {
	text, err := os.ReadFile(c.Source)
	if err != nil {
		return err
	}
	header := &tar.Header{Name: name, Size: int64(len(text)), Mode: int64(c.FileInfo.Mode), ModTime: j.time, Uname: "root", Gname: "root"}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
