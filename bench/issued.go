package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

// certificateTable makes dpsd request a certificate from DPS. P-384 is the most expensive of the
// EC keys.
const certificateTable = `
[certificate]
request = "required"
key_type = "ec-p384"
`

// issued is the CPU time of boots with and without [certificate].
type issued struct {
	requested []time.Duration // the gateway has no certificate, and requests one
	valid     []time.Duration // the gateway has a valid certificate
	without   []time.Duration // as valid, but without [certificate]
}

// budgets checks the cost of issued certificates. Other load on the machine only increases CPU
// time, so the best runs count.
func (i issued) budgets() []budget {
	best := func(all []time.Duration) float64 { return milliseconds(slices.Min(all)) }
	return []budget{
		{"CPU of a boot that requests a certificate (P-384), best of the runs", "ms", best(i.requested), 30, noisy},
		{"CPU of a boot with a valid certificate beyond that of a boot without [certificate], best of the runs", "ms", best(i.valid) - best(i.without), 1, noisy},
	}
}

// issues measures the cost of issued certificates. The three kinds of boots alternate, so that
// other load on the machine affects all of them equally.
func (b *bench) issues(dir string) ([]budget, error) {
	var i issued
	kinds := []struct {
		name, table string
		boot        func(s *service) (usage, error)
		samples     *[]time.Duration
	}{
		{"requested", certificateTable, func(s *service) (usage, error) { return s.firstBoot(b.program) }, &i.requested},
		{"valid", certificateTable, func(s *service) (usage, error) { return s.nextBoot(b.program) }, &i.valid},
		{"without", "", func(s *service) (usage, error) { return s.nextBoot(b.program) }, &i.without},
	}
	services := make([]*service, len(kinds))
	defer func() {
		for _, s := range services {
			if s != nil {
				s.server.Close()
			}
		}
	}()
	for k, kind := range kinds {
		s, err := b.service(dir, "issued-"+kind.name, variant{"key", "mqtt", "1.2", 1}, false)
		if err != nil {
			return nil, err
		}
		services[k], s.table = s, kind.table
		if _, err := s.firstBoot(b.program); err != nil {
			return nil, err
		}
	}
	for n := 0; n < b.runs || !b.short && n < 4*b.runs && disturbed(i.budgets()); n++ {
		failures := make([]error, len(kinds))
		var round sync.WaitGroup
		for k, kind := range kinds {
			round.Go(func() {
				time.Sleep(time.Duration(k) * stagger)
				u, err := kind.boot(services[k])
				*kind.samples = append(*kind.samples, u.cpu)
				failures[k] = err
			})
		}
		round.Wait()
		if err := errors.Join(failures...); err != nil {
			return nil, err
		}
	}
	return i.budgets(), nil
}

// firstBoot boots a gateway that has never registered. With [certificate], it must then have a
// certificate.
func (s *service) firstBoot(program string) (u usage, err error) {
	if err := s.anew(); err != nil {
		return u, err
	}
	_, _, err = s.serve(func() error {
		u, err = s.once(program)
		return err
	})
	if err != nil {
		return u, err
	}
	record, err := store.Read(s.path("state"))
	if err == nil && (record.Certificate != nil) != (s.table != "") {
		err = fmt.Errorf("the record describes the certificate %+v, with the configuration %q", record.Certificate, s.table)
	}
	return u, err
}

// nextBoot boots a registered gateway, without the content of /run, which a boot removes. Nothing
// in the record may change: a boot with a valid certificate requests none.
func (s *service) nextBoot(program string) (u usage, err error) {
	before, err := store.Read(s.path("state"))
	if err != nil {
		return u, err
	}
	if err := s.clearRun(); err != nil {
		return u, err
	}
	_, _, err = s.serve(func() error {
		u, err = s.once(program)
		return err
	})
	if err != nil {
		return u, err
	}
	after, err := store.Read(s.path("state"))
	if err == nil && after.Checksum != before.Checksum {
		err = fmt.Errorf("a boot has changed the record of generation %d, which is now %d", before.Generation, after.Generation)
	}
	return u, err
}

// clearRun removes the content of the runtime directory.
func (s *service) clearRun() error {
	if err := os.RemoveAll(s.path("run")); err != nil {
		return err
	}
	return os.Mkdir(s.path("run"), 0o700)
}
