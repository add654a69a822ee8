package main_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// sealer is a technician who encrypts the symmetric key of a gateway with its TPM.
type sealer struct {
	t       *testing.T
	dir     string
	socket  string
	key     string
	secrets canaries
}

func newSealer(t *testing.T) *sealer {
	k := key(t)
	return &sealer{t: t, dir: t.TempDir(), socket: tpmtest.Start(t).Socket, key: k, secrets: canaries{{"the symmetric key", k}}}
}

// args returns the arguments of "dpsd tpm seal".
func (s *sealer) args(more ...string) []string {
	return append([]string{"tpm", "seal", "--config", filepath.Join(s.dir, "dpsd.toml"), "--device", s.socket}, more...)
}

// files returns the names of all files below the directory, and checks that none contains the key.
func (s *sealer) files() (names []string) {
	s.t.Helper()
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if found := s.secrets.in(string(text)); found != nil {
			s.t.Errorf("%s contains %q", path, found)
		}
		name, _ := filepath.Rel(s.dir, path)
		names = append(names, name)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return names
}

// echoes reports whether the terminal displays what the user types.
func (p *person) echoes() bool {
	p.t.Helper()
	settings, err := unix.IoctlGetTermios(int(p.screen.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}

func TestASymmetricKeyIsSealedFromATerminalThatNeverDisplaysIt(t *testing.T) {
	s := newSealer(t)
	p := atTerminal(t, s.secrets, "dpsd", s.args()...)
	const hidden = "Primary key (not shown): "
	p.answers(hidden, "HostName=hub.azure-devices.net;DeviceId=gw-1;SharedAccessKey="+s.key, "connection string of a device in an IoT hub", nothing)
	p.answers(hidden, s.key[:20]+"\n"+s.key[20:], "20 so far", nothing)
	p.reads("wrote " + filepath.Join(s.dir, "keys/symmetric-key.tss2"))
	p.reads(`key = "file:` + filepath.Join(s.dir, "keys/symmetric-key.tss2") + `"`)
	p.ends(0)
	if !p.echoes() {
		t.Error("the terminal no longer displays input after the program has ended")
	}
	if names := s.files(); !slices.Equal(names, []string{"keys/symmetric-key.tss2"}) {
		t.Errorf("the files are %q", names)
	}
	// The file contains the key: the same command with a pipe finds it there.
	c := exec.Command("dpsd", s.args("--key-file", "-")...)
	c.Stdin = strings.NewReader(s.key + "\n")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "already contains a key that works") {
		t.Errorf("%v\n%s", err, out)
	}
	if found := s.secrets.in(string(out)); found != nil {
		t.Errorf("the output contains %q", found)
	}
}

func TestAnInterruptedSealWritesNothingAndRestoresTheTerminal(t *testing.T) {
	s := newSealer(t)
	p := atTerminal(t, s.secrets, "dpsd", s.args()...)
	p.reads("Primary key (not shown): ")
	if p.echoes() {
		t.Error("the terminal displays what the user types")
	}
	p.types(s.key[:10] + "\x03")
	if seen := p.ends(1); !strings.Contains(seen, "stopped; nothing was written") {
		t.Errorf("the terminal displays\n%s", seen)
	}
	if !p.echoes() {
		t.Error("the terminal no longer displays input after the program has ended")
	}
	if names := s.files(); names != nil {
		t.Errorf("the files are %q", names)
	}
}

func TestAnEmptyVariableInAScriptIsAnErrorAndCreatesNoKey(t *testing.T) {
	s := newSealer(t)
	file, device := filepath.Join(s.dir, "dpsd.toml"), "--device="+s.socket
	for _, args := range [][]string{
		{"create-key", "--csr", ""}, {"create-key", "--csr=-", "--registration-id="}, {"create-key", ""},
		{"create-key", "--registration-id", "--csr", "-"}, {"seal", "--key-file="}, {"status", "--device="},
	} {
		out, err := exec.Command("dpsd", slices.Concat([]string{"tpm"}, args[:1], []string{"--config", file, device}, args[1:])...).CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	if files := s.files(); len(files) > 0 {
		t.Errorf("the commands created the files %q", files)
	}
}

func TestTheTPMAndTheRegistrationIDAreReadFromAConfigurationWithoutACredential(t *testing.T) {
	s := newSealer(t)
	file := filepath.Join(s.dir, "dpsd.toml")
	text := fmt.Sprintf("[dps]\nid_scope = \"0ne1\"\nregistration_id = \"gw-7\"\n[tpm]\ndevice = %q\n", s.socket)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dpsd", "tpm", "create-key", "--config", file, "--csr", "-").Output()
	block, _ := pem.Decode(out)
	if err != nil || block == nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.Subject.CommonName != "gw-7" {
		t.Errorf("%v: %+v", err, r)
	}
}

func TestAGroupKeyIsNotReadFromATerminal(t *testing.T) {
	s := newSealer(t)
	p := atTerminal(t, s.secrets, "dpsd", s.args("--group-key-file", "-", "--registration-id", "gw-1")...)
	if seen := p.ends(2); !strings.Contains(seen, "use a file or a pipe") || strings.Contains(seen, "omit this flag") {
		t.Errorf("the terminal displays\n%s", seen)
	}
}
