package store_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/shipped"
)

// realFiles returns files that Save has written, from the smallest to the largest.
func realFiles(t *testing.T) map[string]string {
	least := sample()
	least.Substatus, least.CreatedDateTimeUtc, least.LastUpdatedDateTimeUtc, least.ETag, least.ConnectionProfile = "", "", "", "", ""
	least.Payload, least.RegistrationState = nil, nil
	odd := sample()
	odd.DeviceID = "a-:.+%_#*?!(),=@;$'\"\\`é"
	odd.Payload = json.RawMessage("[1e400,\"\xff\",{\"checksum\":\"  \\\"checksum\\\": \"}]")
	odd.RegistrationState = json.RawMessage(`{"issuedCertificateChain":["AAAA"],"etag":"<&>"}`)
	files := map[string]string{}
	for say, rec := range map[string]store.Record{"least": least, "usual": sample(), "odd": odd} {
		directory := t.TempDir()
		s := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, numbered(100), store.Written)
		mustSave(t, s, rec, store.Written)
		files[say] = filepath.Join(directory, "state.json")
		files[say+", previous"] = filepath.Join(directory, "state.json.prev")
	}
	directory := t.TempDir()
	issued(t, directory, 2)
	files["with a certificate"] = filepath.Join(directory, "state.json")
	return files
}

func TestSchema(t *testing.T) {
	const location = "../docs/state.schema.json"
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	schema, err := compiler.Compile(location)
	if err != nil {
		t.Fatal(err)
	}
	var described struct{ Properties map[string]any }
	if err := json.Unmarshal([]byte(content(t, location)), &described); err != nil {
		t.Fatal(err)
	}
	for say, path := range realFiles(t) {
		t.Run("the schema accepts a real file: "+say, func(t *testing.T) {
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(content(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(value); err != nil {
				t.Error(err)
			}
			for name := range value.(map[string]any) {
				if _, ok := described.Properties[name]; !ok {
					t.Errorf("the schema does not describe the member %s", name)
				}
			}
		})
	}
	whole := content(t, "testdata", "state.json")
	certified := t.TempDir()
	issued(t, certified, 1)
	for _, edit := range [][2]string{
		{`"schema": 1`, `"schema": 2`},
		{`"generation": 1`, `"generation": 0`},
		{`"generation": 1`, `"generation": "1"`},
		{`"status": "assigned"`, `"status": "failed"`},
		{`contoso-eu.azure-devices.net",` + "\n", `contoso eu",` + "\n"},
		{`"deviceId": "gw-0001",` + "\n", ""},
		{`"deviceId": "gw-0001",`, `"deviceId": "` + strings.Repeat("d", 129) + `",`},
		{`"idScope": "0ne00000000"`, `"idScope": "\u0007"`},
		{`"provisionedAt": "2026-`, `"provisionedAt": "26-`},
		{`"checksum": "sha256:`, `"checksum": "md5:`},
		{`"payload": {"site":"Antwerp","rack":7}`, `"payload": null`},
		{`"certificateFile":"/`, `"certificateFile":"`},
		{`"privateKeyFile":"`, `"keyFile":"`},
		{`"notAfter":"20`, `"notAfter":"`},
		{`"sha256":"a`, `"sha256":"`},
		{`"serial":"`, `"serial":"X`},
	} {
		t.Run(fmt.Sprintf("the schema rejects %q", edit[1]), func(t *testing.T) {
			changed := strings.Replace(whole, edit[0], edit[1], 1)
			if changed == whole {
				whole := content(t, certified, "state.json")
				if changed = strings.Replace(whole, edit[0], edit[1], 1); changed == whole {
					t.Fatal("the edit changed nothing")
				}
			}
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(changed))
			if err != nil {
				t.Fatal(err)
			}
			if schema.Validate(value) == nil {
				t.Error("accepted")
			}
		})
	}
}

// snippet returns the code in docs/state.md that begins with a line.
func snippet(t *testing.T, language, first string) string {
	t.Helper()
	for _, match := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(content(t, "../docs/state.md"), -1) {
		if strings.HasPrefix(match[1], first) {
			return match[1]
		}
	}
	t.Fatalf("docs/state.md has no %s snippet that begins with %q", language, first)
	return ""
}

// TestDocumentedChecks runs the programs of docs/state.md.
func TestDocumentedChecks(t *testing.T) {
	files := realFiles(t)
	whole := content(t, files["odd"])
	damages := map[string]string{"empty": "", "zeros": strings.Repeat("\x00", 500), "another JSON": "{}", "a line": "\n"}
	for i := 0; i < len(whole); i += 41 {
		damages[fmt.Sprintf("cut at byte %d", i)] = whole[:i]
		flipped := []byte(whole)
		flipped[i] ^= 1
		damages[fmt.Sprintf("byte %d flipped", i)] = string(flipped)
	}
	for i := len(whole) - 70; i < len(whole)-2; i += 7 {
		damages[fmt.Sprintf("cut at byte %d", i)] = whole[:i]
	}
	damages["without its end"] = whole[:len(whole)-2]
	damages["with a tail"] = whole + "{}\n"

	// check runs a program with all complete files and every nth of the damaged ones.
	check := func(t *testing.T, nth int, command ...string) {
		t.Helper()
		run := func(path string) (string, error) {
			out, err := exec.Command(command[0], append(command[1:], path)...).CombinedOutput()
			return string(out), err
		}
		for say, path := range files {
			if out, err := run(path); err != nil {
				t.Errorf("a whole file (%s): %v %s", say, err, out)
			}
		}
		path := filepath.Join(t.TempDir(), "state.json")
		for i, say := range slices.Sorted(maps.Keys(damages)) {
			if i%nth != 0 {
				continue
			}
			put(t, damages[say], path)
			var exit *exec.ExitError
			if _, err := run(path); err == nil || !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("a damaged file (%s): %v, want exit status 1", say, err)
			}
		}
		if _, err := run(path + ".missing"); err == nil {
			t.Error("a missing file passes")
		}
	}
	t.Run("shell", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "verify.sh")
		put(t, snippet(t, "sh", "#!/bin/sh\nexec"), path)
		check(t, 1, tool(t, "sh"), path)
	})
	t.Run("Python", func(t *testing.T) {
		python := tool(t, "python3")
		path := filepath.Join(t.TempDir(), "verify.py")
		put(t, snippet(t, "python", "import hashlib"), path)
		check(t, 7, python, "-I", path) // it starts slowly
	})
	t.Run("C", func(t *testing.T) {
		cc := tool(t, "cc")
		directory := t.TempDir()
		put(t, snippet(t, "c", "#include <stdint.h>"), directory, "verify.c")
		program := filepath.Join(directory, "verify")
		out, err := exec.Command(cc, "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", program, filepath.Join(directory, "verify.c")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		check(t, 1, program)
	})
}

func TestDocumentedFiles(t *testing.T) {
	page := content(t, "../docs/state.md")
	t.Run("the example of state.json has the members of a real file, in their order", func(t *testing.T) {
		members := func(text string) string {
			return strings.Join(regexp.MustCompile(`(?m)^  "\w+": `).FindAllString(text, -1), "")
		}
		directory := t.TempDir()
		issued(t, directory, 1)
		example, real := snippet(t, "json", "{"), content(t, directory, "state.json")
		if got, want := members(example), members(real); got != want {
			t.Errorf("documented:\n%s\nreal:\n%s", got, want)
		}
		within := func(text string) string {
			line := regexp.MustCompile(`(?m)^  "certificate": .*$`).FindString(text)
			return strings.Join(regexp.MustCompile(`"\w+":`).FindAllString(line, -1), "")
		}
		if got, want := within(example), within(real); got != want {
			t.Errorf("documented:\n%s\nreal:\n%s", got, want)
		}
	})
	t.Run("the example of state.env matches the record", func(t *testing.T) {
		rec := sample()
		rec.Generation = 3
		rec.Certificate = &store.Certificate{CertificateFile: "/var/lib/dpsd/certificate/1/chain.pem", PrivateKeyFile: "/var/lib/dpsd/certificate/1/key.pem"}
		if got := snippet(t, "sh", "DPSD_"); got != string(store.Environment(rec)) {
			t.Errorf("documented:\n%s", got)
		}
	})
	t.Run("every file of dpsd is in the table", func(t *testing.T) {
		directory := t.TempDir()
		issued(t, directory, 2)
		if err := os.WriteFile(filepath.Join(directory, "state.json"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, store.Options{Directory: directory})
		if err := s.SaveTransport("mqtt"); err != nil {
			t.Fatal(err)
		}
		for _, name := range names(t, directory) {
			name = regexp.MustCompile(`corrupt-.*`).ReplaceAllString(name, "corrupt-TIME")
			if !strings.Contains(page, "| `"+name+"` |") {
				t.Errorf("%s is not in the table", name)
			}
		}
		if err := s.SavePendingKey(pendingKey(3)); err != nil {
			t.Fatal(err)
		}
		for _, pattern := range []string{"*", "2/*"} {
			found, err := filepath.Glob(filepath.Join(directory, "certificate", pattern))
			if err != nil || len(found) < 3 {
				t.Fatal(found, err)
			}
			for _, path := range found {
				name := strings.Replace(strings.TrimPrefix(path, filepath.Join(directory, "certificate")+"/"), "2", "N", 1)
				if !strings.Contains(page, "| `"+name) && name != "1" {
					t.Errorf("certificate/%s is not in the table", name)
				}
			}
		}
	})
}

// follower is a program that prints the identity whenever it changes, like those of
// docs/state.md.
type follower struct {
	name string
	up   chan struct{} // closed after its first line
	done chan struct{} // closed after the last generation, or when the program has ended
	seen int
}

// follow starts the programs of docs/state.md, and a shell that continuously reads
// state.env. They end at the given generation.
func follow(t *testing.T, directory string, last uint64) (all []*follower) {
	t.Helper()
	work := t.TempDir()
	start := func(name string, c *exec.Cmd) {
		c.Stderr = os.Stderr
		// The whole process group is killed, since a killed shell leaves its current
		// command running.
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		kill := func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		f := &follower{name: name, up: make(chan struct{}), done: make(chan struct{})}
		all = append(all, f)
		late := time.AfterFunc(10*time.Minute, kill)
		go func() {
			defer close(f.done)
			defer late.Stop()
			var before uint64
			for lines := bufio.NewScanner(out); before != last && lines.Scan(); {
				var generation uint64
				var device, hub string
				if _, err := fmt.Sscanf(lines.Text(), "generation %d: %s at %s", &generation, &device, &hub); err != nil ||
					generation <= before || device != fmt.Sprintf("gw-%04d", generation) || hub != sample().AssignedHub {
					t.Errorf("%s: %q after generation %d", name, lines.Text(), before)
					break
				}
				if before == 0 {
					close(f.up)
				}
				before = generation
				f.seen++
			}
			kill()
			_ = c.Wait()
			if f.seen == 0 {
				close(f.up)
			}
			if before != last {
				t.Errorf("%s ended at generation %d, want %d", name, before, last)
			}
		}()
	}
	have := func(tools ...string) bool {
		for _, name := range tools {
			if _, err := exec.LookPath(name); err != nil && thorough() {
				t.Error(err)
				return false
			} else if err != nil {
				t.Logf("%s is not installed: the reader that needs it is skipped", name)
				return false
			}
		}
		return true
	}
	start("sh, reading all the time", exec.Command("sh", "-c", `
		last=0
		while :; do
			. "$1/state.env"
			[ "$DPSD_GENERATION" = "$last" ] || echo "generation $DPSD_GENERATION: $DPSD_DEVICE_ID at $DPSD_ASSIGNED_HUB"
			last=$DPSD_GENERATION
		done`, "sh", directory))
	if have("jq") {
		built := filepath.Join(work, "built")
		if err := shipped.Build(built); err != nil {
			t.Fatal(err)
		}
		put(t, "[dps]\nid_scope = \"0ne00000000\"\nregistration_id = \"gw\"\n[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/k\"\n"+
			"[state]\ndirectory = \""+directory+"\"\n[control]\nsocket = \""+work+"/dpsd.sock\"\n", work, "dpsd.toml")
		if err := os.Mkdir(filepath.Join(work, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, "#!/bin/sh\nexec "+built+"/dpsd \"$@\" --config "+work+"/dpsd.toml\n", work, "bin", "dpsd")
		put(t, snippet(t, "sh", "#!/bin/sh\ngeneration"), work, "follow.sh")
		if err := os.Chmod(filepath.Join(work, "bin", "dpsd"), 0o755); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("sh", filepath.Join(work, "follow.sh"))
		c.Env = append(os.Environ(), "PATH="+filepath.Join(work, "bin")+":"+os.Getenv("PATH"))
		start("sh", c)
	}
	if have("python3") {
		put(t, snippet(t, "python", "import ctypes"), work, "follow.py")
		start("Python", exec.Command("python3", "-I", filepath.Join(work, "follow.py"), directory))
	}
	if have("cc") {
		put(t, snippet(t, "c", "#include <stdio.h>\n#include <string.h>\n#include <sys/inotify.h>"), work, "follow.c")
		program := filepath.Join(work, "follow")
		if out, err := exec.Command("cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program, filepath.Join(work, "follow.c")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		start("C", exec.Command(program, directory))
	}
	return all
}

// The values are those that some readers parse incorrectly.
func TestDocumentedFollowersReadEveryValue(t *testing.T) {
	cc := tool(t, "cc")
	work := t.TempDir()
	put(t, snippet(t, "c", "#include <stdio.h>\n#include <string.h>\n#include <sys/inotify.h>"), work, "follow.c")
	program := filepath.Join(work, "follow")
	if out, err := exec.Command(cc, "-o", program, filepath.Join(work, "follow.c")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, value := range awkward {
		rec, _ := environmentOf(value)
		directory := t.TempDir()
		put(t, string(store.Environment(rec)), directory, "state.env")
		c := exec.Command(program, directory)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if want := "generation 12: " + value + " at " + rec.AssignedHub + "\n"; err != nil || line != want {
			t.Errorf("%q is read as %q, %v; want %q", value, line, err, want)
		}
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

func TestDocumentedReadersOfACertificate(t *testing.T) {
	directory := t.TempDir()
	issued(t, directory, 2)
	want := string(chainFor(keyText(2))) + string(keyText(2))
	// here returns a program of docs/state.md for another directory.
	here := func(language, first string) string {
		return strings.ReplaceAll(snippet(t, language, first), "/var/lib/dpsd", directory)
	}
	check := func(t *testing.T, command ...string) {
		t.Helper()
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%v: %s", err, out)
		}
	}
	t.Run("shell", func(t *testing.T) { check(t, tool(t, "sh"), "-ec", here("sh", "cd -P")) })
	t.Run("Python", func(t *testing.T) { check(t, tool(t, "python3"), "-I", "-c", here("python", "import json\n\nwith")) })
	t.Run("C", func(t *testing.T) {
		work := t.TempDir()
		put(t, here("c", "#include <stdio.h>\n#include <stdlib.h>"), work, "read.c")
		program := filepath.Join(work, "read")
		if out, err := exec.Command(tool(t, "cc"), "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program, program+".c").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		check(t, program)
	})
}

func TestDocumentedJq(t *testing.T) {
	jq := tool(t, "jq")
	command := regexp.MustCompile("`jq -r (\\S+) /var/lib/dpsd/state.json`").FindStringSubmatch(content(t, "../docs/state.md"))
	if command == nil {
		t.Fatal("docs/state.md contains no jq command")
	}
	directory := t.TempDir()
	mustSave(t, mustOpen(t, store.Options{Directory: directory}), sample(), store.Written)
	out, err := exec.Command(jq, "-r", command[1], filepath.Join(directory, "state.json")).CombinedOutput()
	if err != nil || string(out) != sample().AssignedHub+"\n" {
		t.Errorf("%v: %s", err, out)
	}
}
