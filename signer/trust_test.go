package signer

import (
	"bufio"
	"crypto"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// signerVariable makes a copy of the test program a signer that listens on this socket.
const signerVariable = "DPSD_TEST_SIGNER_SOCKET"

// listenAs is the signer of another user. It ends only with its process.
func listenAs(path string) {
	listen, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.WriteString("listening\n")
	for {
		conn, err := listen.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go server(keys()["P-256"]).Serve(conn)
	}
}

func TestASignerOfAnotherUserIsTrustedOnlyInADirectoryOfItsOwn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("starts a process as another user, which needs root")
	}
	const other, third = 64001, 64002
	for _, row := range []struct {
		name        string
		top, inside os.FileMode
		owner       [2]int // of top and inside
		listener    uint32
		trusted     bool
	}{
		{"the directory belongs to the listener", 0o755, 0o755, [2]int{0, other}, other, true},
		{"the directory belongs to root", 0o755, 0o777, [2]int{0, 0}, other, false},
		{"others can write to the directory", 0o755, 0o777, [2]int{0, other}, other, false},
		{"the group can write to the directory", 0o755, 0o775, [2]int{0, other}, other, false},
		{"others can write to the directory, as in /tmp", 0o755, 0o777 | os.ModeSticky, [2]int{0, 0}, other, false},
		{"the directory belongs to a third user", 0o755, 0o777, [2]int{0, third}, other, false},
		{"others can write to the directory above", 0o777, 0o755, [2]int{0, other}, other, false},
		{"the directory above belongs to the listener", 0o755, 0o755, [2]int{other, other}, other, false},
		{"root listens, and others can write to the directory", 0o755, 0o777, [2]int{0, other}, 0, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			base, err := os.MkdirTemp("/run", "dpsd-signer-test") // every directory above belongs to root
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(base) })
			top := filepath.Join(base, "top")
			inside := filepath.Join(top, "inside")
			for i, dir := range []string{base, top, inside} {
				if i > 0 {
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			for dir, mode := range map[string]os.FileMode{base: 0o755, top: row.top, inside: row.inside} {
				if err := os.Chmod(dir, mode); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chown(top, row.owner[0], 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(inside, row.owner[1], 0); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(inside, "key.sock")
			program := filepath.Join(base, "signer")
			copyExecutable(t, program)
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), signerVariable+"="+path)
			cmd.Dir = "/"
			cmd.Stderr = os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: row.listener, Gid: row.listener}, Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
			})
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "listening\n" {
				t.Fatalf("the signer printed %q, %v", line, err)
			}
			key, err := Dial(t.Context(), path)
			if !row.trusted {
				wantKind(t, err, Untrusted, "another user listens on the socket")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
				t.Error(err)
			}
		})
	}
}

// copyExecutable copies the program of the test to a directory that every user can read.
func copyExecutable(t *testing.T, to string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, program, 0o755); err != nil {
		t.Fatal(err)
	}
}
