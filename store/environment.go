package store

import (
	"bytes"
	"strconv"
	"strings"
)

const generationName = "DPSD_GENERATION"

// environment returns state.env: six assignments that mean the same to a POSIX
// shell (".") and to systemd (EnvironmentFile=). Within double quotes both take
// a backslash before \ " $ and ` away and leave everything else alone
// (POSIX.1-2017, 2.2.3; systemd.exec(5)).
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

// environmentGeneration returns the generation that a state.env names, 0 when
// it names none that can be believed. No value holds a line end, so lines do.
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
