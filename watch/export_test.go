package watch

import "path/filepath"

// Reaction returns the names whose events would make a watch of the paths check them again.
func Reaction(paths, names []string) (reacted []string, err error) {
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
			reacted = append(reacted, name)
		}
	}
	return reacted, nil
}

// Reported returns the names that the kernel reports to a watch of path while changes are
// made, up to the first report of last.
func Reported(path string, change func(), last string) (all []string, err error) {
	w := watcher{paths: []string{path}}
	if w.inotify, err = newInotify(); err != nil {
		return nil, err
	}
	defer w.inotify.close()
	if err := w.follow(); err != nil {
		return nil, err
	}
	change()
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
