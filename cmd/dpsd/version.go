package main

import (
	"strconv"
	"time"
)

// The linker sets these variables (see the Makefile). built is the time of the source, in Unix
// seconds; an earlier clock is implausible.
var (
	version = "devel"
	built   = "0"
)

func builtAt() time.Time {
	seconds, err := strconv.ParseInt(built, 10, 64)
	if err != nil || seconds <= 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
