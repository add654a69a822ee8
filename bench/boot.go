package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// unchangedBoot boots a gateway twice, with the same answer of the service, and counts the
// changes that the second boot makes to the state directory: events of inotify(7), which
// include every write, and files that differ. A boot removes the content of /run.
func (s *service) unchangedBoot(program string) (events int, err error) {
	if err := s.anew(); err != nil {
		return 0, err
	}
	_, _, err = s.serve(func() error {
		if _, err := s.once(program); err != nil {
			return err
		}
		if err := s.clearRun(); err != nil {
			return err
		}
		before, err := s.stateFiles()
		if err != nil {
			return err
		}
		events, err = eventsIn(s.path("state"), func() error {
			_, err := s.once(program)
			return err
		})
		if err != nil {
			return err
		}
		after, err := s.stateFiles()
		if !slices.Equal(before, after) {
			events++
		}
		return err
	})
	return events, err
}

// eventsIn counts the events of inotify(7) in a directory and its subdirectories while f runs.
func eventsIn(dir string, f func() error) (n int, err error) {
	watcher, err := fsnotify.NewBufferedWatcher(1000)
	if err != nil {
		return 0, err
	}
	defer func() { _ = watcher.Close() }()
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return watcher.Add(path)
	})
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	// This file is created last, so its event is the last one to arrive.
	mark := filepath.Join(dir, "mark")
	if err := os.Mkdir(mark, 0o700); err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(mark) }()
	for {
		select {
		case e := <-watcher.Events:
			if e.Name == mark {
				return n, nil
			}
			n++
		case err := <-watcher.Errors:
			return n, err
		case <-time.After(limit):
			return n, fmt.Errorf("inotify did not report %s", mark)
		}
	}
}

// stateFiles returns the size and the modification time of each file.
func (s *service) stateFiles() (all []string, err error) {
	err = filepath.WalkDir(s.path("state"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		all = append(all, fmt.Sprint(path, info.Size(), info.ModTime()))
		return nil
	})
	return all, err
}
