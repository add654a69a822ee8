package main

import (
	"testing"
	"time"
)

func TestTheBudgetsOfIssuedCertificatesApplyToTheBestRuns(t *testing.T) {
	ms := func(all ...float64) (runs []time.Duration) {
		for _, one := range all {
			runs = append(runs, time.Duration(one*float64(time.Millisecond)))
		}
		return runs
	}
	for _, test := range []struct {
		says                      string
		requested, valid, without []time.Duration
		over                      bool
	}{
		{"a request of 29 ms, and half a millisecond for a valid certificate, pass", ms(29, 29), ms(11.5, 11.5), ms(11, 11), false},
		{"slow runs are the machine's affair", ms(29, 90), ms(11.5, 40), ms(11, 30), false},
		{"a request of 31 ms in every run is over", ms(31, 31), ms(11.5, 11.5), ms(11, 11), true},
		{"1.1 ms for a valid certificate in every run are over", ms(29, 29), ms(12.1, 12.1), ms(11, 11), true},
		{"slow runs without [certificate] do not hide the difference", ms(29, 29), ms(12.1, 12.1), ms(11, 30), true},
	} {
		t.Run(test.says, func(t *testing.T) {
			all := issued{test.requested, test.valid, test.without}.budgets()
			if text, over := verdicts(all, false); over != test.over || disturbed(all) != test.over {
				t.Errorf("over %t, disturbed %t:\n%s", over, disturbed(all), text)
			}
			if _, over := verdicts(all, true); over {
				t.Error("time is a failure in CI")
			}
		})
	}
}
