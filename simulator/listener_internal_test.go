package simulator

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// fuzzTime is the clock of the fuzzed server, so that a session is always the same.
var fuzzTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// validSession returns the packets of a valid registration.
func validSession(s *Server) [][]byte {
	const id = "gw-1"
	text := func(v string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(v))), v...) }
	packet := func(first byte, body ...[]byte) []byte {
		all := bytes.Join(body, nil)
		return append(binary.AppendUvarint([]byte{first}, uint64(len(all))), all...)
	}
	key, _ := base64.StdEncoding.DecodeString(s.DeviceKey(id))
	resource := url.QueryEscape(s.IDScope() + "/registrations/" + id)
	expiry := fuzzTime.Add(time.Hour).Unix()
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", resource, expiry)
	token := fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", resource, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), expiry)
	poll := func(rid string) []byte {
		return packet(0x30, text(pollPrefix+"$rid="+rid+"&operationId="+s.service.newOperationID(id, 1)))
	}
	return [][]byte{
		packet(0x10, text("MQTT"), []byte{4, 0xc2, 0, 60}, text(id), text(s.IDScope()+"/registrations/"+id+"/api-version=2019-03-31"), text(token)),
		packet(0x82, []byte{0, 1}, text(responseFilter), []byte{1}),
		packet(0x32, text(registerPrefix+"$rid=1"), []byte{0, 2}, []byte(`{"registrationId":"`+id+`","payload":{"a":[1,2]}}`)),
		{0x40, 2, 0, 2}, poll("2"), {0x40, 2, 0, 2}, {0xc0, 0}, poll("3"), {0x40, 2, 0, 2},
		packet(0xa2, []byte{0, 3}, text(responseFilter)),
		{0xe0, 0},
	}
}

// mutate applies a program to a session: four bytes per instruction, first on whole
// packets, then on the bytes of each. It returns the pieces that are written, initially a
// piece per packet.
func mutate(session [][]byte, webSocket bool, program []byte) [][]byte {
	code := slices.Collect(slices.Chunk(program[:len(program)/4*4], 4))
	for _, c := range code {
		if len(session) == 0 {
			break
		}
		i, j := int(c[1])%len(session), int(c[2])%len(session)
		switch c[0] % 10 {
		case 0:
			session = slices.Insert(session, i, slices.Clone(session[j]))
		case 1:
			session = slices.Delete(session, i, i+1)
		case 2:
			session[i], session[j] = session[j], session[i]
		}
	}
	pieces := session
	if webSocket {
		for i, p := range session {
			head := []byte{0x82, 0xfe, byte(len(p) >> 8), byte(len(p)), 1, 2, 3, 4}
			for k := range p {
				head = append(head, p[k]^head[4+k%4])
			}
			pieces[i] = head
		}
		pieces = slices.Insert(pieces, 0, []byte("GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"))
	}
	for _, c := range code {
		if len(pieces) == 0 {
			break
		}
		i := int(c[1]) % len(pieces)
		p := slices.Clone(pieces[i])
		if len(p) == 0 {
			continue
		}
		at := int(c[2]) % len(p)
		switch c[0] % 10 {
		case 3:
			p[at] = c[3]
		case 4:
			p[at] ^= 1 << (c[3] % 8)
		case 5:
			p = slices.Insert(p, at, c[3])
		case 6:
			p = slices.Delete(p, at, min(len(p), at+1+int(c[3])%16))
		case 7:
			p = slices.Insert(p, at, slices.Clone(p[at:min(len(p), at+int(c[3]))])...)
		case 8: // two packets in one piece
			if i+1 < len(pieces) {
				p = append(p, pieces[i+1]...)
				pieces = slices.Delete(pieces, i+1, i+2)
			}
		case 9: // one packet in two pieces
			pieces = slices.Insert(pieces, i+1, slices.Clone(p[at:]))
			p = p[:at]
		}
		pieces[i] = p
	}
	return pieces
}

// meet connects a server and a client that sends these pieces, and returns when both have
// ended.
func meet(t *testing.T, s *Server, webSocket, bare bool, pieces [][]byte) {
	mine, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if webSocket {
			s.ServeWebSocket(theirs)
		} else {
			s.ServeMQTT(theirs)
		}
	}()
	_ = mine.SetDeadline(time.Now().Add(10 * time.Second))
	drained := make(chan struct{})
	conn := mine
	if !bare {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(s.CA())
		secure := tls.Client(mine, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, Time: func() time.Time { return fuzzTime }})
		if err := secure.Handshake(); err != nil {
			t.Fatal(err)
		}
		conn = secure
	}
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, conn)
		_ = mine.Close()
	}()
	for _, p := range pieces {
		if _, err := conn.Write(p); err != nil {
			break
		}
	}
	if secure, ok := conn.(*tls.Conn); ok {
		_ = secure.CloseWrite()
	} else {
		_ = mine.Close()
	}
	<-drained
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection has not ended")
	}
}

// FuzzListener checks that a valid session with mutated packets, frames and bytes, over TLS
// or bare, causes no panic and leaves no connection, goroutine or memory.
func FuzzListener(f *testing.F) {
	f.Add(byte(0), []byte{})
	f.Add(byte(1), []byte{})
	f.Add(byte(2), []byte{})
	for op := range byte(10) {
		f.Add(op%2, []byte{op, 1, 7, 3})
	}
	random := rand.New(rand.NewPCG(3, 4))
	for range 64 {
		program := make([]byte, 4*(1+random.IntN(6)))
		for i := range program {
			program[i] = byte(random.Uint32())
		}
		f.Add(byte(random.IntN(2)), program)
	}
	runs, first := 0, uint64(0)
	f.Fuzz(func(t *testing.T, mode byte, program []byte) {
		webSocket, bare := mode&1 != 0, mode&2 != 0
		others := goleak.IgnoreCurrent()
		s, err := New(Options{Seed: 1, DiscardLog: true, Now: func() time.Time { return fuzzTime }})
		if err != nil {
			t.Fatal(err)
		}
		meet(t, s, webSocket, bare, mutate(validSession(s), webSocket, program))
		s.mu.Lock()
		conns, sessions := len(s.conns), len(s.sessions)
		s.mu.Unlock()
		if conns != 0 || sessions != 0 {
			t.Errorf("%d connections and %d sessions are left", conns, sessions)
		}
		s.Close()
		if err := goleak.Find(others); err != nil {
			t.Error(err)
		}
		// The fuzzer's own tables grow at first, so the test measures later.
		if runs++; runs%1000 == 0 {
			var memory runtime.MemStats
			runtime.GC()
			runtime.GC() // objects in a sync.Pool survive the first collection
			runtime.ReadMemStats(&memory)
			if first == 0 {
				first = memory.HeapAlloc
			}
			if memory.HeapAlloc > first+32<<20 {
				t.Errorf("%d bytes of memory after %d runs, %d after 1000", memory.HeapAlloc, runs, first)
			}
		}
	})
}

// The unmutated session must be a whole registration. Otherwise the fuzzed ones would all
// end at their first packet.
func TestTheFuzzedSessionIsValid(t *testing.T) {
	for _, webSocket := range []bool{false, true} {
		s, err := New(Options{Seed: 1, Now: func() time.Time { return fuzzTime }})
		if err != nil {
			t.Fatal(err)
		}
		session := mutate(validSession(s), webSocket, nil)
		meet(t, s, webSocket, false, session)
		s.Close()
		sum := Summarize(s.Log())
		if len(sum.Violations) != 0 || len(sum.Registers) != 1 || len(sum.Polls) != 2 {
			t.Errorf("WebSocket %v: %+v", webSocket, sum)
		}
	}
}
