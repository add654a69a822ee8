package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// pieces is a stream that is read in pieces of one size.
type pieces struct {
	net.Conn
	b    []byte
	size int
}

func (p *pieces) Read(into []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(into[:min(len(into), p.size)], p.b)
	p.b = p.b[n:]
	return n, nil
}

// frame returns a valid frame of a server.
func frame(first byte, payload int) []byte {
	b := []byte{first}
	switch {
	case payload < 126:
		b = append(b, byte(payload))
	case payload < 1<<16:
		b = append(b, 126, byte(payload>>8), byte(payload))
	default:
		b = append(b, 127, 0, 0, 0, 0, byte(payload>>24), byte(payload>>16), byte(payload>>8), byte(payload))
	}
	return append(b, bytes.Repeat([]byte{0xFF}, payload)...) // a possible second byte of a masked frame
}

func TestFramesHandleEveryLengthInPiecesOfAnySize(t *testing.T) {
	good := slices.Concat(frame(0x82, 0), frame(0x02, 1), frame(0x80, 125), frame(0x89, 4), frame(0x82, 126), frame(0x82, 65_535), frame(0x82, 65_536), frame(0x88, 2))
	for _, size := range []int{1, 2, 3, 7, 4096, len(good)} {
		passed, err := io.ReadAll(&frames{Conn: &pieces{b: bytes.Clone(good), size: size}})
		if err != nil || !bytes.Equal(passed, good) {
			t.Errorf("in pieces of %d: %d of %d bytes, %v", size, len(passed), len(good), err)
		}
		masked := slices.Concat(good, []byte{0x82, 0x81, 1, 2, 3, 4, 'x'})
		passed, err = io.ReadAll(&frames{Conn: &pieces{b: masked, size: size}})
		var broken *FrameError
		if !errors.As(err, &broken) || len(passed) > len(good)+1 || !bytes.Equal(passed, masked[:len(passed)]) {
			t.Errorf("in pieces of %d: %d bytes, then %v", size, len(passed), err)
		}
	}
}

func TestAMaskedFrameEndsTheStream(t *testing.T) {
	f := &frames{Conn: &pieces{b: []byte{0x82, 0x80, 0, 0, 0, 0, 0x82, 1, 'x'}, size: 100}}
	for range 3 {
		n, err := f.Read(make([]byte, 100))
		if n > 1 || !errors.As(err, new(*FrameError)) || !strings.Contains(err.Error(), "masks") {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// frames passes the stream unchanged up to the first masked frame.
func FuzzFrames(f *testing.F) {
	f.Add(frame(0x82, 3), 1)
	f.Add([]byte{0x82, 0x81, 1, 2, 3, 4, 'x'}, 2)
	f.Add([]byte{0x82, 127, 0xFF, 0, 0, 0, 0, 0, 0, 1, 'x'}, 3)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		passed, err := io.ReadAll(&frames{Conn: &pieces{b: bytes.Clone(b), size: max(size, 1)}})
		if !bytes.Equal(passed, b[:len(passed)]) {
			t.Errorf("%x became %x", b, passed)
		}
		if err == nil && len(passed) < len(b) || err != nil && !errors.As(err, new(*FrameError)) {
			t.Errorf("%d of %d bytes, %v", len(passed), len(b), err)
		}
	})
}
