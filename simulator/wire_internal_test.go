package simulator

import (
	"bufio"
	"bytes"
	"errors"
	"testing"
)

// FuzzReadPacket checks that any input results in a packet or an error, and that no buffer is
// allocated for a claimed length alone.
func FuzzReadPacket(f *testing.F) {
	f.Add([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"))
	f.Add([]byte("\x30\x05\x00\x01aok"))
	f.Add([]byte("\x82\x1c\x00\x01\x00\x17$dps/registrations/res/#\x01"))
	f.Add([]byte("\xa2\x1b\x00\x01\x00\x17$dps/registrations/res/#"))
	f.Add([]byte("\x40\x02\x00\x02\xc0\x00\xe0\x00"))
	f.Add([]byte("\x10\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for used := 0; ; {
			in := readPacket(r)
			used += in.size
			var v *violation
			switch {
			case in.err == nil:
				if used > len(b) || in.size < 2 {
					t.Fatalf("a packet of %d bytes out of %d", in.size, len(b))
				}
				continue
			case errors.As(in.err, &v) && v.reason == "":
				t.Fatal("a violation without a reason")
			}
			return
		}
	})
}
