package enroll

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

// Change is one change of the enrollments. Exactly one of its fields is set.
type Change struct {
	// Individual is added, or replaces the enrollment with its registration ID.
	Individual *Individual
	// Group is added, or replaces the group with its name.
	Group *Group
	// RemoveIndividual is the registration ID of an enrollment to remove.
	RemoveIndividual string
	// RemoveGroup is the name of a group to remove.
	RemoveGroup string
}

// HasKey reports whether the change puts a key itself into the file, instead of the name of a file.
func (c Change) HasKey() bool {
	return c.Individual != nil && c.Individual.PrimaryKey != "" || c.Group != nil && c.Group.PrimaryKey != ""
}

// FindIndividual returns the index of the enrollment of a device, or -1. The case of the ID
// does not matter.
func (e *Enrollments) FindIndividual(registrationID string) int {
	return slices.IndexFunc(e.Individuals, func(i Individual) bool { return strings.EqualFold(i.RegistrationID, registrationID) })
}

// FindGroup returns the index of a group, or -1. The case of the name does not matter.
func (e *Enrollments) FindGroup(name string) int {
	return slices.IndexFunc(e.Groups, func(g Group) bool { return strings.EqualFold(g.Name, name) })
}

// With returns the enrollments with a change. It does not modify e.
func (e *Enrollments) With(c Change) *Enrollments {
	changed := *e
	changed.Individuals, changed.Groups = slices.Clone(e.Individuals), slices.Clone(e.Groups)
	switch {
	case c.Individual != nil:
		changed.Individuals = put(changed.Individuals, e.FindIndividual(c.Individual.RegistrationID), *c.Individual)
	case c.Group != nil:
		changed.Groups = put(changed.Groups, e.FindGroup(c.Group.Name), *c.Group)
	case c.RemoveIndividual != "":
		if i := e.FindIndividual(c.RemoveIndividual); i >= 0 {
			changed.Individuals = slices.Delete(changed.Individuals, i, i+1)
		}
	case c.RemoveGroup != "":
		if i := e.FindGroup(c.RemoveGroup); i >= 0 {
			changed.Groups = slices.Delete(changed.Groups, i, i+1)
		}
	}
	return &changed
}

// put replaces the element at an index, or appends it if the index is -1.
func put[T any](all []T, i int, value T) []T {
	if i < 0 {
		return append(all, value)
	}
	all[i] = value
	return all
}

// Edit makes a change in the text of an enrollments file. It leaves the rest of the text as it
// is, comments included. The name of the file determines the directory of relative file names.
func Edit(name string, text []byte, c Change) ([]byte, error) {
	e, err := Parse(name, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	var (
		table string
		index int
		block []byte // nil to remove
	)
	dir := filepath.Dir(name)
	switch {
	case c.Individual != nil:
		i := *c.Individual
		i.unresolve(dir)
		table, index = "individual", e.FindIndividual(i.RegistrationID)
		block, err = encode(table, struct {
			Individual
			CertificateLife string `toml:"certificate_life,omitempty"`
		}{i, life(i.Grant)})
	case c.Group != nil:
		g := *c.Group
		g.unresolve(dir)
		table, index = "group", e.FindGroup(g.Name)
		block, err = encode(table, struct {
			Group
			CertificateLife string `toml:"certificate_life,omitempty"`
		}{g, life(g.Grant)})
	case c.RemoveIndividual != "":
		table, index = "individual", e.FindIndividual(c.RemoveIndividual)
	case c.RemoveGroup != "":
		table, index = "group", e.FindGroup(c.RemoveGroup)
	}
	if err != nil {
		return nil, err
	}
	if index < 0 && block == nil {
		return text, nil
	}
	return tomlfile.Replace(text, table, index, block)
}

func life(g Grant) string {
	if g.CertificateLife == 0 {
		return ""
	}
	return g.CertificateLife.String()
}

// encode returns a table of an array of tables as TOML.
func encode(table string, value any) ([]byte, error) {
	var b bytes.Buffer
	err := toml.NewEncoder(&b).Encode(map[string]any{table: []any{value}})
	return b.Bytes(), err
}

// unresolve undoes resolve for files below the directory.
func (a *Attestation) unresolve(dir string) {
	for _, f := range []*string{&a.PrimaryKeyFile, &a.SecondaryKeyFile, &a.CAFile} {
		if rel, err := filepath.Rel(dir, *f); *f != "" && err == nil && filepath.IsLocal(rel) {
			*f = rel
		}
	}
}

// Keys returns the keys in base64, from the enrollment or from its files. The secondary key
// is "" if there is none.
func (a *Attestation) Keys() (primary, secondary string, err error) {
	read := func(text, file string) string {
		if file == "" || err != nil {
			return text
		}
		var content []byte
		content, err = os.ReadFile(file)
		return strings.TrimSpace(string(content))
	}
	return read(a.PrimaryKey, a.PrimaryKeyFile), read(a.SecondaryKey, a.SecondaryKeyFile), err
}

// Authorities returns the certificates of the CA, from the enrollment or from its file.
func (a *Attestation) Authorities() ([]*x509.Certificate, error) {
	text := []byte(a.CA)
	if a.CAFile != "" {
		var err error
		if text, err = os.ReadFile(a.CAFile); err != nil {
			return nil, err
		}
	}
	if len(text) == 0 {
		return nil, nil
	}
	all, err := Certificates(text)
	if err != nil {
		return nil, fmt.Errorf("the CA: %w", err)
	}
	return all, nil
}
