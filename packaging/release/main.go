// Command release makes the parts of a release other than the Debian packages and the images: the
// packages for other distributions, archives, checksums, signatures and provenance. It also makes
// the package repositories. The same inputs produce the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

const usage = `usage: release COMMAND FLAGS

  key         writes a new secret key to FILE
  packages    makes the packages and archives from the Debian packages in DIST
  finish      writes the notes, the provenance, the checksums and their signature to DIST
  repository  adds the packages in DIST to the package repositories in DIR
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// job contains the inputs that the commands share.
type job struct {
	version string    // in dpkg's format
	time    time.Time // the time stamp of everything
	tree    string    // the directory of the source
	dist    string    // the directory of the release
	archs   []string  // dpkg's names
	key     *key
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command\n%s", usage)
	}
	var j job
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&j.version, "version", "", "version of the release")
	seconds := flags.Int64("time", 0, "time of the release, in `SECONDS` since 1970")
	flags.StringVar(&j.tree, "tree", "", "`DIR` of the source")
	flags.StringVar(&j.dist, "dist", "", "`DIR` of the release")
	archs := flags.String("archs", "", "architectures (dpkg's names), separated by spaces")
	keyFile := flags.String("key", "", "`FILE` of the secret key")
	next := flags.String("next-key", "", "`FILE` of the key that will replace it, secret or public")
	directory := flags.String("repository", "", "`DIR` of the repositories")
	url := flags.String("url", "", "`URL` at which the repositories will be published")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	j.time, j.archs = time.Unix(*seconds, 0).UTC(), strings.Fields(*archs)
	if *keyFile == "" {
		return errors.New("no -key")
	}
	if args[0] == "key" {
		return newKeyFile(*keyFile, time.Now())
	}
	if !slices.Contains([]string{"packages", "finish", "repository"}, args[0]) {
		return fmt.Errorf("unknown command %q\n%s", args[0], usage)
	}
	var err error
	if j.key, err = readKey(*keyFile, j.time); err != nil {
		return err
	}
	if *next != "" {
		if err := j.key.announce(*next); err != nil {
			return err
		}
	}
	switch args[0] {
	case "packages":
		return j.packages()
	case "finish":
		return j.finish()
	default:
		return j.repository(*directory, strings.TrimSuffix(*url, "/"))
	}
}
