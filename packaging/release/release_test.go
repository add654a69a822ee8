package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// made is the release that "make test-release" has built.
type made struct {
	dir, version string
	archs        []string
}

// release returns the release to test.
func release(t *testing.T) made {
	t.Helper()
	dir := os.Getenv("DPSD_RELEASE")
	if dir == "" {
		t.Skip("no DPSD_RELEASE: make test-release makes it and runs this")
	}
	return made{dir, os.Getenv("DPSD_VERSION"), strings.Fields(os.Getenv("DPSD_ARCHS"))}
}

func (m made) path(name string) string { return filepath.Join(m.dir, "dist", name) }

// need skips a test whose tools are missing; in CI, the test fails.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func write(t *testing.T, path string, text []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// flipped returns a text in which one bit differs.
func flipped(text []byte) []byte {
	text = slices.Clone(text)
	text[len(text)/2] ^= 1
	return text
}

// The source archive has no git history. Built in a different directory, with a different time zone,
// locale and umask, it produces the same release, including the signatures.
func TestTheSourceArchiveBuildsTheSameRelease(t *testing.T) {
	m := release(t)
	other := filepath.Join(t.TempDir(), "a longer path", "with spaces")
	if err := os.MkdirAll(filepath.Join(other, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "tar", "-xzf", m.path("dpsd-"+m.version+".tar.gz"), "-C", other)
	tree := filepath.Join(other, "dpsd-"+m.version)
	if version := strings.TrimSpace(tool(t, filepath.Join(tree, "packaging/version"))); version != m.version {
		t.Fatalf("the version of the source archive is %s, want %s", version, m.version)
	}
	again := filepath.Join(other, "dist")
	cmd := exec.Command("sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, filepath.Join(tree, "packaging/release/build"), m.version, again, filepath.Join(m.dir, "key")}, m.archs...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(other, "tmp"), "TZ=Pacific/Kiritimati", "LC_ALL=C", "LANG=tr_TR.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first, err := digests(filepath.Join(m.dir, "dist"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := digests(again)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range first {
		if !slices.Contains(second, f) {
			t.Errorf("%s differs in the second build", f.name)
		}
	}
	if len(first) != len(second) || len(first) < 20 {
		t.Errorf("%d files, then %d", len(first), len(second))
	}
}

func TestTheSignedChecksumsCoverEveryFileAndRefuseAChangedByteAndAForeignKey(t *testing.T) {
	need(t, "gpgv", "gpg")
	m := release(t)
	all, err := digests(filepath.Join(m.dir, "dist"))
	if err != nil {
		t.Fatal(err)
	}
	list := read(t, m.path(sums))
	want := ""
	for _, f := range all {
		if f.name != sums && f.name != sums+".asc" {
			want += f.sum + "  " + f.name + "\n"
		}
	}
	if string(list) != want {
		t.Errorf("the list is\n%s\nwant\n%s", list, want)
	}
	ring := func(key string) string {
		k, err := readKey(filepath.Join(m.dir, key), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.public()
		if err != nil {
			t.Fatal(err)
		}
		return write(t, filepath.Join(t.TempDir(), "ring.gpg"), public)
	}
	ours, signature := ring("key"), m.path(sums+".asc")
	tool(t, "gpgv", "--keyring", ours, signature, m.path(sums))
	changed := write(t, filepath.Join(t.TempDir(), sums), flipped(list))
	for name, args := range map[string][]string{
		"a changed byte": {"--keyring", ours, signature, changed},
		"a foreign key":  {"--keyring", ring("foreign-key"), signature, m.path(sums)},
	} {
		if out, err := exec.Command("gpgv", args...).CombinedOutput(); err == nil {
			t.Errorf("%s is accepted:\n%s", name, out)
		}
	}
	shown := tool(t, "gpg", "--homedir", t.TempDir(), "--show-keys", "--with-colons", m.path(keyring+".asc"))
	notes := string(read(t, m.path("dpsd_"+m.version+".md")))
	for line := range strings.Lines(shown) {
		if fields := strings.Split(line, ":"); fields[0] == "fpr" && !strings.Contains(strings.ReplaceAll(notes, " ", ""), fields[9]) {
			t.Errorf("the notes do not show the fingerprint %s", fields[9])
		}
	}
}

func TestTheProvenanceNamesEveryFileAndTheSourceItWasBuiltFrom(t *testing.T) {
	m := release(t)
	name := "dpsd_" + m.version + ".intoto.json"
	var s statement
	if err := json.Unmarshal(read(t, m.path(name)), &s); err != nil {
		t.Fatal(err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" {
		t.Errorf("it is a %s with %s", s.Type, s.PredicateType)
	}
	all, err := digests(filepath.Join(m.dir, "dist"))
	if err != nil {
		t.Fatal(err)
	}
	sources := 0
	for _, f := range all {
		switch f.name {
		case sums, sums + ".asc", name:
		case "dpsd-" + m.version + ".tar.gz":
			for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
				if d.URI == f.name && d.Digest["sha256"] == f.sum {
					sources++
				}
			}
		default:
			if !slices.ContainsFunc(s.Subject, func(one subject) bool { return one.Name == f.name && one.Digest["sha256"] == f.sum }) {
				t.Errorf("it does not name %s", f.name)
			}
		}
	}
	if sources != 1 {
		t.Errorf("it names the source %d times", sources)
	}
	commit := ""
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
		commit += d.Digest["gitCommit"]
	}
	if want := strings.TrimSpace(tool(t, "git", "-c", "safe.directory=*", "rev-parse", "HEAD")); commit != want {
		t.Errorf("the commit is %s, want %s", commit, want)
	}
}

// unpackers unpack one file of a package to standard output, by the end of the package's name.
var unpackers = map[string]string{
	".deb":    `dpkg-deb --fsys-tarfile "$1" | tar -xO "./$2"`,
	".rpm":    `rpm2cpio "$1" | cpio --quiet -i --to-stdout "*/$2"`,
	".apk":    `tar -xzOf "$1" "$2" 2>/dev/null`,
	".ipk":    `tar -xzOf "$1" ./data.tar.gz | tar -xzO "./$2"`,
	".tar.gz": `tar -xzOf "$1" --wildcards "*/${2#usr/}"`,
}

func TestThePackagesOfAllFormatsContainTheSameProgram(t *testing.T) {
	need(t, "rpm2cpio", "cpio", "dpkg-deb")
	m := release(t)
	for _, arch := range m.archs {
		names := architectures[arch]
		version, err := alpine(m.version)
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{"dpsd", "dpsd-sim"} {
			packages := []string{program + "_" + m.version + "_" + arch + ".deb", program + "-" + m.version + "-linux-" + names.linux + ".tar.gz"}
			for _, a := range names.rpm {
				packages = append(packages, program+"-"+m.version+"-1."+a+".rpm")
			}
			for _, a := range names.apk {
				packages = append(packages, program+"-"+version+"-r0."+a+".apk")
			}
			for _, a := range names.ipk {
				if program == "dpsd" {
					packages = append(packages, program+"_"+m.version+"_"+a+".ipk")
				}
			}
			want := ""
			for _, name := range packages {
				suffix := filepath.Ext(name)
				if suffix == ".gz" {
					suffix = ".tar.gz"
				}
				out, err := exec.Command("sh", "-c", unpackers[suffix], "unpack", m.path(name), "usr/bin/"+program).Output()
				if err != nil || len(out) < 1_000_000 {
					t.Errorf("%s: %v, %d bytes", name, err, len(out))
					continue
				}
				got := sum(out)
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s contains another program than %s", name, packages[0])
				}
			}
		}
	}
}

func TestRpmAcceptsTheSignatureAndRefusesAChangedByteAndAForeignKey(t *testing.T) {
	need(t, "rpm", "rpmkeys")
	m := release(t)
	database := func(key string) string {
		k, err := readKey(filepath.Join(m.dir, key), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		text, err := k.publicText()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		tool(t, "rpmkeys", "--dbpath", dir, "--import", write(t, filepath.Join(dir, "key.asc"), text))
		return dir
	}
	ours, foreign := database("key"), database("foreign-key")
	rpms, err := filepath.Glob(m.path("*.rpm"))
	if err != nil || len(rpms) != 2*len(m.archs) {
		t.Fatalf("%v, %q", err, rpms)
	}
	for _, path := range rpms {
		if out := tool(t, "rpmkeys", "--dbpath", ours, "--checksig", path); !strings.Contains(out, "digests signatures OK") {
			t.Errorf("%s", out)
		}
		changed := write(t, filepath.Join(t.TempDir(), filepath.Base(path)), flipped(read(t, path)))
		for name, args := range map[string][]string{"a changed byte": {ours, changed}, "a foreign key": {foreign, path}} {
			if out, err := exec.Command("rpmkeys", "--dbpath", args[0], "--checksig", args[1]).CombinedOutput(); err == nil {
				t.Errorf("%s is accepted: %s", name, out)
			}
		}
	}
}

// cpio unpacks a file with an absolute name into the running system, and so does rpmlint.
func TestUnpackingAnRpmChangesOnlyTheCurrentDirectory(t *testing.T) {
	need(t, "rpm2cpio", "cpio")
	m := release(t)
	rpms, err := filepath.Glob(m.path("*.rpm"))
	if err != nil || len(rpms) == 0 {
		t.Fatalf("%v, %q", err, rpms)
	}
	for _, path := range rpms {
		for name := range strings.Lines(tool(t, "sh", "-c", `rpm2cpio "$1" | cpio --quiet --list`, "sh", path)) {
			if !strings.HasPrefix(name, "./usr/") {
				t.Fatalf("%s contains %s", filepath.Base(path), name)
			}
		}
	}
}

func TestRpmlintAndLintianHaveNoObjections(t *testing.T) {
	need(t, "rpmlint", "lintian")
	m := release(t)
	rpms, err := filepath.Glob(m.path("*.rpm"))
	if err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "rpmlint", append([]string{"-c", "rpmlint.toml"}, rpms...)...); !strings.Contains(out, " 0 errors, 0 warnings") {
		t.Errorf("%s", out)
	}
	if out := tool(t, "lintian", "--fail-on=warning", m.path(keyring+"_"+m.version+"_all.deb")); strings.Contains(out, "E: ") || strings.Contains(out, "W: ") {
		t.Errorf("%s", out)
	}
}

// members returns the gzip members of an apk: the signature, the control files and the data.
func members(t *testing.T, text []byte) (list [][]byte) {
	t.Helper()
	for len(text) > 0 {
		r := bytes.NewReader(text)
		zip, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		zip.Multistream(false)
		if _, err := io.Copy(io.Discard, zip); err != nil {
			t.Fatal(err)
		}
		end := len(text) - r.Len()
		list, text = append(list, text[:end]), text[end:]
	}
	return list
}

func untar(t *testing.T, zipped []byte) map[string][]byte {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(zipped))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // only the last member has an end
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// The test verifies a package as apk-tools 2 does: the key signs the control files, which contain
// the checksum of the data.
func TestEachApkIsSignedAsApkToolsVerifiesIt(t *testing.T) {
	m := release(t)
	block, _ := pem.Decode(read(t, m.path(apkKey)))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	apks, err := filepath.Glob(m.path("*.apk"))
	if err != nil || len(apks) == 0 {
		t.Fatalf("%v, %q", err, apks)
	}
	for _, path := range apks {
		parts := members(t, read(t, path))
		if len(parts) != 3 {
			t.Fatalf("%s has %d parts", path, len(parts))
		}
		signature := untar(t, parts[0])[".SIGN.RSA."+apkKey]
		for _, control := range [][]byte{parts[1], flipped(parts[1])} {
			digest := sha1.Sum(control)
			err := rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA1, digest[:], signature)
			if good := bytes.Equal(control, parts[1]); good != (err == nil) {
				t.Errorf("%s: the control files are unchanged: %t, and the signature: %v", filepath.Base(path), good, err)
			}
		}
		data := sha256.Sum256(parts[2])
		if info := string(untar(t, parts[1])[".PKGINFO"]); !strings.Contains(info, "datahash = "+hex.EncodeToString(data[:])+"\n") {
			t.Errorf("%s: the control files name other data:\n%s", filepath.Base(path), info)
		}
	}
}

// OpenWrt reads Require-User as words of the form USER:GROUP, each with an optional third part,
// which not every release knows.
func TestOpenWrtCreatesTheAccountsOfTheService(t *testing.T) {
	m := release(t)
	paths, err := filepath.Glob(m.path("*.ipk"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%v, %q", err, paths)
	}
	control := tool(t, "sh", "-c", `tar -xzOf "$1" ./control.tar.gz | tar -xzO ./control`, "sh", paths[0])
	_, field, _ := strings.Cut(control, "\nRequire-User: ")
	field, _, _ = strings.Cut(field, "\n")
	var users, groups, members []string
	for _, word := range strings.Fields(field) {
		user, group, found := strings.Cut(word, ":")
		if !found || strings.Contains(group, ":") {
			t.Errorf("%q does not have the form USER:GROUP", word)
		}
		users, groups = append(users, user), append(groups, group)
		if user == "dpsd" {
			members = append(members, group)
		}
	}
	if !slices.Contains(users, "dpsd") || !slices.Equal(groups, []string{"dpsd", "dpsd-keys", "dpsd-certificate"}) || !slices.Equal(members, groups[:2]) {
		t.Errorf("the accounts are %q", field)
	}
}

func TestEachPackageContainsTheServiceOfItsSystem(t *testing.T) {
	m := release(t)
	for _, c := range []struct {
		pattern   string
		has, hasn []string
	}{
		{"dpsd-[0-9]*.apk", []string{"etc/init.d/dpsd", "usr/share/man/man8/dpsd.8.gz", "usr/share/licenses/dpsd/copyright"}, []string{"systemd", "usr/share/doc"}},
		{"dpsd_*.ipk", []string{"./etc/init.d/dpsd", "./lib/upgrade/keep.d/dpsd", "./usr/share/dpsd/dpsd.toml"}, []string{"systemd", "share/man"}},
		{"dpsd-[0-9]*-linux-*.tar.gz", []string{"/install", "/service/systemd/dpsd.service", "/service/systemd/dpsd-hub@.socket", "/service/openrc/dpsd", "/service/runit/run", "/service/s6/run", "/share/man/man8/dpsd.8.gz"}, []string{"procd"}},
		{"dpsd-[0-9]*.rpm", []string{"/usr/lib/systemd/system/dpsd.service", "/usr/lib/systemd/system/dpsd-hub@.socket", "/usr/lib/systemd/system-preset/80-dpsd.preset", "/usr/share/licenses/dpsd/copyright"}, []string{"/var/lib/dpsd", "/etc/", "init.d"}},
	} {
		paths, err := filepath.Glob(m.path(c.pattern))
		if err != nil || len(paths) < len(m.archs) {
			t.Fatalf("%s: %v, %q", c.pattern, err, paths)
		}
		for _, path := range paths {
			var list string
			switch filepath.Ext(path) {
			case ".rpm":
				out, err := exec.Command("rpm", "-qpl", "--nosignature", path).Output()
				if err != nil {
					t.Fatal(err)
				}
				list = string(out)
			case ".ipk":
				list = tool(t, "sh", "-c", `tar -xzOf "$1" ./data.tar.gz | tar -tz`, "sh", path)
			default:
				list = tool(t, "sh", "-c", `tar -tzf "$1" 2>/dev/null`, "sh", path)
			}
			for _, name := range c.has {
				if !strings.Contains(list, name+"\n") {
					t.Errorf("%s does not contain %s:\n%s", filepath.Base(path), name, list)
				}
			}
			for _, name := range c.hasn {
				if strings.Contains(list, name) {
					t.Errorf("%s contains %s:\n%s", filepath.Base(path), name, list)
				}
			}
		}
	}
}

func TestARepositoryIsTheSameWhenItIsMadeAgainAndKeepsEarlierIndexes(t *testing.T) {
	need(t, "createrepo_c")
	m := release(t)
	j := job{version: m.version, time: time.Unix(1_700_000_000, 0).UTC(), dist: filepath.Join(m.dir, "dist"), archs: m.archs}
	var err error
	if j.key, err = readKey(filepath.Join(m.dir, "key"), j.time); err != nil {
		t.Fatal(err)
	}
	list := func(dir string) string {
		return tool(t, "sh", "-c", `cd "$1" && find . -type f -exec sha256sum {} + | sort -k 2`, "sh", dir)
	}
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := j.repository(dir, "https://example.com"); err != nil {
			t.Fatal(err)
		}
	}
	// createrepo_c writes the times of the files into the list of packages.
	copied, err := filepath.Glob(filepath.Join(first, rpms, "*.rpm"))
	if err != nil || len(copied) == 0 {
		t.Fatalf("%v, %q", err, copied)
	}
	for _, path := range copied {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if !info.ModTime().Equal(j.time) {
			t.Errorf("%s is of %s, want %s", filepath.Base(path), info.ModTime(), j.time)
		}
	}
	before := list(first)
	if after := list(second); after != before {
		t.Errorf("the second is\n%s\nthe first\n%s", after, before)
	}
	// A client that has read the previous entry points finds what they name.
	debOf(t, filepath.Join(second, pool), m.archs[0])
	tool(t, "cp", copied[0], filepath.Join(second, rpms, "other.rpm"))
	if err := j.repository(second, "https://example.com"); err != nil {
		t.Fatal(err)
	}
	after := list(second)
	for line := range strings.Lines(before) {
		named := strings.Contains(line, "/by-hash/") || strings.Contains(line, ".xml.gz") || strings.Contains(line, "/pool/")
		if named && !strings.Contains(after, line) {
			t.Errorf("this is missing: %s", line)
		}
	}
	if after == before {
		t.Error("another package has not changed the repository")
	}
}

func TestAPublishedPackageIsNeverReplacedByAnotherWithTheSameName(t *testing.T) {
	j := job{time: time.Unix(1_700_000_000, 0)}
	dir := t.TempDir()
	one := write(t, filepath.Join(t.TempDir(), "dpsd_1.0.0_amd64.deb"), []byte("one"))
	two := write(t, filepath.Join(t.TempDir(), "dpsd_1.0.0_amd64.deb"), []byte("two"))
	for range 2 {
		if err := j.add(one, dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.add(two, dir); err == nil || err.Error() != "dpsd_1.0.0_amd64.deb is already in the repository with different content; a changed package needs a new version" {
		t.Errorf("the error is %v", err)
	}
	if text := read(t, filepath.Join(dir, "dpsd_1.0.0_amd64.deb")); string(text) != "one" {
		t.Errorf("the package is now %q", text)
	}
}

func TestPublishingCopiesEverythingToADirectoryOrAnObjectStoreAndTheEntryPointsLast(t *testing.T) {
	need(t, "rsync", "rclone")
	const entry = "deb/dists/stable/InRelease"
	dist, repository := fakeRelease(t, "1.0.0"), t.TempDir()
	for _, name := range []string{"dpsd.sources", "deb/pool/main/dpsd.deb", "deb/dists/stable/InRelease", "deb/dists/stable/Release", "deb/dists/stable/Release.gpg",
		"deb/dists/stable/main/binary-amd64/by-hash/SHA256/0", "rpm/dpsd.rpm", "rpm/repodata/0-primary.xml.gz", "rpm/repodata/repomd.xml", "rpm/repodata/repomd.xml.asc"} {
		write(t, filepath.Join(repository, name), []byte(name))
	}
	list := func(dir string) string { return tool(t, "sh", "-c", `cd "$1" && find . -type f | sort`, "sh", dir) }
	for _, kind := range []string{"", "rclone:"} {
		to := t.TempDir()
		// An object store may know neither the time nor the content of a file, and each entry
		// point has the same length in every release.
		now := time.Now()
		same := write(t, filepath.Join(to, entry), bytes.Repeat([]byte("x"), len(entry)))
		for _, path := range []string{same, filepath.Join(repository, entry)} {
			if err := os.Chtimes(path, now, now); err != nil {
				t.Fatal(err)
			}
		}
		kept := write(t, filepath.Join(to, "deb/pool/main/dpsd_0.deb"), []byte("earlier"))
		tool(t, "./publish", "1.0.0", dist, repository, kind+to)
		want := strings.Join(slices.Sorted(slices.Values(strings.SplitAfter(list(repository)+"./deb/pool/main/dpsd_0.deb\n./releases/1.0.0/SHA256SUMS\n./releases/1.0.0/SHA256SUMS.asc\n./releases/1.0.0/dpsd_1.0.0.intoto.json\n", "\n"))), "")
		if got := list(to); got != want {
			t.Errorf("%q: it contains\n%s\nwant\n%s", kind, got, want)
		}
		if text := read(t, same); string(text) != entry {
			t.Errorf("%q: the entry point is still %q", kind, text)
		}
		if string(read(t, kept)) != "earlier" {
			t.Errorf("%q: an earlier file has changed", kind)
		}
	}
	// A copy that fails leaves the entry points as they were.
	to := t.TempDir()
	before := write(t, filepath.Join(to, entry), []byte("earlier"))
	write(t, filepath.Join(to, "rpm/dpsd.rpm/in-the-way"), nil)
	if out, err := exec.Command("./publish", "1.0.0", dist, repository, to).CombinedOutput(); err == nil {
		t.Fatalf("it succeeds:\n%s", out)
	}
	if text := read(t, before); string(text) != "earlier" {
		t.Errorf("the entry point is now %q", text)
	}
}

// fakeRelease returns the directory of a release.
func fakeRelease(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	name := "dpsd_" + version + ".intoto.json"
	write(t, filepath.Join(dir, name), []byte("statement"))
	write(t, filepath.Join(dir, sums), []byte(sum([]byte("statement"))+"  "+name+"\n"))
	write(t, filepath.Join(dir, sums+".asc"), []byte("signature"))
	return dir
}

func TestACandidateIsPublishedAsFilesButReachesNoGateway(t *testing.T) {
	need(t, "rsync")
	to := t.TempDir()
	tool(t, "./publish", "1.1.0~rc.1", fakeRelease(t, "1.1.0~rc.1"), t.TempDir(), to)
	if got, want := tool(t, "sh", "-c", `cd "$1" && find . -type f | sort`, "sh", to), "./releases/1.1.0~rc.1/SHA256SUMS\n./releases/1.1.0~rc.1/SHA256SUMS.asc\n./releases/1.1.0~rc.1/dpsd_1.1.0~rc.1.intoto.json\n"; got != want {
		t.Errorf("there is\n%s\nwant\n%s", got, want)
	}
	// "make repository" does not add it either.
	for _, version := range []string{"1.1.0~rc.1", "1.0.0+3.g0123abcde"} {
		cmd := exec.Command("make", "-C", "../..", "repository", "VERSION="+version, "DIST="+t.TempDir(), "REPOSITORY="+t.TempDir(), "KEY=none")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), version+" is not a release") {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

func TestNothingIsPublishedAfterAnInterruptedCommandOrADevelopmentBuild(t *testing.T) {
	dist := fakeRelease(t, "1.0.0")
	repository := func(without, with string) string {
		dir := t.TempDir()
		for _, name := range []string{"deb/dists/stable/InRelease", "deb/dists/stable/Release", "deb/dists/stable/Release.gpg", "rpm/repodata/repomd.xml", "rpm/repodata/repomd.xml.asc", with} {
			if name != without && name != "" {
				write(t, filepath.Join(dir, name), nil)
			}
		}
		return dir
	}
	damaged := fakeRelease(t, "1.0.0")
	write(t, filepath.Join(damaged, "dpsd_1.0.0.intoto.json"), []byte("stat"))
	for _, c := range []struct{ version, dist, repository, want string }{
		{"1.0.1", dist, repository("", ""), "there is no release 1.0.1 in "},
		{"1.0.0", t.TempDir(), repository("", ""), "there is no release 1.0.0 in "},
		{"1.0.0", damaged, repository("", ""), "is damaged; run make release"},
		{"1.0.0", dist, repository("rpm/repodata/repomd.xml.asc", ""), "there is no complete repository in "},
		{"1.0.0", dist, repository("", "deb/pool/main/dpsd_1.0.0~snapshot.5.g0123abcde_amd64.deb"), "_amd64.deb does not belong to a release"},
		{"1.0.0", dist, repository("", "deb/pool/main/dpsd_1.1.0~rc.1_amd64.deb"), "_amd64.deb does not belong to a release"},
		{"1.0.0", dist, repository("", "deb/pool/main/dpsd_1.0.0+0.g0123abcde.dirty_amd64.deb"), "_amd64.deb does not belong to a release"},
	} {
		to := filepath.Join(t.TempDir(), "to")
		out, err := exec.Command("./publish", c.version, c.dist, c.repository, to).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v, want %q:\n%s", err, c.want, out)
		}
		if _, err := os.Stat(to); err == nil {
			t.Errorf("something is published in spite of %q", c.want)
		}
	}
}

// debOf makes a small Debian package.
func debOf(t *testing.T, dir, arch string) {
	t.Helper()
	tool(t, "sh", "-ec", `mkdir -p "$1/DEBIAN" "$2"
printf 'Package: dpsd\nVersion: 0.1\nArchitecture: %s\nMaintainer: a\nDescription: a\n' "$3" >"$1/DEBIAN/control"
dpkg-deb --build "$1" "$2/dpsd_0.1_$3.deb"`, "sh", filepath.Join(t.TempDir(), "dpsd"), dir, arch)
}

func TestTheRepositoryKeepsAnArchitectureForWhichTheReleaseHasNoPackage(t *testing.T) {
	need(t, "dpkg-deb")
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := newKeyFile(keyFile, time.Now()); err != nil {
		t.Fatal(err)
	}
	k, err := readKey(keyFile, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	debOf(t, filepath.Join(dir, pool), "arm64")
	debOf(t, filepath.Join(dir, pool), "amd64")
	j := job{time: time.Unix(1_700_000_000, 0).UTC(), archs: []string{"amd64"}, key: k}
	if err := j.apt(dir); err != nil {
		t.Fatal(err)
	}
	if text := string(read(t, filepath.Join(dir, dists, "InRelease"))); !strings.Contains(text, "\nArchitectures: amd64 arm64\n") {
		t.Errorf("the entry point is\n%s", text)
	}
	if text := string(read(t, filepath.Join(dir, dists, component, "binary-arm64/Packages"))); !strings.Contains(text, "\nFilename: pool/main/dpsd_0.1_arm64.deb\n") {
		t.Errorf("the list is\n%s", text)
	}
}

func TestOnlyAReleaseIsPublished(t *testing.T) {
	for _, version := range []string{"1.0.0~snapshot.5.g0123abcde", "1.0.0+3.g0123abcde", "1.0.0+0.g0123abcde.dirty"} {
		out, err := exec.Command("./publish", version, t.TempDir(), t.TempDir(), t.TempDir()).CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "publish: "+version+" is a development build") {
			t.Errorf("%v, %s", err, out)
		}
	}
}
