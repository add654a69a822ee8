package main

import (
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/fleet"
	"github.com/dpsd-project/dpsd/pace"
)

// recovery holds how soon single gateways recover after the cause of their failures is
// removed, in ascending order, and what they did until then.
type recovery struct {
	after []time.Duration // from the removal of the cause to the assignment
	// connections is the mean number of failed connections of a gateway.
	connections float64
}

// alone is a number of gateways that does not reach the quota.
const alone = 400

// afterOutage rehearses outages of about a minute, 45 s to 75 s, during which the service
// is down. Then the service assigns after the given number of polls.
func afterOutage(retry pace.Retry, polls int) (*recovery, error) {
	var all []fleet.Fleet
	for end := 45 * time.Second; end <= 75*time.Second; end += 5 * time.Second {
		f := fleet.New(fleet.Brief, alone)
		f.Boot, f.Service.DownUntil, f.Since, f.Service.Polls = time.Second, end, end, polls
		all = append(all, f)
	}
	return rehearseAll(retry, all...)
}

// afterCorrection rehearses a refusal whose cause is corrected at any time within the first
// ten minutes.
func afterCorrection(retry pace.Retry) (*recovery, error) {
	var all []fleet.Fleet
	for minute := time.Minute; minute <= 10*time.Minute; minute += time.Minute {
		f := fleet.New(fleet.WrongKey, alone)
		f.Boot, f.Service.KeyRightAt, f.Since = time.Minute, minute, minute
		all = append(all, f)
	}
	return rehearseAll(retry, all...)
}

func rehearseAll(retry pace.Retry, all ...fleet.Fleet) (*recovery, error) {
	var sum recovery
	for _, f := range all {
		f.Retry = retry
		r, err := f.Run()
		if err != nil {
			return nil, err
		}
		for _, at := range r.At {
			sum.after = append(sum.after, max(0, at-f.Since))
		}
		sum.connections += float64(r.Connections) / float64(f.Devices*len(all))
	}
	sum.connections-- // the last one, which succeeds
	slices.Sort(sum.after)
	return &sum, nil
}

// within returns the time after which the given percentage of the gateways has recovered.
func (r *recovery) within(percent int) time.Duration {
	return r.after[(len(r.after)*percent+99)/100-1]
}
