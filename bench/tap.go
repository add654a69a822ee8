package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// tap is a socket in front of a software TPM. It counts the commands.
type tap struct {
	socket   string
	listener net.Listener
	open     sync.WaitGroup

	mu       sync.Mutex
	commands int
	working  time.Duration // the sum of the times between a command and its response
	err      error
}

// newTap creates a tap in front of the software TPM on socket.
func newTap(socket string) (*tap, error) {
	t := &tap{socket: socket + "-tap"}
	// The control socket has no tap, because it does not carry commands of the TPM.
	if err := os.Symlink(socket+control, t.socket+control); err != nil {
		return nil, err
	}
	var err error
	if t.listener, err = net.Listen("unix", t.socket); err != nil {
		return nil, err
	}
	t.open.Go(func() {
		for {
			conn, err := t.listener.Accept()
			if err != nil {
				return
			}
			if err := t.serve(conn, socket); err != nil {
				t.mu.Lock()
				t.err = fmt.Errorf("tap: %w", err)
				t.mu.Unlock()
			}
		}
	})
	return t, nil
}

// serve forwards a connection until its client closes it. Other clients wait, as they do with swtpm.
func (t *tap) serve(conn net.Conn, socket string) error {
	defer conn.Close()
	tpm, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer tpm.Close()
	for {
		command, err := message(conn)
		if err == io.EOF { //nolint:errorlint // message never wraps it: the client has closed the connection
			return nil
		}
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := tpm.Write(command); err != nil {
			return err
		}
		response, err := message(tpm)
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.commands++
		t.working += time.Since(began)
		t.mu.Unlock()
		if _, err := conn.Write(response); err != nil {
			return err
		}
	}
}

// message reads a command or a response. Both begin with a tag of two bytes and their total size in
// four bytes.
func message(r io.Reader) ([]byte, error) {
	const header = 10
	all := make([]byte, header, 4096)
	if _, err := io.ReadFull(r, all); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(all[2:])
	if size < header || size > 4096 {
		return nil, fmt.Errorf("invalid message size %d", size)
	}
	all = all[:size]
	_, err := io.ReadFull(r, all[header:])
	return all, err
}

// take returns what the TPM has done since the last call.
func (t *tap) take() (commands int, working time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	commands, working = t.commands, t.working
	t.commands, t.working = 0, 0
	return commands, working, t.err
}

// close ends the tap. Its clients must have closed their connections.
func (t *tap) close() {
	_ = t.listener.Close()
	t.open.Wait()
}
