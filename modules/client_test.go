package modules_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a name in the certificate of httptest.
const host = "example.com"

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// client returns a client of a hub that responds to each request with the text, and the requests that
// the hub receives.
func client(t *testing.T, answer string) (*modules.Client, *[]string) {
	t.Helper()
	var requests []string
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	config := server.TLS
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	server.Close()
	dial := func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			secure := tls.Server(theirs, config)
			defer theirs.Close()
			var text bytes.Buffer
			r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(secure, &text)))
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			requests = append(requests, text.String())
			_, _ = io.WriteString(secure, answer)
		}()
		return ours, nil
	}
	return &modules.Client{
		Device: hub.Identity{Host: host, DeviceID: "gw $1"},
		Dialer: transport.Dialer{Host: "global.azure-devices-provisioning.net", Roots: roots, DialContext: dial},
		MAC: func(_ context.Context, statement []byte) ([]byte, error) {
			return mac("device key", string(statement)), nil
		},
		Now: func() time.Time { return noon },
	}, &requests
}

// signed is the token of the device: se is five minutes after noon.
const signed = "SharedAccessSignature sr=example.com%2Fdevices%2Fgw%20%241&sig="

func TestTheRequestsAreThoseOfIoTEdge(t *testing.T) {
	const path, version = "/devices/gw%20%241/modules", "?api-version=2017-11-08-preview"
	const body = `{"moduleId":"cam/1","deviceId":"gw $1","managedBy":"dpsd","authentication":{"type":"sas","symmetricKey":{"primaryKey":"cA==","secondaryKey":"cw=="}}}`
	pair := modules.Pair{Primary: "cA==", Secondary: "cw=="}
	for _, tt := range []struct {
		name, line, header, body string
		do                       func(*modules.Client) error
	}{
		{"list", "GET " + path + version, "", "", func(c *modules.Client) error { _, err := c.List(t.Context()); return err }},
		{"create", "PUT " + path + "/cam%2F1" + version, "Content-Type: application/json", body, func(c *modules.Client) error { return c.Create(t.Context(), "cam/1", pair) }},
		{"update this version", "PUT " + path + "/cam%2F1" + version, `If-Match: "AA="`, body, func(c *modules.Client) error {
			return c.Update(t.Context(), modules.Module{ID: "cam/1", ETag: "AA="}, pair)
		}},
		{"update any version", "PUT " + path + "/cam%2F1" + version, "If-Match: *", body, func(c *modules.Client) error {
			return c.Update(t.Context(), modules.Module{ID: "cam/1"}, pair)
		}},
		{"delete", "DELETE " + path + "/cam%2F1" + version, `If-Match: "AA="`, "", func(c *modules.Client) error {
			return c.Delete(t.Context(), modules.Module{ID: "cam/1", ETag: "AA="})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, requests := client(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
			if err := tt.do(c); err != nil {
				t.Fatal(err)
			}
			head, sent, _ := strings.Cut((*requests)[0], "\r\n\r\n")
			line, _, _ := strings.Cut(head, "\r\n")
			if line != tt.line+" HTTP/1.1" || sent != tt.body || !strings.Contains(head, "\r\n"+tt.header) || !strings.Contains(head, "\r\nHost: "+host+"\r\n") {
				t.Errorf("sent %q", (*requests)[0])
			}
			if tt.name == "create" && strings.Contains(head, "If-Match") {
				t.Error("a creation must not replace a module")
			}
			_, token, _ := strings.Cut(head, "\r\nAuthorization: ")
			token, _, _ = strings.Cut(token, "\r\n")
			if !strings.HasPrefix(token, signed) || !strings.HasSuffix(token, "&se=1796040300") || strings.Contains(token, "skn") {
				t.Errorf("the token is %q", token)
			}
		})
	}
}

func TestAListIsRead(t *testing.T) {
	const list = `[{"moduleId":"$edgeAgent","managedBy":"iotEdge","deviceId":"gw","generationId":"1","etag":"AA=",
		"authentication":{"symmetricKey":{"primaryKey":null,"secondaryKey":null},"type":"none"},"connectionState":"Connected","unknown":[1]},
		{"moduleId":"a","deviceId":"gw","authentication":{"type":"sas","symmetricKey":{"primaryKey":"cA==","secondaryKey":"cw=="}}}, {"moduleId":"b"}]`
	c, _ := client(t, "HTTP/1.1 200 OK\r\n\r\n"+list)
	got, err := c.List(t.Context())
	want := []modules.Module{{ID: "$edgeAgent", ManagedBy: "iotEdge", ETag: "AA="}, {ID: "a", Keys: modules.Pair{Primary: "cA==", Secondary: "cw=="}}, {ID: "b"}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestErrorsSayWhetherTheyAreAboutTheModuleOrTheDevice(t *testing.T) {
	put := func(c *modules.Client) error { return c.Create(context.Background(), "m", modules.Pair{}) }
	list := func(c *modules.Client) error { _, err := c.List(context.Background()); return err }
	remove := func(c *modules.Client) error {
		return c.Delete(context.Background(), modules.Module{ID: "m"})
	}
	is := func(status int) func(error) bool {
		return func(err error) bool {
			var of *hub.Error
			return errors.As(err, &of) && of.Status == status && !errors.As(err, new(*modules.RefusedError))
		}
	}
	ofModule := func(err error) bool { return errors.As(err, new(*modules.RefusedError)) }
	unusable := func(err error) bool { return errors.As(err, new(*modules.AnswerError)) }
	none := func(err error) bool { return err == nil }
	for _, tt := range []struct {
		name, answer string
		do           func(*modules.Client) error
		want         func(error) bool
	}{
		{"the device is unknown", "404 Not Found\r\n\r\n{\"errorCode\":404001}", list, is(404)},
		{"the device is refused", "401 Unauthorized\r\n\r\n", put, is(401)},
		{"throttled", "429 Too Many Requests\r\nRetry-After: 30\r\n\r\n", put, func(err error) bool {
			var of *hub.Error
			return is(429)(err) && errors.As(err, &of) && of.RetryAfter == 30*time.Second
		}},
		{"an invalid module", "400 Bad Request\r\n\r\n", put, ofModule},
		{"the module exists", "409 Conflict\r\n\r\n{\"errorCode\":409301}", put, ofModule},
		{"the module has changed", "412 Precondition Failed\r\n\r\n", remove, ofModule},
		{"too many modules", "413 Request Entity Too Large\r\n\r\n{\"errorCode\":413003}", put, ofModule},
		{"the module is gone already", "404 Not Found\r\n\r\n{\"errorCode\":404010}", remove, none},
		{"the device is gone", "404 Not Found\r\n\r\n{\"errorCode\":404001}", remove, is(404)},
		{"an error of the hub", "500 Internal Server Error\r\n\r\n", list, is(500)},
		{"a redirection", "302 Found\r\nLocation: https://elsewhere/\r\n\r\n", list, is(302)},
		{"a page", "200 OK\r\n\r\n<html>", list, unusable},
		{"a list without end", "200 OK\r\n\r\n[{}" + strings.Repeat(",{}", 2000) + "]", list, unusable},
		{"a deletion", "204 No Content\r\n\r\n", remove, none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := client(t, "HTTP/1.1 "+tt.answer)
			if err := tt.do(c); !tt.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestWithoutAKeyNothingIsSent(t *testing.T) {
	c, requests := client(t, "HTTP/1.1 200 OK\r\n\r\n[]")
	lost := errors.New("the TPM does not answer")
	c.MAC = func(context.Context, []byte) ([]byte, error) { return nil, lost }
	if _, err := c.List(t.Context()); !errors.Is(err, lost) || len(*requests) > 0 {
		t.Errorf("got %v, sent %q", err, *requests)
	}
}
