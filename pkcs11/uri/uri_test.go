package uri

import (
	"reflect"
	"strings"
	"testing"
)

func TestAURISelectsAKeyInATokenAndNamesTheLibrary(t *testing.T) {
	slot := uint(7)
	for text, want := range map[string]URI{
		"pkcs11:object=device?module-path=/lib/p11.so":                                                             {Object: "device", Module: "/lib/p11.so"},
		"pkcs11:token=gate%20way;serial=01;manufacturer=M;model=X;id=%01%ff;slot-id=7;type=private?module-path=/p": {Token: "gate way", Serial: "01", Manufacturer: "M", Model: "X", ID: []byte{1, 0xff}, Slot: &slot, Module: "/p"},
		"pkcs11:object=a+b%3b?module-path=/p":                                                                      {Object: "a+b;", Module: "/p"},
	} {
		if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestAURIThatCouldMatchAnotherKeyOrContainsAPINIsAnError(t *testing.T) {
	for text, words := range map[string]string{
		"":                                                 `begins with "pkcs11:"`,
		"file:/key.pem":                                    `begins with "pkcs11:"`,
		"pkcs11:object=a":                                  "module-path is missing",
		"pkcs11:token=a?module-path=/p":                    "object and id are missing",
		"pkcs11:?module-path=/p":                           "object and id are missing",
		"pkcs11:object=?module-path=/p":                    `"object" has no value`,
		"pkcs11:object?module-path=/p":                     `"object" has no value`,
		"pkcs11:object=a;;token=b?module-path=/p":          `"" has no value`,
		"pkcs11:object=a;object=b?module-path=/p":          "occurs twice",
		"pkcs11:object=%zz?module-path=/p":                 "is not valid",
		"pkcs11:object=a;type=cert?module-path=/p":         "not the type of a private key",
		"pkcs11:object=a;library-version=2?module-path=/p": "not supported",
		"pkcs11:object=a;slot-id=-1?module-path=/p":        "not a number",
		"pkcs11:object=a?module-path=p11.so":               "not absolute",
		"pkcs11:object=a?module-name=p11":                  "not supported",
		"pkcs11:object=a?module-path=/p&pin-value=1234":    `systemd credential "pin"`,
		"pkcs11:object=a?module-path=/p&pin-source=/pin":   `systemd credential "pin"`,
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the error of %s is %v, want one with %q", text, err, words)
		}
		if err != nil && strings.Contains(err.Error(), "1234") {
			t.Errorf("the error of %s contains the PIN: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("pkcs11:token=a;id=%01?module-path=/p")
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := Parse(text); err == nil && (u.Module == "" || u.Object == "" && len(u.ID) == 0) {
			t.Errorf("%q is %+v", text, u)
		}
	})
}
