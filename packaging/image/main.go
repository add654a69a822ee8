// Command image builds the container image of dpsd or dpsd-sim from compiled programs, without
// a container engine and without root. The same programs give the same bytes.
package main

import (
	"archive/tar"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func main() {
	var b build
	created := flag.Int64("created", 0, "time of the image, in `SECONDS` since 1970")
	flag.StringVar(&b.name, "name", "", "name of the program: dpsd or dpsd-sim")
	flag.StringVar(&b.version, "version", "", "version of the program")
	flag.StringVar(&b.revision, "revision", "", "commit of the source")
	tree := flag.String("tree", "", "directory `DIR` with the source")
	flag.StringVar(&b.directory, "dist", "", "directory for the results")
	flag.Parse()
	if products[b.name].files == nil || b.version == "" || b.directory == "" || *tree == "" || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: image -name dpsd|dpsd-sim -version VERSION -revision COMMIT -created SECONDS -tree DIR -dist DIR ARCH=PROGRAM...")
		os.Exit(2)
	}
	b.created = time.Unix(*created, 0).UTC()
	err := b.read(*tree, flag.Args())
	if err == nil {
		err = b.write()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// build is one run of the command.
type build struct {
	source
	directory string // of the results
	programs  []program
}

// program is a program for one architecture.
type program struct {
	arch string // as Debian calls it
	file []byte
}

// read reads the files of the tree and the programs, given as ARCH=FILE.
func (b *build) read(tree string, programs []string) (err error) {
	if b.copyright, err = os.ReadFile(filepath.Join(tree, "packaging/deb/debian/copyright")); err != nil {
		return err
	}
	if b.reference, err = os.ReadFile(filepath.Join(tree, "config/dpsd.toml")); err != nil {
		return err
	}
	// Only the root certificates of Azure's clouds, which are the same in every build.
	roots, err := filepath.Glob(filepath.Join(tree, "check/roots/*.pem"))
	if err == nil && len(roots) == 0 {
		err = errors.New("there are no certificates in check/roots")
	}
	if err != nil {
		return err
	}
	for _, path := range roots {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b.roots = append(b.roots, text...)
	}
	for _, text := range programs {
		arch, path, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q does not have the form ARCH=PROGRAM", text)
		}
		file, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b.programs = append(b.programs, program{arch, file})
	}
	return nil
}

// write writes the layout, the archive of it, and an archive for each architecture.
func (b *build) write() error {
	index := v1.ImageIndex(empty.Index)
	images := map[string]v1.Image{}
	for _, p := range b.programs {
		platform, ok := platforms[p.arch]
		if !ok {
			return fmt.Errorf("no architecture has the name %q", p.arch)
		}
		image, err := b.image(platform, p.file)
		if err != nil {
			return err
		}
		images[p.arch] = image
		index = add(index, image, platform)
	}
	index = b.annotate(index)
	tag, err := name.NewTag(b.name + ":" + tagOf(b.version))
	if err != nil {
		return err
	}

	base := filepath.Join(b.directory, b.name+"_"+b.version)
	if err := os.RemoveAll(base + ".oci"); err != nil { // blobs of an earlier build
		return err
	}
	path, err := layout.Write(base+".oci", empty.Index)
	if err != nil {
		return err
	}
	// The first annotation is that of the specification. containerd and Docker read the second.
	err = path.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(),
		"io.containerd.image.name":          "docker.io/library/" + b.name + ":" + tag.TagStr(),
	}))
	if err != nil {
		return err
	}
	if err := create(base+".oci.tar", func(w io.Writer) error { return archive(w, os.DirFS(base+".oci")) }); err != nil {
		return err
	}
	for _, p := range b.programs {
		err := create(base+"_"+p.arch+".docker.tar", func(w io.Writer) error { return tarball.Write(tag, images[p.arch], w) })
		if err != nil {
			return err
		}
	}
	digest, err := index.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s:%s, %s\n", base+".oci.tar", b.name, tag.TagStr(), digest)
	return nil
}

// create creates a file, and removes it if it cannot be written as a whole.
func create(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(write(file), file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// archive writes the files of a directory in the order of their names, without times, owners
// and modes of the file system.
func archive(out io.Writer, directory fs.FS) error {
	w := tar.NewWriter(out)
	err := fs.WalkDir(directory, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(directory, path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Size: int64(len(text)), Mode: 0o644}); err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	return errors.Join(err, w.Close())
}
