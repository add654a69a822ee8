package page

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Endpoint is where the simulator listens for devices, for the command lines that the page offers.
type Endpoint struct {
	Host          string
	MQTTPort      int // 0: there is no such listener
	WebSocketPort int
	IDScope       string
	Directory     string // of the simulator; "" offers no command lines
	HTTPS         bool   // the port of WebSocket also serves the HTTPS API
}

// command is a command line to copy. It contains no secret, only names of files.
type command struct{ Purpose, Line string }

// commands returns command lines that do with a device's credentials what the device does.
func (e Endpoint) commands(registrationID string) (all []command) {
	// Any other text came from a client that sent it as its name, and does not belong in a shell.
	if !enroll.IsRegistrationID(registrationID) || e.Directory == "" {
		return nil
	}
	file := func(name string) string { return quote(filepath.Join(e.Directory, name)) }
	id := registrationID
	files := fmt.Sprintf("--cert %s --key %s", file(id+".pem"), file(id+"-key.pem"))
	all = append(all, command{
		"Create a key and a certificate for this device",
		fmt.Sprintf("dpsd-sim credentials --dir %s --registration-id %s", quote(e.Directory), quote(id)),
	})
	if e.HTTPS && e.WebSocketPort != 0 {
		all = append(all, command{
			"Register over HTTPS with the certificate",
			fmt.Sprintf("curl --cacert %s %s --request PUT --json %s %s", file("ca.pem"), files, quote(fmt.Sprintf(`{"registrationId":%q}`, id)),
				quote(fmt.Sprintf("https://%s:%d/%s/registrations/%s/register?api-version=2021-06-01", e.Host, e.WebSocketPort, e.IDScope, id))),
		})
	}
	if e.MQTTPort != 0 {
		all = append(all, command{
			"Connect and subscribe over MQTT with the certificate",
			fmt.Sprintf("mosquitto_sub --host %s --port %d --cafile %s %s --id %s --username %s --qos 1 --topic %s --verbose",
				quote(e.Host), e.MQTTPort, file("ca.pem"), files, quote(id),
				quote(fmt.Sprintf("%s/registrations/%s/api-version=2021-06-01", e.IDScope, id)), quote("$dps/registrations/res/#")),
		})
	}
	return all
}

// quote quotes a word for a POSIX shell, if necessary.
func quote(word string) string {
	plain := strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,=@")
	if word != "" && plain == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
