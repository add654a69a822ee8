// Package watch reports changes of files.
//
// Files are replaced by rename, are created long after the program has started, and are
// reached through symbolic links that change. Therefore, the package watches not only a
// file but also every directory that the kernel searches to resolve its path, and resolves
// the path again whenever one of the names on it changes.
//
// It also reports mounts and unmounts on the path.
//
// It uses inotify(7) directly. Libraries watch a directory for all events in it; here,
// writing a log next to a key, or in a parent directory, causes no wakeup.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's limit for links in a path, see path_resolution(7).
const maxLinks = 40

// Files sends whenever one of the paths appears, changes or disappears, until ctx ends. It
// misses no change after it has returned; changes while no receiver is ready are combined
// into one value. A value means that the caller should check again: it may be sent without
// a change.
//
// A directory of a path need not exist yet, and a symbolic link anywhere in a path is
// followed to its current target. A directory without read permission cannot be watched and
// is silently ignored.
//
// The channel is never closed, so that a select that uses it after ctx has ended receives
// nothing. Files fails if no inotify instance or watch is available, or if the working
// directory is unknown and a path is relative.
func Files(ctx context.Context, paths ...string) (<-chan struct{}, error) {
	changed := make(chan struct{}, 1)
	if len(paths) == 0 {
		return changed, nil
	}
	w := watcher{changed: changed}
	for _, path := range paths {
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
		w.paths = append(w.paths, path)
	}
	var err error
	if w.inotify, err = newInotify(); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	if err := w.follow(); err != nil {
		w.inotify.close()
		return nil, err
	}
	w.seen, w.mounts = w.look(), w.route.mounts()
	table, _ := os.Open(mountTable) // nil without /proc; its methods then only return an error
	context.AfterFunc(ctx, func() { w.inotify.close(); _ = table.Close() })
	go w.run()
	go followMounts(table, w.mounted)
	return changed, nil
}

type watcher struct {
	paths   []string
	mu      sync.Mutex // guards the following fields
	inotify *inotify
	route   route
	seen    []fs.FileInfo // state of each path at the last check; nil if absent
	mounts  []mount       // mounts on the route after the last change of the table
	changed chan<- struct{}
}

// run returns when the instance is closed.
func (w *watcher) run() {
	for {
		length, err := w.inotify.wait()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.handle(w.inotify.events(length))
		w.mu.Unlock()
	}
}

// mounted checks whether a mount on the route to a path was added or removed.
func (w *watcher) mounted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.follow()
	now, mounts := w.look(), w.route.mounts()
	if err != nil || !slices.EqualFunc(w.seen, now, same) || !slices.Equal(w.mounts, mounts) {
		w.send()
	}
	w.seen, w.mounts = now, mounts
}

// handle processes the names with events. A name that is not on the route to a path (the
// temporary file of a rename, another file) costs only a map look-up. After an overflow of
// the queue, any change is possible.
func (w *watcher) handle(names []string, complete bool) {
	onTheWay := slices.ContainsFunc(names, func(name string) bool { return w.route.names[name] })
	if complete && !onTheWay {
		return
	}
	// Two writes within one tick of the file system's clock have equal times, so an event
	// of the file itself counts without a check.
	direct := slices.ContainsFunc(names, func(name string) bool { return w.route.ends[name] })
	err := w.follow()
	now := w.look()
	if direct || !complete || err != nil || !slices.EqualFunc(w.seen, now, same) {
		w.send()
	}
	w.seen = now
}

func (w *watcher) send() {
	select {
	case w.changed <- struct{}{}:
	default: // a value is already waiting
	}
}

// follow resolves every path and watches the files and directories on its route. A
// directory may be created between resolving and watching, so it repeats until nothing is
// new.
func (w *watcher) follow() error {
	for {
		r := route{watched: map[string]uint32{}, names: map[string]bool{}, ends: map[string]bool{}}
		for _, path := range w.paths {
			r.walk(path)
		}
		grown, err := w.watch(r.watched)
		w.route = r
		if !grown || err != nil {
			return err
		}
	}
}

func (w *watcher) watch(watched map[string]uint32) (grown bool, err error) {
	w.inotify.keep(func(path string) bool { return watched[path] != 0 })
	for path, mask := range watched {
		switch fresh, e := w.inotify.add(path, mask); {
		case e == nil:
			grown = grown || fresh
		// It was removed or replaced, or is not readable.
		case errors.Is(e, fs.ErrPermission), errors.Is(e, fs.ErrNotExist), errors.Is(e, unix.ENOTDIR):
		default:
			err = errors.Join(err, fmt.Errorf("watch %s: %w", path, e))
		}
	}
	return grown, err
}

func (w *watcher) look() []fs.FileInfo {
	infos := make([]fs.FileInfo, len(w.paths))
	for i, path := range w.paths {
		if info, err := os.Stat(path); err == nil {
			infos[i] = info
		}
	}
	return infos
}

func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == b
	}
	return os.SameFile(a, b) && a.Mode() == b.Mode() && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// route describes the files and directories that the kernel uses to resolve the paths.
type route struct {
	watched map[string]uint32 // masks of the searched directories and of the files, by path without symbolic links
	names   map[string]bool   // names that are looked up in the directories
	ends    map[string]bool   // the last names of the paths: a file or a link to it
}

// walk resolves path as described in path_resolution(7), and stops where the kernel does:
// at a missing name, a file, or one link too many.
func (r *route) walk(path string) {
	directory, rest, links := "/", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			directory = filepath.Dir(directory)
			continue
		}
		full := filepath.Join(directory, name)
		r.watched[directory] = ofDirectory
		r.names[full] = true
		if len(rest) == 0 {
			r.ends[full] = true
		}
		info, err := os.Lstat(full)
		if err != nil {
			return
		}
		if info.Mode().Type() != fs.ModeSymlink {
			directory = full
			if !info.IsDir() {
				if len(rest) == 0 {
					r.watched[full] = ofFile
					if !info.Mode().IsRegular() {
						r.watched[full] = ofDevice
					}
				}
				return
			}
			continue
		}
		target, err := os.Readlink(full)
		if links++; err != nil || links > maxLinks {
			return
		}
		if filepath.IsAbs(target) {
			directory = "/"
		}
		rest = append(strings.Split(strings.TrimRight(target, "/"), "/"), rest...)
	}
}
