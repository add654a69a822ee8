// Package deb tests the Debian packages that "make deb" builds: their content, the results of
// Debian's own checkers, their effect on an image in which nothing runs, and that their programs
// run on each architecture. "make test-deb" builds them and runs this test. Package system tests
// their effect on a booted machine.
package deb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	architectures = []string{"amd64", "arm64", "armhf", "riscv64"}
	packages      = []string{"dpsd", "dpsd-sim", "dpsd-signer-pkcs11"}
)

// dist returns the directory of the packages, and the version to test.
func dist(t *testing.T) (dir, version string) {
	t.Helper()
	dir, version = os.Getenv("DPSD_DIST"), os.Getenv("DPSD_VERSION")
	if dir == "" || version == "" {
		t.Skip("no DPSD_DIST: make test-deb makes the packages and runs this")
	}
	return dir, version
}

// artefact returns a file that belongs to a package.
func artefact(t *testing.T, name, arch, suffix string) string {
	t.Helper()
	dir, version := dist(t)
	path := filepath.Join(dir, name+"_"+version+"_"+arch+suffix)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	return path
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

// run runs a command that must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			out = append(out, exit.Stderr...)
		}
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// native returns the architecture of this machine.
func native(t *testing.T) string {
	t.Helper()
	dist(t)
	return strings.TrimSpace(run(t, "dpkg", "--print-architecture"))
}

// unpack returns a directory into which it has unpacked a package.
func unpack(t *testing.T, deb string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "dpkg-deb", "--extract", deb, dir)
	return dir
}

// TestPackagesHaveTheDocumentedContent compares the content of each package with the documented
// content.
func TestPackagesHaveTheDocumentedContent(t *testing.T) {
	dist(t)
	want := map[string][]string{
		"dpsd": {
			"-rwxr-xr-x usr/bin/dpsd",
			"drwxr-xr-x etc/dpsd/",
			"drwxr-x--- etc/dpsd/keys/",
			"-rw-r--r-- usr/lib/systemd/system/dpsd.service",
			"-rw-r--r-- usr/lib/systemd/system/dpsd-hub@.socket",
			"-rw-r--r-- usr/lib/systemd/system/dpsd-provisioned.target",
			"-rw-r--r-- usr/lib/systemd/catalog/dpsd.catalog",
			"-rw-r--r-- usr/lib/sysusers.d/dpsd.conf",
			"-rw-r--r-- usr/lib/tmpfiles.d/dpsd.conf",
			"-rw-r--r-- usr/share/dpsd/dpsd.toml",
			"-rw-r--r-- usr/share/dpsd/state.schema.json",
			"-rw-r--r-- usr/share/dpsd/dpsd.rules.yml",
			"-rw-r--r-- usr/share/dpsd/dpsd.dashboard.json",
			"-rw-r--r-- usr/share/bash-completion/completions/dpsd",
			"-rw-r--r-- usr/share/zsh/vendor-completions/_dpsd",
			"-rw-r--r-- usr/share/fish/vendor_completions.d/dpsd.fish",
			"-rw-r--r-- usr/share/man/man8/dpsd.8.gz",
			"-rw-r--r-- usr/share/man/man5/dpsd.toml.5.gz",
			"-rw-r--r-- usr/share/man/man5/dpsd-state.5.gz",
			"-rw-r--r-- usr/share/man/man7/dpsd-faults.7.gz",
			"-rw-r--r-- usr/share/doc/dpsd/copyright",
			"-rw-r--r-- usr/share/doc/dpsd/README.md.gz",
			"-rw-r--r-- usr/share/doc/dpsd/examples/aziot-identity.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/consumer.service",
			"-rw-r--r-- usr/share/doc/dpsd/examples/consumer-restart.path",
			"-rw-r--r-- usr/share/doc/dpsd/examples/consumer-restart.service",
			"-rw-r--r-- usr/share/doc/dpsd/examples/certificate.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/encrypted-credentials.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/hub-socket.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/mosquitto-bridge.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/proxy.conf",
			"-rw-r--r-- usr/share/doc/dpsd/examples/tpm.conf",
		},
		"dpsd-sim": {
			"-rwxr-xr-x usr/bin/dpsd-sim",
			"-rw-r--r-- usr/share/bash-completion/completions/dpsd-sim",
			"-rw-r--r-- usr/share/zsh/vendor-completions/_dpsd-sim",
			"-rw-r--r-- usr/share/fish/vendor_completions.d/dpsd-sim.fish",
			"-rw-r--r-- usr/share/man/man8/dpsd-sim.8.gz",
			"-rw-r--r-- usr/share/doc/dpsd-sim/copyright",
		},
		"dpsd-signer-pkcs11": {
			"-rwxr-xr-x usr/bin/dpsd-signer-pkcs11",
			"drwxr-xr-x etc/dpsd-signer/",
			"-rw-r--r-- usr/lib/systemd/system/dpsd-signer-pkcs11@.service",
			"-rw-r--r-- usr/lib/systemd/system/dpsd-signer-pkcs11@.socket",
			"-rw-r--r-- usr/lib/sysusers.d/dpsd-signer-pkcs11.conf",
			"-rw-r--r-- usr/share/man/man8/dpsd-signer-pkcs11.8.gz",
			"-rw-r--r-- usr/share/doc/dpsd-signer-pkcs11/copyright",
			"-rw-r--r-- usr/share/doc/dpsd-signer-pkcs11/signer.md.gz",
		},
	}
	for _, arch := range architectures {
		for _, name := range packages {
			t.Run(name+"/"+arch, func(t *testing.T) {
				t.Parallel()
				deb := artefact(t, name, arch, ".deb")
				var have []string
				entries := tar.NewReader(strings.NewReader(run(t, "dpkg-deb", "--fsys-tarfile", deb)))
				for {
					e, err := entries.Next()
					if errors.Is(err, io.EOF) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					path := strings.TrimPrefix(e.Name, "./")
					have = append(have, e.FileInfo().Mode().String()+" "+path)
					if e.Uid != 0 || e.Gid != 0 {
						t.Errorf("%s is not root's: %d/%d", path, e.Uid, e.Gid)
					}
					if strings.HasPrefix(path, "etc/") && e.Typeflag != tar.TypeDir {
						t.Errorf("%s: the files of /etc/dpsd are the administrator's", path)
					}
				}
				for _, w := range want[name] {
					if !slices.Contains(have, w) {
						t.Errorf("it lacks %s", w)
					}
				}
				if name == "dpsd" {
					for _, path := range mentioned(t) {
						if !slices.Contains(have, "-rw-r--r-- "+path) && !slices.Contains(have, "drwxr-xr-x "+strings.TrimSuffix(path, "/")+"/") {
							t.Errorf("the documentation refers to /%s, which the package lacks", path)
						}
					}
				}
				if conffiles := run(t, "dpkg-deb", "--ctrl-tarfile", deb); strings.Contains(conffiles, "conffiles") {
					t.Error("it has conffiles, for which dpkg may ask questions")
				}
			})
		}
	}
}

// mentioned returns the files and directories of the package dpsd that the manual pages, the
// documents and the examples name, without the leading slash.
func mentioned(t *testing.T) (paths []string) {
	t.Helper()
	troff := strings.NewReplacer(`\-`, "-", `\%`, "", `\&`, "")
	of := regexp.MustCompile(`/usr/share/(doc/)?dpsd\b[\w./-]*`)
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/man/*.[0-9]", "config/dpsd.toml", "packaging/systemd/*", "packaging/systemd/examples/*"} {
		files, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.IsDir() {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range of.FindAllString(troff.Replace(string(text)), -1) {
				paths = append(paths, strings.TrimRight(path[1:], "."))
			}
		}
	}
	if len(paths) < 10 {
		t.Fatalf("the documentation names only %q", paths)
	}
	return paths
}

// TestProgramsReportThePackageVersion runs the programs of this architecture.
func TestProgramsReportThePackageVersion(t *testing.T) {
	_, version := dist(t)
	deb := artefact(t, "dpsd", native(t), ".deb")
	if field := strings.TrimSpace(run(t, "dpkg-deb", "--field", deb, "Version")); field != version {
		t.Errorf("the package calls itself %q, want %q", field, version)
	}
	root := unpack(t, deb)
	if said := run(t, filepath.Join(root, "usr/bin/dpsd"), "version"); !strings.HasPrefix(said, "dpsd "+version+" ") {
		t.Errorf("dpsd version says %q, want %q", said, version)
	}
	completion, err := os.ReadFile(filepath.Join(root, "usr/share/bash-completion/completions/dpsd"))
	if err != nil {
		t.Fatal(err)
	}
	if said := run(t, filepath.Join(root, "usr/bin/dpsd"), "completion", "bash"); said != string(completion) {
		t.Error("the completion for bash is not what dpsd completion bash says")
	}
}

// TestBillOfMaterials compares the bill of materials of each package, and the checksums, with the
// package.
func TestBillOfMaterials(t *testing.T) {
	dir, _ := dist(t)
	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range architectures {
		for _, name := range packages {
			t.Run(name+"/"+arch, func(t *testing.T) {
				t.Parallel()
				deb, sbom := artefact(t, name, arch, ".deb"), artefact(t, name, arch, ".cdx.json")
				for _, file := range []string{deb, sbom} {
					if line := sum(t, file) + "  " + filepath.Base(file) + "\n"; !strings.Contains(string(sums), line) {
						t.Errorf("SHA256SUMS lacks %s", line)
					}
				}
				program := filepath.Join(unpack(t, deb), "usr/bin", name)
				info, err := buildinfo.ReadFile(program)
				if err != nil {
					t.Fatal(err)
				}
				var want, have []string
				for _, m := range info.Deps {
					if m.Replace == nil || !strings.HasPrefix(m.Replace.Path, ".") { // otherwise, a directory of this tree
						want = append(want, m.Path+" "+m.Version)
					}
				}
				want = append(want, "std "+strings.TrimPrefix(info.GoVersion, "go"))
				var bill struct {
					Metadata struct {
						Component struct {
							Hashes []struct{ Alg, Content string }
						}
					}
					Components []struct {
						Name, Version string
						Licenses      []struct{ License struct{ ID string } }
					}
				}
				text, err := os.ReadFile(sbom)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(text, &bill); err != nil {
					t.Fatal(err)
				}
				for _, c := range bill.Components {
					have = append(have, c.Name+" "+c.Version)
					if len(c.Licenses) != 1 || c.Licenses[0].License.ID == "" {
						t.Errorf("%s has no license there", c.Name)
					}
				}
				if !slices.Equal(have, want) {
					t.Errorf("the bill lists %q, and linked are %q", have, want)
				}
				if h := bill.Metadata.Component.Hashes; len(h) != 1 || h[0].Content != sum(t, program) {
					t.Errorf("the bill is not of the program in the package: %+v", h)
				}
			})
		}
	}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}

// TestSystemdAcceptsTheUnits runs systemd-analyze(1) for every shipped unit, including the
// examples.
func TestSystemdAcceptsTheUnits(t *testing.T) {
	need(t, false, "systemd-analyze")
	root := unpack(t, artefact(t, "dpsd", native(t), ".deb"))
	// Two instances of the template, with their examples.
	template, instance := filepath.Join(root, "usr/lib/systemd/system/dpsd-hub@.socket"), filepath.Join(root, "usr/lib/systemd/system/dpsd-hub@telemetry.socket")
	if err := os.Rename(template, instance); err != nil {
		t.Fatal(err)
	}
	aziot := filepath.Join(root, "usr/lib/systemd/system/dpsd-hub@aziot-identity.socket")
	run(t, "cp", instance, aziot)
	units, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "install", "-D", "-m", "644", filepath.Join(root, "usr/share/doc/dpsd/examples/aziot-identity.conf"), aziot+".d/aziot-identity.conf")
	run(t, "install", "-D", "-m", "644", filepath.Join(root, "usr/share/doc/dpsd/examples/hub-socket.conf"), instance+".d/hub-socket.conf")
	examples := 0
	for _, pattern := range []string{"*.service", "*.path"} {
		found, err := filepath.Glob(filepath.Join(root, "usr/share/doc/dpsd/examples", pattern))
		if err != nil {
			t.Fatal(err)
		}
		examples += len(found)
		units = append(units, found...)
	}
	if len(units)-examples != 4 || examples != 3 {
		t.Fatalf("want 4 units and 3 examples, got %q", units)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...)
	out, err := cmd.CombinedOutput()
	// Both lines are expected: this machine need not have dpsd, and systemd 252 ignores the key.
	expected := regexp.MustCompile(`/usr/bin/dpsd is not executable: No such file|Unknown key (name )?'RestartMode' in section .*, ignoring\.`)
	for line := range strings.Lines(string(out)) {
		if !expected.MatchString(line) {
			t.Errorf("systemd-analyze verify: %s", strings.TrimSpace(line))
		}
	}
	if err != nil && len(out) == 0 {
		t.Errorf("systemd-analyze verify: %v without a message", err)
	}
}

// TestTheServiceIsLittleExposed runs systemd-analyze(1) for the service, without and with the
// example that gives it access to the TPM.
func TestTheServiceIsLittleExposed(t *testing.T) {
	need(t, false, "systemd-analyze")
	root := unpack(t, artefact(t, "dpsd", native(t), ".deb"))
	exposed := func(threshold string) {
		t.Helper()
		said, err := exec.Command("systemd-analyze", "security", "--offline=true", "--root="+root, "--threshold="+threshold, "--no-pager", "dpsd.service").CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(said)), "\n")
		t.Log(strings.TrimSpace(lines[len(lines)-1]))
		if err != nil {
			t.Errorf("systemd-analyze security: %v: exposed more than %s of 100\n%s", err, threshold, said)
		}
		if threshold == "20" != strings.Contains(string(said), "/dev/tpmrm0:rw") {
			t.Errorf("only the service with the example has access to the TPM:\n%s", said)
		}
	}
	exposed("12")
	dropIns := filepath.Join(root, "etc/systemd/system/dpsd.service.d")
	if err := os.MkdirAll(dropIns, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", filepath.Join(root, "usr/share/doc/dpsd/examples/tpm.conf"), dropIns)
	exposed("20")
}

// TestSystemdAcceptsTheUnitsOfTheSigner also checks the exposure of the service.
func TestSystemdAcceptsTheUnitsOfTheSigner(t *testing.T) {
	need(t, false, "systemd-analyze")
	root := unpack(t, artefact(t, "dpsd-signer-pkcs11", native(t), ".deb"))
	instances := t.TempDir()
	var units []string
	for _, kind := range []string{"service", "socket"} {
		unit := filepath.Join(instances, "dpsd-signer-pkcs11@device."+kind)
		if err := os.Rename(filepath.Join(root, "usr/lib/systemd/system/dpsd-signer-pkcs11@."+kind), unit); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no", "--recursive-errors=no"}, units...)...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "/usr/bin/dpsd-signer-pkcs11 is not executable: No such file") { // this machine need not have it
			t.Errorf("systemd-analyze verify: %s", strings.TrimSpace(line))
		}
	}
	if err != nil && len(out) == 0 {
		t.Errorf("systemd-analyze verify: %v without a message", err)
	}
	if said, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", units[0]).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v: more exposed than 1.0\n%s", err, said)
	}
}

// TestTheSignerRunsWithTheDeclaredLibc compares the versions of the symbols that the program needs with
// the dependency of the package.
func TestTheSignerRunsWithTheDeclaredLibc(t *testing.T) {
	dist(t)
	for _, arch := range architectures {
		deb := artefact(t, "dpsd-signer-pkcs11", arch, ".deb")
		declared := regexp.MustCompile(`\blibc6 \(>= 2\.(\d+)\)`).FindStringSubmatch(run(t, "dpkg-deb", "--field", deb, "Depends"))
		if declared == nil {
			t.Fatalf("%s: the package does not depend on a version of libc6", arch)
		}
		limit, err := strconv.Atoi(declared[1])
		if err != nil {
			t.Fatal(err)
		}
		program, err := elf.Open(filepath.Join(unpack(t, deb), "usr/bin/dpsd-signer-pkcs11"))
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := program.ImportedSymbols()
		if err != nil {
			t.Fatal(err)
		}
		if libraries, err := program.ImportedLibraries(); err != nil || !slices.Equal(libraries, []string{"libc.so.6"}) && !slices.ContainsFunc(libraries, func(l string) bool { return strings.HasPrefix(l, "ld-linux") }) {
			t.Errorf("%s: the program needs the libraries %q, %v", arch, libraries, err)
		}
		needs := 0
		for _, s := range symbols {
			var minor int
			if _, err := fmt.Sscanf(s.Version, "GLIBC_2.%d", &minor); err == nil {
				needs = max(needs, minor)
			}
		}
		if needs == 0 || needs > limit {
			t.Errorf("%s: the program needs glibc 2.%d, and the package declares 2.%d", arch, needs, limit)
		}
	}
}

// TestLintian runs Debian's checker for the packages of each architecture.
func TestLintian(t *testing.T) {
	dist(t)
	need(t, false, "lintian")
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			changes := artefact(t, "dpsd", arch, ".changes")
			out, err := exec.Command("lintian", "--allow-root", "--display-info", "--fail-on", "error,warning", changes).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			// An override without effect could hide a problem later.
			if regexp.MustCompile("unused-override|mismatched-override").Match(out) {
				t.Errorf("there is nothing to override:\n%s", out)
			}
		})
	}
}

// TestPiuparts runs Debian's checker, which installs, removes and purges all packages in a
// chroot: they must leave nothing in it.
func TestPiuparts(t *testing.T) {
	dist(t)
	need(t, true, "piuparts")
	var debs []string
	for _, name := range packages {
		debs = append(debs, artefact(t, name, native(t), ".deb"))
	}
	root := suite(t, "bookworm")
	mirror, _, _ := strings.Cut(run(t, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian"), "\n")
	if mirror == "" {
		t.Fatal("this machine's apt has no Debian mirror")
	}
	cmd := exec.Command("piuparts", append([]string{"--no-eatmydata", "--skip-minimize", "--skip-logrotatefiles-test", "--no-upgrade-test",
		"--existing-chroot", root, "--distribution", "bookworm", "--mirror", mirror + " main"}, debs...)...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("PASS: All tests.")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// suite returns the root file system of a Debian release.
func suite(t *testing.T, name string) string {
	t.Helper()
	roots := os.Getenv("DPSD_ROOTS")
	if roots == "" {
		t.Skip("no DPSD_ROOTS: make test-deb makes them and runs this")
	}
	root := filepath.Join(roots, name)
	if _, err := os.Stat(filepath.Join(root, "etc/os-release")); errors.Is(err, fs.ErrNotExist) {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return root
}
