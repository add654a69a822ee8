package config

import (
	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

// Incomplete returns the source of the registration ID and the path of the TPM device that the text
// of a configuration sets, or the default path. Other parts of the text may have errors: when the
// key of a credential is created, the configuration often does not name the key yet. A value that
// is not certain is zero.
func Incomplete(text []byte) (id attest.RegistrationID, device string) {
	doc, problem := document.Parse("", text, nil)
	if problem != nil {
		return id, ""
	}
	c := Default()
	all := tables(&c, attest.Types())
	read := func(name string, keys ...string) (certain bool) {
		certain = true
		if doc.Values[name] == nil {
			return certain
		}
		values, certain := doc.Values[name].(map[string]any)
		for _, key := range keys {
			if value := values[key]; value != nil {
				all.find(name).find(key).read(root, value, func(document.Path, Error) { certain = false })
			}
		}
		return certain
	}
	if read("dps", "registration_id", "registration_id_file") && (c.DPS.RegistrationID.Template == "" || c.DPS.RegistrationID.File == "") {
		id = c.DPS.RegistrationID
	}
	if read("tpm", "device") {
		device = c.TPM.Device
	}
	return id, device
}
