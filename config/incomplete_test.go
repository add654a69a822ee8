package config_test

import (
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/tpm"
)

func TestTheRegistrationIDAndTheTPMAreFoundInAConfigurationWithErrorsElsewhere(t *testing.T) {
	const device = "[tpm]\ndevice = \"/dev/tpmrm1\"\n"
	gateway := attest.RegistrationID{Template: "gw-1"}
	for _, test := range []struct {
		says, text string
		id         attest.RegistrationID
		device     string
	}{
		{"there is no credential yet", "[dps]\nid_scope = \"0ne1\"\nregistration_id = \"gw-1\"\n" + device, gateway, "/dev/tpmrm1"},
		{"the ID is in a file", "[dps]\nregistration_id_file = \"/etc/serial\"\n", attest.RegistrationID{File: "/etc/serial"}, tpm.Path},
		{"the file is empty", "", attest.RegistrationID{}, tpm.Path},
		{"an unknown key", "[dps]\nid_scop = \"0ne\"\nregistration_id = \"gw-1\"\n", gateway, tpm.Path},
		{"two registration IDs", "[dps]\nregistration_id = \"gw-1\"\nregistration_id_file = \"/etc/serial\"\n" + device, attest.RegistrationID{}, "/dev/tpmrm1"},
		{"a registration ID that is not valid", "[dps]\nregistration_id = \"%q\"\n" + device, attest.RegistrationID{}, "/dev/tpmrm1"},
		{"a number as the device", "[dps]\nregistration_id = \"gw-1\"\n[tpm]\ndevice = 7\n", gateway, ""},
		{"a relative device", "[dps]\nregistration_id = \"gw-1\"\n[tpm]\ndevice = \"tpmrm1\"\n", gateway, ""},
		{"a table that is not a table", "dps = 7\ntpm = 8\n", attest.RegistrationID{}, ""},
		{"a TOML syntax error", "[dps]\nregistration_id = gw-1\n" + device, attest.RegistrationID{}, ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			id, device := config.Incomplete([]byte(test.text))
			if id != test.id || device != test.device {
				t.Errorf("got %+v, %q; want %+v, %q", id, device, test.id, test.device)
			}
		})
	}
}
