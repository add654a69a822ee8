package store

import (
	"bytes"
	"path/filepath"
	"strconv"
	"strings"
)

const generationName = "DPSD_GENERATION"

// environment returns the contents of state.env: six assignments, and two more with an issued
// certificate, which a POSIX shell (".") and systemd (EnvironmentFile=) interpret identically.
// The paths of the certificate and its key go through certificate/current. Within double quotes, both remove a
// backslash before \ " $ and ` and change nothing else (POSIX.1-2017, 2.2.3;
// systemd.exec(5)).
func environment(rec Record) []byte {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")
	var b bytes.Buffer
	type variable struct{ name, value string }
	variables := []variable{
		{"DPSD_ASSIGNED_HUB", rec.AssignedHub},
		{"DPSD_DEVICE_ID", rec.DeviceID},
		{"DPSD_REGISTRATION_ID", rec.RegistrationID},
		{"DPSD_ID_SCOPE", rec.IDScope},
		{"DPSD_CONNECTION_PROFILE", rec.ConnectionProfile},
		{generationName, strconv.FormatUint(rec.Generation, 10)},
	}
	if c := rec.Certificate; c != nil {
		current := func(path string) string {
			pair, name := filepath.Split(path)
			return filepath.Join(filepath.Dir(filepath.Clean(pair)), filepath.Base(currentPath), name)
		}
		variables = append(variables, variable{"DPSD_CERTIFICATE_FILE", current(c.CertificateFile)},
			variable{"DPSD_PRIVATE_KEY_FILE", current(c.PrivateKeyFile)})
	}
	for _, v := range variables {
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
