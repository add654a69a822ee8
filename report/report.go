// Package report puts together the archive of dpsd report: what a support person needs to see
// of a gateway, and none of its secrets. The list in parts.go says what goes in.
package report

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/redact"
)

// Gateway is what a report is about, and whom it asks. A report needs no configuration that
// can be used, and no daemon that runs.
type Gateway struct {
	Configuration    string // the path of dpsd.toml
	Directory        string // where the installed configuration is, with a directory for keys
	StateDirectory   string
	RuntimeDirectory string
	Version          string
	BuiltAt          time.Time
	Online           bool // Check goes on to the network
	WithPayload      bool // the payload of a custom allocation is left in

	// What other commands print.
	Show    func() ([]byte, error)                // dpsd config show
	Status  func(context.Context) ([]byte, error) // dpsd status --json, of the running daemon
	OnFile  func() ([]byte, error)                // the same, of the state files
	Metrics func(context.Context) ([]byte, error)
	Check   func(context.Context) ([]byte, error) // dpsd check --json

	// Progress says what is being collected; "" says that all is.
	Progress func(string)
}

// part is one file of a report.
type part struct {
	name, what string
	limit      time.Duration // what collect may take; 0 stands for partLimit
	collect    func(context.Context) piece
}

// piece is what could be collected for a part, and what more there is to say.
type piece struct {
	data    []byte
	secrets [][]byte // which the other parts may hold too
	err     error    // why something is missing
}

const (
	partLimit = 10 * time.Second
	// maxPart bounds a part, in bytes; the last ones are kept of a journal, the first
	// ones of everything else.
	maxPart = 1 << 20
)

// ErrStopped says that the context ended first. No report was written.
var ErrStopped = errors.New("stopped; no report was written")

// Write collects, masks and writes to the file output; "" is a name of its own in the working
// directory. It returns the file, and a line for each part that is missing or not whole.
func (g Gateway) Write(ctx context.Context, output string) (file, missing string, err error) {
	now := time.Now().UTC()
	host, _ := os.Hostname()
	name := fmt.Sprintf("dpsd-report-%s-%s", plain(cmp.Or(host, "unknown")), now.Format("20060102T150405Z"))
	output = cmp.Or(output, name+".tar.gz")

	var known redact.Known
	var pieces []piece
	all := g.parts()
	for _, p := range all {
		g.Progress("Collecting " + p.what)
		got := p.within(ctx)
		if ctx.Err() != nil {
			return "", "", ErrStopped
		}
		for _, secret := range got.secrets {
			known.Add(secret)
		}
		pieces = append(pieces, got)
	}
	g.Progress("")

	files := []archived{{"README.txt", nil}}
	var list, lacking strings.Builder
	for i, p := range all {
		got := pieces[i]
		text := bounded(known.Mask(redact.Tokens(string(got.data))))
		if got.data != nil && p.name != "" {
			files = append(files, archived{p.name, []byte(text)})
			fmt.Fprintf(&list, "  %-24s %s\n", p.name, p.what)
		}
		if got.err != nil {
			why := foreign.Line(known.Mask(redact.Tokens(strings.ReplaceAll(got.err.Error(), "\n", "; "))), foreign.MaxFault)
			fmt.Fprintf(&lacking, "  %-24s %s\n", cmp.Or(p.name, p.what), why)
		}
	}
	files[0].data = []byte(fmt.Sprintf(readme, now.Format(time.RFC3339), known.Mask(host), g.Version, os.Geteuid(), list.String(),
		cmp.Or(lacking.String(), "  nothing\n"), redact.Mark, map[bool]string{false: "masked", true: "left in, as --with-payload asked for"}[g.WithPayload]))
	return output, lacking.String(), write(output, name, now, files)
}

const readme = `dpsd report of %s
host %s, dpsd %s, collected by user %d

Parts:
%s
Missing, in part or altogether:
%s
%s stands in place of keys, passwords, tokens, the environment of the unit, and of
whatever might be one of them. The payload of a custom allocation is %s.
The checksum in state.json is that of the file as it is on the gateway.

This archive names the gateway, its hub, its proxy and its addresses.
`

// within collects p, or gives up.
func (p part) within(ctx context.Context) piece {
	limit := cmp.Or(p.limit, partLimit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan piece, 1)
	go func() { done <- p.collect(ctx) }()
	// What minds ctx says itself what it has got so far.
	select {
	case got := <-done:
		return got
	case <-time.After(limit + 2*time.Second): // such as a file on a server that does not answer
		return piece{err: fmt.Errorf("given up after %s", limit)}
	}
}

// plain makes a host's name fit for that of a file.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
}

// bounded cuts a part that is too long. It was masked before: half a secret would not
// be found.
func bounded(text string) string {
	if len(text) <= maxPart {
		return text
	}
	return text[:maxPart] + "\n[cut]\n"
}

type archived struct {
	name string
	data []byte
}

// write puts files below a directory of the archive, which appears whole or not at all.
func write(path, directory string, at time.Time, files []archived) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // nothing to do once it has its name
	packed := gzip.NewWriter(f)
	archive := tar.NewWriter(packed)
	for _, file := range files {
		header := &tar.Header{Name: directory + "/" + file.name, Mode: 0o600, Size: int64(len(file.data)), ModTime: at, Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(file.data); err != nil {
			return err
		}
	}
	if err := errors.Join(archive.Close(), packed.Close()); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// slurp reads the beginning of a regular file. open is input.OpenOwn for the files that dpsd
// writes: in their directories its user could have made a link to any other file.
func slurp(open func(string) (*os.File, error), path string) ([]byte, error) {
	f, err := open(path)
	if err != nil {
		if !errors.As(err, new(*fs.PathError)) {
			err = &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPart+1))
	if err == nil && len(data) > maxPart {
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("it has more than 1 MiB, the rest is left out")}
		// The last line may be half a secret.
		data = data[:bytes.LastIndexByte(data, '\n')+1]
	}
	return data, err
}
