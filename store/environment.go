package store

import (
	"bytes"
	"strconv"
	"strings"
)

const generationName = "DPSD_GENERATION"

// environment returns the contents of state.env: six assignments that a POSIX shell (".")
// and systemd (EnvironmentFile=) interpret identically. Within double quotes, both remove a
// backslash before \ " $ and ` and change nothing else (POSIX.1-2017, 2.2.3;
// systemd.exec(5)).
func environment(rec Record) []byte {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")
	var b bytes.Buffer
	for _, v := range [...]struct{ name, value string }{
		{"DPSD_ASSIGNED_HUB", rec.AssignedHub},
		{"DPSD_DEVICE_ID", rec.DeviceID},
		{"DPSD_REGISTRATION_ID", rec.RegistrationID},
		{"DPSD_ID_SCOPE", rec.IDScope},
		{"DPSD_CONNECTION_PROFILE", rec.ConnectionProfile},
		{generationName, strconv.FormatUint(rec.Generation, 10)},
	} {
		b.WriteString(v.name + `="` + escape.Replace(v.value) + "\"\n")
	}
	return b.Bytes()
}

// environmentGeneration returns the generation in a state.env, or 0 if there is no valid
// one. Values contain no line breaks, so it parses lines.
func environmentGeneration(env []byte) uint64 {
	for line := range bytes.Lines(env) {
		value, ok := bytes.CutPrefix(line, []byte(generationName+`="`))
		if !ok {
			continue
		}
		value, ok = bytes.CutSuffix(value, []byte("\"\n"))
		generation, err := strconv.ParseUint(string(value), 10, 64)
		if !ok || err != nil || generation > maxGeneration {
			return 0
		}
		return generation
	}
	return 0
}
