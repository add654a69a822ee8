package config_test

import "testing"

func TestACharacterThatLooksLikeACharacterOfTOMLSyntaxIsNamed(t *testing.T) {
	const quote, space, invisible = `; use the straight quotation mark " instead`, "; use an ordinary space instead",
		"; delete it; it is invisible, so delete and retype the characters next to it too"
	for _, c := range []struct{ name, text, want string }{
		{"double quotes of a word processor", "[dps]\nid_scope = “0ne00000000”\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character “ (U+201C, left double quotation mark)" + quote},
		{"a closing one alone", "[dps]\nid_scope = \"0ne00000000”\n", "dpsd.toml:2:24: dps.id_scope: TOML does not allow the character ” (U+201D, right double quotation mark)" + quote},
		{"single ones", "[dps]\nid_scope = ‘0ne00000000’\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character ‘ (U+2018, left single quotation mark)" + quote},
		{"low ones, as in German", "[dps]\nid_scope = „0ne00000000“\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character „ (U+201E, double low-9 quotation mark)" + quote},
		{"angles, as in French", "[dps]\nid_scope = «0ne00000000»\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character « (U+00AB, left-pointing double angle quotation mark)" + quote},
		{"backquotes", "[dps]\nid_scope = `0ne00000000`\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character ` (U+0060, grave accent)" + quote},
		{"in an array", "[transport]\nprotocols = [\"mqtt\", “websocket”]\n", "dpsd.toml:2:22: transport.protocols: TOML does not allow the character “ (U+201C, left double quotation mark)" + quote},
		{"a no-break space before the equals sign", "[dps]\nid_scope\u00a0= \"0ne00000000\"\n", "dpsd.toml:2:9: TOML does not allow the character U+00A0, no-break space" + space},
		{"one at the beginning of a line", "[dps]\n\u00a0id_scope = \"0ne00000000\"\n", "dpsd.toml:2:1: TOML does not allow the character U+00A0, no-break space" + space},
		{"one after a header", "[dps]\u00a0\n", "dpsd.toml:1:6: TOML does not allow the character U+00A0, no-break space" + space},
		{"a wide equals sign", "[dps]\nid_scope ＝ \"0ne00000000\"\n", "dpsd.toml:2:10: TOML does not allow the character ＝ (U+FF1D, fullwidth equals sign); use = instead"},
		{"wide brackets", "［dps］\n", "dpsd.toml:1:1: TOML does not allow the character ［ (U+FF3B, fullwidth left square bracket); use [ instead"},
		{"a byte order mark where two files were joined", "[log]\nlevel = \"info\"\n\ufeff[dps]\n", "dpsd.toml:3:1: TOML does not allow the character U+FEFF, byte order mark" + invisible},
		{"a zero width space", "[dps]\nid_scope = \u200b\"0ne00000000\"\n", "dpsd.toml:2:12: dps.id_scope: TOML does not allow the character U+200B, zero width space" + invisible},
		{"one in a value", "[dps]\nid_scope = \"0ne00\u200b\"\nregistration_id = \"gw-1\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/k\"\n",
			"dpsd.toml:2:1: dps.id_scope: \"0ne00\\u200b\" is not an ID scope; it contains the character U+200B, zero width space: delete it; it is invisible, so delete and retype the characters next to it too"},
		{"a long dash in a number", "[transport]\nmqtt_port = –1\n", "dpsd.toml:2:13: transport.mqtt_port: TOML does not allow the character – (U+2013, en dash); use - instead"},
		{"a letter that is invalid in a TOML key", "[dps]\nidé = 1\n", "dpsd.toml:2:3: TOML does not allow the character é (U+00E9); write keys and values in ASCII, and put other text in double quotes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := problems(t, c.text).Error(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestACharacterInACommentOrAStringIsNotBlamedForAnotherError(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"in a comment", "[dps]\nid_scope = 0ne00 # “scope”\n", "dpsd.toml:2:13: dps.id_scope: TOML syntax: strings must be quoted; write text in double quotes"},
		{"in a string that ends", "[log]\n\"“level”\" = x\n", "dpsd.toml:2:13: TOML syntax: unexpected character U+0078 'x' at start of value; write text in double quotes"},
		{"after an escaped quotation mark", "[log]\n\"a\\\"“\" = x\n", "dpsd.toml:2:10: TOML syntax: unexpected character U+0078 'x' at start of value; write text in double quotes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := problems(t, c.text).Error(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
