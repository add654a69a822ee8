package simulator

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Summary adds up the part of a packet log that is about DPS. Connections to a hub do not count.
type Summary struct {
	Connections            int
	PacketsUp, PacketsDown int   // MQTT packets
	BytesUp, BytesDown     int64 // of closed connections, including TLS
	Violations             []string
	// Registers and Polls are the times at which these requests arrived.
	Registers, Polls []time.Time
}

// withoutHubs omits the entries of connections to a hub. The first entries of a connection do
// not show yet what the client will use.
func withoutHubs(entries []Entry) []Entry {
	hubs := map[int]bool{}
	for _, e := range entries {
		if e.Service == "hub" {
			hubs[e.Connection] = true
		}
	}
	if len(hubs) == 0 {
		return entries
	}
	return slices.DeleteFunc(slices.Clone(entries), func(e Entry) bool { return hubs[e.Connection] })
}

// Summarize summarizes the entries of one device or of all devices.
func Summarize(entries []Entry) Summary {
	var s Summary
	for _, e := range withoutHubs(entries) {
		switch {
		case e.Packet == "OPEN":
			s.Connections++
		case e.Packet == "STALL": // it has a direction, but it is not a packet
		case e.Direction == "up":
			s.PacketsUp++
		case e.Direction == "down":
			s.PacketsDown++
		}
		if e.Violation != "" {
			s.Violations = append(s.Violations, e.Violation)
		}
		s.BytesUp += e.BytesUp
		s.BytesDown += e.BytesDown
		if request, asked := e.request(); asked && request.poll {
			s.Polls = append(s.Polls, e.Time)
		} else if asked {
			s.Registers = append(s.Registers, e.Time)
		}
	}
	return s
}

// DeviceSummary adds up the packet log of one device.
type DeviceSummary struct {
	// RegistrationID is the spelling that the device used first, or "" for connections that
	// ended before CONNECT.
	RegistrationID string `json:"registrationId"`
	Connections    int    `json:"connections"`
	// RoundTrips counts how often the device changed from sending to receiving within MQTT.
	RoundTrips int `json:"roundTrips"`
	// BytesUp and BytesDown are those of closed connections, including TLS.
	BytesUp   int64 `json:"bytesUp"`
	BytesDown int64 `json:"bytesDown"`
	Registers int   `json:"registers"`
	Polls     int   `json:"polls"`
	// PollGaps are the seconds between each poll and the previous request.
	PollGaps []float64 `json:"pollGaps"`
	// Violations are the rules that the device violated.
	Violations []string `json:"violations"`
}

// SummarizeDevices summarizes the entries of each device, in the order of their registration
// IDs, regardless of case.
func SummarizeDevices(entries []Entry) []DeviceSummary {
	entries = withoutHubs(entries)
	// Entries before CONNECT, and CLOSE, contain only the number of the connection.
	names := map[int]string{}
	for _, e := range entries {
		if names[e.Connection] == "" {
			names[e.Connection] = e.RegistrationID
		}
	}
	devices := map[string][]Entry{}
	for _, e := range entries {
		key := strings.ToLower(names[e.Connection])
		devices[key] = append(devices[key], e)
	}
	all := make([]DeviceSummary, 0, len(devices))
	for _, key := range slices.Sorted(maps.Keys(devices)) {
		all = append(all, summarizeDevice(names[devices[key][0].Connection], devices[key]))
	}
	return all
}

func summarizeDevice(name string, entries []Entry) DeviceSummary {
	s := Summarize(entries)
	d := DeviceSummary{
		RegistrationID: name, Connections: s.Connections, BytesUp: s.BytesUp, BytesDown: s.BytesDown,
		Registers: len(s.Registers), Polls: len(s.Polls),
		PollGaps: []float64{}, Violations: append([]string{}, s.Violations...),
	}
	speaking := map[int]bool{}
	var last time.Time
	for _, e := range entries {
		if e.Direction == "down" && speaking[e.Connection] {
			d.RoundTrips++
		}
		if e.Direction != "" {
			speaking[e.Connection] = e.Direction == "up"
		}
		request, asked := e.request()
		if asked && request.poll && !last.IsZero() {
			d.PollGaps = append(d.PollGaps, e.Time.Sub(last).Seconds())
		}
		if asked {
			last = e.Time
		}
	}
	return d
}
