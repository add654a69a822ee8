package config

import (
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/hostname"
	"github.com/dpsd-project/dpsd/nearest"
)

// kind describes the values of a key.
type kind struct {
	// read sets the value from a document, or reports why the value is invalid.
	read func(at document.Path, value any, report func(document.Path, Error))
	// reset sets the default.
	reset func()
	// written returns the value in the form of the file: a string, an int64, a bool or a
	// []string, or nil if it is not set.
	written func() any
}

// inQuotes is a kind whose values are strings in the file. remedy says what to write
// instead of a value of another type.
func inQuotes[T any](to *T, standard T, remedy string, parse func(string) (T, *Error), format func(T) string) kind {
	return kind{
		func(at document.Path, value any, report func(document.Path, Error)) {
			v := standard
			s, wrong := document.String(value, remedy)
			if wrong == nil {
				v, wrong = parse(s)
			}
			if wrong != nil {
				report(at, *wrong)
				return
			}
			*to = v
		},
		func() { *to = standard },
		func() any {
			if s := format(*to); s != "" {
				return s
			}
			return nil
		},
	}
}

func same(s string) string { return s }

// textRemedy is for a value that is not a string.
const textRemedy = "write it in double quotes"

// text is a string that passes check.
func text(to *string, standard string, check func(string) *Error) kind {
	return inQuotes(to, standard, textRemedy, func(s string) (string, *Error) {
		return s, explained(s, check(s))
	}, same)
}

// explained adds advice to an error if the text contains a character that only looks like an
// ASCII character.
func explained(s string, wrong *Error) *Error {
	if character := document.Hidden(s); wrong != nil && character != "" {
		wrong.Remedy = character
	}
	return wrong
}

// unreserved contains the unreserved characters of RFC 3986 §2.3. A scope of such characters is
// the same text in the user name and in the signed resource. Only the service knows the rest
// of its syntax.
const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

func checkIDScope(s string) *Error {
	if s == "" || len(s) > 128 || strings.Trim(s, unreserved) != "" {
		return &Error{Problem: document.Quote(s) + " is not an ID scope", Remedy: `it consists of letters and digits, such as "0ne00000000"`}
	}
	return nil
}

func checkTemplate(s string) *Error {
	if err := attest.ParseTemplate(s); err != nil {
		return &Error{Problem: err.Error()}
	}
	return nil
}

func checkAPIVersion(s string) *Error {
	if !regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}(-preview)?$`).MatchString(s) {
		return &Error{Problem: document.Quote(s) + " is not an API version", Remedy: `it is a date such as "2019-03-31", optionally with the suffix "-preview"`}
	}
	return nil
}

func checkEndpoint(s string) *Error {
	const remedy = `write only the name, such as "global.azure-devices-provisioning.net"`
	bare, _, _ := strings.Cut(strings.TrimPrefix(s, "["), "]")
	address, err := netip.ParseAddr(bare)
	switch {
	case err == nil && address.Is6():
		return &Error{Problem: "must be a host name, not an IPv6 address",
			Remedy: "the server's certificate is for its name, and dpsd uses IPv6 if the name has an IPv6 address; " + remedy}
	case strings.Contains(s, "://"):
		return &Error{Problem: "must be a host name, without a scheme", Remedy: remedy}
	case strings.Contains(s, ":"):
		return &Error{Problem: "must be a host name, without a port", Remedy: "set the ports with transport.mqtt_port and transport.websocket_port"}
	case strings.HasSuffix(s, "."):
		return &Error{Problem: "must be a host name, without a dot at the end", Remedy: remedy}
	case !hostname.Valid(s):
		return &Error{Problem: document.Quote(s) + " is not a host name", Remedy: remedy}
	}
	return nil
}

// checkProxyUser rejects a user name that basic authentication cannot transmit (RFC 7617 §2).
func checkProxyUser(s string) *Error {
	switch {
	case strings.Contains(s, ":"):
		return &Error{Problem: "must not contain a colon", Remedy: "set the password with proxy_password"}
	case strings.ContainsFunc(s, unicode.IsControl):
		return &Error{Problem: "contains a control character"}
	}
	return nil
}

// file is an absolute path that passes the checks.
func file(to *string, standard string, checks ...func(string) *Error) kind {
	return inQuotes(to, standard, textRemedy, func(s string) (string, *Error) {
		wrong := explained(s, checkPath(s))
		for _, check := range checks {
			if wrong == nil {
				wrong = check(s)
			}
		}
		return filepath.Clean(s), wrong
	}, same)
}

func checkPath(s string) *Error {
	switch {
	case strings.HasPrefix(s, "file:"):
		return &Error{Problem: "must be a plain path", Remedy: `omit "file:"; only credentials are references`}
	case !filepath.IsAbs(s):
		return &Error{Problem: "must be an absolute path", Remedy: `begin it with "/"`}
	case strings.ContainsFunc(s, unicode.IsControl):
		return &Error{Problem: "contains a control character"}
	}
	return nil
}

func checkSocket(s string) *Error {
	const longest = 107 // maximum length in a socket address, without its final NUL (unix(7))
	switch length := len(filepath.Clean(s)); {
	case strings.HasSuffix(s, "/"):
		return &Error{Problem: "must be the path of a socket, not of a directory", Remedy: `such as "/run/dpsd/dpsd.sock"`}
	case length > longest:
		return &Error{Problem: fmt.Sprintf("the path of a socket has at most %d bytes, not %d", longest, length)}
	}
	return nil
}

// word is one of a few words.
func word(to *string, standard string, words ...string) kind {
	return inQuotes(to, standard, oneOf(words), func(s string) (string, *Error) { return s, checkWord(s, words) }, same)
}

func checkWord(s string, words []string) *Error {
	if slices.Contains(words, s) {
		return nil
	}
	return &Error{Problem: document.Quote(s) + " is unknown", Nearest: nearest.Name(s, words), Remedy: oneOf(words)}
}

// oneOf returns the remedy for a value that is not one of the words or of the others, which
// are not quoted.
func oneOf(words []string, others ...string) string {
	all := make([]string, 0, len(words)+len(others))
	for _, w := range words {
		all = append(all, strconv.Quote(w))
	}
	return "write " + enumerated(append(all, others...), "or")
}

// enumerated returns a list such as "a, b or c".
func enumerated(all []string, last string) string {
	n := len(all) - 1
	return strings.Join(all[:n], ", ") + " " + last + " " + all[n]
}

// words is a list of some of the words, each at most once. The default is the whole list.
func words(to *[]string, all ...string) kind {
	remedy := `such as ["` + all[0] + `"]`
	return kind{
		func(at document.Path, value any, report func(document.Path, Error)) {
			list, ok := value.([]any)
			switch {
			case !ok:
				report(at, Error{Problem: "must be an array, not " + document.TypeOf(value), Remedy: remedy})
				return
			case len(list) == 0:
				report(at, Error{Problem: "must not be empty", Remedy: remedy})
				return
			}
			var taken []string
			for i, element := range list {
				var one string
				word(&one, "", all...).read(at.Index(i), element, report)
				if one != "" && slices.Contains(taken, one) {
					report(at.Index(i), Error{Problem: strconv.Quote(one) + " appears twice"})
				}
				taken = append(taken, one)
			}
			*to = taken
		},
		func() { *to = all },
		func() any { return *to },
	}
}

// percentage is a whole percentage from low to high.
func percentage(to *int, standard, low, high int) kind {
	remedy := fmt.Sprintf(`write a whole percentage from "%d%%" to "%d%%"`, low, high)
	return inQuotes(to, standard, remedy, func(s string) (int, *Error) {
		digits, isPercentage := strings.CutSuffix(s, "%")
		n, err := strconv.ParseUint(digits, 10, 16)
		switch {
		case !isPercentage || err != nil:
			return 0, explained(s, &Error{Problem: document.Quote(s) + " is not a whole percentage", Remedy: remedy})
		case int(n) < low || int(n) > high:
			return 0, &Error{Problem: document.Quote(s) + " is out of range", Remedy: remedy}
		}
		return int(n), nil
	}, func(n int) string {
		if n == 0 {
			return ""
		}
		return strconv.Itoa(n) + "%"
	})
}

// groupName and maxGroupName are what systemd accepts everywhere as the name of a group
// (systemd.io, "User/Group Name Syntax"). A repetition with a limit would take 30 KB of memory.
const (
	groupName    = `^[A-Za-z_][A-Za-z0-9_-]*$`
	maxGroupName = 31
)

func checkGroup(s string) *Error {
	if len(s) > maxGroupName || !regexp.MustCompile(groupName).MatchString(s) {
		return &Error{Problem: document.Quote(s) + " is not a valid group name", Remedy: `write at most 31 letters, digits, "_" and "-", such as "dpsd-certificate"`}
	}
	return nil
}

// port is a TCP port.
func port(to *int, standard int) kind {
	return kind{
		func(at document.Path, value any, report func(document.Path, Error)) {
			n, ok := value.(int64)
			switch {
			case !ok:
				report(at, Error{Problem: "must be an integer, not " + document.TypeOf(value), Remedy: "write the port without quotes"})
			case n < 1 || n > 65535:
				report(at, Error{Problem: fmt.Sprintf("%d is not a TCP port", n), Remedy: "ports are 1 to 65535"})
			default:
				*to = int(n)
			}
		},
		func() { *to = standard },
		func() any { return int64(*to) },
	}
}

// boolean is true or false.
func boolean(to *bool, standard bool) kind {
	return kind{
		func(at document.Path, value any, report func(document.Path, Error)) {
			b, ok := value.(bool)
			if !ok {
				report(at, Error{Problem: "must be a boolean, not " + document.TypeOf(value), Remedy: "write true or false, without quotes"})
				return
			}
			*to = b
		},
		func() { *to = standard },
		func() any { return *to },
	}
}

// duration is a duration in Go's notation, from low to high, that passes the checks.
func duration(to *time.Duration, standard, low, high time.Duration, checks ...func(time.Duration) *Error) kind {
	const remedy = `write a number with its unit, such as "90s", "5m" or "24h"`
	return inQuotes(to, standard, remedy, func(s string) (time.Duration, *Error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, &Error{Problem: document.Quote(s) + " is not a duration", Remedy: remedy}
		}
		if d < low || d > high {
			return 0, &Error{Problem: document.Quote(s) + " is out of range", Remedy: brief(low) + " to " + brief(high) + " are allowed"}
		}
		for _, check := range checks {
			if wrong := check(d); wrong != nil {
				return 0, wrong
			}
		}
		return d, nil
	}, brief)
}

// brief writes a duration without the zero units that Duration.String appends.
func brief(d time.Duration) string {
	s := d.String()
	for _, end := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, end) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// maxKeepAlive is the longest keep alive that IoT Hub supports. Its servers wait for one and
// a half times the keep alive, but at most 1767 s.
const maxKeepAlive = 1177 * time.Second

// checkKeepAlive requires whole seconds, because CONNECT contains seconds [MQTT-3.1.2-24].
func checkKeepAlive(d time.Duration) *Error {
	if d%time.Second != 0 {
		return &Error{Problem: "must be a whole number of seconds", Remedy: `such as "60s", or "0s" to disable it`}
	}
	return nil
}

// checkInterval requires a minimum, because each registration is billed.
func checkInterval(d time.Duration) *Error {
	const shortest = 10 * time.Minute
	if d > 0 && d < shortest {
		return &Error{Problem: brief(d) + " is too short", Remedy: "at least " + brief(shortest) + ", or \"0s\" for never"}
	}
	return nil
}

// mode is the mode of a file that either all users or only its group may read.
func mode(to *fs.FileMode, standard fs.FileMode) kind {
	modes := []string{"0644", "0640"}
	return inQuotes(to, standard, oneOf(modes), func(s string) (fs.FileMode, *Error) {
		m, _ := strconv.ParseUint(s, 8, 32) // text that is not a number is not one of the modes
		return fs.FileMode(m), checkWord(s, modes)
	}, func(m fs.FileMode) string { return fmt.Sprintf("%04o", m) })
}

// reference is "file:/path" or "credential:NAME", or also "signer:/path" if signer is true. Any
// other value may be a secret, so errors do not contain it.
func reference(to *attest.Reference, signer bool) kind {
	return inQuotes(to, attest.Reference{}, `write "file:/path" or "credential:NAME"`, func(s string) (attest.Reference, *Error) {
		r, err := attest.ParseReference(s)
		switch {
		case err != nil:
			return r, &Error{Problem: err.Error()}
		case r.Signer != "" && !signer:
			return r, &Error{Problem: `"signer:" is allowed only for private_key`, Remedy: `write "file:/path" or "credential:NAME"`}
		}
		return r, nil
	}, attest.Reference.String)
}

// anAddress is an example of the address of a proxy.
const anAddress = `"http://proxy.example:3128"`

// proxy is a word or an address. Errors do not contain the address, because it may include a
// password.
func proxy(to *string, standard string) kind {
	words := []string{"environment", "none"}
	remedy := oneOf(words, "an address such as "+anAddress)
	return inQuotes(to, standard, remedy, func(s string) (string, *Error) {
		if strings.ContainsAny(s, ":/@") {
			return parseProxy(s)
		}
		wrong := checkWord(s, words)
		if wrong != nil {
			wrong.Remedy = remedy
		}
		return s, wrong
	}, same)
}

// parseProxy returns the address of a proxy without a trailing slash.
func parseProxy(s string) (string, *Error) {
	const remedy = "write it as " + anAddress
	if strings.Contains(s, "@") {
		return "", &Error{Problem: "the address must not contain a user name or password",
			Remedy: `write only the address, and set proxy_user, and proxy_password to "credential:NAME" or "file:/path"`}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", &Error{Problem: "is not an address", Remedy: remedy}
	case u.Scheme != "http" && u.Scheme != "https":
		return "", &Error{Problem: `the address must begin with "http://" or "https://"`, Remedy: remedy}
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", &Error{Problem: "the address must end with the port", Remedy: remedy}
	case u.Port() == "":
		return "", &Error{Problem: "the address has no port", Remedy: remedy}
	}
	if n, err := strconv.Atoi(u.Port()); err != nil || n < 1 || n > 65535 {
		return "", &Error{Problem: "the address has no valid port", Remedy: "ports are 1 to 65535"}
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil && !hostname.Valid(u.Hostname()) {
		return "", &Error{Problem: "the address has no valid host name", Remedy: remedy}
	}
	return u.Scheme + "://" + u.Host, nil
}
