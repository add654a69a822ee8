package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// passed returns the file that systemd would pass for a socket.
func passed(t *testing.T, name string, socket interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := socket.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	return os.NewFile(uintptr(fd), name)
}

func TestOnlyUnixStreamSocketsAreAcceptedFromSystemd(t *testing.T) {
	dir := t.TempDir()
	unixAt := func(network, name string) *net.UnixListener {
		l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	stream := unixAt("unix", "stream")
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "datagrams")})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	connected, err := net.Dial("unix", stream.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	core, log := observer.New(zap.DebugLevel)
	got := hubSockets([]*os.File{
		passed(t, "telemetry", stream), passed(t, "tcp", tcp), passed(t, "datagrams", datagrams),
		passed(t, "packets", unixAt("unixpacket", "packets")), passed(t, "telemetry", unixAt("unix", "second")),
		passed(t, "connected", connected.(*net.UnixConn)),
	}, zap.New(core))
	if len(got) != 1 || got["telemetry"] == nil || got["telemetry"].Addr().String() != stream.Addr().String() {
		t.Errorf("got %v", got)
	}
	var refused []string
	for _, e := range log.FilterMessage("consumer-failed").All() {
		refused = append(refused, fmt.Sprint(e.ContextMap()["consumer"]))
	}
	if strings.Join(refused, " ") != "tcp datagrams packets telemetry connected" {
		t.Errorf("refused: %q", refused)
	}
	if err := got["telemetry"].Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(stream.Addr().String()); err != nil {
		t.Errorf("the file of the socket is gone: %v", err)
	}
}

// While dpsd is stopped, systemd keeps the socket, and a client waits for the next dpsd.
func TestTheServiceServesTheSocketsThatSystemdPasses(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "key"), "c2VjcmV0IG9mIHRoaXMgZ2F0ZXdheQ==")
	write(t, filepath.Join(dir, "dpsd.toml"), fmt.Sprintf(`[dps]
id_scope = "0ne1"
registration_id = "gw-1"
endpoint = "127.0.0.1"
[[credential]]
type = "symmetric-key"
key = "file:%[1]s/key"
[transport]
protocols = ["mqtt"]
mqtt_port = 1
[state]
directory = "%[1]s/state"
[control]
socket = "%[1]s/run/dpsd.sock"
[[consumer]]
name = "telemetry"
scope = "device"
`, dir))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "telemetry.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	}}}
	for _, row := range []struct{ names, code string }{{"telemetry", "not-assigned"}, {"other", "not-configured"}} {
		answers := make(chan string, 1)
		go func() { // the request waits for dpsd
			response, err := client.Get("http://dpsd/v1/hub")
			if err != nil {
				answers <- err.Error()
				return
			}
			defer response.Body.Close()
			var answer struct{ Code string }
			_ = json.NewDecoder(response.Body).Decode(&answer)
			answers <- answer.Code
		}()
		dpsd := exec.CommandContext(t.Context(), "sh", "-c", "LISTEN_PID=$$ exec dpsd run --config "+filepath.Join(dir, "dpsd.toml"))
		dpsd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES="+row.names)
		dpsd.ExtraFiles = []*os.File{file}
		if err := dpsd.Start(); err != nil {
			t.Fatal(err)
		}
		if got := <-answers; got != row.code {
			t.Errorf("the answer on the socket %q is %q, want %q", row.names, got, row.code)
		}
		if err := dpsd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := dpsd.Wait(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(l.Addr().String()); err != nil {
			t.Errorf("dpsd has removed the socket: %v", err)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
