package watch

import (
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// Reaction tells which of the names would make a watch of the paths look again.
func Reaction(paths, names []string) (heard []string, err error) {
	w := watcher{watched: map[string]bool{}, paths: paths}
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		return nil, err
	}
	defer func() { _ = w.notify.Close() }()
	if err := w.follow(); err != nil {
		return nil, err
	}
	for _, name := range names {
		if w.route.names[filepath.Clean(name)] {
			heard = append(heard, name)
		}
	}
	return heard, nil
}
