package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/input"
)

// Names of the files in the directory of the keys.
const (
	keyName         = "device.key"
	certificateName = "device.pem"
	privateKeyName  = "device-key.pem"
)

// File is a file to write.
type File struct {
	Path string
	Text []byte
	Mode fs.FileMode
	// Group is the ID of the group, or -1 for that of this process.
	Group int
	// Secret means that the text must not be shown.
	Secret bool
	// Old is the only content of an existing file that may be replaced; nil means any content.
	Old []byte
}

// Place describes where the files belong, and which group may read the credential.
type Place struct {
	// File is the path of dpsd.toml, and Keys the directory of the credential.
	File, Keys string
	// KeyGroup is the ID of the group that may read the credential, or -1 if only the owner
	// may.
	KeyGroup int
	// Extra are the settings that dpsd needs to work in this place.
	Extra Extra
	// Note describes the differences from an installed package, or is "".
	Note string
}

// Machine describes the user and the machine for PlaceFor.
type Machine struct {
	UID int
	// Group returns the ID of a group.
	Group func(name string) (int, error)
	// Writable reports whether this user may write to a directory, or may create it.
	Writable func(directory string) bool
}

// keysGroup is the group that may read the keys of this gateway. The package creates it.
const keysGroup = "dpsd-keys"

// PlaceFor returns the place for a configuration. If root runs it and the package is installed,
// the group of the service can read the key. Otherwise, only this user can. If this user cannot
// write to the default state directory, the place has settings for a different one.
func PlaceFor(file string, m Machine) *Place {
	p := &Place{File: file, Keys: filepath.Join(filepath.Dir(file), "keys"), KeyGroup: -1}
	if m.UID == 0 {
		group, err := m.Group(keysGroup)
		if err == nil {
			p.KeyGroup = group
			return p
		}
		p.Note = "The group " + keysGroup + " does not exist, so only root can read the key, and dpsd must run as root."
		return p
	}
	p.Note = fmt.Sprintf("You are not root, so only user %d can read the key, and dpsd must run as this user.", m.UID)
	if usual := config.Default().State.Directory; !m.Writable(usual) {
		own := filepath.Join(filepath.Dir(file), "state")
		p.Extra = Extra{
			{Table: "state", Key: "directory", Value: own},
			{Table: "control", Key: "socket", Value: filepath.Join(filepath.Dir(file), "run", "dpsd.sock")},
		}
		p.Note += fmt.Sprintf(" This user cannot write to %s, so dpsd stores its state in %s.", usual, own)
	}
	return p
}

// Files returns the files for the answers: those of the credential, then dpsd.toml. The error
// is a config.Errors.
func (p *Place) Files(a Answers, previous *Previous, extra Extra) (files []File, err error) {
	credential := ""
	add := func(key, name string, text []byte) {
		f := p.keyFile(filepath.Join(p.Keys, name), text)
		f.Secret = name != certificateName
		files = append(files, f)
		credential += config.Setting{Key: key, Value: attest.Reference{File: f.Path}.String()}.TOML() + "\n"
	}
	begin := func(t attest.Type) {
		credential = "\n[[credential]]\n" + config.Setting{Key: "type", Value: t.Name}.TOML() + "\n"
	}
	switch c := a.Credential; {
	case c == nil:
	case c.Certificates != nil:
		begin(attest.X509{}.Type())
		add("certificate", certificateName, c.Certificates)
		add("private_key", privateKeyName, c.PrivateKey)
	default:
		begin(attest.SymmetricKey{}.Type())
		key := c.Key
		if c.GroupKey != nil {
			key = attest.DeriveKey(c.GroupKey, a.RegistrationID)
		}
		add("key", keyName, Encode(key))
	}
	text := previous.text(a, credential, extra, p.Extra)
	if _, err := config.Parse(p.File, strings.NewReader(text)); err != nil {
		return nil, err
	}
	return append(files, File{Path: p.File, Text: []byte(text), Mode: 0o644, Group: -1}), nil
}

// Previous reads the existing configuration. It returns nil without an error if there is none,
// and nil with an error if it cannot be used.
func (p *Place) Previous() (*Previous, error) {
	text, err := readConfiguration(p.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParsePrevious(p.File, text)
}

// readConfiguration returns the text of a configuration.
func readConfiguration(path string) ([]byte, error) {
	f, err := input.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, input.Cause(err))
	}
	defer f.Close()
	return config.Read(path, f)
}

// ExistsError reports a file that exists and must not be replaced.
type ExistsError struct{ Path string }

// Error names the file.
func (e *ExistsError) Error() string { return e.Path + " exists" }

// saved is the suffix of the copy of a replaced file.
const saved = ".orig"

// pending is a file that is complete on disk under a temporary name.
type pending struct {
	File
	temporary string
	// replaces means that the file exists, kept that FILE.orig is a copy of it, and published that
	// the new file has replaced it.
	replaces, kept, published bool
}

// Write writes the files in this order. It first writes all of them under temporary names, so
// that nothing changes if the disk is full or ctx ends. If a file exists, Write returns an
// *ExistsError or, with replace, keeps a copy as FILE.orig. It returns the names of the copies.
func Write(ctx context.Context, files []File, replace bool) (copies []string, err error) {
	all := make([]pending, len(files))
	locked := map[string]*os.File{}
	defer func() {
		for _, d := range locked {
			defer d.Close()
		}
		for i := range all {
			p := &all[i]
			if !p.published {
				_ = os.Remove(p.temporary)
			}
			switch {
			case err == nil:
			case p.published && p.kept:
				_ = os.Rename(p.Path+saved, p.Path)
			case p.kept:
				_ = os.Remove(p.Path + saved)
			case p.published && !p.replaces:
				_ = os.Remove(p.Path)
			}
		}
	}()
	for i, f := range files {
		dir := filepath.Dir(f.Path)
		if err := directory(dir, f); err != nil {
			return nil, err
		}
		if locked[dir] == nil {
			if locked[dir], err = lock(dir); err != nil {
				return nil, notWritten(f.Path, err)
			}
		}
		all[i].File = f
		if err := prepare(&all[i], replace); err != nil {
			return nil, notWritten(f.Path, err)
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for i := range all {
		if p := &all[i]; p.replaces {
			if err := keep(p); err != nil {
				return nil, err
			}
			if p.kept {
				copies = append(copies, p.Path+saved)
			}
		}
	}
	for i := range all {
		if err := publish(&all[i]); err != nil {
			return nil, notWritten(all[i].Path, err)
		}
	}
	return copies, nil
}

// notWritten adds the path to an error that does not name it.
func notWritten(path string, err error) error {
	if errors.As(err, new(*ExistsError)) {
		return err
	}
	return fmt.Errorf("cannot write %s: %w", path, input.Cause(err))
}

// directory creates the directory of a file and its parents. Only users who may read the file can
// list the directory.
func directory(path string, f File) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if parent := filepath.Dir(path); parent != path {
		if err := directory(parent, File{Mode: 0o644, Group: -1}); err != nil {
			return err
		}
	}
	mode := fs.FileMode(0o755)
	if f.Mode&0o004 == 0 {
		mode = 0o700
		if f.Group >= 0 {
			mode = 0o750
		}
	}
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(path, mode) // regardless of the umask
	}
	if err == nil && f.Group >= 0 {
		err = os.Lchown(path, -1, f.Group)
	}
	return err
}

// lock waits until no other process is writing files to a directory with Write.
func lock(directory string) (*os.File, error) {
	d, err := os.Open(directory)
	if err == nil {
		_ = unix.Flock(int(d.Fd()), unix.LOCK_EX) // some file systems do not support it
	}
	return d, err
}

// prepare writes a file under a temporary name in the same directory, and removes temporary files
// that an interrupted process has left there.
func prepare(p *pending, replace bool) (err error) {
	if _, err := os.Lstat(p.Path); err == nil {
		if !replace {
			return &ExistsError{p.Path}
		}
		if p.Old != nil {
			if now, err := input.Read(p.Path, maxFile); err != nil || !bytes.Equal(now, p.Old) {
				return &ExistsError{p.Path} // another process has changed it since then
			}
		}
		p.replaces = true
		// A link to another partition remains a link.
		if p.Path, err = filepath.EvalSymlinks(p.Path); err != nil {
			return err
		}
	}
	dir, name := filepath.Dir(p.Path), "."+filepath.Base(p.Path)+".*.new"
	left, _ := filepath.Glob(filepath.Join(dir, name))
	for _, path := range left {
		_ = os.Remove(path)
	}
	file, err := os.CreateTemp(dir, name)
	if err != nil {
		return err
	}
	p.temporary = file.Name()
	_, err = file.Write(p.Text)
	if err == nil && p.Group >= 0 {
		err = file.Chown(-1, p.Group)
	}
	if err == nil {
		err = file.Chmod(p.Mode)
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// keep saves the file that p replaces as FILE.orig, unless p has the same text. Only users who may
// read the new file can read the copy.
func keep(p *pending) error {
	if text, err := os.ReadFile(p.Path); err == nil && bytes.Equal(text, p.Text) {
		return nil
	}
	copied := p.Path + saved
	if err := os.Remove(copied); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := os.Stat(p.Path)
	if err == nil {
		err = os.Link(p.Path, copied)
	}
	p.kept = err == nil
	if err == nil && info.Mode().Perm()&^p.Mode != 0 {
		err = os.Chmod(copied, info.Mode().Perm()&p.Mode)
	}
	return err
}

// publish gives a file its name.
func publish(p *pending) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if p.replaces {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, p.temporary, unix.AT_FDCWD, p.Path, flags)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// The file system does not support RENAME_NOREPLACE. prepare has found no such file.
		err = os.Rename(p.temporary, p.Path)
	}
	if errors.Is(err, unix.EEXIST) {
		return &ExistsError{p.Path}
	}
	if err != nil {
		return err
	}
	p.published = true
	d, err := os.Open(filepath.Dir(p.Path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
