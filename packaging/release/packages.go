package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/apk" // registers the formats
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/ipk"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// architecture has the names of one architecture. The program for armhf runs on every ARMv6.
type architecture struct {
	linux string   // in the names of archives
	rpm   []string // the package for ARMv6 also installs on ARMv7
	apk   []string
	ipk   []string // OpenWrt has a name for each family of processors
}

var architectures = map[string]architecture{
	"amd64":   {"amd64", []string{"x86_64"}, []string{"x86_64"}, []string{"x86_64"}},
	"arm64":   {"arm64", []string{"aarch64"}, []string{"aarch64"}, []string{"aarch64_generic", "aarch64_cortex-a53", "aarch64_cortex-a72"}},
	"armhf":   {"armv6", []string{"armv6hl"}, []string{"armhf", "armv7"}, []string{"arm_arm1176jzf-s_vfp", "arm_cortex-a7_neon-vfpv4", "arm_cortex-a9_vfpv3-d16", "arm_cortex-a15_neon-vfpv4"}},
	"riscv64": {"riscv64", []string{"riscv64"}, []string{"riscv64"}, []string{"riscv64_riscv64"}},
}

const (
	homepage   = "https://github.com/dpsd-project/dpsd"
	maintainer = "dpsd maintainers <" + address + ">"
	keyring    = "dpsd-archive-keyring"
	keyringGPG = "/usr/share/keyrings/" + keyring + ".gpg"
)

// packages makes the packages and archives for all architectures from the files of the Debian
// packages, so that the programs are the same in all formats.
func (j *job) packages() error {
	for _, arch := range j.archs {
		for _, name := range []string{"dpsd", "dpsd-sim"} {
			if err := j.fromDeb(name, arch); err != nil {
				return fmt.Errorf("%s for %s: %w", name, arch, err)
			}
		}
	}
	return j.keyring()
}

// fromDeb makes the packages and the archive of one program for one architecture.
func (j *job) fromDeb(name, arch string) error {
	names, known := architectures[arch]
	if !known {
		return errors.New("there is no such architecture")
	}
	deb := filepath.Join(j.dist, fmt.Sprintf("%s_%s_%s.deb", name, j.version, arch))
	root, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if out, err := exec.Command("dpkg-deb", "--extract", deb, root).CombinedOutput(); err != nil { //nolint:gosec // a file of the release
		return fmt.Errorf("dpkg-deb: %w\n%s", err, out)
	}
	description, err := exec.Command("dpkg-deb", "--field", deb, "Description").Output() //nolint:gosec // a file of the release
	if err != nil {
		return err
	}
	summary, text, _ := strings.Cut(strings.TrimSpace(string(description)), "\n ")
	summary = strings.ToUpper(summary[:1]) + summary[1:]
	info := nfpm.Info{
		Name: name, Version: j.version, VersionSchema: "none", Platform: "linux", Section: "net", Priority: "optional",
		Maintainer: maintainer, Homepage: homepage, License: "Apache-2.0", MTime: j.time, DisableGlobbing: true,
		Description: summary,
	}
	apkVersion, err := alpine(j.version)
	if err != nil {
		return err
	}
	for _, a := range names.rpm {
		rpm := info
		rpm.RPM.Summary = summary
		rpm.Description = strings.ReplaceAll(strings.ReplaceAll(text, "\n .\n", "\n\n"), "\n ", "\n")
		if err := j.rpm(rpm, root, a); err != nil {
			return err
		}
	}
	for _, a := range names.apk {
		if err := j.apk(info, root, a, apkVersion); err != nil {
			return err
		}
	}
	if name == "dpsd" { // a router does not need a simulator
		for _, a := range names.ipk {
			if err := j.ipk(info, root, a); err != nil {
				return err
			}
		}
	}
	return j.archive(name, root, names.linux)
}

// rpm makes a package for Fedora, the RHEL family, and SUSE.
func (j *job) rpm(info nfpm.Info, root, arch string) error {
	info.Arch = arch
	info.RPM = nfpm.RPM{
		Summary: info.RPM.Summary, Arch: arch, BuildHost: "localhost", Compression: "xz", Packager: maintainer,
		Signature: nfpm.RPMSignature{PackageSignature: nfpm.PackageSignature{SignFn: j.key.detached}},
	}
	docs := "/usr/share/doc/" + info.Name + "/"
	contents, err := j.contents(root, func(path string) (to, kind string) {
		switch {
		case strings.HasPrefix(path, "/usr/share/lintian/"), path == docs+"changelog.gz":
			return "", ""
		case path == docs+"copyright":
			return "/usr/share/licenses/" + info.Name + "/copyright", files.TypeRPMLicense
		case strings.HasPrefix(path, "/usr/share/zsh/vendor-completions/"):
			return strings.Replace(path, "vendor-completions", "site-functions", 1), files.TypeFile
		case strings.HasPrefix(path, "/usr/share/doc/"), strings.HasPrefix(path, "/usr/share/man/"):
			return path, files.TypeRPMDoc
		}
		return path, files.TypeFile
	})
	if err != nil {
		return err
	}
	owned := []string{docs, "/usr/share/licenses/" + info.Name}
	if info.Name == "dpsd" {
		owned = append(owned, docs+"examples", "/usr/share/dpsd")
		contents = append(contents, j.file("packaging/release/scripts/dpsd.preset", "/usr/lib/systemd/system-preset/80-dpsd.preset"))
		info.Depends, info.Suggests = []string{"ca-certificates"}, []string{"dpsd-sim"}
		info.Scripts = nfpm.Scripts{PostInstall: j.script("rpm.post"), PreRemove: j.script("rpm.preun"), PostRemove: j.script("rpm.postun")}
	}
	for _, directory := range owned {
		contents = append(contents, &files.Content{Destination: directory, Type: files.TypeDir, FileInfo: &files.ContentFileInfo{Mode: 0o755, MTime: j.time}})
	}
	info.Contents = contents
	return j.write("rpm", fmt.Sprintf("%s-%s-1.%s.rpm", info.Name, j.version, arch), &info)
}

// apk makes a package for Alpine Linux.
func (j *job) apk(info nfpm.Info, root, arch, version string) error {
	info.Arch, info.Version, info.Release = arch, version, "0"
	info.APK = nfpm.APK{
		Arch:      arch,
		Signature: nfpm.APKSignature{PackageSignature: nfpm.PackageSignature{SignFn: j.key.digest}, KeyName: apkKey},
	}
	contents, err := j.contents(root, func(path string) (to, kind string) {
		switch {
		case strings.HasPrefix(path, "/usr/share/lintian/"), strings.HasPrefix(path, "/usr/lib/"):
			return "", ""
		case path == "/usr/share/doc/"+info.Name+"/copyright":
			return "/usr/share/licenses/" + info.Name + "/copyright", files.TypeFile
		case strings.HasPrefix(path, "/usr/share/doc/"):
			return "", ""
		case strings.HasPrefix(path, "/usr/share/zsh/vendor-completions/"):
			return strings.Replace(path, "vendor-completions", "site-functions", 1), files.TypeFile
		}
		return path, files.TypeFile
	})
	if err != nil {
		return err
	}
	if info.Name == "dpsd" {
		contents = append(contents, j.program("packaging/init/openrc/dpsd", "/etc/init.d/dpsd"))
		info.Depends = []string{"ca-certificates-bundle"}
		info.Scripts = nfpm.Scripts{PreInstall: j.script("apk.pre-install"), PostInstall: j.script("apk.post-install"), PreRemove: j.script("apk.pre-deinstall")}
		info.APK.Scripts = nfpm.APKScripts{PreUpgrade: j.script("apk.pre-install"), PostUpgrade: j.script("apk.post-upgrade")}
	}
	info.Contents = contents
	return j.write("apk", fmt.Sprintf("%s-%s-r0.%s.apk", info.Name, version, arch), &info)
}

// accounts are those of packaging/systemd/dpsd.sysusers, as OpenWrt creates them before the
// script of the package runs: USER:GROUP creates both, and adds the user to the group.
const accounts = "dpsd:dpsd dpsd:dpsd-keys :dpsd-certificate"

// ipk makes a package for OpenWrt: the program and only the files that it needs.
func (j *job) ipk(info nfpm.Info, root, arch string) error {
	info.Arch = arch
	info.IPK = nfpm.IPK{Arch: arch, Fields: map[string]string{"Require-User": accounts}}
	contents, err := j.contents(root, func(path string) (to, kind string) {
		switch path {
		case "/usr/bin/dpsd", "/usr/share/dpsd/dpsd.toml":
			return path, files.TypeFile
		case "/usr/share/doc/dpsd/copyright":
			return "/usr/share/licenses/dpsd/copyright", files.TypeFile
		}
		return "", ""
	})
	if err != nil {
		return err
	}
	contents = append(contents,
		j.program("packaging/init/procd/dpsd", "/etc/init.d/dpsd"),
		j.file("packaging/release/scripts/ipk.keep", "/lib/upgrade/keep.d/dpsd"))
	info.Contents = contents
	info.Depends = []string{"ca-bundle"}
	info.Scripts = nfpm.Scripts{PostInstall: j.script("ipk.postinst"), PreRemove: j.script("ipk.prerm")}
	return j.write("ipk", fmt.Sprintf("dpsd_%s_%s.ipk", j.version, arch), &info)
}

// keyring makes the Debian package of the public key.
func (j *job) keyring() error {
	public, err := j.key.public()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	changelog, err := compress([]byte(fmt.Sprintf("%s (%s) unstable; urgency=medium\n\n  * Signing key of dpsd %[2]s.\n\n -- %s  %s\n",
		keyring, j.version, maintainer, j.time.Format(time.RFC1123Z))))
	if err != nil {
		return err
	}
	file, log := filepath.Join(work, "key"), filepath.Join(work, "changelog")
	if err := errors.Join(os.WriteFile(file, public, 0o600), os.WriteFile(log, changelog, 0o600)); err != nil {
		return err
	}
	add := func(source, to string) *files.Content {
		return &files.Content{Source: source, Destination: to, Type: files.TypeFile, FileInfo: &files.ContentFileInfo{Mode: 0o644, MTime: j.time}}
	}
	info := nfpm.Info{
		Name: keyring, Arch: "all", Version: j.version, VersionSchema: "none", Platform: "linux", Section: "misc", Priority: "optional",
		Maintainer: maintainer, Homepage: homepage, MTime: j.time, DisableGlobbing: true,
		Description: "signing key of the dpsd package repository\nWith this key, apt verifies the dpsd packages. An upgrade of this package\ninstalls a new key before the repository uses it.",
		Overridables: nfpm.Overridables{
			Deb: nfpm.Deb{Compression: "xz", Fields: map[string]string{"Multi-Arch": "foreign"}},
			Contents: files.Contents{
				add(file, keyringGPG),
				add(filepath.Join(j.tree, "packaging/release/scripts/keyring.copyright"), "/usr/share/doc/"+keyring+"/copyright"),
				add(log, "/usr/share/doc/"+keyring+"/changelog.gz"),
			},
		},
	}
	return j.write("deb", fmt.Sprintf("%s_%s_all.deb", keyring, j.version), &info)
}

// write makes a package.
func (j *job) write(format, name string, info *nfpm.Info) error {
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(j.dist, name))
	if err != nil {
		return err
	}
	return errors.Join(packager.Package(info, out), out.Close())
}

// contents lists the files in a directory with their places and types in the package. It leaves out
// files without a place.
func (j *job) contents(root string, place func(path string) (to, kind string)) (list files.Contents, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		to, kind := place("/" + name)
		if to == "" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("/%s is not a regular file", name)
		}
		list = append(list, &files.Content{Source: path, Destination: to, Type: kind, FileInfo: &files.ContentFileInfo{Mode: info.Mode().Perm(), MTime: j.time}})
		return nil
	})
	return list, err
}

// file returns a package entry for a file in the source.
func (j *job) file(source, to string) *files.Content {
	return &files.Content{Source: filepath.Join(j.tree, source), Destination: to, Type: files.TypeFile, FileInfo: &files.ContentFileInfo{Mode: 0o644, MTime: j.time}}
}

// program returns a package entry for an executable file in the source.
func (j *job) program(source, to string) *files.Content {
	c := j.file(source, to)
	c.FileInfo.Mode = 0o755
	return c
}

func (j *job) script(name string) string {
	return filepath.Join(j.tree, "packaging/release/scripts", name)
}

// apkKey is the name of the key in /etc/apk/keys.
const apkKey = "dpsd.rsa.pub"

var versionForm = regexp.MustCompile(`^(\d+\.\d+\.\d+)(?:~(alpha|beta|rc)\.(\d+))?(?:~snapshot\.(\d+)\.g[0-9a-f]+)?(?:\+(\d+)\.g[0-9a-f]+)?(?:\.dirty)?$`)

// alpine converts a version to apk's format, which cannot contain a commit: 1.2.3_rc1 is before
// 1.2.3, and 1.2.3_p12 after it.
func alpine(version string) (string, error) {
	match := versionForm.FindStringSubmatch(version)
	if match == nil {
		return "", fmt.Errorf("the version %s does not have one of the forms of packaging/version", version)
	}
	out := match[1]
	if match[2] != "" {
		out += "_" + match[2] + match[3]
	}
	if match[4] != "" {
		out += "_pre" + match[4]
	}
	if match[5] != "" {
		out += "_p" + match[5]
	}
	return out, nil
}
