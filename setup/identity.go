package setup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
)

// Identity is a registration ID that this machine has.
type Identity struct {
	ID string
	// About says where the ID comes from, and when it changes.
	About string
}

// serials are the files with a serial number: of the device tree (ARM), and of the firmware
// (x86), which only root may read.
var serials = []string{"sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_serial", "sys/class/dmi/id/board_serial"}

// placeholders are serial numbers that many machines have, in lower case and without blanks.
var placeholders = []string{"tobefilledbyo.e.m.", "tobefilledbyoem", "defaultstring", "systemserialnumber", "notspecified", "notapplicable", "none", "n/a", "na", "unknown", "oem", "invalid", "serial", "empty",
	"12345678", "123456789", "1234567890", "0123456789"}

// Identities returns the registration IDs that this machine has, the most suitable one first.
// root is the directory of /sys, usually "/".
func Identities(root string, host attest.Host) (found []Identity) {
	add := func(id, about string) {
		id = strings.ToLower(id)
		same := func(i Identity) bool { return i.ID == id }
		if attest.CheckRegistrationID(id) == nil && !slices.ContainsFunc(found, same) {
			found = append(found, Identity{id, about})
		}
	}
	resolve := func(template string) string {
		id, err := attest.RegistrationID{Template: template}.Resolve(host, attest.Secrets{})
		if err != nil {
			return ""
		}
		return id
	}
	add(resolve("%m"), "the machine ID: unique, but changes if the system is reinstalled")
	for _, name := range serials {
		add(serial(filepath.Join(root, name)), "the serial number in the firmware: does not change if the system is reinstalled")
	}
	add(resolve("%H"), "the host name: easy to read, but must be different on each gateway")
	return found
}

// serial returns the serial number in a file, or "" if there is none or it is a placeholder.
func serial(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	id := strings.Trim(string(text), " \t\r\n\x00")
	word := strings.ToLower(strings.Join(strings.Fields(id), ""))
	if len(word) < 4 || strings.Trim(word, word[:1]) == "" || slices.Contains(placeholders, word) {
		return ""
	}
	return id
}
