package store

import (
	"errors"
	"path/filepath"
	"time"
)

// findPair finds the pair to publish: that of certificate/current, or a complete one with a
// higher number, whose publication was interrupted. If that of current is damaged, it is the
// latest complete pair that has not expired by now. With write, findPair makes current point
// to it; if that is impossible, only the pair of current counts, or the latest one if the link
// is lost. It reports whether it changed current.
func (s *Store) findPair(now time.Time, write bool) (changed bool, err error) {
	s.pair = currentPair{}
	c, err := s.state.certificates()
	if err != nil {
		s.pair.err = s.unusable(err)
		return false, nil
	}
	defer c.close()
	numbers, err := c.numbers()
	if err != nil {
		s.pair.err = err
		return false, nil
	}
	linked := c.current()
	published := linked // the pair that has been published, although its link may be lost
	if published == 0 && len(numbers) > 0 {
		published = numbers[0]
	}
	var failed error
	for _, n := range numbers {
		pair, err := c.pair(n)
		unreadable := (*PairError)(nil)
		switch {
		case errors.As(err, &unreadable) && n == published:
			s.pair = currentPair{err: unreadable}
			return false, failed
		case errors.As(err, &unreadable):
			s.noticeOnce(Unread, unreadable.Path, unreadable.Err)
			continue
		case err != nil:
			_ = s.unusable(err)
			continue
		case n == linked, n == published && !write:
		case n < published && !now.Before(pair.NotAfter), !write:
			continue
		default:
			if err := s.publishPair(c, n); err != nil {
				failed = err
				if n != published {
					continue
				}
				break
			}
			changed = true
			kind := PairRestored
			if n > published {
				kind = PairCompleted
			} else if n < published {
				kind = PairReplaced
			}
			s.notice(kind, s.state.path(currentPath), nil)
		}
		s.pair = currentPair{Pair: pair, found: true}
		return changed, failed
	}
	return false, failed
}

func (s *Store) publishPair(c *certificates, number int) error {
	if err := s.claim(); err != nil {
		return err
	}
	return c.publish(number)
}

// startPairs finds the published pair and completes interrupted writes.
func (s *Store) startPairs(writable bool, now time.Time) {
	if writable {
		s.sweepPending()
	}
	if _, err := s.findPair(now, writable); err != nil {
		s.notice(Unwritable, s.state.path(currentPath), err)
	}
	if !writable || !s.pair.found {
		return
	}
	// The configured group may have changed.
	if c, err := s.state.certificates(); err == nil {
		defer c.close()
		if err := s.share(c, pairPath(s.pair.Number)); err != nil {
			s.notice(Unwritable, s.state.path(certificatePath), err)
		}
	}
}

// sweepPending completes or removes what an interrupted SavePendingKey or SavePair has left.
func (s *Store) sweepPending() {
	c, err := s.state.certificates()
	if err != nil {
		return
	}
	defer c.close()
	stale := []string{temporaryName(currentPath), temporaryName(join(pendingPath, chainName)), temporaryName(join(pendingPath, pairName))}
	if c.has(newPendingPath) {
		unreadable := (*PairError)(nil)
		_, _, old := c.look(pendingPath)
		_, _, fresh := c.look(newPendingPath)
		switch {
		case errors.As(old, &unreadable):
		case old != nil && fresh == nil:
			_ = c.adoptPending()
		default:
			stale = append(stale, newPendingPath)
		}
	}
	for _, name := range stale {
		if c.has(name) && c.removeAll(name) == nil {
			s.notice(StaleTemporary, s.state.path(name), nil)
		}
	}
}

// maxEarlier is how many earlier pairs are kept until they expire. One is enough for a fall-back;
// programs that have just resolved the link may still read the others.
const maxEarlier = 3

// tidy removes pairs that have expired by now, earlier pairs except the latest maxEarlier and,
// if damaged is set, damaged ones. It keeps those that are published or cannot be read. A
// failure is not reported, since it does no harm.
func (s *Store) tidy(c *certificates, now time.Time, damaged bool) {
	if s.published && !s.durable || s.unread || s.newer != nil || !s.pair.found {
		return // an earlier record on the disk may name an earlier pair
	}
	named := 0
	if s.current.Certificate != nil {
		named = pairNumber(filepath.Base(filepath.Dir(s.current.Certificate.CertificateFile)))
	}
	numbers, _ := c.numbers()
	removed := false
	earlier := 0
	for _, n := range numbers { // the latest first
		if n >= s.pair.Number || n == named {
			continue
		}
		pair, err := c.pair(n)
		earlier++
		var damage *pairDamage
		if errors.As(err, &damage) && damaged || err == nil && (!now.Before(pair.NotAfter) || earlier > maxEarlier) {
			removed = c.removePair(pairPath(n), func(string) {}) == nil || removed
		}
	}
	if removed {
		_ = c.sync(certificatePath)
	}
}

// tidyExpired is tidy for a store that has written nothing. It keeps damaged pairs.
func (s *Store) tidyExpired(now time.Time) {
	if !s.pair.found || s.claim() != nil {
		return
	}
	if c, err := s.state.certificates(); err == nil {
		defer c.close()
		s.tidy(c, now, false)
	}
}
