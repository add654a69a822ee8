package transport

import (
	"encoding/binary"
	"net"
)

// frames is the stream below a WebSocket. The library takes the payload of a frame that
// the server has masked for one that it has not; RFC 6455 §5.1 wants such a frame refused.
// frames follows the headers only as far as that takes. What else is wrong with a frame the
// library finds.
type frames struct {
	net.Conn

	header  []byte // of the frame, as far as it was read
	payload uint64 // what is still to come of the frame's payload
	broken  error  // a *FrameError
	last    error  // came with the last bytes
	ended   error  // why the stream itself gives no more; set when that is asked for
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

// follow reads on in the frames. When one is masked it sets broken, and returns how many
// bytes of p may be passed on.
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
