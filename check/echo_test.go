package check_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/redact"
)

// The proxy repeats the password in forms that are neither an address nor a header.
func TestAPasswordThatAProxyRepeatsIsMasked(t *testing.T) {
	const password = "c0rrect/h0rse+battery"
	for name, echo := range map[string]string{
		"itself": password, "in hex": hex.EncodeToString([]byte(password)), "in base64": base64.StdEncoding.EncodeToString([]byte("gw:" + password)),
		"with blanks": strings.Join(strings.Split(password, ""), " "),
	} {
		t.Run(name, func(t *testing.T) {
			proxy := func(_ context.Context, _ string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					if _, err := http.ReadRequest(bufio.NewReader(theirs)); err == nil {
						fmt.Fprintf(theirs, "HTTP/1.1 403 not with %s\r\nContent-Length: 0\r\n\r\n", echo)
					}
				}()
				return ours, nil
			}
			g := gateway(t, addresses("192.0.2.1"), proxy)
			g.Settings.Dialer.Proxy = func(*url.URL) (*url.URL, error) {
				return &url.URL{Scheme: "http", Host: "proxy.test:3128", User: url.UserPassword("gw", password)}, nil
			}
			masked := false
			for _, r := range steps(t, g) {
				masked = masked || strings.Contains(r.Detail, redact.Mark)
				if strings.Contains(r.Detail+r.Subject+r.Advice, echo[8:]) {
					t.Errorf("%s contains the password: %s", r.Name, r.Detail)
				}
			}
			if !masked {
				t.Error("no result contains the proxy's answer")
			}
		})
	}
}
