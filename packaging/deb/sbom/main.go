// Command sbom writes a CycloneDX bill of materials for a program of a package. Its sources
// are the module information in the program, as shown by "go version -m", and the licenses
// in the package's copyright file.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	version := flag.String("version", "", "the package's version")
	arch := flag.String("arch", "", "the package's architecture, as Debian calls it")
	copyright := flag.String("copyright", "packaging/deb/debian/copyright", "the licenses, DEP-5")
	flag.Parse()
	if *version == "" || *arch == "" || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: sbom -version VERSION -arch ARCH [-copyright FILE] PROGRAM")
		os.Exit(2)
	}
	if err := run(os.Stdout, flag.Arg(0), *copyright, *version, *arch); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, program, copyright, version, arch string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	file, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(copyright)
	if err != nil {
		return err
	}
	files, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", copyright, err)
	}
	sum := sha256.Sum256(file)
	b, err := bill(info, files, component{
		Type: "application", Name: filepath.Base(program), Version: version,
		PURL:   fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", filepath.Base(program), url.QueryEscape(version), arch),
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(b)
}

// document is the part of CycloneDX 1.5 (JSON) that this command writes.
type document struct {
	Format     string       `json:"bomFormat"`
	Spec       string       `json:"specVersion"`
	Version    int          `json:"version"`
	Metadata   metadata     `json:"metadata"`
	Components []component  `json:"components"`
	Depends    []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Hashes   []hash    `json:"hashes,omitempty"`
	Licenses []license `json:"licenses"`
	Notice   string    `json:"copyright,omitempty"`
	PURL     string    `json:"purl"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

// bill lists the modules of a program and the standard library.
func bill(info *debug.BuildInfo, files []stanza, program component) (*document, error) {
	own, ok := about("", files)
	if !ok {
		return nil, errors.New("the copyright file has no stanza for the program itself")
	}
	program.Ref = program.PURL
	program.licensed(own)
	b := &document{Format: "CycloneDX", Spec: "1.5", Version: 1, Metadata: metadata{program}}
	uses := dependency{Ref: program.Ref}
	modules := slices.Concat(info.Deps, []*debug.Module{{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}})
	for _, m := range modules {
		if m.Replace != nil && strings.HasPrefix(m.Replace.Path, ".") { // a directory of this tree, which has the license of the program
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		terms, ok := about(m.Path, files)
		if !ok {
			return nil, fmt.Errorf("%s is linked in, and the copyright file has no stanza for %s", m.Path, pattern(m.Path))
		}
		c := component{Type: "library", Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + url.QueryEscape(m.Version)}
		if m.Path == "std" { // https://github.com/package-url/purl-spec defines no name for it; scanners use this one
			c.PURL = "pkg:golang/stdlib@" + m.Version
		}
		c.Ref = c.PURL
		c.licensed(terms)
		b.Components = append(b.Components, c)
		uses.On = append(uses.On, c.Ref)
	}
	b.Depends = []dependency{uses}
	return b, nil
}

func (c *component) licensed(s stanza) {
	c.Licenses = make([]license, 1)
	c.Licenses[0].License.ID = s.license
	c.Notice = strings.Join(s.copyright, "\n")
}
