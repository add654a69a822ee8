package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// allocated maps the benchmarks of the code that handles every packet to the number of
// allocations that each may make.
func allocated() []budget {
	return []budget{
		{name: "BenchmarkParse", limit: 0}, {name: "BenchmarkAppend", limit: 0},
		{name: "BenchmarkTranscodeUp/4KiB", limit: 0}, {name: "BenchmarkTranscodeDown", limit: 0},
		{name: "BenchmarkExchange", limit: 400}, {name: "BenchmarkRegistration", limit: 600},
	}
}

var benchmarkLine = regexp.MustCompile(`(?m)^(\S+?)(?:-\d+)?\s+\d+\s.*\s(\d+) allocs/op$`)

// allocations runs the benchmarks of mqttv3 and dps, and returns their output as well.
func allocations() (text string, all []budget, err error) {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", ".", "-benchmem", "-benchtime", "2000x", "./mqttv3/", "./dps/").CombinedOutput()
	if err != nil {
		return "", nil, fmt.Errorf("go test -bench: %w\n%s", err, out)
	}
	counted := map[string]float64{}
	for _, match := range benchmarkLine.FindAllStringSubmatch(string(out), -1) {
		if counted[match[1]], err = strconv.ParseFloat(match[2], 64); err != nil {
			return "", nil, err
		}
	}
	all = allocated()
	for i := range all {
		n, found := counted[all[i].name]
		if !found {
			return "", nil, fmt.Errorf("%s is missing from the output:\n%s", all[i].name, out)
		}
		all[i].value, all[i].name = n, "allocations of "+all[i].name
	}
	return string(out), all, nil
}
