package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

func TestATPMWithALongSaltWorksWithTLS12AndTheReportSaysWhy(t *testing.T) {
	dir := t.TempDir()
	d := &tpm.Device{Open: (&tpmtest.TPM{LongSalt: true}).Open}
	text, err := d.Create(t.Context(), tpm.RSA2048, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	k := &tpmFile{File: filepath.Join(dir, "key")}
	if err := os.WriteFile(k.File, text, 0o600); err != nil {
		t.Fatal(err)
	}
	k.read()
	k.test(t.Context(), d)
	var b strings.Builder
	k.print(&b, &terminal{Writer: &b})
	for _, line := range []string{k.File + ": works", "TLS           1.2", "schemes       PKCS1WithSHA256, PKCS1WithSHA384",
		"PSS salt      222 bytes, but TLS requires 32, so dpsd uses this key only with TLS 1.2 and PKCS #1"} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("the line %q is missing in\n%s", line, b.String())
		}
	}
}

func TestAKeyFromAnotherTPMFailsAndWithoutATPMTheStateIsUnknown(t *testing.T) {
	chip := &tpmtest.TPM{}
	d := &tpm.Device{Open: chip.Open}
	text, err := d.Create(t.Context(), tpm.P256, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		k := &tpmFile{File: "key", text: bytes.Clone(text)}
		k.test(t.Context(), d)
		return k.State
	}
	if s := state(); s != tpmKeyWorks {
		t.Errorf("the key %s", s)
	}
	chip.Absent = true
	if s := state(); s != tpmKeyUnknown {
		t.Errorf("without a TPM the key %s", s)
	}
	chip.Absent = false
	chip.Reset()
	if s := state(); s != tpmKeyFails {
		t.Errorf("after a reset the key %s", s)
	}
}

func TestTheAdviceDependsOnTheKindOfTheError(t *testing.T) {
	tool := &tpmTool{file: "/etc/dpsd/dpsd.toml", name: "tpm create-key spare.tss2", option: " --device /dev/tpmrm1"}
	of := func(kind tpm.Kind, err error) error { return &tpm.Error{Kind: kind, Op: "load the key", Err: err} }
	cause := errors.New("cause")
	for _, c := range []struct {
		err            error
		sentence, next string // parts of them
	}{
		{of(tpm.Unavailable, fs.ErrNotExist), "Enable the TPM in the firmware settings", ""},
		{of(tpm.Unavailable, fs.ErrPermission), "Only root and the members of the device's group", ""},
		{of(tpm.Unavailable, cause), "may become available later", "dpsd tpm status --device /dev/tpmrm1"},
		{of(tpm.Busy, cause), "Another program is using the TPM", ""},
		{of(tpm.Slow, cause), "restart the machine", ""},
		{of(tpm.LockedOut, cause), "Do not clear it", "dpsd tpm status"},
		{of(tpm.Unusable, cause), "enroll the gateway again", ""},
		{of(tpm.Unsupported, cause), "", "dpsd tpm status"},
		{of(tpm.Protected, cause), "only keys without a password", ""},
		{of(tpm.Policy, cause), "only keys without a policy", ""},
		{of(tpm.Damaged, cause), "Restore the file from a backup", ""},
		{tpm.ErrOwnerPassword, "Create a persistent parent key", "dpsd tpm list"},
		{&setup.ExistsError{Path: "/key"}, "Another process has just written it", "dpsd tpm create-key spare.tss2 --device /dev/tpmrm1"},
		{&setup.OccupiedError{Path: "/key", What: "it is not a TPM key"}, "Choose another NAME", "dpsd tpm list"},
		{&setup.OccupiedError{Path: "/key", Replaceable: true, Err: of(tpm.Unusable, cause)}, "enroll the gateway again", "dpsd tpm create-key spare.tss2 --replace --device /dev/tpmrm1"},
		{&setup.OccupiedError{Path: "/key", Err: of(tpm.LockedOut, cause)}, "Do not clear it", "dpsd tpm status"},
		{cause, "", ""},
	} {
		sentence, next := tool.advice(c.err)
		if !strings.Contains(sentence, c.sentence) || !strings.Contains(next, c.next) || (sentence == "") != (c.sentence == "") || (next == "") != (c.next == "") {
			t.Errorf("%v: %q, %q; want %q, %q", c.err, sentence, next, c.sentence, c.next)
		}
	}
}

func TestIfTheConfigurationIsInvalidTheAdviceSaysThatItsDeviceWasIgnored(t *testing.T) {
	absent := &tpm.Error{Kind: tpm.Unavailable, Op: "load the key", Err: fs.ErrNotExist}
	for ignored, want := range map[bool]string{true: "line 3: unknown key", false: "Enable the TPM"} {
		tool := &tpmTool{file: "/etc/dpsd/dpsd.toml", name: "tpm status", note: errors.New("line 3: unknown key"), ignored: ignored}
		if sentence, _ := tool.advice(absent); !strings.Contains(sentence, want) {
			t.Errorf("ignored %v: %q", ignored, sentence)
		}
	}
}

func TestTheLineAboutTheLockoutSaysHowLongItLasts(t *testing.T) {
	for _, c := range []struct {
		status tpmStatus
		want   string
	}{
		{tpmStatus{LockoutLimit: 32, RecoverySeconds: 7200}, "not locked; 0 of 32 wrong passwords"},
		{tpmStatus{WrongPasswords: 3, LockoutLimit: 32, RecoverySeconds: 7200}, "not locked; 3 of 32 wrong passwords; the count decreases by one every 2h0m"},
		{tpmStatus{LockedOut: true, WrongPasswords: 32, LockoutLimit: 32, RecoverySeconds: 7200}, "locked after 32 wrong passwords; keys without a password still work; the count decreases by one every 2h0m"},
	} {
		if got := c.status.lockout(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestTheReportSaysWhetherTheParentOfAKeyIsPersistent(t *testing.T) {
	for parent, want := range map[string][2]string{
		tpm.Owner.String(): {"derived from the seed of the owner for each use", "derived parent"},
		"0x4000000b":       {"derived from the hierarchy 0x4000000b for each use", "derived parent"},
		"0x81000001":       {"the persistent key 0x81000001", "persistent parent 0x81000001"},
	} {
		k := &tpmFile{Parent: parent}
		if got := [2]string{k.describeParent(), parentOf(k)}; got != want {
			t.Errorf("%s: %q, want %q", parent, got, want)
		}
	}
}
