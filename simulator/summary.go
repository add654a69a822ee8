package simulator

import (
	"slices"
	"strings"
	"time"
)

// Summary adds up a packet log.
type Summary struct {
	Connections            int
	PacketsUp, PacketsDown int   // MQTT packets
	BytesUp, BytesDown     int64 // of closed connections, TLS included
	Violations             []string
	// Registers and Polls are the times at which those requests arrived.
	Registers, Polls []time.Time
}

// Summarize adds up entries, of one device or of all.
func Summarize(entries []Entry) Summary {
	var s Summary
	for _, e := range entries {
		switch {
		case e.Packet == "OPEN":
			s.Connections++
		case e.Packet == "STALL": // it has a direction, but is no packet
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
	// RegistrationID is as the device wrote it first; "" for connections that ended before CONNECT.
	RegistrationID string `json:"registrationId"`
	Connections    int    `json:"connections"`
	// RoundTrips counts the changes from speaking to listening within MQTT.
	RoundTrips int `json:"roundTrips"`
	// BytesUp and BytesDown are those of closed connections, TLS included.
	BytesUp   int64 `json:"bytesUp"`
	BytesDown int64 `json:"bytesDown"`
	Registers int   `json:"registers"`
	Polls     int   `json:"polls"`
	// PollGaps are the seconds between each poll and the request before it.
	PollGaps []float64 `json:"pollGaps"`
	// Violations are the rules that the device broke.
	Violations []string `json:"violations"`
}

// SummarizeDevices adds up entries device by device, in the order of their
// registration IDs. Case does not make a device another.
func SummarizeDevices(entries []Entry) []DeviceSummary {
	// What comes before CONNECT, and CLOSE, tell only the connection.
	names := map[int]string{}
	for _, e := range entries {
		if names[e.Connection] == "" {
			names[e.Connection] = e.RegistrationID
		}
	}
	devices := map[string]*DeviceSummary{}
	speaking := map[int]bool{}
	last := map[string]time.Time{}
	for _, e := range entries {
		name := names[e.Connection]
		key := strings.ToLower(name)
		d := devices[key]
		if d == nil {
			d = &DeviceSummary{RegistrationID: name, PollGaps: []float64{}, Violations: []string{}}
			devices[key] = d
		}
		if e.Packet == "OPEN" {
			d.Connections++
		}
		if e.Violation != "" {
			d.Violations = append(d.Violations, e.Violation)
		}
		d.BytesUp += e.BytesUp
		d.BytesDown += e.BytesDown
		switch e.Direction {
		case "up":
			speaking[e.Connection] = true
		case "down":
			if speaking[e.Connection] {
				d.RoundTrips++
			}
			speaking[e.Connection] = false
		}
		request, asked := e.request()
		if !asked {
			continue
		}
		if request.poll {
			d.Polls++
			if before, ok := last[key]; ok {
				d.PollGaps = append(d.PollGaps, e.Time.Sub(before).Seconds())
			}
		} else {
			d.Registers++
		}
		last[key] = e.Time
	}
	all := make([]DeviceSummary, 0, len(devices))
	for _, d := range devices {
		all = append(all, *d)
	}
	slices.SortFunc(all, func(a, b DeviceSummary) int {
		return strings.Compare(strings.ToLower(a.RegistrationID), strings.ToLower(b.RegistrationID))
	})
	return all
}
