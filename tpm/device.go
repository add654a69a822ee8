package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
)

// Path is the device of the TPM with the kernel's resource manager, which allows several programs
// to use the TPM. With /dev/tpm0, they would share the few slots for keys.
const Path = "/dev/tpmrm0"

// Device is a TPM 2.0. The zero value is the TPM of this machine. Several goroutines may call its
// methods; a separate goroutine opens the device, sends one command at a time, and exits when no
// key is loaded.
type Device struct {
	// Path is the device, or the Unix socket of a software TPM; "" is the constant Path.
	Path string
	// Deadline limits each operation; 0 is the constant Deadline.
	Deadline time.Duration
	// Open opens Path; nil opens the device or the socket. Each Write is one command, and its
	// response is read before the next Write. Reads and writes may block.
	Open func(path string) (io.ReadWriteCloser, error)

	mu     sync.Mutex
	worker *worker // nil if no operation has begun
	facts  facts
}

// facts are what is known about the TPM until the connection fails.
type facts struct {
	hashes map[tpm2.TPMAlgID]bool // nil if unknown
	pss    pssState
	// wrongPassword contains the files and parents for which the TPM has refused the empty
	// password. It is kept even after a failure.
	wrongPassword map[string]bool
}

// do opens the device if necessary, and runs a function until the deadline.
func (d *Device) do(ctx context.Context, op string, run func(*link) error) error {
	ctx, cancel := d.limit(ctx)
	defer cancel()
	w, err := d.acquire(ctx)
	if err != nil {
		return explain(op, err)
	}
	defer d.release(w)
	return explain(op, w.do(job{ctx: ctx, run: run}))
}

func (d *Device) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := d.Deadline
	if limit == 0 {
		limit = Deadline
	}
	return context.WithTimeout(ctx, limit)
}

// acquire returns the worker of the device, for release. It starts a worker only after the
// previous one, which may still be waiting for the TPM, has ended.
func (d *Device) acquire(ctx context.Context) (*worker, error) {
	for {
		d.mu.Lock()
		w := d.worker
		if w == nil || w.hasEnded() {
			w = &worker{device: d, jobs: make(chan job), ended: make(chan struct{})}
			d.worker = w
			w.users = 1
			go w.work()
			d.mu.Unlock()
			return w, nil
		}
		if w.users > 0 {
			w.users++
			d.mu.Unlock()
			return w, nil
		}
		d.mu.Unlock()
		select {
		case <-w.ended:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// retain adds a user to a worker that already has one.
func (d *Device) retain(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.users++
}

// release ends the worker when nobody uses it.
func (d *Device) release(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.users--; w.users == 0 {
		close(w.jobs)
	}
}

func (d *Device) open(ctx context.Context) (*link, error) {
	path, open := d.Path, d.Open
	if path == "" {
		path = Path
	}
	if open == nil {
		open = openPath
	}
	l := &link{ctx: ctx}
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		rw, err := open(path)
		if err == nil {
			l.rw = rw
			return l, nil
		}
		if !isInUse(err) || !l.wait(delay) {
			return nil, &lost{err}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// isInUse reports whether an error means that another program is using the device, or that the
// queue of the socket is full.
func isInUse(err error) bool { return errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EAGAIN) }

// openPath opens a device or a socket. It opens the device in blocking mode, because in
// non-blocking mode, the kernel returns an empty response until the TPM has answered.
func openPath(path string) (io.ReadWriteCloser, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSocket != 0:
		return net.Dial("unix", path)
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("%s is not a device", path)
	}
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// worker owns the connection to a device.
type worker struct {
	device *Device
	jobs   chan job
	ended  chan struct{} // closed after the connection
	users  int           // guarded by device.mu
	link   *link         // nil if it is not open; only work uses it

	mu     sync.Mutex
	unused []loaded // keys to flush
}

// loaded is an object in the TPM.
type loaded struct {
	link   *link
	handle tpm2.TPMHandle
}

// job is one operation.
type job struct {
	ctx context.Context
	// link is the connection that the operation belongs to; nil opens one if necessary.
	link *link
	run  func(*link) error
	// undo reverses a successful run whose caller no longer waits; it may be nil.
	undo   func(*link)
	result chan error
}

// do runs a job and waits for it, at most until the end of its context.
func (w *worker) do(j job) error {
	j.result = make(chan error)
	select {
	case w.jobs <- j:
	case <-j.ctx.Done():
		return j.ctx.Err()
	}
	select {
	case err := <-j.result:
		return err
	case <-j.ctx.Done():
		return j.ctx.Err()
	}
}

func (w *worker) hasEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// work runs the jobs. It completes a job even if the caller no longer waits for it, so that the
// connection remains usable and nothing stays in the TPM.
func (w *worker) work() {
	defer close(w.ended)
	for j := range w.jobs {
		err := w.run(j)
		select {
		case j.result <- err:
		case <-j.ctx.Done():
			if err == nil && j.undo != nil {
				j.undo(w.link)
			}
		}
		w.flush()
		w.drop(w.link != nil && w.link.err != nil)
	}
	w.drop(true)
}

// run runs a job. It recovers the panics of go-tpm.
func (w *worker) run(j job) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("unexpected response: %v", p)
		}
	}()
	if j.link != nil && j.link != w.link {
		return errGone
	}
	if w.link == nil {
		if w.link, err = w.device.open(j.ctx); err != nil {
			return err
		}
	}
	w.link.ctx = j.ctx
	w.flush()
	return j.run(w.link)
}

// flush removes the unused keys from the TPM.
func (w *worker) flush() {
	w.mu.Lock()
	unused := w.unused
	w.unused = nil
	w.mu.Unlock()
	for _, u := range unused {
		if u.link == w.link && w.link != nil {
			w.link.flush(u.handle)
		}
	}
}

// drop closes the connection.
func (w *worker) drop(really bool) {
	if !really || w.link == nil {
		return
	}
	if w.link.err != nil { // another TPM may answer next
		w.device.mu.Lock()
		w.device.facts.hashes, w.device.facts.pss = nil, pssUnknown
		w.device.mu.Unlock()
	}
	_ = w.link.rw.Close() // every key has been flushed, so an error does not matter
	w.link = nil
}
