package simulator

import "net"

// Local is a Server that listens on the loopback interface.
type Local struct {
	*Server
	// Host is the name to connect to. The certificate of the server contains it.
	Host string
	// MQTTPort and WebSocketPort are free ports that the kernel has chosen.
	MQTTPort, WebSocketPort int
}

// T is the part of *testing.T, *testing.B and *testing.F that Start needs.
type T interface {
	Helper()
	Cleanup(func())
	Fatal(args ...any)
}

// Start creates a server for a test. The server listens on both loopback addresses for MQTT and
// for MQTT over WebSocket, both over TLS, and ends with the test. A test may start several
// servers, which share nothing.
func Start(t T, o Options) *Local {
	t.Helper()
	l, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// Listen creates a server that listens on both loopback addresses at two free ports. Call
// Close to end it.
func Listen(o Options) (*Local, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	l := &Local{Server: s, Host: "localhost"}
	if l.MQTTPort, err = s.open(s.AcceptMQTT); err == nil {
		l.WebSocketPort, err = s.open(s.AcceptWebSocket)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return l, nil
}

// open listens on a free port of the loopback addresses.
func (s *Server) open(accept func(net.Listener) error) (int, error) {
	listeners, err := ListenLoopback(0)
	if err != nil {
		return 0, err
	}
	for _, l := range listeners {
		s.wg.Go(func() { _ = accept(l) }) // until Close; devices notice if it ends earlier
	}
	return listeners[0].Addr().(*net.TCPAddr).Port, nil
}
