package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// systemd sets JOURNAL_STREAM to identify the journal's stream. The test uses a regular file.
func TestTheReasonForAnExitIsAnErrorInTheJournal(t *testing.T) {
	dir := t.TempDir()
	configuration := filepath.Join(dir, "dpsd.toml")
	if err := os.WriteFile(configuration, []byte("[dps]\nid_scop = \"0ne00000000\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what   string
		stream func(*syscall.Stat_t) string
		prefix string
	}{
		{"the journal", func(s *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", s.Dev, s.Ino) }, "<3>"},
		{"a file other than the journal", func(s *syscall.Stat_t) string { return fmt.Sprintf("%d:%d", s.Dev, s.Ino+1) }, ""},
		{"an invalid JOURNAL_STREAM", func(*syscall.Stat_t) string { return "x" }, ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
			if err != nil {
				t.Fatal(err)
			}
			defer stderr.Close()
			var file syscall.Stat_t
			if err := syscall.Fstat(int(stderr.Fd()), &file); err != nil {
				t.Fatal(err)
			}
			run := exec.Command("dpsd", "run", "--config", configuration)
			run.Env = append(os.Environ(), "JOURNAL_STREAM="+tt.stream(&file))
			run.Stderr = stderr
			if err := run.Run(); run.ProcessState.ExitCode() != 78 {
				t.Errorf("it ends with %v, want exit code 78", err)
			}
			text, err := os.ReadFile(stderr.Name())
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); len(lines) < 2 || !strings.HasPrefix(lines[0], tt.prefix+"dpsd: ") {
				t.Errorf("it prints %q, want several lines", lines)
			} else {
				for _, line := range lines {
					if strings.HasPrefix(line, "<3>") != (tt.prefix != "") {
						t.Errorf("the line %q, want %q in front of each", line, tt.prefix)
					}
				}
			}
		})
	}
}
