package serviceapi

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/dpsd-project/dpsd/simulator"
)

// authenticate checks the SAS token of a request. The message of its error says what is wrong
// with the token, but never contains a signature or a key.
func (h *Handler) authenticate(r *http.Request) error {
	wrong := func(format string, args ...any) error { return refuse(401000, "Unauthorized: "+format, args...) }
	rest, ok := strings.CutPrefix(r.Header.Get("Authorization"), "SharedAccessSignature ")
	if !ok {
		return wrong("the Authorization header does not begin with SharedAccessSignature")
	}
	values := map[string]string{}
	for pair := range strings.SplitSeq(rest, "&") {
		key, value, _ := strings.Cut(pair, "=")
		values[key] = value
	}
	unescaped := map[string]string{}
	for _, key := range []string{"sr", "sig", "se", "skn"} {
		value, err := url.PathUnescape(values[key])
		if err != nil || value == "" {
			return wrong("the token has no valid %s", key)
		}
		unescaped[key] = value
	}
	if unescaped["skn"] != simulator.ServiceKeyName {
		return wrong("the token's skn is %q, not %q", unescaped["skn"], simulator.ServiceKeyName)
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if sr := unescaped["sr"]; !strings.EqualFold(sr, r.Host) && !strings.EqualFold(sr, host) {
		return wrong("the token is for %q, not for %q", sr, r.Host)
	}
	expiry, err := strconv.ParseInt(unescaped["se"], 10, 64)
	if err != nil {
		return wrong("the token's se is not a number")
	}
	if h.now().Unix() >= expiry {
		return wrong("the token has expired")
	}
	signature, err := base64.StdEncoding.DecodeString(unescaped["sig"])
	mac := hmac.New(sha256.New, h.key)
	mac.Write([]byte(values["sr"] + "\n" + values["se"])) // as the client has sent and signed them
	if err != nil || !hmac.Equal(mac.Sum(nil), signature) {
		return wrong("the token is not signed with the key %s; the string to sign is %q", simulator.ServiceKeyName, values["sr"]+"\n"+values["se"])
	}
	return nil
}
