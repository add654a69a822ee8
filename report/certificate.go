package report

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/store"
)

// This file adds the issued certificate to a report: its chain and its metadata, never a key.
// The user of the service can write to these directories, so their files are opened without
// following links, and a chain contains only what can be parsed as a certificate.

// certificates is the directory of the issued certificates below the state directory.
const certificates = "certificate"

// maxPairs is the maximum number of names in that directory that a report considers.
const maxPairs = 100

// issuedKeys returns the keys of all issued certificates, and of a pending request, as far as
// this user may read them, so that they are masked in all parts.
func issuedKeys(state string) (keys [][]byte, err error) {
	pairs, err := pairs(state)
	errs := []error{err}
	for _, pair := range pairs {
		key, err := slurp(beneath(state), filepath.Join(pair, "key.pem"))
		if key != nil {
			keys = append(keys, key)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return keys, errors.Join(errs...)
}

// pairs returns the directories of pairs, relative to the state directory.
func pairs(state string) (found []string, err error) {
	names, err := input.ListBeneath(state, certificates, maxPairs)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) {
		return nil, nil
	}
	slices.Sort(names)
	for _, name := range names {
		path := filepath.Join(certificates, name)
		if info, err := input.StatBeneath(state, path); err == nil && info.IsDir() {
			found = append(found, path)
		}
	}
	return found, err
}

// listPairs lists the files of all pairs.
func listPairs(b *strings.Builder, state string) error {
	directories, err := pairs(state)
	errs := []error{err}
	if _, err := input.StatBeneath(state, certificates); err == nil {
		directories = append([]string{certificates}, directories...)
	}
	for _, directory := range directories {
		names, err := input.ListBeneath(state, directory, maxPairs)
		if !errors.Is(err, io.EOF) { // it is empty
			errs = append(errs, err)
		}
		slices.Sort(names)
		b.WriteString(filepath.Join(state, directory) + ":\n")
		for _, name := range names {
			if info, err := input.StatBeneath(state, filepath.Join(directory, name)); err == nil {
				listed(b, info, filepath.Join(state, directory, name))
			}
		}
		b.WriteByte('\n')
	}
	return errors.Join(errs...)
}

// beneath returns a function that opens a path below a directory, for slurp.
func beneath(directory string) func(string) (*os.File, error) {
	return func(path string) (*os.File, error) { return input.OpenBeneath(directory, path) }
}

// pairFile returns a function that reads a file of the published pair. mask returns the part of
// the file that the archive contains.
func (g Gateway) pairFile(published, name string, mask func([]byte) []byte) func(context.Context) piece {
	return func(context.Context) piece {
		if published == "" {
			return piece{}
		}
		data, err := slurp(beneath(g.StateDirectory), filepath.Join(published, name))
		if errors.Is(err, fs.ErrNotExist) {
			return piece{}
		}
		if data != nil {
			data = mask(data)
		}
		return piece{data: data, err: err}
	}
}

// chainOf returns the certificates in PEM text, and nothing else in it.
func chainOf(data []byte) []byte {
	var chain strings.Builder
	rest, left := data, len(data)
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		rest = after
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			text := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: c.Raw})
			chain.Write(text)
			left -= len(text)
		}
	}
	if left > 0 {
		fmt.Fprintf(&chain, "%s %d bytes that are not a certificate\n", redact.Mark, left)
	}
	return []byte(chain.String())
}

// maskPair returns the known members of certificate.json.
func maskPair(data []byte) []byte { return []byte(known(string(data), &store.Pair{}, "  ") + "\n") }

// known returns the members of a JSON object that a struct has.
func known(text string, into any, indent string) string {
	if json.Unmarshal([]byte(text), into) != nil {
		return fmt.Sprintf(`"%s %d bytes"`, redact.Mark, len(text))
	}
	return strings.TrimSuffix(string(encoded(into, indent)), "\n")
}
