package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// hardware contains the registrations with one type of credential: those with the key in a file,
// and those with the key in a TPM.
type hardware struct {
	credential string // of the variant: "key" or "certificate"
	file, tpm  []usage
}

// budgets compares the additional cost of a TPM key with the budgets. The software TPM is another
// process, so the CPU time is only that of dpsd itself. A hardware TPM takes longer.
func (h hardware) budgets() []budget {
	beyond := func(of func(usage) float64) float64 {
		values := func(all []usage) (v []float64) {
			for _, u := range all {
				v = append(v, of(u))
			}
			return v
		}
		return slices.Min(values(h.tpm)) - slices.Min(values(h.file))
	}
	of := "that a registration with a " + h.credential + " needs in addition if the key is in a TPM, best of the runs"
	return []budget{
		{"CPU " + of, "ms", beyond(func(u usage) float64 { return milliseconds(u.cpu) }), 5, noisy},
		{"time " + of, "ms", beyond(func(u usage) float64 { return milliseconds(u.elapsed) }), 50, noisy},
		{"peak memory " + of, "MB", beyond(func(u usage) float64 { return float64(u.peak) / 1e6 }), 1, noisy},
	}
}

// inTPM measures registrations with TPM keys. The kinds of registrations alternate, so that other
// load on the machine affects all of them equally. If swtpm is missing, inTPM measures nothing; in
// CI, this is an error.
func (b *bench) inTPM(dir string) ([]budget, error) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		if os.Getenv("CI") != "" {
			return nil, err
		}
		fmt.Fprintln(os.Stderr, "bench: swtpm is not installed, so registrations with TPM keys are not measured")
		return nil, nil
	}
	all := []*hardware{{credential: "key"}, {credential: "certificate"}}
	type kind struct {
		service *service
		samples *[]usage
	}
	var kinds []kind
	defer func() {
		for _, k := range kinds {
			k.service.server.Close()
		}
	}()
	for _, h := range all {
		for _, samples := range []*[]usage{&h.file, &h.tpm} {
			name := "tpm-file-" + h.credential
			if samples == &h.tpm {
				name = "tpm-" + h.credential
			}
			s, err := b.service(dir, name, variant{h.credential, "mqtt", "1.3", 1}, false)
			if err != nil {
				return nil, err
			}
			kinds = append(kinds, kind{s, samples})
			if samples == &h.tpm {
				// swtpm serves one connection at a time, so each service has its own TPM.
				kill, err := s.moveToTPM(b.program)
				if err != nil {
					return nil, err
				}
				defer kill()
			}
		}
	}
	judged := func() (list []budget) {
		for _, h := range all {
			list = append(list, h.budgets()...)
		}
		return list
	}
	for n := 0; n < b.runs || !b.short && n < 4*b.runs && disturbed(judged()); n++ {
		failures := make([]error, len(kinds))
		var round sync.WaitGroup
		for i, k := range kinds {
			round.Go(func() {
				time.Sleep(time.Duration(i) * stagger)
				u, err := k.service.registers(b.program)
				*k.samples = append(*k.samples, u)
				failures[i] = err
			})
		}
		round.Wait()
		if err := errors.Join(failures...); err != nil {
			return nil, err
		}
	}
	return judged(), nil
}

// registers runs one registration of a gateway that has never registered.
func (s *service) registers(program string) (u usage, err error) {
	if err := s.anew(); err != nil {
		return u, err
	}
	_, _, err = s.serve(func() error {
		u, err = s.once(program)
		return err
	})
	return u, err
}

// moveToTPM replaces the key of the credential with a key in a new software TPM, which kill ends.
func (s *service) moveToTPM(program string) (kill func(), err error) {
	socket, kill, err := softwareTPM(s.path("tpm"))
	if err != nil {
		return nil, err
	}
	if err := s.moveTo(socket, program); err != nil {
		kill()
		return nil, err
	}
	return kill, nil
}

// moveTo replaces the key of the credential with a key in the TPM on socket.
func (s *service) moveTo(socket, program string) error {
	key, args := s.path("key"), []string{"tpm", "seal", "--key-file", s.path("key")}
	if s.variant.credential == "certificate" {
		key, args = s.path("device.key"), []string{"tpm", "import-key", s.path("device.key")}
	}
	moved := s.path("key.tss2")
	out, err := exec.Command(program, append(args, moved, "--device", socket, "--config", s.path("none.toml"))...).CombinedOutput() //nolint:gosec // running what it is given is its purpose
	if err == nil {
		err = os.Rename(moved, key)
	}
	if err != nil {
		return fmt.Errorf("dpsd tpm: %w\n%s", err, out)
	}
	s.table = fmt.Sprintf("\n[tpm]\ndevice = %q\n", socket)
	return nil
}

// softwareTPM starts a new software TPM, and creates the directory state for it. kill ends it. Its
// control socket has the suffix that the library tpm2-tss expects.
func softwareTPM(state string) (socket string, kill func(), err error) {
	if err := os.Mkdir(state, 0o700); err != nil {
		return "", nil, err
	}
	socket = filepath.Join(state, "s")
	c := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--flags", "not-need-init,startup-clear", //nolint:gosec // the arguments are paths
		"--ctrl", "type=unixio,path="+socket+control, "--server", "type=unixio,path="+socket)
	if err := c.Start(); err != nil {
		return "", nil, err
	}
	kill = func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
	}
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			err = conn.Close()
		}
		if err == nil {
			return socket, kill, nil
		}
		if time.Now().After(end) {
			kill()
			return "", nil, err
		}
	}
}

// control is the suffix of the control socket of a software TPM.
const control = ".ctrl"
