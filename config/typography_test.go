package config_test

import "testing"

func TestACharacterThatLooksLikeOneOfTOMLIsNamed(t *testing.T) {
	const quote, space, invisible = `; write the straight quotation mark " in its place`, "; write an ordinary space in its place",
		"; delete it; it cannot be seen, so delete its neighbours too and write them again"
	for _, c := range []struct{ name, text, want string }{
		{"double quotes of a word processor", "[dps]\nid_scope = “0ne00000000”\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character “ (U+201C, left double quotation mark)" + quote},
		{"a closing one alone", "[dps]\nid_scope = \"0ne00000000”\n", "dpsd.toml:2:24: dps.id_scope: TOML has no use for the character ” (U+201D, right double quotation mark)" + quote},
		{"single ones", "[dps]\nid_scope = ‘0ne00000000’\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character ‘ (U+2018, left single quotation mark)" + quote},
		{"low ones, as in German", "[dps]\nid_scope = „0ne00000000“\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character „ (U+201E, double low-9 quotation mark)" + quote},
		{"angles, as in French", "[dps]\nid_scope = «0ne00000000»\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character « (U+00AB, left-pointing double angle quotation mark)" + quote},
		{"backquotes", "[dps]\nid_scope = `0ne00000000`\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character ` (U+0060, grave accent)" + quote},
		{"in an array", "[transport]\nprotocols = [\"mqtt\", “websocket”]\n", "dpsd.toml:2:22: transport.protocols: TOML has no use for the character “ (U+201C, left double quotation mark)" + quote},
		{"a no-break space before the equals sign", "[dps]\nid_scope\u00a0= \"0ne00000000\"\n", "dpsd.toml:2:9: TOML has no use for the character U+00A0, no-break space" + space},
		{"one at the beginning of a line", "[dps]\n\u00a0id_scope = \"0ne00000000\"\n", "dpsd.toml:2:1: TOML has no use for the character U+00A0, no-break space" + space},
		{"one behind a header", "[dps]\u00a0\n", "dpsd.toml:1:6: TOML has no use for the character U+00A0, no-break space" + space},
		{"a wide equals sign", "[dps]\nid_scope ＝ \"0ne00000000\"\n", "dpsd.toml:2:10: TOML has no use for the character ＝ (U+FF1D, fullwidth equals sign); write = in its place"},
		{"wide brackets", "［dps］\n", "dpsd.toml:1:1: TOML has no use for the character ［ (U+FF3B, fullwidth left square bracket); write [ in its place"},
		{"a byte order mark where two files were joined", "[log]\nlevel = \"info\"\n\ufeff[dps]\n", "dpsd.toml:3:1: TOML has no use for the character U+FEFF, byte order mark" + invisible},
		{"a zero width space", "[dps]\nid_scope = \u200b\"0ne00000000\"\n", "dpsd.toml:2:12: dps.id_scope: TOML has no use for the character U+200B, zero width space" + invisible},
		{"one in a value", "[dps]\nid_scope = \"0ne00\u200b\"\nregistration_id = \"gw-1\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/k\"\n",
			"dpsd.toml:2:1: dps.id_scope: \"0ne00\\u200b\" is no ID scope; it holds the character U+200B, zero width space: delete it; it cannot be seen, so delete its neighbours too and write them again"},
		{"a long dash in a number", "[transport]\nmqtt_port = –1\n", "dpsd.toml:2:13: transport.mqtt_port: TOML has no use for the character – (U+2013, en dash); write - in its place"},
		{"a letter that is no key of TOML's", "[dps]\nidé = 1\n", "dpsd.toml:2:3: TOML has no use for the character é (U+00E9); keys and values are written in ASCII; other text stands in double quotes"},
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
		{"in a comment", "[dps]\nid_scope = 0ne00 # “scope”\n", "dpsd.toml:2:13: dps.id_scope: TOML syntax: strings must be quoted; text is written in double quotes"},
		{"in a string that ends", "[log]\n\"“level”\" = x\n", "dpsd.toml:2:13: TOML syntax: unexpected character U+0078 'x' at start of value; text is written in double quotes"},
		{"behind an escaped quotation mark", "[log]\n\"a\\\"“\" = x\n", "dpsd.toml:2:10: TOML syntax: unexpected character U+0078 'x' at start of value; text is written in double quotes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := problems(t, c.text).Error(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
