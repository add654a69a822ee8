package clients

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// builtDaemon returns the path of dpsd, which is built once.
var builtDaemon = sync.OnceValues(func() (string, error) { return build("dpsd") })

// paho2 returns the directory of version 2 of Paho, which Debian 13 has. The other one is that of
// Debian 12, which the SDK for Python also uses.
func paho2(t *testing.T, python string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", dir, "paho-mqtt==2.1.0").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func TestEachExampleOfAConsumerUsesTheIssuedCertificateAndContinuesWithTheNextOne(t *testing.T) {
	want(t)
	daemon, err := builtDaemon()
	if err != nil {
		t.Fatal(err)
	}
	driver, err := filepath.Abs("issued")
	if err != nil {
		t.Fatal(err)
	}
	interpreter := filepath.Join(python(t), "venv/bin/python")
	for _, c := range []struct{ name, example, path string }{
		{"mosquitto as a bridge", "mosquitto-bridge.conf", ""},
		{"Python with Paho 1", "uplink.py", ""},
		{"Python with Paho 2", "uplink.py", paho2(t, interpreter)},
		{"a shell with mosquitto_pub", "uplink.sh", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := runs(t, t.TempDir(), []string{"--fast", "--hub", "localhost", "--service", "localhost:8080"},
				"env", "DPSD="+daemon, "PYTHON="+interpreter, "PYTHONPATH="+c.path, driver, c.example)
			if r.err != nil || !strings.HasSuffix(r.stdout, "done\n") {
				t.Errorf("%v: it printed %q", r.err, r.stdout)
			}
			if r.violations != "" {
				t.Errorf("it violated the rules: %s", r.violations)
			}
			// The shell script also connects between the revocation and the renewal.
			for _, line := range r.refusals() {
				if strings.HasPrefix(line, "dpsd-sim: refused ") && !strings.Contains(line, "the issued certificate was revoked") {
					t.Errorf("it was refused: %s", line)
				}
			}
			if n := len(regexp.MustCompile(`(?m)^dpsd-sim: telemetry from "`+device+`" at "localhost"`).FindAllString(r.stderr, -1)); n < 2 {
				t.Errorf("the hub received %d messages", n)
			}
			if t.Failed() {
				t.Log(r.stderr)
			}
		})
	}
}
