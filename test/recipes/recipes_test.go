// Package recipes tests the recipes for Yocto and Buildroot, and the source archive from which they
// build dpsd. "make test-recipes" runs the tests.
package recipes

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// made is the output of the scripts in packaging/release for the current tree.
type made struct {
	dist    string // the directory of the three archives
	version string
	source  string // the unpacked source archive
	layer   string // for Yocto
	tree    string // for Buildroot
}

var (
	scratch string
	once    = sync.OnceValues(func() (m made, err error) {
		if scratch, err = os.MkdirTemp("", "dpsd-recipes-"); err != nil {
			return m, err
		}
		return makeRecipes(filepath.Join(scratch, "first"), "022", "UTC")
	})
)

func TestMain(m *testing.M) {
	status := m.Run()
	if scratch != "" {
		_ = os.RemoveAll(scratch)
	}
	os.Exit(status)
}

// output runs a command in a directory.
func output(dir string, environment []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// makeRecipes builds the archives with the given umask and time zone, and unpacks them.
func makeRecipes(dir, umask, zone string) (m made, err error) {
	m.dist = filepath.Join(dir, "dist")
	if m.version, err = output("../..", nil, "packaging/version"); err != nil {
		return m, err
	}
	name := "dpsd-" + m.version
	script := `umask "$1"; packaging/release/source.sh "$2" "$3" && packaging/release/recipes.sh "$3/dpsd-$2.tar.gz" "$3"`
	if _, err = output("../..", []string{"TZ=" + zone, "LC_ALL=C"}, "sh", "-euc", script, "sh", umask, m.version, m.dist); err != nil {
		return m, err
	}
	for _, archive := range []string{"", "-yocto", "-buildroot"} {
		if _, err := output("", nil, "tar", "-xzf", filepath.Join(m.dist, name+archive+".tar.gz"), "-C", dir); err != nil {
			return m, err
		}
	}
	m.source, m.layer, m.tree = filepath.Join(dir, name), filepath.Join(dir, "meta-dpsd"), filepath.Join(dir, "dpsd-buildroot")
	return m, nil
}

func recipes(t *testing.T) made {
	t.Helper()
	if os.Getenv("DPSD_RECIPES") == "" {
		t.Skip("no DPSD_RECIPES: make test-recipes sets it")
	}
	m, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// recipe returns the recipe for the version, with the file that it includes.
func (m made) recipe(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(m.layer, "recipes-connectivity/dpsd")
	bb := read(t, filepath.Join(dir, "dpsd_"+m.version+".bb"))
	if !strings.HasPrefix(bb, "require dpsd.inc\n") {
		t.Fatalf("the recipe does not begin with dpsd.inc:\n%s", bb)
	}
	return read(t, filepath.Join(dir, "dpsd.inc")) + bb
}

// first returns the first group of a regular expression that must match.
func first(t *testing.T, text, pattern string) string {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if match == nil {
		t.Fatalf("%s does not match\n%s", pattern, text)
	}
	return match[1]
}

func TestTheSameTreeGivesTheSameArchives(t *testing.T) {
	m := recipes(t)
	again, err := makeRecipes(filepath.Join(scratch, "again"), "077", "Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	archives, err := filepath.Glob(filepath.Join(m.dist, "*"))
	if err != nil || len(archives) != 3 {
		t.Fatalf("there are %q, %v", archives, err)
	}
	for _, archive := range archives {
		name := filepath.Base(archive)
		if read(t, archive) != read(t, filepath.Join(again.dist, name)) {
			t.Errorf("%s differs in a second run", name)
		}
	}
}

// In an unpacked source archive, no git knows which files belong to the source.
func TestASecretKeyInTheUnpackedSourceArchiveDoesNotGetIntoTheNextOne(t *testing.T) {
	m := recipes(t)
	dir := t.TempDir()
	if _, err := output("", nil, "cp", "-R", m.source, dir); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, filepath.Base(m.source))
	for _, name := range []string{"secret-key", "out/dpsd.deb", "packaging/other"} {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("secret"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := output(tree, nil, "packaging/release/source.sh", m.version, filepath.Join(tree, "out")); err != nil {
		t.Fatal(err)
	}
	name := "dpsd-" + m.version + ".tar.gz"
	if read(t, filepath.Join(tree, "out", name)) != read(t, filepath.Join(m.dist, name)) {
		list, err := output("", nil, "tar", "-tzf", filepath.Join(tree, "out", name))
		t.Errorf("the archive differs: %v\n%s", err, list)
	}
}

// docs/install.md names the address at which "make publish" puts the files of a release.
func TestTheRecipesDownloadTheSourceFromWhereItIsPublished(t *testing.T) {
	m := recipes(t)
	want := first(t, read(t, "../../docs/install.md"), "`(https://\\S+/releases/)VERSION/`")
	if got := first(t, m.recipe(t), `(?m)^SRC_URI = "([^;]+);`); got != want+"${PV}/dpsd-${PV}.tar.gz" {
		t.Errorf("the recipe for Yocto downloads %s", got)
	}
	if got := first(t, read(t, filepath.Join(m.tree, "package/dpsd/dpsd.mk")), `(?m)^DPSD_SITE = (.+)$`); got != want+"$(DPSD_VERSION)" {
		t.Errorf("the package for Buildroot downloads %s", got)
	}
}

func TestTheSourceArchiveBuildsWithoutANetworkAndWithoutAModuleCache(t *testing.T) {
	m := recipes(t)
	bin := t.TempDir()
	_, err := output(m.source, []string{"GOFLAGS=-mod=vendor", "GOPROXY=off", "GOMODCACHE=" + t.TempDir(), "GOTOOLCHAIN=local"},
		"make", "--silent", "build", "PROGRAMS=./cmd/dpsd", "BIN="+bin, "VERSION=1.2.3", "BUILT=0")
	if err != nil {
		t.Fatal(err)
	}
	got, err := output("", nil, filepath.Join(bin, "dpsd"), "version")
	if err != nil || !strings.HasPrefix(got, "dpsd 1.2.3 ") {
		t.Errorf("dpsd version prints %q, %v", got, err)
	}
}

func TestTheRecipesNameTheChecksumOfTheArchive(t *testing.T) {
	m := recipes(t)
	name := "dpsd-" + m.version + ".tar.gz"
	sum := sha256.Sum256([]byte(read(t, filepath.Join(m.dist, name))))
	want := hex.EncodeToString(sum[:])
	if got := first(t, m.recipe(t), `(?m)^SRC_URI\[sha256sum\] = "(\w+)"$`); got != want {
		t.Errorf("the recipe for Yocto names %s, want %s", got, want)
	}
	if line := "sha256  " + want + "  " + name + "\n"; !strings.Contains(read(t, filepath.Join(m.tree, "package/dpsd/dpsd.hash")), line) {
		t.Errorf("the package for Buildroot does not have %q", line)
	}
}

// licensed returns the licenses of dpsd and of the modules that are linked into it on any
// architecture, according to the Debian package.
func licensed(t *testing.T, m made) []string {
	t.Helper()
	names := map[string]bool{"Apache-2.0": true} // its own
	stanzas := strings.Split(read(t, filepath.Join(m.source, "packaging/deb/debian/copyright")), "\n\n")
	for _, arch := range []string{"amd64", "arm", "arm64", "riscv64"} {
		modules, err := output(m.source, []string{"GOFLAGS=-mod=vendor", "GOOS=linux", "CGO_ENABLED=0", "GOARCH=" + arch}, "go", "list", "-tags", "nethttpomithttp2", "-deps",
			"-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/dpsd")
		if err != nil {
			t.Fatal(err)
		}
		for _, module := range strings.Fields(modules) {
			at := slices.IndexFunc(stanzas, func(s string) bool {
				return strings.HasPrefix(s, "Files:") && regexp.MustCompile(`\svendor/`+regexp.QuoteMeta(module)+`/\*`).MatchString(s)
			})
			if at < 0 {
				t.Fatalf("debian/copyright has nothing about %s", module)
			}
			names[first(t, stanzas[at], `(?m)^License: (\S+)$`)] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func TestTheRecipesNameTheLicensesOfAllLinkedModules(t *testing.T) {
	m := recipes(t)
	want := licensed(t, m)
	if len(want) < 3 {
		t.Fatalf("only %q", want)
	}
	recipe, mk := m.recipe(t), read(t, filepath.Join(m.tree, "package/dpsd/dpsd.mk"))
	if got := strings.Split(first(t, recipe, `(?m)^LICENSE = "(.*)"$`), " & "); !slices.Equal(got, want) {
		t.Errorf("the recipe for Yocto names %q, want %q", got, want)
	}
	if got := strings.Split(first(t, mk, `(?m)^DPSD_LICENSE = (.*)$`), ", "); !slices.Equal(got, want) {
		t.Errorf("the package for Buildroot names %q, want %q", got, want)
	}

	sums := regexp.MustCompile(`file://src/\$\{GO_IMPORT\}/(\S+);md5=(\w+)`).FindAllStringSubmatch(recipe, -1)
	if len(sums) < 10 {
		t.Fatalf("the recipe for Yocto names %d files of licenses", len(sums))
	}
	var files []string
	for _, file := range sums {
		sum := md5.Sum([]byte(read(t, filepath.Join(m.source, file[1]))))
		if got := hex.EncodeToString(sum[:]); got != file[2] {
			t.Errorf("the MD5 of %s is %s, and the recipe has %s", file[1], got, file[2])
		}
		files = append(files, file[1])
	}
	if got := strings.Fields(strings.ReplaceAll(first(t, mk, `(?s)DPSD_LICENSE_FILES = (.*?[^\\])\n`), "\\\n", " ")); !slices.Equal(got, files) {
		t.Errorf("the package for Buildroot names %q, want %q", got, files)
	}
	hashes := read(t, filepath.Join(m.tree, "package/dpsd/dpsd.hash"))
	for _, file := range files {
		sum := sha256.Sum256([]byte(read(t, filepath.Join(m.source, file))))
		if line := "sha256  " + hex.EncodeToString(sum[:]) + "  " + file + "\n"; !strings.Contains(hashes, line) {
			t.Errorf("the package for Buildroot does not have %q", line)
		}
	}
}

// makefileFlags returns the flags with which the Makefile builds for an architecture.
func makefileFlags(t *testing.T, arch string) []string {
	t.Helper()
	flags, err := output("../..", []string{"GOARCH=" + arch}, "make", "--silent", "--no-print-directory", "--eval", "flags:; @echo '-tags $(TAGS) $(GCFLAGS)'", "flags")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(flags)
}

func TestTheRecipesBuildWithTheFlagsOfTheOtherPackages(t *testing.T) {
	m := recipes(t)
	const module = "github.com/dpsd-project/dpsd"
	info, err := os.Stat(filepath.Join(m.source, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	built := info.ModTime().Unix()
	if built < 1_500_000_000 {
		t.Fatalf("the source is of %s", info.ModTime())
	}
	for _, c := range []struct{ goarch, buildroot string }{{"amd64", "BR2_x86_64"}, {"arm64", "BR2_aarch64"}, {"arm", "BR2_arm"}, {"riscv64", "BR2_riscv"}} {
		want := makefileFlags(t, c.goarch)

		recipe := m.recipe(t)
		var got []string
		for _, line := range regexp.MustCompile(`(?m)^GOBUILDFLAGS:append = " (.*)"$`).FindAllStringSubmatch(recipe, -1) {
			flags := line[1]
			if conditional := regexp.MustCompile(`^\$\{@'(.*)' if d.getVar\('TARGET_GOARCH'\) in \((.*)\) else ''\}$`).FindStringSubmatch(flags); conditional != nil {
				flags = ""
				if strings.Contains(conditional[2], "'"+c.goarch+"'") {
					flags = conditional[1]
				}
			}
			got = append(got, strings.Fields(strings.ReplaceAll(flags, "${GO_IMPORT}", module))...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: Yocto builds with %q, want %q", c.goarch, got, want)
		}

		// Buildroot's macro is replaced by one that prints the variables.
		mk := "define golang-package\n$(info -tags $(DPSD_TAGS) $(DPSD_BUILD_OPTS))$(info $(DPSD_LDFLAGS))$(info $(DPSD_GO_ENV) $(DPSD_BUILD_TARGETS))\nendef\n" +
			c.buildroot + " = y\ninclude " + filepath.Join(m.tree, "package/dpsd/dpsd.mk") + "\nall:;\n"
		file := filepath.Join(t.TempDir(), "Makefile")
		if err := os.WriteFile(file, []byte(mk), 0o600); err != nil {
			t.Fatal(err)
		}
		printed, err := output("", nil, "make", "--silent", "--file", file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(printed, "\n")
		if len(lines) != 3 {
			t.Fatalf("%q", lines)
		}
		if got := strings.Fields(lines[0]); !slices.Equal(got, want) {
			t.Errorf("%s: Buildroot builds with %q, want %q", c.goarch, got, want)
		}
		if want := fmt.Sprintf("-s -w -buildid= -X main.version=%s -X main.built=%d", m.version, built); lines[1] != want {
			t.Errorf("%s: Buildroot links with %q, want %q", c.goarch, lines[1], want)
		}
		if lines[2] != "CGO_ENABLED=0 cmd/dpsd" {
			t.Errorf("%s: Buildroot builds %q", c.goarch, lines[2])
		}
		if !strings.Contains(recipe, "\nGO_EXTRA_LDFLAGS = \"-X main.version=${PV} -X main.built=${DPSD_BUILT}\"\n") || !strings.Contains(recipe, fmt.Sprintf("\nDPSD_BUILT = \"%d\"\n", built)) {
			t.Errorf("the recipe for Yocto does not link the version and the time %d", built)
		}
	}
}

// withoutOwners is install(1) without -o and -g, because the image's users do not exist here.
const withoutOwners = `install() {
	for argument; do
		shift
		case $argument in
		-o | -g) skip=yes; continue ;;
		esac
		if [ "${skip:-}" ]; then skip=; continue; fi
		set -- "$@" "$argument"
	done
	command install "$@"
}
`

// installed returns the files below a directory, and its empty directories.
func installed(t *testing.T, root string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			content, err := os.ReadDir(path)
			if len(content) == 0 {
				files = append(files, name+"/")
			}
			return err
		}
		files = append(files, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestTheRecipesInstallTheServiceAsTheOtherPackagesDo(t *testing.T) {
	m := recipes(t)
	common := []string{
		"usr/bin/dpsd",
		"usr/lib/systemd/catalog/dpsd.catalog",
		"usr/lib/systemd/system/dpsd-hub@.socket", "usr/lib/systemd/system/dpsd-provisioned.target", "usr/lib/systemd/system/dpsd.service",
		"usr/lib/tmpfiles.d/dpsd.conf",
		"usr/share/dpsd/certificate.schema.json", "usr/share/dpsd/check.schema.json", "usr/share/dpsd/dpsd.toml", "usr/share/dpsd/state.schema.json", "usr/share/dpsd/status.schema.json", "usr/share/dpsd/tpm.schema.json",
	}
	program := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("the program"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("Yocto", func(t *testing.T) {
		dir := t.TempDir()
		program(filepath.Join(dir, "B/bin/dpsd"))
		source := filepath.Join(dir, "S/src/github.com/dpsd-project")
		if err := os.MkdirAll(source, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(m.source, filepath.Join(source, "dpsd")); err != nil {
			t.Fatal(err)
		}
		environment := []string{"D=" + filepath.Join(dir, "D"), "S=" + filepath.Join(dir, "S"), "B=" + filepath.Join(dir, "B"), "GO_IMPORT=github.com/dpsd-project/dpsd", "GO_BUILD_BINDIR=bin"}
		for name, path := range map[string]string{ // bitbake.conf
			"bindir": "usr/bin", "datadir": "usr/share", "mandir": "usr/share/man", "nonarch_libdir": "usr/lib", "systemd_system_unitdir": "usr/lib/systemd/system",
			"sysconfdir": "etc", "localstatedir": "var",
		} {
			environment = append(environment, name+"=/"+path)
		}
		if _, err := output("", environment, "sh", "-euc", withoutOwners+first(t, m.recipe(t), `(?s)\ndo_install\(\) \{\n(.*?)\n\}\n`)); err != nil {
			t.Fatal(err)
		}
		want := append(slices.Clone(common), "etc/dpsd/keys/", "var/lib/dpsd/certificate/",
			"usr/share/man/man5/dpsd-state.5", "usr/share/man/man5/dpsd.toml.5", "usr/share/man/man7/dpsd-faults.7", "usr/share/man/man8/dpsd.8")
		slices.Sort(want)
		if got := installed(t, filepath.Join(dir, "D")); !slices.Equal(got, want) {
			t.Errorf("it installs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})

	t.Run("Buildroot", func(t *testing.T) {
		dir := t.TempDir()
		program(filepath.Join(dir, "bin/dpsd"))
		for _, name := range []string{"config", "docs", "packaging"} {
			if err := os.Symlink(filepath.Join(m.source, name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		// $(@D) is the directory of the source. Buildroot's own macro installs the program.
		mk := "golang-package =\ninclude " + filepath.Join(m.tree, "package/dpsd/dpsd.mk") + "\n" + dir + "/all:\n" +
			"\t$(DPSD_INSTALL_INIT_SYSTEMD)\n\t$(foreach hook,$(DPSD_POST_INSTALL_TARGET_HOOKS),$(call $(hook)))\n\tinstall -D -m 0755 $(@D)/bin/dpsd $(TARGET_DIR)/usr/bin/dpsd\n"
		file := filepath.Join(t.TempDir(), "Makefile")
		if err := os.WriteFile(file, []byte(mk), 0o600); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, "target")
		if _, err := output("", nil, "make", "--file", file, "INSTALL=install", "TARGET_DIR="+target, dir+"/all"); err != nil {
			t.Fatal(err)
		}
		want := slices.Sorted(slices.Values(common))
		if got := installed(t, target); !slices.Equal(got, want) {
			t.Errorf("it installs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// The recipes must create the users and groups in sysusers.d, and the directories in tmpfiles.d,
// except those in /run, which is in memory.
func TestTheRecipesCreateTheUsersAndDirectoriesOfTheOtherPackages(t *testing.T) {
	m := recipes(t)
	recipe, mk := m.recipe(t), read(t, filepath.Join(m.tree, "package/dpsd/dpsd.mk"))
	groups := regexp.MustCompile(`(?m)^[gu] (\S+)`).FindAllStringSubmatch(read(t, filepath.Join(m.source, "packaging/systemd/dpsd.sysusers")), -1)
	if len(groups) != 3 {
		t.Fatalf("sysusers.d has %q", groups)
	}
	users := first(t, mk, `(?s)define DPSD_USERS\n(.*?)endef`)
	for _, group := range groups {
		if !slices.Contains(strings.Split(first(t, recipe, `GROUPADD_PARAM:\$\{PN\} = "(.*)"`), "; "), "--system "+group[1]) {
			t.Errorf("Yocto does not create the group %s", group[1])
		}
		if !regexp.MustCompile(`(?m)^\t(\S+ -1 ` + group[1] + ` -1|dpsd .* ` + group[1] + ` Azure) `).MatchString(users) {
			t.Errorf("Buildroot does not create the group %s", group[1])
		}
	}
	if user := first(t, recipe, `USERADD_PARAM:\$\{PN\} = "(.*)"`); !strings.Contains(user, "--gid dpsd --groups dpsd-keys ") || !strings.HasSuffix(user, " dpsd") {
		t.Errorf("Yocto creates the user with %s", user)
	}
	permissions := first(t, mk, `(?s)define DPSD_PERMISSIONS\n(.*?)endef`)
	directories := regexp.MustCompile(`(?m)^d (\S+) :?0?(\d+) (\S+) (\S+) -$`).FindAllStringSubmatch(read(t, filepath.Join(m.source, "packaging/systemd/dpsd.tmpfiles")), -1)
	directories = slices.DeleteFunc(directories, func(d []string) bool { return strings.HasPrefix(d[1], "/run/") })
	if len(directories) != 3 {
		t.Fatalf("tmpfiles.d has %q", directories)
	}
	for _, d := range directories {
		path, mode, user, group := d[1], d[2], d[3], d[4]
		if line := fmt.Sprintf("\t%s d %s %s %s -", path, mode, user, group); !strings.Contains(permissions, line) {
			t.Errorf("Buildroot does not create %q", line)
		}
		in := strings.NewReplacer("/etc/", "${D}${sysconfdir}/", "/var/", "${D}${localstatedir}/").Replace(path)
		owner := "-o " + user + " "
		if user == "root" {
			owner = ""
		}
		if line := fmt.Sprintf("    install -d -m %04s %s-g %s %s\n", mode, owner, group, in); !strings.Contains(recipe, line) {
			t.Errorf("Yocto does not create %q", line)
		}
	}
}

func TestTheLinterOfRecipesHasNoFindings(t *testing.T) {
	m := recipes(t)
	linter := os.Getenv("DPSD_OELINT")
	if linter == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("oelint-adv is not installed")
		}
		t.Skip("oelint-adv is not installed; make test-recipes installs it if there are python3 and venv")
	}
	// Two rules are left out: one connects to the home page, and one recommends variants for the
	// machine that builds the image.
	out, err := output("", nil, linter, "--quiet", "--mode", "all", "--release", "wrynose", "--suppress", "oelint.vars.homepageping", "--suppress", "oelint.var.bbclassextend",
		filepath.Join(m.layer, "recipes-connectivity/dpsd/dpsd_"+m.version+".bb"), filepath.Join(m.layer, "conf/layer.conf"))
	if err != nil || out != "" {
		t.Errorf("%s%v", out, err)
	}
}
