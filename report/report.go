// Package report creates the archive of "dpsd report": the data about a gateway that support
// staff need, without its secrets. parts.go lists the contents.
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

// Gateway is the gateway to report on and its data sources. A report needs neither a valid
// configuration nor a running daemon.
type Gateway struct {
	Configuration    string // path of dpsd.toml
	Directory        string // directory of the installed configuration, with a directory for keys
	StateDirectory   string
	RuntimeDirectory string
	Version          string
	BuiltAt          time.Time
	Online           bool // Check uses the network
	WithPayload      bool // do not mask the payload of a custom allocation

	// Outputs of other commands.
	Show    func() ([]byte, error)                // dpsd config show
	Status  func(context.Context) ([]byte, error) // dpsd status --json with the running daemon
	OnFile  func() ([]byte, error)                // dpsd status --json with the state files
	Metrics func(context.Context) ([]byte, error)
	Check   func(context.Context) ([]byte, error) // dpsd check --json

	// Progress is called with a description of the part that is being collected, and with ""
	// at the end.
	Progress func(string)
}

// part is one file of a report.
type part struct {
	name, what string
	limit      time.Duration // time limit of collect; 0 means partLimit
	collect    func(context.Context) piece
}

// piece is the data collected for a part.
type piece struct {
	data    []byte
	secrets [][]byte // secrets that other parts may contain too
	err     error    // reason why data is missing
}

const (
	partLimit = 10 * time.Second
	// maxPart is the maximum size of a part, in bytes. A longer journal loses its beginning,
	// any other part its end.
	maxPart = 1 << 20
)

// ErrStopped means that the context was done first. No report was written.
var ErrStopped = errors.New("stopped; no report was written")

// Write collects the parts, masks the secrets and writes the archive to the file output. If
// output is "", it chooses a name in the working directory. It returns the name and one line
// for each part that is missing or incomplete.
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
		cmp.Or(lacking.String(), "  nothing\n"), redact.Mark, map[bool]string{false: "masked", true: "included, because of --with-payload"}[g.WithPayload]))
	return output, lacking.String(), write(output, name, now, files)
}

const readme = `dpsd report of %s
host %s, dpsd %s, collected by user %d

Parts:
%s
Missing or incomplete:
%s
%s replaces keys, passwords, tokens, the environment of the unit, and
anything that may be one of these. The payload of a custom allocation is %s.
The checksum in state.json is that of the original file on the gateway.

This archive names the gateway, its hub, its proxy and its addresses.
`

// within collects p with a time limit.
func (p part) within(ctx context.Context) piece {
	limit := cmp.Or(p.limit, partLimit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan piece, 1)
	go func() { done <- p.collect(ctx) }()
	// A function that obeys ctx returns the data that it has collected so far.
	select {
	case got := <-done:
		return got
	case <-time.After(limit + 2*time.Second): // for example, a file server does not answer
		return piece{err: fmt.Errorf("gave up after %s", limit)}
	}
}

// plain converts a host name to a valid part of a file name.
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
}

// bounded truncates a part that is too long. The part must already be masked, because
// masking would not find a truncated secret.
func bounded(text string) string {
	if len(text) <= maxPart {
		return text
	}
	return text[:maxPart] + "\n[truncated]\n"
}

type archived struct {
	name string
	data []byte
}

// write writes an archive with files below a directory. The archive appears complete or not
// at all.
func write(path, directory string, at time.Time, files []archived) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // no effect after the file has its name
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

// slurp reads the beginning of a regular file. For files that dpsd writes, open must be
// input.OpenOwn, because the service's user could replace them with a link to any other file.
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
		err = &fs.PathError{Op: "read", Path: path, Err: errors.New("it is larger than 1 MiB; the rest is left out")}
		// The last line may end within a secret.
		data = data[:bytes.LastIndexByte(data, '\n')+1]
	}
	return data, err
}
