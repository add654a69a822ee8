package config_test

import (
	"testing"

	"github.com/dpsd-project/dpsd/config"
)

func TestTheControlSocketIsFoundInAConfigurationWithErrorsElsewhere(t *testing.T) {
	const own, standard = "/run/own/dpsd.sock", "/run/dpsd/dpsd.sock"
	const table = "[control]\nsocket = \"/run/own/dpsd.sock\"\n"
	for _, test := range []struct{ says, text, path string }{
		{"an unknown key", "[dps]\nid_scop = \"0ne\"\n" + table, own},
		{"a TOML syntax error before it", "[dps]\nid_scope = 0ne\n" + table + "[log]\nlevel = \"info\"\n", own},
		{"a TOML syntax error after it", table + "[log]\nlevel = info\n", own},
		{"a byte order mark and typographic quotation marks", "\ufeff[dps]\nid_scope = “0ne”\n" + table, own},
		{"an empty file", "", standard},
		{"a table [control] without the key", "[dps]\nid_scope = 0ne\n[control]\nmetrics_file = \"/run/m\"\n", standard},
		{"a syntax error in a file that does not name the table", "[dps]\nid_scope = 0ne\n", standard},
		{"a syntax error in a file that names the table in a comment", "[dps]\nid_scope = 0ne\n# [control]\n# socket = \"/run/x\"\n", standard},
		{"a syntax error in the table itself", "[control]\nsocket = /run/own/dpsd.sock\n", ""},
		{"a syntax error next to a dotted key", "control.socket = \"/run/own/dpsd.sock\"\n[dps]\nid_scope = 0ne\n", ""},
		{"a relative path", "[control]\nsocket = \"dpsd.sock\"\n", ""},
		{"a number", "[control]\nsocket = 7\n", ""},
		{"control is not a table", "control = 7\n", ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			path, known := config.Socket([]byte(test.text))
			if known != (test.path != "") || known && path != test.path {
				t.Errorf("got %q, %t, want %q", path, known, test.path)
			}
		})
	}
}
