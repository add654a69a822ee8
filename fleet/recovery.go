package fleet

import (
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/pace"
)

// Recovery is how soon single gateways are back once their trouble is over, in that
// order, and what they did until then.
type Recovery struct {
	After []time.Duration // from the end of the trouble to the assignment
	// Connections is how many each gateway began in vain, on average.
	Connections float64
}

// alone is so many gateways that no quota is in the way of any of them.
const alone = 400

// AfterOutage rehearses outages of about a minute, 45 s to 75 s, during which nothing
// listens at the service; it answers the registrations after so many polls.
func AfterOutage(retry pace.Retry, polls int) (*Recovery, error) {
	var all []Fleet
	for end := 45 * time.Second; end <= 75*time.Second; end += 5 * time.Second {
		f := New(Brief, alone)
		f.Boot, f.Service.DownUntil, f.Since, f.Service.Polls = time.Second, end, end, polls
		all = append(all, f)
	}
	return recovery(retry, all...)
}

// AfterCorrection rehearses a refusal whose cause somebody corrects within the first ten
// minutes, at any time.
func AfterCorrection(retry pace.Retry) (*Recovery, error) {
	var all []Fleet
	for minute := time.Minute; minute <= 10*time.Minute; minute += time.Minute {
		f := New(WrongKey, alone)
		f.Boot, f.Service.KeyRightAt, f.Since = time.Minute, minute, minute
		all = append(all, f)
	}
	return recovery(retry, all...)
}

func recovery(retry pace.Retry, all ...Fleet) (*Recovery, error) {
	var sum Recovery
	for _, f := range all {
		f.Retry = retry
		r, err := f.Run()
		if err != nil {
			return nil, err
		}
		for _, at := range r.At {
			sum.After = append(sum.After, max(0, at-f.Since))
		}
		sum.Connections += float64(r.Connections) / float64(f.Devices*len(all))
	}
	sum.Connections-- // the last one, which succeeds
	slices.Sort(sum.After)
	return &sum, nil
}

// Within is the time after which so many percent of the gateways are back.
func (r *Recovery) Within(percent int) time.Duration {
	return r.After[(len(r.After)*percent+99)/100-1]
}
