package sdk

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// Proxy is an HTTP proxy that connects a client that requests the service's own name and ports to
// a simulator. Python's SDK supports no other ports.
type Proxy struct {
	listener net.Listener
	open     sync.WaitGroup
}

// Listen starts a proxy on the loopback interface. mqtt and webSocket return the addresses of the
// simulator, and are called for each client. failed is called with each error.
func Listen(mqtt, webSocket func() (string, error), failed func(error)) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: l}
	targets := map[string]func() (string, error){
		"global.azure-devices-provisioning.net:8883": mqtt,
		"global.azure-devices-provisioning.net:443":  webSocket,
	}
	p.open.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.open.Go(func() {
				defer conn.Close()
				if err := forward(conn, targets); err != nil {
					failed(fmt.Errorf("proxy: %w", err))
				}
			})
		}
	})
	return p, nil
}

// Port returns the port on which the proxy listens.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// Close waits until every client has disconnected.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.open.Wait()
}

// forward serves one CONNECT request, RFC 9110 9.3.6.
func forward(conn net.Conn, targets map[string]func() (string, error)) error {
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	target := targets[req.Host]
	if req.Method != http.MethodConnect || target == nil {
		fmt.Fprint(conn, "HTTP/1.1 403 Forbidden\r\n\r\n")
		return fmt.Errorf("%s %s", req.Method, req.Host)
	}
	address, err := target()
	if err != nil {
		return err
	}
	out, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer out.Close()
	fmt.Fprint(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(out, in)
		_ = out.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(conn, out)
	_ = conn.(*net.TCPConn).CloseWrite()
	up.Wait()
	return nil
}
