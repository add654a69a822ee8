package page

import (
	"bytes"
	"regexp"
	"slices"
)

const tokenPrefix = "SharedAccessSignature "

// withoutSecrets returns the bytes of a packet with asterisks in place of secrets: of the
// signature of each SAS token, and of any other password, which may be a key that is in the wrong
// place. It returns a new slice if it changes something.
func withoutSecrets(packet string, raw []byte) []byte {
	var password []byte
	switch packet {
	case "REQUEST":
		return withoutAuthorization(raw)
	case "CONNECT":
		p, ok := parse(raw)
		if !ok {
			// The password cannot be found. It is not in the ten bytes that precede the client identifier.
			end := min(len(raw), 2)
			if i := bytes.Index(raw, []byte("\x00\x04MQTT")); i > 0 && i <= 5 {
				end = min(len(raw), i+10)
			}
			return raw[:end]
		}
		password = p.Connect.Password
	}
	if len(password) == 0 && !bytes.Contains(raw, []byte(tokenPrefix)) {
		return raw
	}
	raw = slices.Clone(raw)
	hidePassword(raw[len(raw)-len(password):])
	hideSignatures(raw)
	return raw
}

// withoutAuthorization returns a request without the secrets in its Authorization headers and the
// keys in its body.
func withoutAuthorization(raw []byte) []byte {
	raw = slices.Clone(raw)
	for rest := raw; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(rest[:end], "\r\n"), []byte(":"))
		if bytes.EqualFold(bytes.TrimSpace(name), []byte("Authorization")) {
			hidePassword(bytes.TrimSpace(value))
		}
		rest = rest[end:]
	}
	for _, found := range keyMembers.FindAllSubmatchIndex(raw, -1) {
		hide(raw[found[2]:found[3]])
	}
	hideSignatures(raw)
	return raw
}

// keyMembers finds the keys of a module identity in a body. The last one may be incomplete.
var keyMembers = regexp.MustCompile(`"(?:primary|secondary)Key"\s*:\s*"([^"]*)`)

// hidePassword hides everything in a password that is neither the resource, the expiry nor the
// policy of a SAS token.
func hidePassword(password []byte) {
	rest, token := bytes.CutPrefix(password, []byte(tokenPrefix))
	if !token {
		hide(password)
		return
	}
	for len(rest) > 0 {
		n := bytes.IndexByte(rest, '&')
		if n < 0 {
			n = len(rest)
		}
		name, value, _ := bytes.Cut(rest[:n], []byte("="))
		switch string(name) {
		case "sr", "se", "skn":
		case "sig":
			hide(value)
		default:
			hide(rest[:n])
		}
		rest = rest[min(n+1, len(rest)):]
	}
}

// hideSignatures hides the signature of each SAS token in a text, such as an HTTP header.
func hideSignatures(text []byte) {
	for {
		_, after, found := bytes.Cut(text, []byte("sig="))
		if !found {
			return
		}
		end := bytes.IndexAny(after, "&\"' \r\n")
		if end < 0 {
			end = len(after)
		}
		hide(after[:end])
		text = after[end:]
	}
}

func hide(secret []byte) {
	for i := range secret {
		secret[i] = '*'
	}
}
