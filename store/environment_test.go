package store_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/store"
)

var variables = []string{
	"DPSD_ASSIGNED_HUB", "DPSD_DEVICE_ID", "DPSD_REGISTRATION_ID",
	"DPSD_ID_SCOPE", "DPSD_CONNECTION_PROFILE", "DPSD_GENERATION",
}

// awkward contains values that some readers of quoted text parse incorrectly.
var awkward = []string{
	"plain", `\`, `\\`, `"`, `""`, `'`, `''`, "$", "$$", "$HOME", "${HOME}", "$(id)", "`id`", "``",
	`\$`, `\"`, "\\`", `\n`, `\t`, `\x41`, `\\n`, `a\b`, `end\`, `"quoted"`, `'quoted'`, " ", "  lead", "trail  ",
	"a b", "#", "# comment", "a#b", "a # b", ";", "; x", "a;b", "&", "|", "<>", "(", ")", "*", "?", "[a]", "~", "~root",
	"!", "!!", "%", "%H", "%%", "=", "A=B", "-n", "-e", "--", "a-:.+%_#*?!(),=@;$'", "é", "日本語", "\u00a0", "\u2028", "\ufeff",
	"🙂", "$\\\"`$\\\"`", `${DPSD_DEVICE_ID}`, strings.Repeat(`\"$`, 42),
}

func environmentOf(value string) (store.Record, map[string]string) {
	rec := sample()
	rec.DeviceID, rec.RegistrationID, rec.IDScope, rec.ConnectionProfile = value, value+"r", "s"+value, value+value
	rec.Generation = 12
	return rec, map[string]string{
		"DPSD_ASSIGNED_HUB": rec.AssignedHub, "DPSD_DEVICE_ID": value, "DPSD_REGISTRATION_ID": value + "r",
		"DPSD_ID_SCOPE": "s" + value, "DPSD_CONNECTION_PROFILE": value + value, "DPSD_GENERATION": "12",
	}
}

// sourced returns the variables of a shell after ". file". HOME and id would reveal
// expansions.
func sourced(t *testing.T, shell, file string) map[string]string {
	t.Helper()
	script := `. "$1" || exit 1; printf '%s\0'`
	for _, name := range variables {
		script += ` "$` + name + `"`
	}
	cmd := exec.Command(shell, "-euc", script, shell, file)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/expanded", "LC_ALL=C.UTF-8"}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", shell, err)
	}
	values := map[string]string{}
	for i, value := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		values[variables[i]] = value
	}
	return values
}

func TestTheFilesOfACertificateAreNamedThroughCurrent(t *testing.T) {
	for directory, want := range map[string]string{
		"/var/lib/dpsd":    "/var/lib/dpsd/certificate/current/",
		"/":                "/certificate/current/",
		`/a "b"$c` + "`d`": `/a "b"$c` + "`d`/certificate/current/",
	} {
		rec := sample()
		pair := filepath.Join(directory, "certificate", "12")
		rec.Certificate = &store.Certificate{CertificateFile: filepath.Join(pair, "chain.pem"), PrivateKeyFile: filepath.Join(pair, "key.pem")}
		values, err := environmentFile(string(store.Environment(rec)))
		if err != nil || len(values) != 8 || values["DPSD_CERTIFICATE_FILE"] != want+"chain.pem" || values["DPSD_PRIVATE_KEY_FILE"] != want+"key.pem" {
			t.Errorf("%s: %v, %q", directory, err, values)
		}
	}
}

func checkEnvironment(t *testing.T, got, want map[string]string) {
	t.Helper()
	if len(got) != len(variables) {
		t.Errorf("%d variables, want all %d: %q", len(got), len(variables), got)
	}
	for _, name := range variables {
		if got[name] != want[name] {
			t.Errorf("%s is %q, want %q", name, got[name], want[name])
		}
	}
}

func TestEnvironmentReaders(t *testing.T) {
	for _, shell := range []string{"sh", "dash", "bash", "busybox"} {
		t.Run(shell+" has every value unchanged", func(t *testing.T) {
			path, err := exec.LookPath(shell)
			if err != nil {
				if shell == "sh" {
					missing(t, "sh is not installed")
				}
				t.Skipf("%s is not installed; sh is tested instead", shell)
			}
			if shell == "busybox" {
				applet := filepath.Join(t.TempDir(), "sh") // busybox selects the applet by its name
				if err := os.Symlink(path, applet); err != nil {
					t.Fatal(err)
				}
				path = applet
			}
			for _, value := range awkward {
				rec, want := environmentOf(value)
				file := filepath.Join(t.TempDir(), "state.env")
				put(t, string(store.Environment(rec)), file)
				checkEnvironment(t, sourced(t, path, file), want)
			}
		})
	}
	t.Run("systemd has every value unchanged", func(t *testing.T) {
		for _, value := range awkward {
			rec, want := environmentOf(value)
			got, err := environmentFile(string(store.Environment(rec)))
			if err != nil {
				t.Errorf("%q: %v", value, err)
			}
			checkEnvironment(t, got, want)
		}
	})
	t.Run("all six variables exist if the service sent no connection profile", func(t *testing.T) {
		rec, want := environmentOf("gw")
		rec.ConnectionProfile, want["DPSD_CONNECTION_PROFILE"] = "", ""
		got, err := environmentFile(string(store.Environment(rec)))
		if err != nil {
			t.Error(err)
		}
		checkEnvironment(t, got, want)
	})
	t.Run("a real file has one variable per line", func(t *testing.T) {
		directory := t.TempDir()
		rec := sample()
		rec.DeviceID = `a"$\` + "`b"
		mustSave(t, mustOpen(t, store.Options{Directory: directory}), rec, store.Written)
		lines := strings.Split(content(t, directory, "state.env"), "\n")
		if len(lines) != len(variables)+1 || lines[1] != `DPSD_DEVICE_ID="a\"\$\\`+"\\`b\"" {
			t.Errorf("%q", lines)
		}
	})
}

func TestEnvironmentFileParser(t *testing.T) {
	// These are documented behaviours of systemd, which verify the parser below.
	for text, want := range map[string]string{
		"A=b\n":               "b",
		"A=\"b\\\nc\"\n":      "bc",
		"A=\"b\\nc\"\n":       `b\nc`,
		"A=b\\\nc\n":          "bc",
		"A='b\\c'\n":          `b\c`,
		"A= b c  \n":          "b c",
		"A=\"b\" \n":          "b",
		"A=\"b\"c\n":          "bc",
		"# x\n; y\nA=\"#\"\n": "#",
		"A=\"b\nc\"\n":        "b\nc",
	} {
		got, err := environmentFile(text)
		if err != nil || got["A"] != want {
			t.Errorf("%q: %q, %v; want %q", text, got["A"], err, want)
		}
	}
	for _, text := range []string{"A=\xff\n", "A=\"\ufffe\"\n", "A=\"\ufdd0\"\n"} {
		if _, err := environmentFile(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// environmentFile parses like systemd's EnvironmentFile=: one state machine for all
// characters, with quotes within and across lines. A value that is not clean UTF-8 is an
// error for the whole file.
func environmentFile(text string) (map[string]string, error) {
	const (
		beforeKey = iota
		inKey
		beforeValue
		inValue
		afterBackslash
		inSingle
		inDouble
		afterBackslashInDouble
		inComment
		afterBackslashInComment
	)
	var (
		values     = map[string]string{}
		state      = beforeKey
		key, value []byte
		solid      int // length of value without trailing blanks
		failure    error
	)
	push := func() {
		name := strings.TrimRight(string(key), " \t")
		if state == inValue {
			value = value[:solid]
		}
		if !cleanUTF8(string(value)) {
			failure = fmt.Errorf("%s is not clean UTF-8", name)
		}
		values[name] = string(value)
		key, value, solid, state = nil, nil, 0, beforeKey
	}
	for i := range len(text) {
		c := text[i]
		blank, end := c == ' ' || c == '\t', c == '\n' || c == '\r'
		switch state {
		case beforeKey:
			switch {
			case c == '#' || c == ';':
				state = inComment
			case !blank && !end:
				key, state = append(key, c), inKey
			}
		case inKey:
			switch {
			case end:
				key, state = nil, beforeKey
			case c == '=':
				state = beforeValue
			default:
				key = append(key, c)
			}
		case beforeValue, inValue:
			switch {
			case end:
				push()
			case c == '\'' && state == beforeValue:
				state = inSingle
			case c == '"' && state == beforeValue:
				state = inDouble
			case c == '\\':
				state = afterBackslash
			case blank && state == beforeValue:
			default:
				state = inValue
				if value = append(value, c); !blank {
					solid = len(value)
				}
			}
		case afterBackslash:
			state = inValue
			if !end {
				value = append(value, c)
				solid = len(value)
			}
		case inSingle:
			if c == '\'' {
				state, solid = beforeValue, len(value)
			} else {
				value = append(value, c)
			}
		case inDouble:
			switch c {
			case '"':
				state, solid = beforeValue, len(value)
			case '\\':
				state = afterBackslashInDouble
			default:
				value = append(value, c)
			}
		case afterBackslashInDouble:
			state = inDouble
			if strings.IndexByte("\"\\`$", c) >= 0 {
				value = append(value, c)
			} else if c != '\n' {
				value = append(value, '\\', c)
			}
		case inComment:
			if c == '\\' {
				state = afterBackslashInComment
			} else if end {
				state = beforeKey
			}
		case afterBackslashInComment:
			state = inComment
		}
	}
	if state != beforeKey && state != inComment {
		return values, fmt.Errorf("the file ends within a value")
	}
	return values, failure
}

func cleanUTF8(s string) bool {
	for _, r := range s {
		if r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe {
			return false
		}
	}
	return utf8.ValidString(s)
}
