package main

import (
	"testing"
	"time"
)

func TestTheCostOfATPMKeyIsWhatItAddsToThatOfAKeyInAFile(t *testing.T) {
	use := func(ms int, mb int64) usage {
		return usage{cpu: time.Duration(ms) * time.Millisecond, elapsed: time.Duration(10*ms) * time.Millisecond, peak: mb * 1e6}
	}
	h := hardware{"certificate", []usage{use(12, 9), use(10, 8)}, []usage{use(13, 10), use(16, 9)}}
	for i, want := range []float64{3, 30, 1} {
		if b := h.budgets()[i]; b.value < want-0.001 || b.value > want+0.001 {
			t.Errorf("%s is %v %s, want %v", b.name, b.value, b.unit, want)
		}
	}
}
