package hostname_test

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/hostname"
)

func TestAHostNameConsistsOfLabelsOfLettersDigitsAndHyphens(t *testing.T) {
	label := strings.Repeat("a", 63)
	whole := label + "." + label + "." + label + "." + label[:61] // 253 characters
	for name, valid := range map[string]bool{
		"hub.azure-devices.net": true,
		"localhost":             true,
		"10.0.0.1":              true,
		"a":                     true,
		"AZ.az.09-x":            true,
		label:                   true,
		whole:                   true,

		"":                  false,
		".":                 false,
		"hub.":              false,
		".net":              false,
		"hub..net":          false,
		"-hub.net":          false,
		"hub-.net":          false,
		"hub.-":             false,
		label + "a":         false,
		whole + "a":         false,
		"hub_1.net":         false,
		"hub net":           false,
		"hub/net":           false,
		"hub:net":           false,
		"hub@net":           false,
		"hub[net":           false,
		"hub`net":           false,
		"hub{net":           false,
		"2001:db8::7":       false,
		"hüb.net":           false,
		"hub.net\n":         false,
		"hub\x00.net":       false,
		"xn--hb-xka.net":    true,
		"1.2.3.4.example-1": true,
	} {
		if hostname.Valid(name) != valid {
			t.Errorf("%q is valid: %t, want %t", name, !valid, valid)
		}
	}
}
