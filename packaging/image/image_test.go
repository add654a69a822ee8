package main

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// machines are the architectures of the programs, by Debian's names.
var machines = map[string]struct {
	goarch, level string
	machine       elf.Machine
}{
	"amd64":   {"amd64", "GOAMD64=v1", elf.EM_X86_64},
	"arm64":   {"arm64", "GOARM64=v8.0", elf.EM_AARCH64},
	"armhf":   {"arm", "GOARM=6", elf.EM_ARM},
	"riscv64": {"riscv64", "GORISCV64=rva20u64", elf.EM_RISCV},
}

// names are the programs for which there is an image.
var names = slices.Sorted(maps.Keys(products))

// built returns the path of a result of "make image", without its suffix, and the version.
func built(t *testing.T, name string) (base, version string) {
	t.Helper()
	dir, version := os.Getenv("DPSD_DIST"), os.Getenv("DPSD_VERSION")
	if dir == "" || version == "" {
		t.Skip("no DPSD_DIST: make test-image builds the image and runs this")
	}
	return filepath.Join(dir, name+"_"+version), version
}

// need skips a test whose tools or privileges are missing; in CI, the test fails.
func need(t *testing.T, root bool, tools ...string) {
	t.Helper()
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(err)
		}
	}
	if root && os.Getuid() != 0 {
		missing("only root can do this")
	}
}

// run runs a command that must succeed, and returns its output.
func run(t *testing.T, command ...string) string {
	t.Helper()
	return output(t, exec.Command(command[0], command[1:]...))
}

// output runs a command that must succeed, and returns its output.
func output(t *testing.T, command *exec.Cmd) string {
	t.Helper()
	out, err := command.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// index returns the index of the image, and checks all digests and sizes of the layout.
func index(t *testing.T, name string) v1.ImageIndex {
	t.Helper()
	base, version := built(t, name)
	top, err := layout.ImageIndexFromPath(base + ".oci")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(top); err != nil {
		t.Fatal(err)
	}
	manifest, err := top.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("%+v, %v", manifest, err)
	}
	only := manifest.Manifests[0]
	if got := only.Annotations["org.opencontainers.image.ref.name"]; got != tagOf(version) {
		t.Errorf("the image has the name %q", got)
	}
	all, err := top.ImageIndex(only.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// images returns the images of the index by Debian's names of their architectures.
func images(t *testing.T, name string) map[string]v1.Image {
	t.Helper()
	all := index(t, name)
	manifest, err := all.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]v1.Image{}
	for _, d := range manifest.Manifests {
		for arch, platform := range platforms {
			if d.Platform.Equals(platform) {
				if found[arch], err = all.Image(d.Digest); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if len(manifest.Manifests) != len(platforms) || len(found) != len(platforms) {
		t.Fatalf("the platforms are %+v", manifest.Manifests)
	}
	return found
}

func TestTheIndexDescribesTheImageToRegistries(t *testing.T) {
	for _, name := range names {
		manifest, err := index(t, name).IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		_, version := built(t, name)
		if got := manifest.Annotations; got["org.opencontainers.image.version"] != version || got["org.opencontainers.image.title"] != name {
			t.Errorf("%s: the annotations are %v", name, got)
		}
	}
}

// each runs a test for each architecture of each image.
func each(t *testing.T, test func(t *testing.T, name, arch string, image v1.Image)) {
	for _, name := range names {
		for arch, image := range images(t, name) {
			t.Run(name+"/"+arch, func(t *testing.T) { test(t, name, arch, image) })
		}
	}
}

func TestEachImageRunsItsProgramAsAnOrdinaryUser(t *testing.T) {
	want := map[string]struct {
		command     string
		environment []string
		volumes     []string
		ports       []string
	}{
		"dpsd":     {"/usr/bin/dpsd run", []string{"PATH=/usr/bin", "CREDENTIALS_DIRECTORY=/run/secrets", "GOMAXPROCS=1"}, []string{"/etc/dpsd", "/var/lib/dpsd"}, nil},
		"dpsd-sim": {"/usr/bin/dpsd-sim serve --dir /data --mqtt :8883 --websocket :8443 --hub dpsd-sim.azure-devices.net", []string{"PATH=/usr/bin"}, []string{"/data"}, []string{"8443/tcp", "8883/tcp"}},
	}
	each(t, func(t *testing.T, name, arch string, image v1.Image) {
		_, version := built(t, name)
		file, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		platform := platforms[arch]
		if file.OS != platform.OS || file.Architecture != platform.Architecture || file.Variant != platform.Variant {
			t.Errorf("the platform is %s/%s/%s", file.OS, file.Architecture, file.Variant)
		}
		c := file.Config
		if c.User != "65532:65532" {
			t.Errorf("the user is %q", c.User)
		}
		if got := strings.Join(slices.Concat(c.Entrypoint, c.Cmd), " "); got != want[name].command {
			t.Errorf("the command is %s", got)
		}
		if !slices.Equal(c.Env, want[name].environment) {
			t.Errorf("the environment is %q", c.Env)
		}
		if got := slices.Sorted(maps.Keys(c.Volumes)); !slices.Equal(got, want[name].volumes) {
			t.Errorf("the volumes are %v", got)
		}
		if got := slices.Sorted(maps.Keys(c.ExposedPorts)); !slices.Equal(got, want[name].ports) {
			t.Errorf("the ports are %v", got)
		}
		if got := c.Labels["org.opencontainers.image.version"]; got != version {
			t.Errorf("the version is %q", got)
		}
		if got := c.Labels["org.opencontainers.image.created"]; got != file.Created.Format(time.RFC3339) || file.Created.IsZero() {
			t.Errorf("created %v, and by the label %s", file.Created, got)
		}
	})
}

func TestEachImageContainsOneStaticProgramAndWhatItNeeds(t *testing.T) {
	documentation := func(name string) []string {
		return []string{"tmp", "usr", "usr/bin", "usr/bin/" + name, "usr/share", "usr/share/doc", "usr/share/doc/" + name, "usr/share/doc/" + name + "/copyright"}
	}
	want := map[string][]string{
		"dpsd": append(documentation("dpsd"), "etc", "etc/dpsd", "etc/group", "etc/passwd", "etc/ssl", "etc/ssl/certs", "etc/ssl/certs/ca-certificates.crt",
			"run", "run/dpsd", "usr/share/dpsd", "usr/share/dpsd/dpsd.toml", "var", "var/lib", "var/lib/dpsd"),
		"dpsd-sim": append(documentation("dpsd-sim"), "data"),
	}
	owned := []string{"data", "run/dpsd", "var/lib/dpsd"} // by the user of the program
	each(t, func(t *testing.T, name, arch string, image v1.Image) {
		files := mutate.Extract(image)
		defer files.Close()
		var found []string
		for in := tar.NewReader(files); ; {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			path := strings.TrimSuffix(h.Name, "/")
			found = append(found, path)
			owner := 0
			if slices.Contains(owned, path) {
				owner = 65532
			}
			if h.Uid != owner || h.Gid != owner || h.Uname != "" || h.Gname != "" {
				t.Errorf("%s belongs to %d:%d %s:%s", path, h.Uid, h.Gid, h.Uname, h.Gname)
			}
			if h.Typeflag == tar.TypeReg && h.FileInfo().Mode().Perm()&0o022 != 0 {
				t.Errorf("%s has the mode %v", path, h.FileInfo().Mode())
			}
			if path == "tmp" && h.Mode != 0o1777 {
				t.Errorf("%s has the mode %o", path, h.Mode)
			}
			if path != "usr/bin/"+name {
				continue
			}
			text, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			static(t, name, arch, text)
		}
		slices.Sort(found)
		if slices.Sort(want[name]); !slices.Equal(found, want[name]) {
			t.Errorf("the files are %q", found)
		}
	})
}

// static checks that a program needs no other file, and that it is for the architecture.
func static(t *testing.T, name, arch string, program []byte) {
	t.Helper()
	want := machines[arch]
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if file.Machine != want.machine {
		t.Errorf("the program is for %v", file.Machine)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program has a segment %v, so it needs libraries", p.Type)
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if info.Path != "github.com/dpsd-project/dpsd/cmd/"+name {
		t.Errorf("the program is %s", info.Path)
	}
	settings := map[string]bool{}
	for _, s := range info.Settings {
		settings[s.Key+"="+s.Value] = true
	}
	for _, s := range []string{"GOARCH=" + want.goarch, want.level, "CGO_ENABLED=0", "-trimpath=true"} {
		if !settings[s] {
			t.Errorf("the program was built without %s: %v", s, info.Settings)
		}
	}
}

func TestTheArchiveContainsTheLayout(t *testing.T) {
	for _, name := range names {
		t.Run(name, func(t *testing.T) { containsLayout(t, name) })
	}
}

func containsLayout(t *testing.T, name string) {
	base, _ := built(t, name)
	want := map[string][]byte{}
	directory := os.DirFS(base + ".oci")
	err := fs.WalkDir(directory, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			want[path], err = fs.ReadFile(directory, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(base + ".oci.tar")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	got := map[string][]byte{}
	for in := tar.NewReader(file); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the archive has %d files, the layout %d", len(got), len(want))
	}
	for _, name := range []string{"oci-layout", "index.json"} {
		if want[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
}

// skopeo uses the library of Podman, Buildah and CRI-O.
func TestSkopeoCopiesEachArchitectureFromBothKindsOfArchives(t *testing.T) {
	need(t, false, "skopeo")
	each(t, func(t *testing.T, name, arch string, _ v1.Image) {
		t.Parallel()
		base, version := built(t, name)
		platform := platforms[arch]
		for _, from := range []string{"oci-archive:" + base + ".oci.tar:" + tagOf(version), "oci-archive:" + base + ".oci.tar", "docker-archive:" + base + "_" + arch + ".docker.tar"} {
			to := filepath.Join(t.TempDir(), "copy")
			run(t, "skopeo", "copy", "--override-os", platform.OS, "--override-arch", platform.Architecture, "--override-variant", platform.Variant, from, "oci:"+to+":copied")
			text := run(t, "skopeo", "inspect", "--config", "oci:"+to+":copied")
			var config v1.ConfigFile
			if err := json.Unmarshal([]byte(text), &config); err != nil {
				t.Fatal(err)
			}
			if config.Architecture != platform.Architecture || config.Variant != platform.Variant || config.Config.User != "65532:65532" {
				t.Errorf("%s: %s", from, text)
			}
		}
	})
}

func TestDockerLoadsTheArchiveOfAnArchitectureWithItsTag(t *testing.T) {
	each(t, func(t *testing.T, name, arch string, _ v1.Image) {
		base, version := built(t, name)
		text := run(t, "tar", "-xOf", base+"_"+arch+".docker.tar", "manifest.json")
		var manifest []struct{ RepoTags []string }
		if err := json.Unmarshal([]byte(text), &manifest); err != nil {
			t.Fatal(err)
		}
		if len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{name + ":" + tagOf(version)}) {
			t.Errorf("%s", text)
		}
	})
}

func TestATagIsTheVersionWithoutCharactersThatATagCannotContain(t *testing.T) {
	for version, want := range map[string]string{
		"1.2.3": "1.2.3", "1.2.4~rc.1": "1.2.4-rc.1", "1.2.3+12.g0123456": "1.2.3-12.g0123456", "0~345.g0123456.dirty": "0-345.g0123456.dirty",
	} {
		if got := tagOf(version); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}

// TestSameTreeSameBytes builds the images again: from a clone in another directory, in another
// time zone and language, with another umask.
func TestSameTreeSameBytes(t *testing.T) {
	t.Parallel()
	_, version := built(t, "dpsd")
	need(t, false, "git", "make")
	other := filepath.Join(t.TempDir(), "a longer path", "with spaces")
	run(t, "git", "-c", "safe.directory=*", "clone", "--quiet", "../..", other)
	if changes := run(t, "git", "-c", "safe.directory=*", "-C", "../..", "diff", "--binary", "HEAD"); changes != "" {
		apply := exec.Command("git", "-C", other, "apply", "-")
		apply.Stdin = strings.NewReader(changes)
		output(t, apply)
	}
	dist := t.TempDir()
	again := exec.Command("sh", "-c", `umask 077; exec "$@"`, "sh", filepath.Join(other, "packaging/image/build"), version, dist, "amd64", "arm64", "armhf", "riscv64")
	again.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "TZ=Pacific/Kiritimati", "LC_ALL=C", "LANG=tr_TR.UTF-8")
	output(t, again)
	for _, name := range names {
		base, _ := built(t, name)
		for _, suffix := range []string{".oci.tar", "_amd64.docker.tar", "_arm64.docker.tar", "_armhf.docker.tar", "_riscv64.docker.tar"} {
			first, err := os.ReadFile(base + suffix)
			if err != nil {
				t.Fatal(err)
			}
			second, err := os.ReadFile(filepath.Join(dist, filepath.Base(base)+suffix))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first, second) {
				t.Errorf("%s differs from build to build; diffoscope shows where", filepath.Base(base)+suffix)
			}
		}
	}
	if left, err := os.ReadDir(dist); err != nil || len(left) != 12 {
		t.Errorf("the directory contains %v, %v", left, err)
	}
}
