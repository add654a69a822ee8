package transport

import (
	"encoding/binary"
	"net"
)

// frames is the stream below a WebSocket. The library accepts masked frames of a server
// without unmasking them, but RFC 6455 §5.1 requires the client to close the connection.
// frames parses the headers only for that purpose; the library detects all other
// violations.
type frames struct {
	net.Conn

	header  []byte // the bytes of the frame's header that have been read
	payload uint64 // the remaining length of the frame's payload
	broken  error  // a *FrameError
	last    error  // error returned with the last bytes
	ended   error  // error of the underlying stream, once the reader has received it
}

// Read implements net.Conn.
func (f *frames) Read(p []byte) (int, error) {
	if f.broken != nil {
		return 0, f.broken
	}
	n, err := 0, f.last
	if err == nil {
		n, err = f.Conn.Read(p)
	}
	if good := f.follow(p[:n]); f.broken != nil {
		return good, f.broken
	}
	if n > 0 {
		f.last = err
		return n, nil
	}
	f.ended = err
	return 0, err
}

// follow parses the frames in p. If one is masked, it sets broken and returns the number of
// bytes before it.
func (f *frames) follow(p []byte) (good int) {
	for i := 0; i < len(p); {
		if f.payload > 0 {
			skip := min(f.payload, uint64(len(p)-i))
			f.payload -= skip
			i += int(skip)
			continue
		}
		f.header = append(f.header, p[i])
		i++
		if len(f.header) < 2 {
			continue
		}
		if f.header[1]&0x80 != 0 {
			f.broken = &FrameError{Problem: "the server masks its frames"}
			return i - 1
		}
		switch length := f.header[1]; {
		case length < 126:
			f.payload = uint64(length)
		case length == 126 && len(f.header) == 4:
			f.payload = uint64(binary.BigEndian.Uint16(f.header[2:]))
		case length == 127 && len(f.header) == 10:
			f.payload = binary.BigEndian.Uint64(f.header[2:])
		default:
			continue
		}
		f.header = f.header[:0]
	}
	return len(p)
}
