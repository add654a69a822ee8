package control_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/control"
)

// patience is how long a test waits for an immediate event.
const patience = 20 * time.Second

const socketVariable = "DPSD_TEST_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(socketVariable); socket != "" {
		os.Exit(actAsClient(socket))
	}
	goleak.VerifyTestMain(m)
}

// actAsClient requests a registration and a certificate with the user ID of this process.
func actAsClient(socket string) int {
	c := control.Client{Socket: socket}
	due, err := c.Reprovision(context.Background())
	renewal, refused := c.RenewCertificate(context.Background())
	fmt.Printf("%v %v\n%v %v\n", due.Confirmations, err, renewal.Confirmations, refused)
	return 0
}

// testServer is a server on a separate socket; patient is its Patience.
type testServer struct {
	t      *testing.T
	board  *control.Board
	client control.Client
	asked  atomic.Int32
}

func open(t *testing.T, patient time.Duration) *testServer {
	t.Helper()
	return openWith(t, control.Server{Patience: patient, RenewCertificate: func(context.Context) (control.Reprovision, error) {
		return control.Reprovision{Confirmations: 8}, nil
	}})
}

// openWith is open for a server with other functions.
func openWith(t *testing.T, s control.Server) *testServer {
	t.Helper()
	// The path of a socket has at most 107 bytes, which a test's directory may exceed.
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	d := &testServer{t: t, board: &control.Board{}, client: control.Client{Socket: filepath.Join(dir, "dpsd.sock")}}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(d.client.Socket)
	if err != nil {
		t.Fatal(err)
	}
	s.Board = d.board
	s.Reprovision = func(context.Context) (control.Reprovision, error) {
		d.asked.Add(1)
		return control.Reprovision{Confirmations: 7}, nil
	}
	s.Metrics = func(w io.Writer) { fmt.Fprintln(w, "dpsd_generation 3") }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return d
}

// request sends an HTTP request, as curl would.
func (d *testServer) request(method, path string) (*http.Response, string) {
	d.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.client.Socket)
		},
	}}
	request, err := http.NewRequest(method, "http://dpsd"+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		d.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return response, string(body)
}

func (d *testServer) dial() net.Conn {
	d.t.Helper()
	c, err := net.Dial("unix", d.client.Socket)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

func TestAServiceThatDoesNotAnswerIsNamed(t *testing.T) {
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	c := control.Client{Socket: filepath.Join(dir, "dpsd.sock")}
	l, err := control.Listen(c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Status(ctx); err == nil || err.Error() != "the service runs, but it does not answer" {
		t.Errorf("the error is %v", err)
	}
}

func TestStatus(t *testing.T) {
	d := open(t, 0)
	ctx := context.Background()
	t.Run("the response is the posted status with the current remaining time", func(t *testing.T) {
		due := time.Now().Add(time.Hour)
		d.board.Post(control.Status{Version: "1", Health: control.OK, Next: control.Due(due, "interval", ""),
			Identity: &control.Identity{AssignedHub: "hub", DeviceID: "gw", Generation: 3}})
		s, err := d.client.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s.Identity == nil || s.Identity.Generation != 3 || s.Health != control.OK {
			t.Errorf("%+v", s)
		}
		if s.Next == nil || s.Next.In <= 3590 || s.Next.In > 3600 || s.Next.At.Sub(due).Abs() > time.Second {
			t.Errorf("next: %+v", s.Next)
		}
	})
	t.Run("lists are lists, and absent values are null", func(t *testing.T) {
		d.board.Post(control.Status{})
		_, body := d.request(http.MethodGet, "/v1/status")
		for _, want := range []string{`"faults":[]`, `"identity":null`, `"next":null`} {
			if !strings.Contains(body, want) {
				t.Errorf("%s is not in %s", want, body)
			}
		}
	})
	t.Run("the metrics are text", func(t *testing.T) {
		response, body := d.request(http.MethodGet, "/metrics")
		if body != "dpsd_generation 3\n" || !strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %q", response.Header, body)
		}
	})
	t.Run("another path or method is rejected with the allowed ones", func(t *testing.T) {
		for _, c := range []struct {
			method, path string
			code         int
			says         string
		}{
			{http.MethodGet, "/", 404, "/v1/status"},
			{http.MethodGet, "/v2/status", 404, "/v1/status"},
			{http.MethodPost, "/v1/status", 405, "GET"},
			{http.MethodGet, "/v1/reprovision", 405, "POST"},
			{http.MethodGet, "/v1/certificate/renew", 405, "POST"},
			{http.MethodPost, "/v1/certificate", 404, "/v1/certificate/renew"},
		} {
			response, body := d.request(c.method, c.path)
			var p control.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || response.StatusCode != c.code || !strings.Contains(body, c.says) {
				t.Errorf("%s %s: %d %s %v", c.method, c.path, response.StatusCode, body, err)
			}
		}
		if n := d.asked.Load(); n != 0 {
			t.Errorf("%d registrations were requested", n)
		}
	})
}

func TestEvents(t *testing.T) {
	d := open(t, 2*patience) // the slow reader may take as long as the test
	d.board.Post(control.Status{Text: "first"})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	enough := errors.New("enough")
	t.Run("the current status is sent immediately, then each that differs", func(t *testing.T) {
		var told []string
		err := d.client.Follow(ctx, func(s control.Status) error {
			told = append(told, s.Text)
			switch s.Text {
			case "first":
				d.board.Post(control.Status{Text: "first"}) // no change
				d.board.Post(control.Status{Text: "second"})
			case "second":
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || strings.Join(told, " ") != "first second" {
			t.Errorf("%v, %q", err, told)
		}
	})
	t.Run("a slow reader gets the latest status, and nothing is queued for it", func(t *testing.T) {
		seen := 0
		err := d.client.Follow(ctx, func(s control.Status) error {
			if seen++; seen == 1 {
				for i := range 100_000 {
					d.board.Post(control.Status{Text: fmt.Sprint(i)})
				}
			}
			if s.Text == "99999" {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("the latest status was not received: %v", err)
		}
	})
}

func TestSlowReadersShareOneDocument(t *testing.T) {
	var b control.Board
	now := time.Now()
	b.Post(control.Status{Text: "first"})
	one, _ := b.Document(now)
	other, _ := b.Document(now.Add(time.Millisecond))
	if &one[0] != &other[0] {
		t.Error("two simultaneous calls have different copies")
	}
	if later, _ := b.Document(now.Add(time.Second)); string(later) == string(one) {
		t.Error("a second later the document has not changed")
	}
	b.Post(control.Status{Text: "second <&>"})
	changed, _ := b.Document(now.Add(time.Second))
	if !strings.Contains(string(changed), `"second <&>"`) || !strings.Contains(string(one), `"first"`) {
		t.Errorf("after a change the document is %s, and an earlier reader has %s", changed, one)
	}
}

func TestReprovision(t *testing.T) {
	d := open(t, 0)
	t.Run("the service's user may", func(t *testing.T) {
		due, err := d.client.Reprovision(context.Background())
		if err != nil || due.Confirmations != 7 {
			t.Errorf("%+v, %v", due, err)
		}
		due, err = d.client.RenewCertificate(context.Background())
		if err != nil || due.Confirmations != 8 {
			t.Errorf("%+v, %v", due, err)
		}
	})
	if os.Geteuid() != 0 {
		missing(t, "root, to start a process as another user")
	}
	// Other users cannot access the directory of the test binary.
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(d.client.Socket), "client")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	const (
		stranger = 61234
		allowed  = "7 <nil>\n8 <nil>\n"
		refused  = "0 not permitted: only root and members of the service's group may request a registration; run: sudo dpsd reprovision; or add the user to the group: usermod -a -G dpsd USER\n" +
			"0 not permitted: only root and members of the service's group may request a certificate; run: sudo dpsd certificate renew; or add the user to the group: usermod -a -G dpsd USER\n"
	)
	many := make([]uint32, 1000)
	for i := range many {
		many[i] = uint32(70000 + i)
	}
	for _, c := range []struct {
		who  string
		as   syscall.Credential
		want string
	}{
		{"a stranger may not", syscall.Credential{Uid: stranger, Gid: stranger}, refused},
		{"a member of the group may", syscall.Credential{Uid: stranger, Gid: stranger, Groups: []uint32{stranger, 0}}, allowed},
		{"one whose primary group it is may", syscall.Credential{Uid: stranger, Gid: 0}, allowed},
		{"a stranger in a thousand groups may not", syscall.Credential{Uid: stranger, Gid: stranger, Groups: many}, refused},
		{"a member of the group with a thousand other groups may", syscall.Credential{Uid: stranger, Gid: stranger, Groups: slices.Concat(many, []uint32{0})}, allowed},
	} {
		t.Run(c.who, func(t *testing.T) {
			cmd := exec.Command(program)
			cmd.Env, cmd.Dir = []string{socketVariable + "=" + d.client.Socket}, "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &c.as}
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != c.want {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func TestACertificateIsRequestedOnlyIfTheConfigurationHasTheTable(t *testing.T) {
	answering := func(err error) func(context.Context) (control.Reprovision, error) {
		return func(context.Context) (control.Reprovision, error) { return control.Reprovision{}, err }
	}
	for _, c := range []struct {
		expect string
		renew  func(context.Context) (control.Reprovision, error)
		code   int
		want   error
	}{
		{"a request is accepted", answering(nil), http.StatusAccepted, nil},
		{"without the table, the request is a conflict", answering(control.ErrNotConfigured), http.StatusConflict, control.ErrNotConfigured},
		{"a server without the function has no table", nil, http.StatusConflict, control.ErrNotConfigured},
		{"a daemon that ends accepts no requests", answering(errors.New("the daemon ends")), http.StatusServiceUnavailable, nil},
	} {
		t.Run(c.expect, func(t *testing.T) {
			d := openWith(t, control.Server{RenewCertificate: c.renew})
			response, body := d.request(http.MethodPost, "/v1/certificate/renew")
			if response.StatusCode != c.code {
				t.Errorf("the answer is %s, want %d: %s", response.Status, c.code, body)
			}
			var problem control.Problem
			if c.code != http.StatusAccepted && (json.Unmarshal([]byte(body), &problem) != nil || problem.Error == "") {
				t.Errorf("the answer does not give a reason: %s", body)
			}
			if c.code == http.StatusConflict && problem.Advice != "add the table [certificate] to dpsd.toml" {
				t.Errorf("the advice is %q", problem.Advice)
			}
			_, err := d.client.RenewCertificate(context.Background())
			if (err == nil) != (c.code == http.StatusAccepted) || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("the client returns %v, want %v", err, c.want)
			}
			if n := d.asked.Load(); n != 0 {
				t.Errorf("%d registrations were requested", n)
			}
		})
	}
}

func TestHostileClients(t *testing.T) {
	t.Run("the connection is closed after input that is too long or not HTTP, and others are served", func(t *testing.T) {
		d := open(t, 2*time.Second)
		for _, bytes := range []string{
			"\x00\x01\x02\r\n\r\n", "GET /v1/status\r\n\r\n", strings.Repeat("x", 1<<20),
			"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n",
			"GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"POST /v1/reprovision HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + strings.Repeat("z", 1<<20),
		} {
			c := d.dial()
			c.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, bytes) // the server may close the connection before the end
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%.20q: the connection stays open", bytes)
			}
		}
		if _, err := d.client.Status(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a client that sends nothing is disconnected", func(t *testing.T) {
		d := open(t, 300*time.Millisecond)
		c := d.dial()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a client that requests events but does not read is disconnected and delays no other", func(t *testing.T) {
		d := open(t, 2*time.Second) // the other client must be able to send a request within this time
		c := d.dial()
		fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
		line := bufio.NewReader(c)
		if _, err := line.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		// This exceeds any socket buffer; Post does not wait.
		text := strings.Repeat("t", 1<<16)
		limit := time.Now().Add(patience)
		for i := 0; ; i++ {
			d.board.Post(control.Status{Text: fmt.Sprint(i, text)})
			if hungUp(t, c) {
				break
			}
			if time.Now().After(limit) {
				t.Fatal("the connection stays open")
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := d.client.Status(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a stream ends when its client has sent more than the request", func(t *testing.T) {
		d := open(t, 0)
		c := d.dial()
		fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		// Package net/http would now not notice that the client closes the connection.
		fmt.Fprint(c, "x")
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Error(err)
		}
	})
	t.Run("the connections of a process are limited, and one that ends allows another", func(t *testing.T) {
		d := open(t, 300*time.Millisecond)
		var held []net.Conn
		streaming := func() net.Conn {
			c := d.dial()
			fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				return nil
			}
			return c
		}
		for len(held) < 200 {
			c := streaming()
			if c == nil {
				break
			}
			held = append(held, c)
		}
		if len(held) != 16 {
			t.Errorf("%d connections were accepted, want 16", len(held))
		}
		held[0].Close()
		for limit := time.Now().Add(patience); streaming() == nil; {
			if time.Now().After(limit) {
				t.Fatal("no other connection was accepted")
			}
		}
	})
}

// hungUp reports whether the server has closed a connection, whose last bytes may be unread.
func hungUp(t *testing.T, c net.Conn) (closed bool) {
	t.Helper()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		ask := []unix.PollFd{{Fd: int32(fd)}}
		_, _ = unix.Poll(ask, 0) // it does not wait
		closed = ask[0].Revents&unix.POLLHUP != 0
	}); err != nil {
		t.Fatal(err)
	}
	return closed
}

// The kernel answers accept(2) with EINVAL on a socket that does not listen.
func TestAnErrorOfAcceptDoesNotEndTheServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	s := control.Server{Board: &control.Board{}, Failed: func(err error) { failed <- err }}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l.(*net.UnixListener)) }()
	select {
	case err := <-failed:
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("the reported error is %v", err)
		}
	case err := <-ended:
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := (control.Client{Socket: path}).Status(t.Context()); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTheSocket(t *testing.T) {
	t.Run("without a daemon the client says so", func(t *testing.T) {
		dir := t.TempDir()
		for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(stale(t), "below a file"), stale(t), dir} {
			if _, err := (control.Client{Socket: path}).Status(context.Background()); !errors.Is(err, control.ErrNotRunning) {
				t.Errorf("%s: %v", path, err)
			}
		}
	})
	t.Run("the socket of an earlier process is replaced, and all users may connect", func(t *testing.T) {
		path := stale(t)
		l, err := control.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o666 {
			t.Errorf("%v, %v", info, err)
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
	})
	t.Run("a missing directory is an error", func(t *testing.T) {
		if _, err := control.Listen(filepath.Join(t.TempDir(), "none", "dpsd.sock")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
}

// stale returns the path of a socket of a process that has ended.
func stale(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "dpsd.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return path
}

// missing skips a test that needs what; in CI, it fails the test.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal("this needs " + what)
	}
	t.Skip("this needs " + what)
}
