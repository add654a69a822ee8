package store

import (
	"fmt"
	"os"
	"path/filepath"
)

// PublishedPair returns the directory of the pair that certificate/current names, relative to
// a state directory: "certificate/3". It is for commands that root runs, and follows no link
// that leads elsewhere. The error wraps fs.ErrNotExist if no pair is published.
func PublishedPair(directory string) (string, error) {
	path := filepath.Join(directory, currentPath)
	to, err := os.Readlink(path)
	if err != nil {
		return "", err
	}
	number := pairNumber(to)
	if number == 0 {
		return "", fmt.Errorf("%s is a link to %q, not to the number of a pair", path, to)
	}
	return pairPath(number), nil
}
