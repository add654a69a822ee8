package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// The delays before a command that the TPM did not accept is sent again.
	firstDelay = 20 * time.Millisecond
	maxDelay   = time.Second
	// grace is the time for flushing after the deadline.
	grace = 5 * time.Second
	// maxResponse is the size of the kernel's buffer.
	maxResponse = 4096
)

// link is an open device. It implements transport.TPM.
type link struct {
	rw  io.ReadWriteCloser
	ctx context.Context // of the current job
	err error           // the first error of rw, after which a response may belong to any command
}

// lost is an error of the connection, as opposed to a response of the TPM.
type lost struct{ err error }

func (e *lost) Error() string { return e.err.Error() }
func (e *lost) Unwrap() error { return e.err }

// errGone means that the connection through which a key was loaded was lost.
var errGone = &lost{errors.New("the connection to the TPM was lost after the key had been loaded")}

// Send repeats a command until the TPM accepts it, and returns the response.
func (l *link) Send(command []byte) ([]byte, error) {
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		if err := l.ctx.Err(); err != nil {
			return nil, err
		}
		response, err := l.exchange(command)
		again := errors.Is(err, syscall.EBUSY) || err == nil && isBusy(tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])))
		if !again || !l.wait(delay) {
			if err != nil {
				return nil, &lost{err}
			}
			return response, nil
		}
	}
}

// isBusy reports whether a response asks for the same command later (TPM 2.0 Library,
// part 2, 6.6.3).
func isBusy(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCCanceled, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable:
		return true
	}
	return false
}

// exchange sends a command once.
func (l *link) exchange(command []byte) (response []byte, err error) {
	if l.err != nil {
		return nil, l.err
	}
	defer func() {
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			l.err = err
		}
	}()
	if _, err := l.rw.Write(command); err != nil {
		return nil, err
	}
	// A device returns the whole response at once; a socket may not.
	buffer := make([]byte, maxResponse)
	const header = 10
	n, err := io.ReadAtLeast(l.rw, buffer, header)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(buffer[2:]))
	if size < max(header, n) || size > maxResponse {
		return nil, fmt.Errorf("the response has %d bytes and claims %d", n, size)
	}
	if _, err := io.ReadFull(l.rw, buffer[n:size]); err != nil {
		return nil, err
	}
	return buffer[:size], nil
}

// wait waits before the next try. It returns false, without waiting, if the deadline is earlier.
func (l *link) wait(delay time.Duration) bool {
	if deadline, ok := l.ctx.Deadline(); ok && time.Until(deadline) <= delay {
		return false
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return true // Send returns its error
	}
}

// flush removes an object or a session from the TPM, even after the deadline. It ignores errors:
// the object no longer exists, or the connection was lost, and the kernel flushes the object.
func (l *link) flush(h tpm2.TPMHandle) {
	before := l.ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(before), grace)
	defer cancel()
	l.ctx = ctx
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(l)
	l.ctx = before
}
