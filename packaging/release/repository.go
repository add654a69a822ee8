package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The parts of the package repositories. A client first reads the entry points, which list the
// other files with their checksums.
const (
	suite     = "stable"
	component = "main"
	pool      = "deb/pool/" + component
	dists     = "deb/dists/" + suite
	rpms      = "rpm"
)

// repository adds the packages of the release to the repositories in a directory, which may
// contain earlier releases. It first adds the files that the entry points list with their checksums,
// and replaces the entry points last. It removes nothing, because clients may be reading it.
func (j *job) repository(dir, url string) error {
	if dir == "" || url == "" {
		return errors.New("-repository and -url are required")
	}
	for _, kind := range []struct{ pattern, to string }{{"*.deb", pool}, {"*.rpm", rpms}} {
		names, err := filepath.Glob(filepath.Join(j.dist, kind.pattern))
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return fmt.Errorf("%s contains no %s", j.dist, kind.pattern)
		}
		for _, name := range names {
			if err := j.add(name, filepath.Join(dir, kind.to)); err != nil {
				return err
			}
		}
	}
	if err := j.apt(dir); err != nil {
		return err
	}
	if err := j.dnf(dir); err != nil {
		return err
	}
	return j.clients(dir, url)
}

// add copies a package into a directory. A published package never changes, so a package with the
// same name and different content is an error.
func (j *job) add(path, dir string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.Base(path))
	old, err := os.ReadFile(to) //nolint:gosec // the maintainer names the directory
	switch {
	case err == nil && !bytes.Equal(old, text):
		return fmt.Errorf("%s is already in the repository with different content; a changed package needs a new version", filepath.Base(path))
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := put(to, text); err != nil {
		return err
	}
	return os.Chtimes(to, j.time, j.time) // the time is part of the metadata of rpm
}

// apt writes the metadata of the apt repository: https://wiki.debian.org/DebianRepository/Format
func (j *job) apt(dir string) error {
	debs, err := filepath.Glob(filepath.Join(dir, pool, "*.deb"))
	if err != nil {
		return err
	}
	slices.Sort(debs)
	// The architectures are those of all packages, and not only of this release: apt would
	// refuse a repository without the architecture of the gateway.
	var archs []string
	for arch := range architectures {
		if slices.ContainsFunc(debs, func(deb string) bool { return strings.HasSuffix(deb, "_"+arch+".deb") }) {
			archs = append(archs, arch)
		}
	}
	slices.Sort(archs)
	packages := map[string][]byte{}
	for _, deb := range debs {
		text, err := os.ReadFile(deb) //nolint:gosec // the maintainer names the directory
		if err != nil {
			return err
		}
		control, err := exec.Command("dpkg-deb", "--field", deb).Output() //nolint:gosec // a file of the release
		if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		stanza := fmt.Sprintf("%s\nFilename: pool/%s/%s\nSize: %d\nSHA256: %s\n\n", strings.TrimSpace(string(control)), component, filepath.Base(deb), len(text), sum(text))
		for _, arch := range archs {
			if strings.HasSuffix(deb, "_"+arch+".deb") || strings.HasSuffix(deb, "_all.deb") {
				packages[arch] = append(packages[arch], stanza...)
			}
		}
	}
	var list strings.Builder
	for _, arch := range archs {
		at := component + "/binary-" + arch
		zipped, err := compress(packages[arch])
		if err != nil {
			return err
		}
		for name, text := range map[string][]byte{"Packages": packages[arch], "Packages.gz": zipped} {
			byHash := filepath.Join(dir, dists, at, "by-hash/SHA256", sum(text))
			if err := errors.Join(put(byHash, text), put(filepath.Join(dir, dists, at, name), text)); err != nil {
				return err
			}
		}
		fmt.Fprintf(&list, " %s %d %s/Packages\n", sum(packages[arch]), len(packages[arch]), at)
		fmt.Fprintf(&list, " %s %d %s/Packages.gz\n", sum(zipped), len(zipped), at)
	}
	release := fmt.Sprintf(`Origin: dpsd
Label: dpsd
Suite: %s
Codename: %[1]s
Date: %s
Architectures: %s
Components: %s
Description: dpsd, Azure device provisioning for Linux gateways
Acquire-By-Hash: yes
SHA256:
%s`, suite, j.time.Format(time.RFC1123), strings.Join(archs, " "), component, list.String())
	signature, err := j.key.armored([]byte(release))
	if err != nil {
		return err
	}
	signed, err := j.key.clear([]byte(release))
	if err != nil {
		return err
	}
	return errors.Join(
		put(filepath.Join(dir, dists, "Release"), []byte(release)),
		put(filepath.Join(dir, dists, "Release.gpg"), signature),
		put(filepath.Join(dir, dists, "InRelease"), signed),
	)
}

// dnf writes the metadata of the rpm repository with createrepo_c.
func (j *job) dnf(dir string) error {
	seconds := fmt.Sprint(j.time.Unix())
	entry := filepath.Join(dir, rpms, "repodata/repomd.xml")
	// The earlier signature must not stay beside a new list, if this fails.
	if err := os.Remove(entry + ".asc"); err != nil && !errors.Is(err, fs.ErrNotExist) { //nolint:gosec // the maintainer names the directory
		return err
	}
	//nolint:gosec // the maintainer names the directory
	out, err := exec.Command("createrepo_c", "--quiet", "--no-database", "--revision", seconds, "--set-timestamp-to-revision",
		"--retain-old-md", "1000", filepath.Join(dir, rpms)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("createrepo_c: %w\n%s", err, out)
	}
	text, err := os.ReadFile(entry) //nolint:gosec // the maintainer names the directory
	if err != nil {
		return err
	}
	signature, err := j.key.armored(text)
	if err != nil {
		return err
	}
	return put(entry+".asc", signature)
}

// clients writes the files that a client needs: the key, and the description of each repository.
func (j *job) clients(dir, url string) error {
	public, err := j.key.public()
	if err != nil {
		return err
	}
	text, err := j.key.publicText()
	if err != nil {
		return err
	}
	return errors.Join(
		put(filepath.Join(dir, keyring+".gpg"), public),
		put(filepath.Join(dir, keyring+".asc"), text),
		put(filepath.Join(dir, "dpsd.sources"), []byte(fmt.Sprintf(`# The dpsd packages; see sources.list(5).
Types: deb
URIs: %s/deb
Suites: %s
Components: %s
Signed-By: %s
`, url, suite, component, keyringGPG))),
		put(filepath.Join(dir, "dpsd.repo"), []byte(fmt.Sprintf(`# The dpsd packages; see dnf.conf(5).
[dpsd]
name=dpsd
baseurl=%[1]s/%[2]s
gpgkey=%[1]s/%[3]s.asc
gpgcheck=1
repo_gpgcheck=1
`, url, rpms, keyring))),
	)
}

func sum(text []byte) string { return fmt.Sprintf("%x", sha256.Sum256(text)) }

// compress compresses a text, without a name and a time in the header.
func compress(text []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(text)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// put replaces a file atomically.
func put(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // everyone may read what is published
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o644); err != nil { //nolint:gosec // everyone may read what is published
		return err
	}
	return os.Rename(path+".new", path) //nolint:gosec // the maintainer names the directory
}
