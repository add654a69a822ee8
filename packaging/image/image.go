package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user is the number of the user and of the group that the programs run as. No system gives
// this number to a person or to a service of its own.
const user = 65532

// file is a file or a directory of an image.
type file struct {
	path  string // a directory ends with a slash
	mode  int64
	owner int
	text  []byte
}

// product is a program for which there is an image.
type product struct {
	description string
	// config tells a container engine how to run the program. It does not contain the values that
	// all images share: the program, the user, the signal and the labels.
	config v1.Config
	// files returns the files other than the program and its licenses. Directories come before
	// the files in them.
	files func(s *source) []file
}

// products maps the names of the programs to their images.
var products = map[string]product{
	"dpsd": {
		description: "Azure device provisioning for Linux gateways",
		config: v1.Config{
			Cmd: []string{"run"},
			// Container engines mount secrets in this directory, and dpsd finds "credential:NAME"
			// there. dpsd mostly waits, so it needs no memory for several CPUs.
			Env:        []string{"PATH=/usr/bin", "CREDENTIALS_DIRECTORY=/run/secrets", "GOMAXPROCS=1"},
			WorkingDir: "/",
			Volumes:    map[string]struct{}{"/etc/dpsd": {}, "/var/lib/dpsd": {}},
			// An extension of Docker, which other engines may ignore.
			Healthcheck: &v1.HealthConfig{
				Test:     []string{"CMD", "/usr/bin/dpsd", "health"},
				Interval: 30 * time.Second,
				Timeout:  10 * time.Second,
				Retries:  3,
			},
		},
		files: func(s *source) []file {
			return []file{
				{"etc/", 0o755, 0, nil},
				{"etc/dpsd/", 0o755, 0, nil},
				{"etc/group", 0o644, 0, []byte("root:x:0:\ndpsd:x:65532:\n")},
				{"etc/passwd", 0o644, 0, []byte("root:x:0:0:root:/:/sbin/nologin\ndpsd:x:65532:65532:Azure device provisioning:/var/lib/dpsd:/sbin/nologin\n")},
				{"etc/ssl/", 0o755, 0, nil},
				{"etc/ssl/certs/", 0o755, 0, nil},
				{"etc/ssl/certs/ca-certificates.crt", 0o644, 0, s.roots},
				{"run/", 0o755, 0, nil},
				{"run/dpsd/", 0o755, user, nil},
				{"tmp/", 0o1777, 0, nil}, // for the archive of dpsd report
				{"usr/share/dpsd/", 0o755, 0, nil},
				{"usr/share/dpsd/dpsd.toml", 0o644, 0, s.reference},
				{"var/", 0o755, 0, nil},
				{"var/lib/", 0o755, 0, nil},
				{"var/lib/dpsd/", 0o755, user, nil},
			}
		},
	},
	"dpsd-sim": {
		description: "A simulator of Azure IoT Hub Device Provisioning Service",
		config: v1.Config{
			// A container has its own network, so the program listens on all addresses.
			// Not every container engine lets an ordinary user listen on port 443: Podman does not.
			Cmd:          []string{"serve", "--dir", "/data", "--mqtt", ":8883", "--websocket", ":8443", "--hub", "dpsd-sim.azure-devices.net"},
			Env:          []string{"PATH=/usr/bin"},
			WorkingDir:   "/data",
			Volumes:      map[string]struct{}{"/data": {}},
			ExposedPorts: map[string]struct{}{"8883/tcp": {}, "8443/tcp": {}},
			// An extension of Docker, which other engines may ignore.
			Healthcheck: &v1.HealthConfig{
				Test:     []string{"CMD", "/usr/bin/dpsd-sim", "ready", "--dir", "/data"},
				Interval: 5 * time.Second,
				Timeout:  5 * time.Second,
				Retries:  3,
			},
		},
		files: func(*source) []file {
			return []file{
				{"data/", 0o755, user, nil},
				{"tmp/", 0o1777, 0, nil}, // for the files of exec and demo
			}
		},
	},
}

// platforms are the architectures of the image, by Debian's names for them.
var platforms = map[string]v1.Platform{
	"amd64":   {OS: "linux", Architecture: "amd64"},
	"arm64":   {OS: "linux", Architecture: "arm64"},
	"armhf":   {OS: "linux", Architecture: "arm", Variant: "v6"},
	"riscv64": {OS: "linux", Architecture: "riscv64"},
}

// source is what the images of all architectures have in common.
type source struct {
	name              string // of the program
	version, revision string
	created           time.Time
	copyright         []byte
	roots             []byte // certificates that dpsd trusts
	reference         []byte // the annotated dpsd.toml
}

// tagOf returns the tag of a version. A tag can contain neither ~ nor +.
func tagOf(version string) string { return strings.NewReplacer("~", "-", "+", "-").Replace(version) }

// labels describe the image to people and to registries.
func (s *source) labels() map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":       s.name,
		"org.opencontainers.image.description": products[s.name].description,
		"org.opencontainers.image.version":     s.version,
		"org.opencontainers.image.created":     s.created.Format(time.RFC3339),
		"org.opencontainers.image.source":      "https://github.com/dpsd-project/dpsd",
		"org.opencontainers.image.licenses":    "Apache-2.0",
	}
	if s.revision != "" {
		all["org.opencontainers.image.revision"] = s.revision
	}
	return all
}

// config returns how a container engine runs the program.
func (s *source) config() v1.Config {
	c := products[s.name].config
	c.Entrypoint = []string{"/usr/bin/" + s.name}
	// It is a number, because Kubernetes cannot verify that a name is not root's.
	c.User = fmt.Sprintf("%d:%d", user, user)
	c.StopSignal = "SIGTERM"
	c.Labels = s.labels()
	return c
}

// image returns the image for one platform.
func (s *source) image(platform v1.Platform, program []byte) (v1.Image, error) {
	files, err := s.files(program)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Created:      v1.Time{Time: s.created},
		OS:           platform.OS,
		Architecture: platform.Architecture,
		Variant:      platform.Variant,
		Config:       s.config(),
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: s.created}, CreatedBy: "make image"},
	})
}

// files returns the file system of an image, as a tar archive.
func (s *source) files(program []byte) ([]byte, error) {
	documentation := "usr/share/doc/" + s.name + "/"
	all := append([]file{
		{"usr/", 0o755, 0, nil},
		{"usr/bin/", 0o755, 0, nil},
		{"usr/bin/" + s.name, 0o755, 0, program},
		{"usr/share/", 0o755, 0, nil},
		{"usr/share/doc/", 0o755, 0, nil},
		{documentation, 0o755, 0, nil},
		{documentation + "copyright", 0o644, 0, s.copyright},
	}, products[s.name].files(s)...)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range all {
		header := tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.text)), ModTime: s.created}
		if strings.HasSuffix(f.path, "/") {
			header.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// add adds the image of a platform to an index.
func add(index v1.ImageIndex, image v1.Image, platform v1.Platform) v1.ImageIndex {
	return mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: &platform}})
}

// annotate adds the labels to an index, where registries read them.
func (s *source) annotate(index v1.ImageIndex) v1.ImageIndex {
	return mutate.Annotations(index, s.labels()).(v1.ImageIndex)
}
