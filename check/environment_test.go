package check_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/dpsd-project/dpsd/check"
)

func TestTheEnvironmentIsThatOfTheService(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dpsd.env")
	text := "# HTTPS_PROXY=http://comment\n; NO_PROXY=x\n\nHTTPS_PROXY = \"http://file:3128\"\nNO_PROXY='a, \\\nb'\nnonsense\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTPS_PROXY", "http://shell:3128") // of this process, not of the unit
	for _, test := range []struct {
		says   string
		answer string
		values map[string]string
		origin string // "" if an error is expected
	}{
		{"a unit without any", "LoadState=loaded\nMainPID=0\nEnvironment=\n", map[string]string{"HTTPS_PROXY": "", "NO_PROXY": ""}, "dpsd.service"},
		{"Environment=, with a space in a value", "LoadState=loaded\nMainPID=0\nEnvironment=A=b \"NO_PROXY=localhost, 10.0.0.0/8\" HTTPS_PROXY=http://unit:3128\n",
			map[string]string{"A": "b", "NO_PROXY": "localhost, 10.0.0.0/8", "HTTPS_PROXY": "http://unit:3128"}, "dpsd.service"},
		{"an escaped quotation mark", "LoadState=loaded\nMainPID=0\nEnvironment=\"A=x \\\"y\" B=z\n", map[string]string{"A": `x "y`, "B": "z"}, "dpsd.service"},
		{"EnvironmentFile=, which overrides Environment=", "LoadState=loaded\nMainPID=0\nEnvironment=HTTPS_PROXY=http://unit:3128\nEnvironmentFiles=/nonexistent/file (ignore_errors=yes)\nEnvironmentFiles=" + file + " (ignore_errors=no)\n",
			map[string]string{"HTTPS_PROXY": "http://file:3128", "NO_PROXY": "a, b"}, "dpsd.service"},
		{"a process that cannot be inspected", "LoadState=loaded\nMainPID=4194305\nEnvironment=HTTPS_PROXY=http://unit:3128\n", map[string]string{"HTTPS_PROXY": "http://unit:3128"}, "dpsd.service"},
		{"no unit", "LoadState=not-found\nMainPID=0\n", nil, ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			e, err := check.ServiceEnvironment(t.Context(), func(context.Context, ...string) ([]byte, error) { return []byte(test.answer), nil })
			if (err != nil) != (test.origin == "") || e.Origin != test.origin {
				t.Fatalf("%+v, %v", e, err)
			}
			for name, value := range test.values {
				if e.Values[name] != value {
					t.Errorf("%s is %q, expected %q", name, e.Values[name], value)
				}
			}
		})
	}
	t.Run("the environment of a running process overrides that of the unit", func(t *testing.T) {
		own, err := os.ReadFile("/proc/self/environ") // as it was at the start
		if err != nil || len(own) == 0 {
			t.Fatalf("%d bytes, %v", len(own), err)
		}
		e, err := check.ServiceEnvironment(t.Context(), func(context.Context, ...string) ([]byte, error) {
			return []byte("LoadState=loaded\nMainPID=" + strconv.Itoa(os.Getpid()) + "\nEnvironment=PATH=/unit HTTPS_PROXY=http://unit:3128\n"), nil
		})
		if err != nil || e.Origin != "the running dpsd" || e.Values["PATH"] == "/unit" || e.Values["HTTPS_PROXY"] == "http://unit:3128" {
			t.Errorf("%s: %v, %q", e.Origin, err, e.Values["HTTPS_PROXY"])
		}
	})
	t.Run("a systemd that does not answer is an error", func(t *testing.T) {
		if _, err := check.ServiceEnvironment(t.Context(), func(context.Context, ...string) ([]byte, error) { return nil, context.DeadlineExceeded }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
