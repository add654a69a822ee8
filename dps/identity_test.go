package dps_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/dps"
)

func TestIdentity(t *testing.T) {
	id := dps.Identity{IDScope: "0ne0026656D", RegistrationID: "gw:site-01.Unit_7"}
	t.Run("the client identifier is the registration ID, byte for byte", func(t *testing.T) {
		if got := id.ClientID(); got != "gw:site-01.Unit_7" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("the resource of a token is the ID scope and the registration ID, unescaped and in their original case", func(t *testing.T) {
		if got := id.Resource(); got != "0ne0026656D/registrations/gw:site-01.Unit_7" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("all but the unreserved characters of RFC 3986 are escaped in the client version", func(t *testing.T) {
		const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
		for b := range 256 {
			want := fmt.Sprintf("%%%02X", b)
			if b < 0x80 && strings.ContainsRune(unreserved, rune(b)) {
				want = string(rune(b))
			}
			id.ClientVersion = string([]byte{byte(b)})
			if got := id.UserName(); !strings.HasSuffix(got, "&ClientVersion="+want) {
				t.Errorf("byte %#02x is sent as %s, not as %s", b, got, want)
			}
		}
	})
	for _, test := range []struct{ expect, api, client, want string }{
		{"the user name has a slash before api-version, no question mark, and 2019-03-31 by default", "", "",
			"0ne0026656D/registrations/gw:site-01.Unit_7/api-version=2019-03-31"},
		{"another api-version is sent unchanged", "2025-07-01-preview", "",
			"0ne0026656D/registrations/gw:site-01.Unit_7/api-version=2025-07-01-preview"},
		{"the client version is percent-encoded", "2021-06-01", "dpsd/1.0 (Linux; a&b=c) ü~",
			"0ne0026656D/registrations/gw:site-01.Unit_7/api-version=2021-06-01&ClientVersion=dpsd%2F1.0%20%28Linux%3B%20a%26b%3Dc%29%20%C3%BC~"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			id := id
			id.APIVersion, id.ClientVersion = test.api, test.client
			if got := id.UserName(); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}
