package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// threads returns the number of threads of the process (proc_pid_task(5)).
func (s *service) threads() int {
	s.t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.command.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(tasks)
}

// Each reload creates new watches, and the kernel delays the close of an inotify instance. A
// burst must not reach TasksMax=.
func TestABurstOfSIGHUPsCreatesNoThreads(t *testing.T) {
	for _, ready := range []bool{true, false} {
		t.Run(fmt.Sprintf("READY %t", ready), func(t *testing.T) {
			scenario := ""
			if !ready {
				scenario = "[[rule]]\non = \"register\"\nstatus = 404\n"
			}
			s := startService(t, scenario, manner{})
			if ready {
				s.until("READY=1", 1)
			} else {
				s.logged(`"fault":"enrollment-not-found"`)
			}
			before, most := s.threads(), 0
			var last time.Time
			for range 1000 {
				last = time.Now()
				s.send(syscall.SIGHUP)
				most = max(most, s.threads())
				time.Sleep(100 * time.Microsecond) // a burst of 0.2 s
			}
			if ready {
				s.eventually("RELOADING=1 and READY=1 after the last SIGHUP", func() bool {
					answers, reloads := s.got("READY=1"), s.got("RELOADING=1")
					return len(answers) == len(reloads)+1 && answers[len(reloads)].at.After(last)
				})
				t.Logf("1000 SIGHUPs caused %d reloads", len(s.got("RELOADING=1")))
				if late := s.until("READY=1", len(s.got("READY=1"))).at.Sub(last); late > time.Second {
					t.Errorf("the last SIGHUP was answered after %s", late)
				}
			}
			t.Logf("%d threads before the burst, at most %d during it", before, most)
			if most > before+8 {
				t.Errorf("%d threads during the burst, %d before it", most, before)
			}
			// dpsd still answers.
			s.write("dpsd.toml", "[dps]\nid_scop = \"0ne\"\n")
			s.send(syscall.SIGHUP)
			s.logged(`"event":"reload-refused"`)
			if _, err := os.Stat(filepath.Join(s.dir, "run", "dpsd.sock")); err != nil {
				t.Error(err)
			}
			s.stopping()
		})
	}
}
