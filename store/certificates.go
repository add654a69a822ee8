package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// The directory of the issued certificates, within the state directory:
//
//	certificate/N/{key.pem,chain.pem,certificate.json}  a pair; N is 1, 2, …
//	certificate/current                                 a link to the published pair
//	certificate/pending/{key.pem,certificate.json}      the key of a request
const (
	certificatePath = "certificate"
	currentPath     = certificatePath + "/current"
	pendingPath     = certificatePath + "/pending"
	newPendingPath  = certificatePath + "/.pending" // until it is complete

	keyName   = "key.pem"
	chainName = "chain.pem"
	pairName  = "certificate.json"

	// maxPairs limits the number of a pair. A gateway cannot reach it in its lifetime.
	maxPairs = 1 << 30
)

func join(elements ...string) string { return filepath.Join(elements...) }

// pairPath returns the path of the pair with a number.
func pairPath(n int) string { return join(certificatePath, strconv.Itoa(n)) }

// temporaryName returns the path of the temporary file of a file.
func temporaryName(path string) string {
	return join(filepath.Dir(path), "."+filepath.Base(path))
}

// certificates is the open state directory. Paths are relative to it, and are resolved
// within it: otherwise, a link in place of a directory could make a command that root runs
// change other files.
type certificates struct {
	*os.Root
	w *writer
}

// pairDamage means that a pair or a pending key is not as dpsd wrote it.
type pairDamage struct {
	path   string
	reason error
}

func (e *pairDamage) Error() string { return e.path + ": " + e.reason.Error() }

// certificates opens the directory of the issued certificates. The error is fs.ErrNotExist
// if there is none, or a *PairError.
func (w *writer) certificates() (*certificates, error) {
	path := w.path(certificatePath)
	root, err := openRoot(w.directory)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fs.ErrNotExist
		}
		return nil, pairError(path, err)
	}
	info, err := root.Lstat(certificatePath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = fs.ErrNotExist
	case err != nil:
		err = pairError(path, err)
	case !info.IsDir():
		err = &PairError{path, notKind(info.Mode(), "a directory")}
	default:
		return &certificates{root, w}, nil
	}
	_ = root.Close()
	return nil, err
}

// createCertificates opens the directory of the issued certificates for writing. It creates
// the directory if there is none.
func (s *Store) createCertificates() (*certificates, error) {
	if err := s.claim(); err != nil {
		return nil, err
	}
	c, err := s.state.certificates()
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	root, err := openRoot(s.state.directory)
	if err != nil {
		return nil, err
	}
	c = &certificates{root, &s.state}
	err = c.mkdir(certificatePath)
	if err == nil {
		err = s.openToGroup(c)
	}
	if err == nil {
		err = s.state.sync()
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *certificates) close() { _ = c.Close() }

func (c *certificates) step(step, name string) error { return c.w.step(step, c.w.path(name)) }

// about adds the path of a file to an error.
func (c *certificates) about(name string, err error) error {
	if err == nil {
		return nil
	}
	return &fileError{c.w.path(name), err}
}

// has reports whether there is something with this name.
func (c *certificates) has(name string) bool {
	_, err := c.Lstat(name)
	return err == nil
}

// names returns the names in the directory. The error is a *PairError.
func (c *certificates) names() ([]string, error) {
	f, err := c.Open(certificatePath)
	if err != nil {
		return nil, pairError(c.w.path(certificatePath), err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, pairError(c.w.path(certificatePath), err)
	}
	return names, nil
}

// numbers returns the numbers of all pairs, also of damaged ones, in descending order. The
// error is a *PairError.
func (c *certificates) numbers() ([]int, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		if n := pairNumber(name); n != 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	slices.Reverse(numbers)
	return numbers, nil
}

// current returns the number to which certificate/current points. It is 0 if there is no
// such link, or if it points elsewhere.
func (c *certificates) current() int {
	target, _ := c.Readlink(currentPath)
	return pairNumber(target)
}

// pair reads a complete pair. Its errors are those of look.
func (c *certificates) pair(number int) (Pair, error) {
	p, _, err := c.look(pairPath(number))
	if err == nil && p.ChainSHA256 == "" {
		err = &pairDamage{c.w.path(join(pairPath(number), pairName)), errors.New("it describes no certificate")}
	}
	p.Number = number
	return p, err
}

// latest returns the complete pair whose chain has a digest, unless it is older than that of
// current.
func (c *certificates) latest(chain string) (Pair, bool) {
	numbers, _ := c.numbers()
	for _, n := range numbers {
		if n < c.current() {
			break
		}
		if p, err := c.pair(n); err == nil && p.ChainSHA256 == chain {
			return p, true
		}
	}
	return Pair{}, false
}

// look reads a pair or a pending key, whose file certificate.json has no digest of a chain,
// and verifies the digests. The error is a *PairError if a file cannot be read, a *pairDamage,
// or fs.ErrNotExist if there is no such directory.
func (c *certificates) look(directory string) (p Pair, key []byte, err error) {
	info, err := c.Lstat(directory)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Pair{}, nil, fs.ErrNotExist
	case err != nil:
		return Pair{}, nil, pairError(c.w.path(directory), err)
	case !info.IsDir():
		return Pair{}, nil, &PairError{c.w.path(directory), notKind(info.Mode(), "a directory")}
	}
	var contents [3][]byte
	var missing *pairDamage
	for i, name := range pairFiles {
		path := join(directory, name)
		data, err := c.read(path)
		if errors.Is(err, fs.ErrNotExist) {
			missing = &pairDamage{c.w.path(path), errors.New("it is missing")}
			if name == chainName {
				missing = nil // a pending key has none
			}
		} else if err != nil {
			return Pair{}, nil, pairError(c.w.path(path), err)
		}
		if missing == nil {
			contents[i] = data
		}
	}
	if missing != nil {
		return Pair{}, nil, missing
	}
	key, chain, text := contents[0], contents[1], contents[2]
	damaged := func(name, reason string) error {
		return &pairDamage{c.w.path(join(directory, name)), errors.New(reason)}
	}
	err = json.Unmarshal(text, &p)
	switch {
	case err != nil || p.Schema < 1:
		return Pair{}, nil, damaged(pairName, "it is not the JSON of a pair")
	case p.Schema > pairSchema:
		return Pair{}, nil, &PairError{c.w.path(join(directory, pairName)), fmt.Errorf("it was written by a later version of dpsd (schema %d)", p.Schema)}
	case digest(key) != p.KeySHA256:
		return Pair{}, nil, damaged(keyName, "it does not match "+pairName)
	case p.ChainSHA256 != "" && digest(chain) != p.ChainSHA256:
		return Pair{}, nil, damaged(chainName, "it does not match "+pairName)
	}
	return p, key, nil
}

// pairFiles are the files of a pair. The key is removed first, so that it never remains
// without its chain.
var pairFiles = [...]string{keyName, chainName, pairName}

// read returns the contents of a file. It does not wait for the writer of a FIFO, and accepts
// neither a link nor anything else that dpsd never writes.
func (c *certificates) read(name string) ([]byte, error) { return readWithin(c.Root, name) }

// openRoot is os.OpenRoot, but does not wait for the writer of a FIFO.
func openRoot(directory string) (*os.Root, error) { return os.OpenRoot(directory + "/.") }

func readWithin(root *os.Root, name string) ([]byte, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, notKind(info.Mode(), "a file")
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// writePair writes the certificate.json of a directory.
func (c *certificates) writePair(directory string, p Pair) error {
	p.Schema = pairSchema
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return c.write(join(directory, pairName), append(data, '\n'))
}

// write replaces a file: temporary file, fsync, rename. Only after sync is the rename
// durable. The mode is 0600.
func (c *certificates) write(name string, data []byte) error {
	temporary := temporaryName(name)
	if err := c.clear(name); err != nil {
		return c.about(name, err)
	}
	if err := c.step("create", name); err != nil {
		return err
	}
	if err := c.removeAll(temporary); err != nil {
		return err
	}
	f, err := c.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return c.about(name, err)
	}
	if err = c.own(f, name); err == nil {
		err = c.fill(f, name, data)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = c.Rename(temporary, name)
	}
	if err != nil {
		_ = c.Remove(temporary) // otherwise, the next start removes it
		return c.about(name, err)
	}
	return nil
}

func (c *certificates) fill(f *os.File, name string, data []byte) error {
	if err := f.Chmod(0o600); err != nil { // the umask
		return err
	}
	if err := c.step("write", name); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := c.step("rename", name); err != nil {
		return err
	}
	return f.Sync()
}

// own sets the owner of what root creates to that of the state directory, and the group to
// that of the directory of the certificates.
func (c *certificates) own(f *os.File, name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	state, err := c.Stat(".")
	if err != nil {
		return err
	}
	directory := state
	if name != certificatePath {
		if directory, err = c.Stat(certificatePath); err != nil {
			return err
		}
	}
	have, err := f.Stat()
	if err != nil {
		return err
	}
	uid, gid := int(state.Sys().(*syscall.Stat_t).Uid), groupOf(directory)
	if int(have.Sys().(*syscall.Stat_t).Uid) == uid && groupOf(have) == gid {
		return nil
	}
	return f.Chown(uid, gid)
}

// clear makes way for a file or a link if a directory has its name, because rename does not
// replace a directory. It removes an empty directory, and renames any other.
func (c *certificates) clear(name string) error {
	info, err := c.Lstat(name)
	if err != nil || !info.IsDir() {
		return nil //nolint:nilerr // there is nothing to remove, or the rename reports it
	}
	if err := c.step("clear", name); err != nil {
		return err
	}
	if c.Remove(name) == nil {
		return nil
	}
	to := name + asideSuffix
	for i := 2; c.has(to); i++ {
		to = fmt.Sprintf("%s%s.%d", name, asideSuffix, i)
	}
	return c.Rename(name, to)
}

// mkdir creates a directory that only its owner may use.
func (c *certificates) mkdir(name string) error {
	if err := c.step("mkdir", name); err != nil {
		return err
	}
	if err := c.Mkdir(name, 0o700); err != nil {
		return c.about(name, err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	f, err := c.Open(name)
	if err != nil {
		return c.about(name, err)
	}
	defer f.Close()
	return c.about(name, c.own(f, name))
}

// sync makes changes in a directory durable.
func (c *certificates) sync(name string) error {
	if err := c.step("sync", name); err != nil {
		return c.about(name, err)
	}
	f, err := c.Open(name)
	if err != nil {
		return c.about(name, err)
	}
	defer f.Close()
	return c.about(name, f.Sync())
}

func (c *certificates) rename(from, to string) error {
	if err := c.step("rename", to); err != nil {
		return err
	}
	return c.about(to, c.Rename(from, to))
}

func (c *certificates) removeAll(name string) error {
	if !c.has(name) {
		return nil
	}
	if err := c.step("remove", name); err != nil {
		return err
	}
	return c.about(name, c.RemoveAll(name))
}

// adoptPending replaces the pending key with the new one. After a power failure, one of them
// is complete; see sweepPending.
func (c *certificates) adoptPending() error {
	if err := c.removeAll(pendingPath); err != nil {
		return err
	}
	if err := c.rename(newPendingPath, pendingPath); err != nil {
		return err
	}
	return c.sync(certificatePath)
}

// publish makes certificate/current point to a pair. The rename is the commit point.
func (c *certificates) publish(number int) error {
	if err := c.clear(currentPath); err != nil {
		return c.about(currentPath, err)
	}
	if err := c.step("link", currentPath); err != nil {
		return err
	}
	temporary := temporaryName(currentPath)
	if err := c.removeAll(temporary); err != nil {
		return err
	}
	if err := c.Symlink(strconv.Itoa(number), temporary); err != nil {
		return c.about(currentPath, err)
	}
	if err := c.rename(temporary, currentPath); err != nil {
		return err
	}
	return c.sync(certificatePath)
}

// removePair removes a directory with a key, the key first, and calls removed for each path.
func (c *certificates) removePair(directory string, removed func(path string)) error {
	names := []string{directory}
	if info, err := c.Lstat(directory); err == nil && info.IsDir() {
		names = names[:0]
		for _, name := range pairFiles {
			names = append(names, join(directory, name))
		}
		names = append(names, directory)
	}
	for _, name := range names {
		if !c.has(name) {
			continue
		}
		if err := c.removeAll(name); err != nil {
			return err
		}
		removed(c.w.path(name))
	}
	return nil
}
