package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/store"
)

// parts lists the parts of a report. The part without a name is not written; it collects the
// secrets to mask. dpsd.toml is not a part, because its comments and its errors may contain a
// secret.
func (g Gateway) parts() []part {
	state := filepath.Join(g.StateDirectory, "state.json")
	published, _ := store.PublishedPair(g.StateDirectory) // files.txt shows what there is instead
	parts := []part{
		{what: "the secrets to mask", collect: g.secrets},
		{name: "config.toml", what: "the effective configuration, and the origin of each value", collect: func(context.Context) piece { return pieceOf(g.Show()) }},
		{name: "status.json", what: "the status of the running dpsd", collect: func(ctx context.Context) piece { return pieceOf(g.Status(ctx)) }},
		{name: "status-files.json", what: "the status according to the state files", collect: func(context.Context) piece { return pieceOf(g.OnFile()) }},
		{name: "metrics.txt", what: "the metrics of the running dpsd", collect: func(ctx context.Context) piece { return pieceOf(g.Metrics(ctx)) }},
		{name: "attempts.json", what: "the last attempts", collect: func(context.Context) piece {
			if attempts := store.Attempts(g.StateDirectory, g.RuntimeDirectory); attempts != nil {
				return piece{data: encoded(attempts, "  ")}
			}
			return piece{}
		}},
		{name: "check.json", what: "the results of dpsd check", limit: 20 * time.Second, collect: func(ctx context.Context) piece { return pieceOf(g.Check(ctx)) }},
		{name: "state/state.json", what: "the published record", collect: g.stateFile(state, g.maskRecord)},
		{name: "state/state.json.prev", what: "the previous record", collect: g.stateFile(state+".prev", g.maskRecord)},
		{name: "state/state.env", what: "the record for shells", collect: g.stateFile(filepath.Join(g.StateDirectory, "state.env"), maskEnvironmentFile)},
		{name: "state/certificate/chain.pem", what: "the issued certificate and its chain", collect: g.pairFile(published, "chain.pem", chainOf)},
		{name: "state/certificate/certificate.json", what: "what dpsd knows of the issued certificate", collect: g.pairFile(published, "certificate.json", maskPair)},
		{name: "runtime/state.json", what: "the record that could not be written to the state directory", collect: g.stateFile(filepath.Join(g.RuntimeDirectory, "state.json"), g.maskRecord)},
		{name: "runtime/confirmation.json", what: "the last confirmation", collect: g.stateFile(filepath.Join(g.RuntimeDirectory, "confirmation.json"), keep)},
		{name: "runtime/retry-after.json", what: "the wait that DPS has asked for", collect: g.stateFile(filepath.Join(g.RuntimeDirectory, "retry-after.json"), keep)},
		{name: "files.txt", what: "the list of files, with modes and owners", collect: g.files},
		{name: "journal.txt", what: "the end of the journal", collect: func(ctx context.Context) piece {
			// On Debian, users outside of the groups adm and systemd-journal see only their own
			// entries, and journalctl prints a hint on standard error.
			return tool(ctx, "journalctl", "--unit=dpsd", "--lines=1000", "--output=short-iso-precise", "--no-pager", "--utc")
		}},
		{name: "unit.txt", what: "the unit files of dpsd.service", collect: func(ctx context.Context) piece {
			return maskedUnit(tool(ctx, "systemctl", "cat", "--no-pager", "dpsd.service"))
		}},
		{name: "unit-properties.txt", what: "the properties of dpsd.service", collect: func(ctx context.Context) piece {
			return maskedUnit(tool(ctx, "systemctl", "show", "--no-pager", "dpsd.service"))
		}},
		{name: "versions.txt", what: "the versions of dpsd and of the system", collect: g.versions},
	}
	if g.Online {
		parts[slices.IndexFunc(parts, func(p part) bool { return p.name == "check.json" })].limit = 3 * time.Minute
	}
	return parts
}

func pieceOf(data []byte, err error) piece { return piece{data: data, err: err} }

// encoded returns indented JSON.
func encoded(value any, indent string) []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", indent)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // all values of this package can be encoded
	return b.Bytes()
}

// secrets reads the secrets of the configuration and the environment, as far as this user
// may, so that they are masked in all parts.
func (g Gateway) secrets(context.Context) piece {
	places := attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY"))
	text, _ := slurp(input.Open, g.Configuration) // config.toml contains the error
	got := piece{secrets: append(userOf(string(text)), mistaken(text)...)}
	var unread []error
	// A reference may be anywhere in an invalid configuration.
	references := regexp.MustCompile(`file:/[^"'\s]+|credential:[A-Za-z0-9._@-]+`).FindAllString(string(text), -1)
	for _, name := range slices.Compact(slices.Sorted(slices.Values(references))) {
		reference, err := attest.ParseReference(name)
		if err != nil {
			continue // no other part contains it
		}
		secret, err := places.Read(reference)
		switch {
		case err == nil:
			got.secrets = append(got.secrets, secret)
		case !errors.Is(err, fs.ErrNotExist):
			unread = append(unread, err)
		}
	}
	keys, err := issuedKeys(g.StateDirectory)
	got.secrets = append(got.secrets, keys...)
	if err != nil {
		unread = append(unread, err)
	}
	if len(unread) > 0 {
		got.err = fmt.Errorf("not searched for in the rest of the report, because they cannot be read: %w", errors.Join(unread...))
	}
	for _, variable := range os.Environ() {
		got.secrets = append(got.secrets, userOf(variable)...)
	}
	return got
}

// mistaken returns possible secrets at wrong places of a configuration: the words on invalid
// lines, which errors may contain ("hunter2: unknown key"), also in the log and in the status
// of the running dpsd, and text in comments that looks like a secret. Words of the reference
// configuration are not secrets.
func mistaken(text []byte) (secrets [][]byte) {
	var errs config.Errors
	_, err := config.Parse("", bytes.NewReader(text))
	_ = errors.As(err, &errs)
	wrong := map[int]bool{}
	for _, e := range errs {
		wrong[e.Line] = true
	}
	public := words(config.Reference())
	for n, line := range strings.Split(string(text), "\n") {
		found := words(line)
		if !wrong[n+1] {
			_, comment, _ := strings.Cut(line, "#")
			found = words(comment)
			for word := range words(redact.Prose(comment)) {
				delete(found, word)
			}
		}
		for word := range found {
			if !public[word] {
				secrets = append(secrets, []byte(word))
			}
		}
	}
	return secrets
}

// words returns the set of words in TOML text.
func words(text string) map[string]bool {
	set := map[string]bool{}
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune("\"',;=#[]{}", r) }) {
		set[word] = true
	}
	return set
}

// userOf returns the passwords in addresses.
func userOf(text string) (secrets [][]byte) {
	address := regexp.MustCompile(`[a-z]://([^\s"']*)@`)
	badAddress := regexp.MustCompile(`[a-z]://(.*)@`) // with invalid characters, such as a blank in the password
	for _, m := range append(address.FindAllStringSubmatch(text, -1), badAddress.FindAllStringSubmatch(text, -1)...) {
		secrets = append(secrets, []byte(m[1]))
		if _, password, found := strings.Cut(m[1], ":"); found {
			secrets = append(secrets, []byte(password))
			// The text before such a character may have been parsed as a port.
			if end := strings.IndexAny(password, "/?#\\ \"'"); end > 0 {
				secrets = append(secrets, []byte(password[:end]))
			}
			if plain, err := url.PathUnescape(password); err == nil {
				secrets = append(secrets, []byte(plain))
			}
		}
	}
	return secrets
}

// stateFile returns a function that reads a file, which may not exist.
func (g Gateway) stateFile(path string, mask func([]byte) []byte) func(context.Context) piece {
	return func(context.Context) piece {
		data, err := slurp(input.OpenOwn, path)
		if errors.Is(err, fs.ErrNotExist) {
			return piece{}
		}
		if data != nil {
			data = mask(data)
		}
		return piece{data: data, err: err}
	}
}

func keep(data []byte) []byte { return data }

// harmless are the members of the response of DPS that contain no secret.
var harmless = []string{"status", "substatus", "registrationId", "assignedHub", "deviceId", "createdDateTimeUtc",
	"lastUpdatedDateTimeUtc", "etag", "errorCode", "connectionProfile"}

// maskRecord masks a record, which may be damaged. It keeps the lines whose values come from
// dpsd or from a harmless member of the response.
func (g Gateway) maskRecord(data []byte) []byte {
	// member matches a line whose value is a name, a number or a time.
	member := regexp.MustCompile(`^  "(schema|generation|idScope|endpoint|provisionedAt|configFingerprint|checksum|` +
		strings.Join(harmless, "|") + `)": ("(?:[^"\\]|\\.)*"|[0-9]+),?$`)
	issued := regexp.MustCompile(`^  "certificate": (\{.*\})(,?)$`)
	received := regexp.MustCompile(`^  "(payload|registrationState)": (.*?)(,?)$`)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		m := received.FindStringSubmatch(line)
		switch {
		case member.MatchString(line), line == "{", line == "}", line == "":
			b.WriteString(line)
		case issued.MatchString(line):
			m := issued.FindStringSubmatch(line)
			b.WriteString(`  "certificate": ` + known(m[1], &store.Certificate{}, "") + m[2])
		case m != nil && m[1] == "payload" && g.WithPayload:
			b.WriteString(line)
		case m != nil && m[1] == "registrationState":
			b.WriteString(`  "registrationState": ` + g.maskAnswer(m[2]) + m[3])
		case m != nil:
			fmt.Fprintf(&b, `  %q: "%s %d bytes"%s`, m[1], redact.Mark, len(m[2]), m[3])
		default:
			fmt.Fprintf(&b, "%s %d bytes", redact.Mark, len(line))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

// maskAnswer masks a response of the service except for its harmless members.
func (g Gateway) maskAnswer(text string) string {
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(text), &members) != nil {
		return fmt.Sprintf(`"%s %d bytes"`, redact.Mark, len(text))
	}
	shown := map[string]any{}
	for name, value := range members {
		shown[name] = fmt.Sprintf("%s %d bytes", redact.Mark, len(value))
		if slices.Contains(harmless, name) && value[0] != '{' && value[0] != '[' || name == "payload" && g.WithPayload {
			shown[name] = value
		}
	}
	return strings.TrimSuffix(string(encoded(shown, "")), "\n")
}

func maskEnvironmentFile(data []byte) []byte {
	environmentLine := regexp.MustCompile(`^DPSD_(ASSIGNED_HUB|DEVICE_ID|REGISTRATION_ID|ID_SCOPE|CONNECTION_PROFILE|GENERATION|CERTIFICATE_FILE|PRIVATE_KEY_FILE)=".*"$`)
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSuffix(line, "\n"); !environmentLine.MatchString(line) {
			line = fmt.Sprintf("%s %d bytes", redact.Mark, len(line))
		}
		b.WriteString(line + "\n")
	}
	return []byte(b.String())
}

// files lists the files in the directories of dpsd. The list shows a damaged record that was
// renamed and a mode that denies access to the service.
func (g Gateway) files(context.Context) piece {
	var b strings.Builder
	var errs []error
	for _, dir := range slices.Compact([]string{filepath.Dir(g.Configuration), filepath.Join(g.Directory, "keys"), g.StateDirectory, g.RuntimeDirectory, filepath.Join(g.RuntimeDirectory, "hub")}) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			fmt.Fprintf(&b, "%s: %v\n\n", dir, err)
			continue
		}
		b.WriteString(dir + ":\n")
		const most = 200
		for i, e := range entries {
			if i == most {
				fmt.Fprintf(&b, "and %d more\n", len(entries)-most)
				break
			}
			info, err := e.Info()
			if err != nil {
				continue // it was removed
			}
			listed(&b, info, filepath.Join(dir, e.Name()))
		}
		b.WriteByte('\n')
	}
	errs = append(errs, listPairs(&b, g.StateDirectory))
	return piece{data: []byte(b.String()), err: errors.Join(errs...)}
}

// listed writes the line of a file in a list.
func listed(b *strings.Builder, info fs.FileInfo, path string) {
	owner := info.Sys().(*syscall.Stat_t)
	target := ""
	if to, err := os.Readlink(path); err == nil {
		target = " -> " + to
	}
	fmt.Fprintf(b, "%s %d:%d %8d %s %s\n", info.Mode(), owner.Uid, owner.Gid, info.Size(),
		info.ModTime().UTC().Format(time.RFC3339), foreign.Line(filepath.Base(path)+target, foreign.MaxFault))
}

// maskedUnit keeps only the names of environment variables and masks all other possible
// secrets of a unit.
func maskedUnit(got piece) piece {
	given := regexp.MustCompile(`^\s*(Environment|SetCredential|SetCredentialEncrypted)\s*=(.*)$`)
	variable := regexp.MustCompile(`\b([A-Z][A-Z0-9_]{1,40}|https?_proxy|no_proxy)=`)
	var b strings.Builder
	for line := range strings.Lines(strings.ReplaceAll(string(got.data), "\\\n", " ")) {
		m := given.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil || strings.TrimSpace(m[2]) == "" {
			b.WriteString(redact.Prose(line))
			continue
		}
		got.secrets = append(got.secrets, userOf(m[2])...)
		b.WriteString(m[1] + "=" + redact.Mark)
		if m[1] == "Environment" {
			for _, v := range variable.FindAllStringSubmatch(m[2], -1) {
				b.WriteString(" " + v[1])
			}
		}
		b.WriteByte('\n')
	}
	if got.data != nil {
		got.data = []byte(b.String())
	}
	return got
}

// tool runs a program of the system and returns the end of its output.
func tool(ctx context.Context, name string, args ...string) piece {
	c := exec.CommandContext(ctx, name, args...) //nolint:gosec // the names and arguments are constants
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "SYSTEMD_COLORS=0")
	c.WaitDelay = time.Second
	out, complaint := &tail{most: maxPart / 2}, &tail{most: 4 << 10}
	c.Stdout, c.Stderr = out, complaint
	err := c.Run()
	said := strings.TrimSpace(string(complaint.lines()))
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return piece{err: fmt.Errorf("%s is not installed", name)}
	case ctx.Err() != nil:
		err = fmt.Errorf("%s took too long and was stopped", name)
	case said != "":
		err = fmt.Errorf("%s: %s", name, said)
	case err != nil:
		err = fmt.Errorf("%s: %w", name, err)
	}
	got := piece{err: err}
	if data := out.lines(); len(data) > 0 {
		got.data = data
	}
	return got
}

// tail is a writer that keeps the last bytes written to it.
type tail struct {
	most int
	data []byte
	cut  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if excess := len(t.data) - t.most; excess > t.most {
		t.data, t.cut = append(t.data[:0], t.data[excess:]...), true
	}
	return len(p), nil
}

// lines returns the bytes that were kept, beginning with the first complete line.
func (t *tail) lines() []byte {
	data, cut := t.data, t.cut
	if excess := len(data) - t.most; excess > 0 {
		data, cut = data[excess:], true
	}
	if cut {
		data = data[bytes.IndexByte(data, '\n')+1:]
	}
	return data
}

func (g Gateway) versions(ctx context.Context) piece {
	var b strings.Builder
	fmt.Fprintf(&b, "dpsd %s %s/%s, built from the source of %s\n%s\n", g.Version, runtime.GOOS, runtime.GOARCH, g.BuiltAt.UTC().Format(time.RFC3339), runtime.Version())
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		for _, field := range [][]byte{name.Sysname[:], name.Release[:], name.Version[:], name.Machine[:]} {
			b.WriteString(unix.ByteSliceToString(field) + " ")
		}
		b.WriteByte('\n')
	}
	errs := make([]error, 0, 4)
	for _, path := range []string{"/etc/os-release", "/proc/uptime"} {
		data, err := slurp(input.Open, path)
		errs = append(errs, err)
		fmt.Fprintf(&b, "\n%s:\n%s", path, data)
	}
	for _, args := range [][]string{
		{"systemctl", "--version"},
		{"dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n", "dpsd", "ca-certificates", "systemd"},
	} {
		got := tool(ctx, args[0], args[1:]...)
		errs = append(errs, got.err)
		fmt.Fprintf(&b, "\n%s:\n%s", args[0], got.data)
	}
	return piece{data: []byte(b.String()), err: errors.Join(errs...)}
}
