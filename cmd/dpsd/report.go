package main

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
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/redact"
)

func reportCommand() *cobra.Command {
	var r reporter
	var output string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Put together what a support person needs to see",
		Long: `Put into one archive what a support person needs to see: configuration, status,
state files, the last attempts, metrics, the last 1000 lines of the journal, the
unit, versions, and what "dpsd check --offline" finds. README.txt in it lists
the parts, what is missing, and why. dpsd need not run. Run it as root: others
may not read all of it.

Keys, certificates and passwords are never put in. What the files hold that
dpsd.toml refers to, what might be a secret in dpsd.toml itself, and what has
the form of a token is masked in every part. So is the payload of a custom
allocation, which may hold anything. The archive does name the gateway, its hub,
proxy and addresses. It is for its owner alone (mode 0600); look into it before
it is sent.

The name of the archive is printed. The exit code is 0 when it was written, also
when some parts could not be had.`,
		Example: `  sudo dpsd report
  sudo dpsd report --online    # checks the way to DPS too
  dpsd report --output report.tar.gz && tar -tzf report.tar.gz`,
		Args:              commandline.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if r.file, err = cmd.Flags().GetString("config"); err != nil {
				return err
			}
			if r.places, err = installationOf(cmd); err != nil {
				return err
			}
			return r.report(output)
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "write `FILE`, in place of\ndpsd-report-HOST-TIME.tar.gz here")
	cmd.Flags().BoolVar(&r.online, "online", false, "check the network too: connects to DPS, but\nregisters nothing")
	cmd.Flags().BoolVar(&r.withPayload, "with-payload", false, "leave the payload of a custom allocation in")
	_ = cmd.MarkFlagFilename("output", "tar.gz") // fails only for a flag that is not there
	return cmd
}

// reporter makes a report.
type reporter struct {
	file                string // the configuration
	places              installation
	online, withPayload bool
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

// report collects, masks and writes.
func (r reporter) report(output string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	now := time.Now().UTC()
	host, _ := os.Hostname()
	name := fmt.Sprintf("dpsd-report-%s-%s", plain(cmp.Or(host, "unknown")), now.Format("20060102T150405Z"))
	if output == "" {
		output = name + ".tar.gz"
	}
	screen := terminalOn(os.Stderr)
	defer screen.progress("")

	var known redact.Known
	var pieces []piece
	all := r.parts()
	for _, p := range all {
		screen.progress("Collecting " + p.what)
		got := p.within(ctx)
		if ctx.Err() != nil {
			return &exitError{exitFailed, errors.New("stopped; no report was written")}
		}
		for _, secret := range got.secrets {
			known.Add(secret)
		}
		pieces = append(pieces, got)
	}
	screen.progress("")

	files := []archived{{"README.txt", nil}}
	var list, missing strings.Builder
	for i, p := range all {
		got := pieces[i]
		text := bounded(known.Mask(redact.Tokens(string(got.data))))
		if got.data != nil && p.name != "" {
			files = append(files, archived{p.name, []byte(text)})
			fmt.Fprintf(&list, "  %-24s %s\n", p.name, p.what)
		}
		if got.err != nil {
			why := printable(known.Mask(redact.Tokens(strings.ReplaceAll(got.err.Error(), "\n", "; "))))
			fmt.Fprintf(&missing, "  %-24s %s\n", cmp.Or(p.name, p.what), why)
		}
	}
	files[0].data = []byte(fmt.Sprintf(readme, now.Format(time.RFC3339), known.Mask(host), version, os.Geteuid(), list.String(),
		cmp.Or(missing.String(), "  nothing\n"), redact.Mark, map[bool]string{false: "masked", true: "left in, as --with-payload asked for"}[r.withPayload]))
	if err := write(output, name, now, files); err != nil {
		return &exitError{exitFailed, try("dpsd report --output FILE, with a FILE where this user can write", err)}
	}
	if missing.Len() > 0 {
		fmt.Fprintf(os.Stderr, "Not in the report, or not all of it:\n%s", missing.String())
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "Try: sudo dpsd report, which can read more")
		}
	}
	_, err := fmt.Println(output)
	return err
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
	late := time.NewTimer(limit + 2*time.Second)
	defer late.Stop()
	select {
	case got := <-done:
		return got
	case <-late.C: // such as a file on a server that does not answer
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
