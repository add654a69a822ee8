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

// The files of the image.
const (
	programFile   = "usr/bin/dpsd-sim"
	copyrightFile = "usr/share/doc/dpsd-sim/copyright"
	dataDirectory = "data"
)

// user is the number of the user and of the group that the program runs as. No system gives
// this number to a person or to a service of its own.
const user = 65532

// platforms are the architectures of the image, by Debian's names for them.
var platforms = map[string]v1.Platform{
	"amd64":   {OS: "linux", Architecture: "amd64"},
	"arm64":   {OS: "linux", Architecture: "arm64"},
	"armhf":   {OS: "linux", Architecture: "arm", Variant: "v6"},
	"riscv64": {OS: "linux", Architecture: "riscv64"},
}

// source is what the images of all architectures have in common.
type source struct {
	version, revision string
	created           time.Time
	copyright         []byte
}

// tagOf returns the tag of a version. A tag can contain neither ~ nor +.
func tagOf(version string) string { return strings.NewReplacer("~", "-", "+", "-").Replace(version) }

// labels describe the image to people and to registries.
func (s *source) labels() map[string]string {
	all := map[string]string{
		"org.opencontainers.image.title":       "dpsd-sim",
		"org.opencontainers.image.description": "A simulator of Azure IoT Hub Device Provisioning Service",
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
	return v1.Config{
		Entrypoint: []string{"/" + programFile},
		// The network of a container is its own, so the program listens on all its addresses.
		// Not every container engine lets an ordinary user listen on port 443: Podman does not.
		Cmd: []string{"serve", "--dir", "/" + dataDirectory, "--mqtt", ":8883", "--websocket", ":8443", "--hub", "dpsd-sim.azure-devices.net"},
		// It is a number, because Kubernetes cannot verify that a name is not root's.
		User:         fmt.Sprintf("%d:%d", user, user),
		Env:          []string{"PATH=/usr/bin"},
		WorkingDir:   "/" + dataDirectory,
		Volumes:      map[string]struct{}{"/" + dataDirectory: {}},
		ExposedPorts: map[string]struct{}{"8883/tcp": {}, "8443/tcp": {}},
		StopSignal:   "SIGTERM",
		Labels:       s.labels(),
		// An extension of Docker, which other engines may ignore.
		Healthcheck: &v1.HealthConfig{
			Test:     []string{"CMD", "/" + programFile, "ready", "--dir", "/" + dataDirectory},
			Interval: 5 * time.Second,
			Timeout:  5 * time.Second,
			Retries:  3,
		},
	}
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
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name  string
		mode  int64
		owner int
		text  []byte
	}{
		{dataDirectory + "/", 0o755, user, nil},
		{"tmp/", 0o1777, 0, nil}, // for the files of exec and demo
		{"usr/", 0o755, 0, nil},
		{"usr/bin/", 0o755, 0, nil},
		{programFile, 0o755, 0, program},
		{"usr/share/", 0o755, 0, nil},
		{"usr/share/doc/", 0o755, 0, nil},
		{"usr/share/doc/dpsd-sim/", 0o755, 0, nil},
		{copyrightFile, 0o644, 0, s.copyright},
	} {
		header := tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.text)), ModTime: s.created}
		if strings.HasSuffix(f.name, "/") {
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
