// Package watch tells when files change.
//
// Files are replaced by rename, appear long after the program that waits for
// them, and hide behind symbolic links that are swapped. So not only a file is watched:
// every directory that the kernel consults on the way to it is, and the way
// is walked again whenever one of the names on it changes.
//
// What is mounted or unmounted on the way counts, too.
//
// It uses inotify(7) itself. The libraries watch a directory for all that happens in it;
// here a log that is written beside a key, or in a directory above it, wakes nobody.
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

// maxLinks is where the kernel gives up too (path_resolution(7)).
const maxLinks = 40

// Files sends whenever one of the paths appears, changes or disappears, until
// ctx ends. Everything that happens after Files returned is seen; what happened
// while nobody received is one value. A value means "look again": it may come
// without a change.
//
// A directory that does not exist yet is waited for, and a symbolic link
// anywhere in a path is followed to what it points to at the time. A directory
// that may not be read cannot be watched; it is passed over in silence.
//
// The channel is never closed, so that a select which still holds it after ctx
// ended sees nothing. Errors: no inotify instance or watch is left, a working
// directory that cannot be found for a relative path.
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
	table := openMountEvents()
	context.AfterFunc(ctx, func() { w.inotify.close(); table.close() })
	go w.run()
	go table.follow(w.mounted)
	return changed, nil
}

type watcher struct {
	paths   []string
	mu      sync.Mutex // guards what follows
	inotify *inotify
	route   route
	seen    []fs.FileInfo // what each path was at the last look; nil: absent
	mounts  []mount       // on the way, when the table last changed
	changed chan<- struct{}
}

// run ends when the instance is closed.
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

// mounted looks whether a mount on the way to a path has come or gone.
func (w *watcher) mounted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.follow()
	now, mounts := w.look(), w.route.mounts()
	if err != nil || !same(w.seen, now) || !slices.Equal(w.mounts, mounts) {
		w.send()
	}
	w.seen, w.mounts = now, mounts
}

// handle takes what the kernel told: the names at which something happened. One that is
// not on the way to a path (the temporary file of a rename, a neighbour) costs no more
// than a map look-up. After an overflow of the queue anything may have happened.
func (w *watcher) handle(names []string, complete bool) {
	onTheWay := slices.ContainsFunc(names, func(name string) bool { return w.route.names[name] })
	if complete && !onTheWay {
		return
	}
	// Two writes within one tick of the file system's clock look the same, so
	// an event of the file itself counts without a look.
	direct := slices.ContainsFunc(names, func(name string) bool { return w.route.ends[name] })
	err := w.follow()
	now := w.look()
	if direct || !complete || err != nil || !same(w.seen, now) {
		w.send()
	}
	w.seen = now
}

func (w *watcher) send() {
	select {
	case w.changed <- struct{}{}:
	default: // one value already says "look again"
	}
}

// follow walks to every path and watches what it consults. A directory may appear
// between the walk and its watch, so it walks until nothing is new.
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
		// It has gone, or is another now, or may not be read.
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

func same(a, b []fs.FileInfo) bool {
	for i := range a {
		switch {
		case a[i] == nil && b[i] == nil:
		case a[i] == nil || b[i] == nil,
			!os.SameFile(a[i], b[i]),
			a[i].Mode() != b[i].Mode(),
			a[i].Size() != b[i].Size(),
			!a[i].ModTime().Equal(b[i].ModTime()):
			return false
		}
	}
	return true
}

// route is what the kernel consults on its way to the paths.
type route struct {
	watched map[string]uint32 // directories that are searched, and files, without symbolic links in their names; what for
	names   map[string]bool   // looked up in the directories
	ends    map[string]bool   // those of names that a path ends at: the file, or a link in its place
}

// walk follows path as path_resolution(7) does, and stops where the kernel
// would: at a missing name, a file, or one link too many.
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
