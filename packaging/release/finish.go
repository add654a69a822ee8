package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

const sums = "SHA256SUMS"

// finish writes the files that describe the release: the notes, the provenance statement, the
// public key, and the checksums with their signature.
func (j *job) finish() error {
	changelog, err := os.ReadFile(filepath.Join(j.tree, "CHANGELOG.md"))
	if err != nil {
		return err
	}
	changes, err := entry(string(changelog))
	if err != nil {
		return err
	}
	public, err := j.key.publicText()
	if err != nil {
		return err
	}
	apk, err := j.key.publicPEM()
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		keyring + ".asc":            public,
		apkKey:                      apk,
		"dpsd_" + j.version + ".md": []byte(j.notes(changes)),
	} {
		if err := put(filepath.Join(j.dist, name), text); err != nil {
			return err
		}
	}
	made, err := digests(j.dist)
	if err != nil {
		return err
	}
	text, err := j.provenance(made)
	if err != nil {
		return err
	}
	name := "dpsd_" + j.version + ".intoto.json"
	if err := put(filepath.Join(j.dist, name), text); err != nil {
		return err
	}
	if made, err = digests(j.dist); err != nil {
		return err
	}
	var list bytes.Buffer
	for _, f := range made {
		fmt.Fprintf(&list, "%s  %s\n", f.sum, f.name)
	}
	signature, err := j.key.armored(list.Bytes())
	if err != nil {
		return err
	}
	return errors.Join(
		put(filepath.Join(j.dist, sums), list.Bytes()),
		put(filepath.Join(j.dist, sums+".asc"), signature),
	)
}

// artefact is a file in the release.
type artefact struct{ name, sum string }

// digests returns the checksums of all files in the directory of the release, in the order of
// their names.
func digests(dir string) (list []artefact, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", e.Name())
		}
		file, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		hash := sha256.New()
		_, err = io.Copy(hash, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, err
		}
		list = append(list, artefact{e.Name(), hex.EncodeToString(hash.Sum(nil))})
	}
	return list, nil
}

var headings = regexp.MustCompile(`(?m)^## \[[0-9].*$`)

// entry returns the top entry of the changelog without its heading.
func entry(changelog string) (string, error) {
	places := headings.FindAllStringIndex(changelog, 2)
	if len(places) == 0 {
		return "", errors.New("CHANGELOG.md has no entry")
	}
	end := len(changelog)
	if len(places) == 2 {
		end = places[1][0]
	}
	return strings.TrimSpace(changelog[places[0][1]:end]), nil
}

// notes returns the release notes.
func (j *job) notes(changes string) string {
	return fmt.Sprintf(`# dpsd %s

%s

## Install

See "Install" in README.md. This release contains these files:

| file | for |
| --- | --- |
| *.deb | Debian, Ubuntu, Raspberry Pi OS |
| *.rpm | Fedora, the RHEL family, SUSE |
| *.apk | Alpine Linux; the public key is %s |
| *.ipk | OpenWrt 24.10 and earlier |
| *-linux-*.tar.gz | other distributions: unpack it, and run ./install as root |
| *.oci.tar, *.docker.tar | containers |
| *.cdx.json | bills of materials |
| *.intoto.json | provenance: the source of the files, and how they were built |
| dpsd-%[4]s.tar.gz | the source, with all dependencies |
| dpsd-%[4]s-yocto.tar.gz, dpsd-%[4]s-buildroot.tar.gz | a Yocto layer, and an external tree for Buildroot |

## Verify

Import the key once, and compare its fingerprint. Two keys are the current one and the next one.

    gpg --import %s.asc
%s
Verify the files that you have downloaded:

    gpg --verify %s.asc %[7]s
    sha256sum --check --ignore-missing %[7]s
`, j.version, changes, apkKey, j.version, keyring, j.key.fingerprints(), sums)
}

// The statement of provenance: https://in-toto.io/Statement/v1 with the predicate
// https://slsa.dev/spec/v1.0/provenance. It contains nothing that differs between builds, so a
// second build produces the same statement.
type (
	statement struct {
		Type          string    `json:"_type"`
		Subject       []subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     predicate `json:"predicate"`
	}
	subject struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	predicate struct {
		BuildDefinition buildDefinition `json:"buildDefinition"`
		RunDetails      runDetails      `json:"runDetails"`
	}
	buildDefinition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   map[string]any `json:"externalParameters"`
		InternalParameters   map[string]any `json:"internalParameters"`
		ResolvedDependencies []dependency   `json:"resolvedDependencies"`
	}
	dependency struct {
		URI    string            `json:"uri"`
		Digest map[string]string `json:"digest"`
	}
	runDetails struct {
		Builder builder `json:"builder"`
	}
	builder struct {
		ID      string            `json:"id"`
		Version map[string]string `json:"version"`
	}
)

// provenance returns the provenance statement for the files in the release.
func (j *job) provenance(made []artefact) ([]byte, error) {
	source := "dpsd-" + j.version + ".tar.gz"
	s := statement{
		Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1",
		Predicate: predicate{
			BuildDefinition: buildDefinition{
				BuildType:          homepage + "/blob/main/docs/release.md#how-a-release-is-built",
				ExternalParameters: map[string]any{"version": j.version, "architectures": j.archs},
				InternalParameters: map[string]any{"SOURCE_DATE_EPOCH": j.time.Unix()},
			},
			RunDetails: runDetails{Builder: builder{
				ID:      homepage + "/blob/main/packaging/release/build",
				Version: map[string]string{"go": runtime.Version()},
			}},
		},
	}
	for _, f := range made {
		digest := map[string]string{"sha256": f.sum}
		if f.name == source {
			s.Predicate.BuildDefinition.ResolvedDependencies = append(s.Predicate.BuildDefinition.ResolvedDependencies, dependency{source, digest})
			continue
		}
		s.Subject = append(s.Subject, subject{f.name, digest})
	}
	if s.Predicate.BuildDefinition.ResolvedDependencies == nil {
		return nil, fmt.Errorf("%s is missing", source)
	}
	commit, err := os.ReadFile(filepath.Join(j.tree, "packaging/revision"))
	if err == nil {
		s.Predicate.BuildDefinition.ResolvedDependencies = append(s.Predicate.BuildDefinition.ResolvedDependencies,
			dependency{"git+" + homepage + ".git", map[string]string{"gitCommit": strings.TrimSpace(string(commit))}})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	text, err := json.MarshalIndent(s, "", "  ")
	return append(text, '\n'), err
}
