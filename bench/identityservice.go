package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/bench/page"
	"github.com/dpsd-project/dpsd/simulator"
)

// identityPolls is how long Identity Service waits before each poll, whatever the service requests.
const identityPolls = 5 * time.Second

// effort is the cost of one registration with a key in a TPM.
type effort struct {
	cpu         time.Duration // of all processes
	beyond      time.Duration // from the start to the assignment, without the waits before polls
	peak        int64         // the sum of all processes
	processes   int
	commands    int           // that the TPM executed
	working     time.Duration // that the TPM needed for them
	connections int
}

// identityService is Azure IoT Identity Service with TPM attestation: aziot-identityd, which
// registers, and aziot-tpmd, which uses the TPM.
type identityService struct {
	program string // aziotd
	*service
	tap *tap

	front *httptest.Server // answers for DPS and the hub

	mu          sync.Mutex
	connections int // to the front
	err         error
}

// runIdentityService compares dpsd with Identity Service. aziotd is the path of its program.
func (b *bench) runIdentityService(aziotd, document string) error {
	_, dir, err := b.prepare()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if aziotd, err = filepath.Abs(aziotd); err != nil {
		return err
	}
	if err := separateRun(filepath.Join(dir, "run")); err != nil {
		return fmt.Errorf("creating a separate /run, which requires root: %w", err)
	}
	report, err := b.againstIdentityService(dir, aziotd)
	if err != nil {
		return err
	}
	fmt.Print(report)
	if document != "" {
		return page.Insert(document, "identity-service", report)
	}
	return nil
}

// separateRun creates the directory run, and mounts it on /run for this thread and the processes
// that it starts. This is necessary because the paths of the sockets of Identity Service are
// constants.
func separateRun(run string) error {
	if err := os.MkdirAll(filepath.Join(run, "aziot"), 0o700); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return unix.Mount(run, "/run", "", unix.MS_BIND, "")
}

// againstIdentityService measures, alternately, dpsd with a key in a file, dpsd with a key in a TPM,
// and Identity Service. It returns the report.
func (b *bench) againstIdentityService(dir, aziotd string) (string, error) {
	v := variant{"key", "mqtt", "1.2", 1} // the service supports only TLS 1.2
	file, err := b.service(dir, "file", v, false)
	if err != nil {
		return "", err
	}
	defer file.server.Close()
	moved, tapped, kill, err := b.tapped(dir, "moved", v)
	if err != nil {
		return "", err
	}
	defer kill()
	if err := moved.moveTo(tapped.socket, b.program); err != nil {
		return "", err
	}
	if _, _, err := tapped.take(); err != nil {
		return "", err
	}
	other, otherTap, kill, err := b.tapped(dir, "other", v)
	if err != nil {
		return "", err
	}
	defer kill()
	i := &identityService{program: aziotd, service: other, tap: otherTap}
	if err := i.prepare(); err != nil {
		return "", err
	}
	defer i.front.Close()
	// The first registration creates the two persistent keys of Identity Service.
	if _, err := i.register(); err != nil {
		return "", err
	}
	version, err := i.runningVersion()
	if err != nil {
		return "", err
	}

	rows := []struct {
		name     string
		register func() (effort, error)
		efforts  []effort
	}{
		{name: "dpsd, key in a file", register: func() (effort, error) { return file.effort(b.program, nil) }},
		{name: "dpsd, key in the TPM", register: func() (effort, error) { return moved.effort(b.program, tapped) }},
		{name: "Identity Service, TPM attestation", register: i.register},
	}
	for range b.runs {
		for r := range rows {
			e, err := rows[r].register()
			if err != nil {
				return "", fmt.Errorf("%s: %w", rows[r].name, err)
			}
			rows[r].efforts = append(rows[r].efforts, e)
		}
	}
	var t strings.Builder
	fmt.Fprintf(&t, "dpsd %s; Azure IoT Identity Service %s; on %s.\n\nBest of %d runs each, alternating; MB are 10⁶ bytes.\n\n", b.version, version, machine(), b.runs)
	t.WriteString("| program | processes | CPU ms | peak MB | connections | TPM commands | time in the TPM ms | time beyond waits ms |\n| --- |" + strings.Repeat(" --: |", 7) + "\n")
	for _, r := range rows {
		value := func(of func(effort) float64) float64 { return least(r.efforts, of) }
		fmt.Fprintf(&t, "| %s | %.0f | %.0f | %.1f | %.0f | %.0f | %.1f | %.0f |\n", r.name,
			value(func(e effort) float64 { return float64(e.processes) }), value(func(e effort) float64 { return milliseconds(e.cpu) }),
			value(func(e effort) float64 { return float64(e.peak) / megabyte }), value(func(e effort) float64 { return float64(e.connections) }),
			value(func(e effort) float64 { return float64(e.commands) }), value(func(e effort) float64 { return milliseconds(e.working) }),
			value(func(e effort) float64 { return milliseconds(e.beyond) }))
	}
	return t.String(), nil
}

// least returns the smallest value of one property: other load on the machine only increases it.
func least(efforts []effort, of func(effort) float64) float64 {
	smallest := of(efforts[0])
	for _, e := range efforts {
		smallest = min(smallest, of(e))
	}
	return smallest
}

// tapped creates a service and a software TPM with a tap in front of it.
func (b *bench) tapped(dir, name string, v variant) (s *service, t *tap, kill func(), err error) {
	if s, err = b.service(dir, name, v, false); err != nil {
		return nil, nil, nil, err
	}
	socket, end, err := softwareTPM(s.path("tpm"))
	if err == nil {
		if t, err = newTap(socket); err != nil {
			end()
		}
	}
	if err != nil {
		s.server.Close()
		return nil, nil, nil, err
	}
	return s, t, func() {
		end()
		t.close()
		s.server.Close()
	}, nil
}

// effort measures a registration with dpsd. t is the tap of its TPM, or nil if it uses none.
func (s *service) effort(program string, t *tap) (effort, error) {
	u, err := s.registers(program)
	if err != nil {
		return effort{}, err
	}
	e := effort{cpu: u.cpu, peak: u.peak, processes: 1, beyond: u.elapsed - time.Duration(s.variant.polls)*retryAfter, connections: 1}
	if t != nil {
		e.commands, e.working, err = t.take()
	}
	return e, err
}

// prepare starts the front and writes the configuration.
func (i *identityService) prepare() error {
	i.front = httptest.NewUnstartedServer(i)
	i.front.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			i.mu.Lock()
			i.connections++
			i.mu.Unlock()
		}
	}
	i.front.TLS = &tls.Config{MaxVersion: tls.VersionTLS12} //nolint:gosec // as in the service
	i.front.StartTLS()
	home := i.path("home")
	if err := errors.Join(os.Mkdir(home, 0o700), os.Mkdir(i.path("empty"), 0o700), os.Mkdir(i.path("bin"), 0o700)); err != nil {
		return err
	}
	for name, content := range map[string]string{
		"front.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.front.Certificate().Raw})),
		"tpmd.toml": fmt.Sprintf("tcti = %q\n", "swtpm:path="+i.tap.socket),
		"identityd.toml": fmt.Sprintf(`hostname = "gateway"
homedir = %q
[provisioning]
source = "dps"
global_endpoint = %q
scope_id = %q
[provisioning.attestation]
method = "tpm"
registration_id = %q
`, home, i.front.URL, i.server.IDScope(), registrationID),
	} {
		if err := os.WriteFile(i.path(name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	// The file name of the program selects the service that it runs.
	return errors.Join(os.Symlink(i.program, i.path("bin/aziot-tpmd")), os.Symlink(i.program, i.path("bin/aziot-identityd")))
}

// register measures a registration of a gateway whose TPM contains the keys, but which has no
// assignment. It kills both processes as soon as the assignment is stored.
func (i *identityService) register() (e effort, err error) {
	if err := errors.Join(os.RemoveAll(i.path("home")), os.Mkdir(i.path("home"), 0o700)); err != nil {
		return e, err
	}
	_ = os.Remove(i.socket()) // of the previous registration, if any
	if _, _, err := i.tap.take(); err != nil {
		return e, err
	}
	i.mu.Lock()
	i.connections = 0
	i.mu.Unlock()
	before := len(i.server.Log())
	tpmd, err := i.start("tpmd")
	if err != nil {
		return e, err
	}
	processes := []process{tpmd}
	err = until(func() bool { return exists(i.socket()) })
	if err == nil {
		var identityd process
		if identityd, err = i.start("identityd"); err == nil {
			processes = append(processes, identityd)
			err = until(func() bool { return exists(i.path("home/device_info")) })
		}
	}
	e.beyond = time.Since(tpmd.started) - time.Duration(i.variant.polls)*identityPolls
	for _, p := range processes {
		p.kill()
	}
	for _, p := range processes {
		u, failed := p.wait()
		e.cpu += u.cpu
		e.peak += u.peak
		e.processes++
		err = errors.Join(err, failed)
	}
	var tapErr error
	e.commands, e.working, tapErr = i.tap.take()
	i.mu.Lock()
	e.connections, err = i.connections, errors.Join(err, tapErr, i.err)
	i.mu.Unlock()
	sum := simulator.Summarize(i.server.Log()[before:])
	if err == nil && (len(sum.Registers) != 1 || len(sum.Polls) != i.variant.polls) {
		err = fmt.Errorf("the service received %d register requests and %d polls", len(sum.Registers), len(sum.Polls))
	}
	if err != nil {
		for _, name := range []string{"tpmd.log", "identityd.log"} {
			said, _ := os.ReadFile(i.path(name))
			err = fmt.Errorf("%w\n%s:\n%s", err, name, said)
		}
	}
	return e, err
}

// socket returns the path of the socket of aziot-tpmd, which is also valid outside the mount
// namespace.
func (i *identityService) socket() string {
	return filepath.Join(filepath.Dir(i.directory), "run", "aziot", "tpmd.sock")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// until returns nil as soon as a condition is true.
func until(condition func() bool) error {
	for end := time.Now().Add(limit); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("no progress within %s", limit)
		}
	}
	return nil
}

// start starts one of the two services.
func (i *identityService) start(name string) (process, error) {
	variable := "AZIOT_" + strings.ToUpper(name) + "_CONFIG"
	return start([]string{
		variable + "=" + i.path(name+".toml"), variable + "_DIR=" + i.path("empty"), "SSL_CERT_FILE=" + i.path("front.pem"),
		"LD_LIBRARY_PATH=" + filepath.Dir(i.program), // for libaziot_keys.so, if it is not installed
	}, i.path(name+".log"), i.path("bin/aziot-"+name))
}

// runningVersion returns the version that aziot-tpmd has logged.
func (i *identityService) runningVersion() (string, error) {
	said, err := os.ReadFile(i.path("tpmd.log"))
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`Version - (.+)`).FindSubmatch(said)
	if found == nil {
		return "", errors.New("aziot-tpmd has logged no version")
	}
	return string(found[1]), nil
}

// ServeHTTP answers the first request of TPM attestation, because the simulator does not support
// it. The authentication key in the answer is the symmetric key of the device, so the simulator can
// verify the token that the TPM signs. The simulator answers the other requests to DPS. ServeHTTP
// also answers for the hub, which has no modules.
func (i *identityService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := i.answer(w, r); err != nil {
		i.mu.Lock()
		i.err = errors.Join(i.err, err)
		i.mu.Unlock()
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (i *identityService) answer(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if strings.HasPrefix(r.URL.Path, "/devices/") {
		_, err := io.WriteString(w, "[]")
		return err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var request struct {
		TPM *struct{ EndorsementKey, StorageRootKey []byte }
	}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &request); err != nil {
			return err
		}
	}
	if request.TPM != nil {
		key, err := base64.StdEncoding.DecodeString(i.server.DeviceKey(registrationID))
		if err != nil {
			return err
		}
		sealed, err := challenge(request.TPM.EndorsementKey, request.TPM.StorageRootKey, key)
		if err != nil {
			return err
		}
		w.WriteHeader(http.StatusUnauthorized)
		return json.NewEncoder(w).Encode(map[string][]byte{"authenticationKey": sealed})
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	i.simulated().ServeHTTP(w, r)
	return nil
}

// simulated returns a proxy that forwards requests to the simulator. In the answers, it replaces
// the assigned hub with the front.
func (i *identityService) simulated() *httputil.ReverseProxy {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(i.server.CA())
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "https", "localhost" },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots},
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go i.server.ServeWebSocket(theirs)
				return ours, nil
			},
			DisableKeepAlives: true,
		},
		ModifyResponse: func(r *http.Response) error {
			var answer map[string]any
			if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
				return err
			}
			if state, ok := answer["registrationState"].(map[string]any); ok && state["assignedHub"] != nil {
				state["assignedHub"] = i.front.Listener.Addr().String()
			}
			text, err := json.Marshal(answer)
			if err != nil {
				return err
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
			r.Header.Set("Content-Length", fmt.Sprint(len(text)))
			return nil
		},
	}
}
