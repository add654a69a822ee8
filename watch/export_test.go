package watch

import "path/filepath"

// Reaction tells which of the names would make a watch of the paths look again.
func Reaction(paths, names []string) (heard []string, err error) {
	w := watcher{paths: paths}
	if w.inotify, err = newInotify(); err != nil {
		return nil, err
	}
	defer w.inotify.close()
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

// Told returns the names of which the kernel tells a watch of path, while things happen
// and before it tells of last.
func Told(path string, happens func(), last string) (all []string, err error) {
	w := watcher{paths: []string{path}}
	if w.inotify, err = newInotify(); err != nil {
		return nil, err
	}
	defer w.inotify.close()
	if err := w.follow(); err != nil {
		return nil, err
	}
	happens()
	for {
		length, err := w.inotify.wait()
		if err != nil {
			return nil, err
		}
		names, _ := w.inotify.events(length)
		for _, name := range names {
			if name == last {
				return all, nil
			}
			all = append(all, name)
		}
	}
}
