// Package imports lists for tests what a package imports.
package imports

import (
	"fmt"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
)

// Direct returns the imports of the non-test sources in a directory, each with one of the files
// that import it. It returns an error if there is no source.
func Direct(dir string) (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	all, sources := map[string]string{}, 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		sources++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return nil, err
		}
		for _, i := range f.Imports {
			path, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			all[path] = name
		}
	}
	if sources == 0 {
		return nil, fmt.Errorf("%s: no source", dir)
	}
	return all, nil
}
