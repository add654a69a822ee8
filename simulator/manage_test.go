package simulator_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// withFile returns a server with a directory, and the file of its enrollments.
func withFile(t *testing.T) (s *simulator.Server, file string) {
	t.Helper()
	dir := t.TempDir()
	s, err := simulator.New(simulator.Options{Directory: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, filepath.Join(dir, "enrollments.toml")
}

func keyed(id string) enroll.Change {
	return enroll.Change{Individual: &enroll.Individual{RegistrationID: id, Attestation: enroll.Attestation{
		Type: "symmetric-key", PrimaryKey: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
	}}}
}

func TestAChangeOfTheEnrollmentsStaysInUseWhileTheirFileIsReloaded(t *testing.T) {
	s, _ := withFile(t)
	done := make(chan struct{})
	var reloads atomic.Int64
	var reloading sync.WaitGroup
	for range 2 {
		reloading.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := s.ReloadEnrollments(); err != nil {
						t.Error(err)
						return
					}
					reloads.Add(1)
				}
			}
		})
	}
	for i := range 40 {
		if err := s.ChangeEnrollments(keyed("press-7")); err != nil {
			t.Fatal(err)
		}
		for until := reloads.Load() + 4; reloads.Load() < until && !t.Failed(); { // those that began before the change have ended
			if s.Enrollments().FindIndividual("press-7") < 0 {
				t.Fatalf("change %d is lost", i)
			}
		}
		if err := s.ChangeEnrollments(enroll.Change{RemoveIndividual: "press-7"}); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	reloading.Wait()
}

func TestAReloadUsesWhatTheFileHas(t *testing.T) {
	s, file := withFile(t)
	if err := os.WriteFile(file, []byte("[[individual]]\nregistration_id = \"press-8\"\ntype = \"symmetric-key\"\nprimary_key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ReloadEnrollments(); err != nil || s.Enrollments().FindIndividual("press-8") < 0 {
		t.Errorf("%v, %v", s.Enrollments().Individuals, err)
	}
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ReloadEnrollments(); err == nil || s.Enrollments().FindIndividual("press-8") < 0 {
		t.Errorf("an invalid file: %v, %v", s.Enrollments().Individuals, err)
	}
}

func TestAFileToWhichAKeyIsWrittenCanBeReadByItsOwnerOnly(t *testing.T) {
	s, file := withFile(t)
	for _, step := range []struct {
		change enroll.Change
		want   os.FileMode
	}{
		{enroll.Change{RemoveGroup: "certificates"}, 0o644},
		{keyed("press-7"), 0o600},
		{enroll.Change{RemoveIndividual: "press-7"}, 0o600},
	} {
		if err := s.ChangeEnrollments(step.change); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != step.want {
			t.Errorf("%v, %v, want %v", info.Mode(), err, step.want)
		}
	}
}

func TestAChangeKeepsASymbolicLinkToTheEnrollments(t *testing.T) {
	s, file := withFile(t)
	target := filepath.Join(t.TempDir(), "shared.toml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(target, text, 0o600), os.Remove(file), os.Symlink(target, file)); err != nil {
		t.Fatal(err)
	}
	if err := s.ChangeEnrollments(keyed("press-7")); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(file); err != nil || to != target {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if text, err := os.ReadFile(target); err != nil || !strings.Contains(string(text), "press-7") {
		t.Errorf("%s, %v", text, err)
	}
}
