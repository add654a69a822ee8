package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAFailedRegistrationByAnSDKIsReportedWithTheReason(t *testing.T) {
	for _, c := range []struct {
		said   string
		status int
		want   string
	}{
		{"", 1, "exit status 1"},
		{"", 0, "it printed nothing"},
		{"Traceback", 0, "invalid character 'T'"},
		{`{"status":"failed","error":"DeviceNotFoundError","message":"unknown"}`, 0, `status "failed", error "DeviceNotFoundError": unknown`},
	} {
		if err := registered([]byte(c.said), c.status); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %d: %v, want %s", c.said, c.status, err, c.want)
		}
	}
	if err := registered([]byte(`{"status":"assigned"}`), 0); err != nil {
		t.Error(err)
	}
}

func TestAProgramThatWritesNoRecordIsReportedWithTheReason(t *testing.T) {
	if err := adoptOrphans(); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &service{directory: t.TempDir()}
	_, err := s.once(program)
	if err == nil || !strings.Contains(err.Error(), "wrote no assignment: ") || strings.Contains(err.Error(), "%!") {
		t.Error(err)
	}
}
