package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// unmappedGroup is the group that the kernel shows for groups that do not exist in a user
// namespace, see user_namespaces(7).
const unmappedGroup = 65534

// openToGroup sets the access to the new directory of the certificates.
func (s *Store) openToGroup(c *certificates) error {
	f, err := c.Open(certificatePath)
	if err != nil {
		return c.about(certificatePath, err)
	}
	defer f.Close()
	if err := c.step("chmod", certificatePath); err != nil {
		return err
	}
	if s.group != "" {
		// With the set-group-ID bit, new files in the directory inherit its group.
		if gid, err := groupID(s.group); err == nil && c.assign(f, certificatePath, gid) == nil && f.Chmod(0o750|fs.ModeSetgid) == nil {
			return nil
		}
	}
	return c.about(certificatePath, f.Chmod(0o750))
}

// share gives the configured group access to a pair, or takes it away if none is configured.
// It writes nothing if the access is right. If the group cannot be set, that is a notice, and
// the access remains as it is; initially, only the owner has access.
func (s *Store) share(c *certificates, directory string) error {
	file, dir := fs.FileMode(0o600), fs.FileMode(0o700)
	if s.group != "" {
		if err := c.assignAll(directory, s.group); err != nil {
			s.noticeOnce(GroupRefused, s.state.path(certificatePath), fmt.Errorf("%s: %w", s.group, err))
			return nil
		}
		file, dir = 0o640, 0o750
	}
	for _, name := range pairFiles {
		if err := c.chmod(join(directory, name), file); err != nil {
			return err
		}
	}
	return c.chmod(directory, dir)
}

// assignAll sets the group of a pair, and ensures that the group may search the directory of
// the certificates.
func (c *certificates) assignAll(directory, group string) error {
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	for _, name := range []string{certificatePath, directory, join(directory, keyName), join(directory, chainName), join(directory, pairName)} {
		f, err := c.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = c.assign(f, name, gid)
		if err == nil && name == certificatePath {
			err = c.searchable(f)
		}
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// assign sets the group of a file, unless the file already has it. In a user namespace in
// which the group does not exist, dpsd cannot set the group; there, the file has inherited it.
func (c *certificates) assign(f *os.File, name string, gid int) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if have := groupOf(info); have == gid || have == unmappedGroup && !mapped(gid) {
		return nil
	}
	if err := c.step("chown", name); err != nil {
		return err
	}
	return cause(f.Chown(-1, gid))
}

func groupOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Gid) }

// searchable ensures that the group of a directory may search and read it.
func (c *certificates) searchable(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Mode()&0o050 == 0o050 {
		return err
	}
	if err := c.step("chmod", certificatePath); err != nil {
		return err
	}
	return cause(f.Chmod(info.Mode()&(fs.ModePerm|fs.ModeSetgid) | 0o050))
}

// chmod sets the mode of a file or directory durably, unless it already has that mode. The directory that
// contains a changed directory must be synced.
func (c *certificates) chmod(name string, mode fs.FileMode) error {
	f, err := c.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return c.about(name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return c.about(name, err)
	}
	if info.Mode().Perm() == mode {
		return nil
	}
	if err := c.step("chmod", name); err != nil {
		return err
	}
	return c.about(name, errors.Join(f.Chmod(mode), f.Sync()))
}

// groupID returns the ID of a group.
func groupID(name string) (int, error) {
	group, err := user.LookupGroup(name)
	if errors.As(err, new(user.UnknownGroupError)) {
		return 0, errors.New("there is no such group")
	}
	if err != nil {
		return 0, cause(err)
	}
	return strconv.Atoi(group.Gid)
}

// mapped reports whether a group exists in the user namespace of this process. systemd maps
// groups to themselves.
func mapped(gid int) bool {
	table, err := os.ReadFile("/proc/self/gid_map")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(table)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && gid >= inside && gid-inside < count {
			return true
		}
	}
	return false
}

// cause returns the error of the system without the path, which may be that of a descriptor.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
