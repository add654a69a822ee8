package setup_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// tpmKeys returns a TPMKeys for a new directory, with a software TPM.
func tpmKeys(t *testing.T) (*setup.TPMKeys, *tpmtest.Software) {
	t.Helper()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	return &setup.TPMKeys{Device: &tpm.Device{Path: s.Socket}, Place: &setup.Place{File: filepath.Join(dir, "dpsd.toml"), Keys: filepath.Join(dir, "keys"), KeyGroup: -1}}, s
}

// pathOf returns the path of a key with a name.
func pathOf(t *testing.T, k *setup.TPMKeys, name string) string {
	t.Helper()
	path, err := k.Place.TPMKeyPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// left returns the names of the files in the directory of the keys.
func left(t *testing.T, k *setup.TPMKeys) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(k.Place.Keys)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// maker is one of the three ways to make a key, and a different key of the same kind.
type maker struct {
	name        string
	make, other func(ctx context.Context, k *setup.TPMKeys, path string) (*setup.TPMKey, error)
}

func makers(t *testing.T) []maker {
	t.Helper()
	var ec [2]*ecdsa.PrivateKey
	for n := range ec {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ec[n] = key
	}
	create := func(a tpm.Algorithm) func(context.Context, *setup.TPMKeys, string) (*setup.TPMKey, error) {
		return func(ctx context.Context, k *setup.TPMKeys, path string) (*setup.TPMKey, error) {
			return k.Create(ctx, path, a)
		}
	}
	importing := func(key crypto.Signer) func(context.Context, *setup.TPMKeys, string) (*setup.TPMKey, error) {
		return func(ctx context.Context, k *setup.TPMKeys, path string) (*setup.TPMKey, error) {
			return k.Import(ctx, path, key)
		}
	}
	sealing := func(key []byte) func(context.Context, *setup.TPMKeys, string) (*setup.TPMKey, error) {
		return func(ctx context.Context, k *setup.TPMKeys, path string) (*setup.TPMKey, error) {
			return k.Seal(ctx, path, key)
		}
	}
	return []maker{
		{"create", create(tpm.P256), create(tpm.P384)},
		{"import", importing(ec[0]), importing(ec[1])},
		{"seal", sealing(bytes.Repeat([]byte{1}, 32)), sealing(bytes.Repeat([]byte{2}, 32))},
	}
}

func TestARepeatedCommandReturnsTheSameKeyAndRefusesADifferentOne(t *testing.T) {
	k, _ := tpmKeys(t)
	for _, m := range makers(t) {
		t.Run(m.name, func(t *testing.T) {
			path := pathOf(t, k, m.name)
			first, err := m.make(t.Context(), k, path)
			if err != nil || first.Existed || first.Copy != "" {
				t.Fatalf("%+v, %v", first, err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, k.Replace = range []bool{false, true} {
				again, err := m.make(t.Context(), k, path)
				if err != nil || !again.Existed {
					t.Errorf("the repetition returns %+v, %v", again, err)
				}
				_, err = m.other(t.Context(), k, path)
				occupied, is := errors.AsType[*setup.OccupiedError](err)
				if !is || occupied.Replaceable || occupied.Path != path {
					t.Errorf("a different key: %v", err)
				}
				if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
					t.Errorf("the file has changed: %v", err)
				}
			}
		})
	}
}

func TestOnlyAFileThatTheTPMCannotUseIsReplacedAndOnlyOnRequest(t *testing.T) {
	k, s := tpmKeys(t)
	all := makers(t)
	before := map[string][]byte{}
	for _, m := range all {
		if _, err := m.make(t.Context(), k, pathOf(t, k, m.name)); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(pathOf(t, k, m.name))
		if err != nil {
			t.Fatal(err)
		}
		before[m.name] = text
	}
	s.Clear()
	for _, m := range all {
		path := pathOf(t, k, m.name)
		k.Replace = false
		_, err := m.make(t.Context(), k, path)
		if occupied, is := errors.AsType[*setup.OccupiedError](err); !is || !occupied.Replaceable {
			t.Errorf("%s: %v", m.name, err)
		}
		if text, err := os.ReadFile(path); err != nil || !bytes.Equal(text, before[m.name]) {
			t.Errorf("%s: the file has changed: %v", m.name, err)
		}
		k.Replace = true
		key, err := m.make(t.Context(), k, path)
		if err != nil || key.Existed || key.Copy != path+".orig" {
			t.Errorf("%s: %+v, %v", m.name, key, err)
		}
		if text, err := os.ReadFile(path + ".orig"); err != nil || !bytes.Equal(text, before[m.name]) {
			t.Errorf("%s: the copy differs: %v", m.name, err)
		}
	}
}

func TestAFileThatAnotherProcessWritesAfterTheTestIsNeverReplaced(t *testing.T) {
	k, s := tpmKeys(t)
	path := pathOf(t, k, "key")
	if _, err := k.Create(t.Context(), path, tpm.P256); err != nil {
		t.Fatal(err)
	}
	s.Clear()
	var other []byte
	k.Replace, k.Progress = true, func(what string) {
		if what != "Testing the key" {
			return
		}
		text, err := k.Device.Create(t.Context(), tpm.P256, tpm.Owner)
		if other = text; errors.Join(err, os.WriteFile(path, text, 0o600)) != nil {
			t.Error(err)
		}
	}
	if _, err := k.Create(t.Context(), path, tpm.P256); !errors.As(err, new(*setup.ExistsError)) {
		t.Errorf("the error is %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || other == nil || !bytes.Equal(text, other) {
		t.Errorf("the file of the other process has changed: %v", err)
	}
	if names := left(t, k); len(names) != 1 {
		t.Errorf("the files are %q", names)
	}
}

func TestAFileThatIsNotATPMKeyIsNeverReplaced(t *testing.T) {
	k, _ := tpmKeys(t)
	k.Replace = true
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte("another file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range makers(t) {
		_, err := m.make(t.Context(), k, path)
		if occupied, is := errors.AsType[*setup.OccupiedError](err); !is || occupied.Replaceable {
			t.Errorf("%s: %v", m.name, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "another file\n" {
			t.Errorf("%s: the file is %q, %v", m.name, text, err)
		}
	}
}

func TestALinkToAFileThatDoesNotExistIsReportedAndNeverReplaced(t *testing.T) {
	k, _ := tpmKeys(t)
	path := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("absent", path); err != nil {
		t.Fatal(err)
	}
	for _, replace := range []bool{false, true} {
		k.Replace = replace
		_, err := k.Create(t.Context(), path, "")
		if occupied, is := errors.AsType[*setup.OccupiedError](err); !is || occupied.Replaceable || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("replace %v: %v", replace, err)
		}
		if target, err := os.Readlink(path); err != nil || target != "absent" {
			t.Errorf("replace %v: %s, %v", replace, target, err)
		}
	}
}

// cut is a connection to a TPM that fails at a given command and at all later ones.
type cut struct {
	io.ReadWriteCloser
	count *int
	after int
}

var errCut = errors.New("the TPM was removed")

func (c *cut) Write(command []byte) (int, error) {
	if *c.count++; *c.count > c.after {
		return 0, errCut
	}
	return c.ReadWriteCloser.Write(command)
}

func TestAFailureOfAnyCommandToTheTPMWritesNothing(t *testing.T) {
	k, s := tpmKeys(t)
	for _, m := range makers(t) {
		t.Run(m.name, func(t *testing.T) {
			for after := 0; ; after++ {
				count := 0
				k.Device = &tpm.Device{Path: s.Socket, Open: func(path string) (io.ReadWriteCloser, error) {
					c, err := net.Dial("unix", path)
					return &cut{c, &count, after}, err
				}}
				_, err := m.make(t.Context(), k, pathOf(t, k, m.name))
				names := left(t, k)
				if err == nil { // the last command only removes the key from the memory of the TPM
					if after < 5 || after < count-1 || !slices.Contains(names, m.name) {
						t.Errorf("the key was made with %d of %d commands, and the files are %q", after, count, names)
					}
					return
				}
				if slices.Contains(names, m.name) {
					t.Fatalf("after %d commands there are the files %q, and the error is %v", after, names, err)
				}
				s.Restart() // what was loaded is no longer there
			}
		})
	}
}

func TestIfTwoCommandsRunAtTheSameTimeOnlyOneWritesAKey(t *testing.T) {
	place := &setup.Place{Keys: t.TempDir(), KeyGroup: -1}
	path := filepath.Join(place.Keys, "key")
	var group, both sync.WaitGroup
	keys, errs := make([]*setup.TPMKey, 2), make([]error, 2)
	both.Add(len(keys))
	for n := range keys {
		chip := &tpmtest.TPM{Before: func(command tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if command == tpm2.TPMCCCreate { // both have found no file
				both.Done()
				both.Wait()
			}
			return 0, nil
		}}
		k := setup.TPMKeys{Device: &tpm.Device{Open: chip.Open}, Place: place}
		group.Go(func() { keys[n], errs[n] = k.Create(t.Context(), path, tpm.P256) })
	}
	group.Wait()
	winner, loser := keys[0], errs[1]
	if errs[0] != nil {
		winner, loser = keys[1], errs[0]
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := tpm.Parse(text); err != nil || winner == nil || winner.Existed || !winner.File.Public().(*ecdsa.PublicKey).Equal(f.Public()) {
		t.Errorf("the file contains another key than that of the first command: %v", err)
	}
	if !errors.As(loser, new(*setup.ExistsError)) {
		t.Errorf("the second command: %v", loser)
	}
	if entries, err := os.ReadDir(place.Keys); err != nil || len(entries) != 1 {
		t.Errorf("the files are %v, %v", entries, err)
	}
}

func TestOnlyTheOwnerAndTheGroupOfTheKeysCanReadTheFile(t *testing.T) {
	k, _ := tpmKeys(t)
	for group, want := range map[int]fs.FileMode{-1: 0o600, os.Getegid(): 0o640} {
		k.Place.KeyGroup = group
		path := pathOf(t, k, want.String())
		if _, err := k.Create(t.Context(), path, tpm.P256); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("the mode is %v, %v, want %v", info.Mode(), err, want)
		}
	}
}

func TestTheTPMStoresNothingUnlessAPersistentParentIsRequested(t *testing.T) {
	k, _ := tpmKeys(t)
	if _, err := k.Create(t.Context(), pathOf(t, k, "a"), ""); err != nil {
		t.Fatal(err)
	}
	if objects, err := k.Device.List(t.Context()); err != nil || len(objects) != 0 {
		t.Errorf("the TPM stores %+v, %v", objects, err)
	}
	k.Persistent = true
	for _, name := range []string{"b", "c"} {
		key, err := k.Create(t.Context(), pathOf(t, k, name), "")
		if err != nil {
			t.Fatal(err)
		}
		objects, err := k.Device.List(t.Context())
		if err != nil || len(objects) != 1 || objects[0].Handle != key.File.Parent {
			t.Errorf("the TPM stores %+v, %v, and the parent is %x", objects, err, key.File.Parent)
		}
	}
}

// endorsementKey makes an endorsement key persistent, as manufacturers do. It is a storage key
// with a policy.
func endorsementKey(t *testing.T, s *tpmtest.Software) {
	t.Helper()
	c, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer := transport.FromReadWriter(c)
	key, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate)}.Execute(peer)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}, PersistentHandle: 0x81010001}.Execute(peer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: key.ObjectHandle}).Execute(peer); err != nil {
		t.Fatal(err)
	}
}

func TestIfTheOwnerHasAPasswordOnlyAnExistingPersistentParentIsUsed(t *testing.T) {
	k, s := tpmKeys(t)
	owner := func(old, password string) {
		t.Helper()
		c, err := net.Dial("unix", s.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(old))}, NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)},
		}.Execute(transport.FromReadWriter(c))
		if err != nil {
			t.Fatal(err)
		}
	}
	endorsementKey(t, s)
	owner("", "secret")
	path := pathOf(t, k, "key")
	if _, err := k.Create(t.Context(), path, ""); !errors.Is(err, tpm.ErrOwnerPassword) {
		t.Errorf("without a persistent parent: %v", err)
	}
	k.Persistent = true
	_, err := k.Create(t.Context(), path, "")
	if e, is := errors.AsType[*tpm.Error](err); !is || e.Kind != tpm.Protected || !errors.Is(err, tpm.ErrOwnerPassword) {
		t.Errorf("the parent cannot be made persistent, but the error is %v", err)
	}
	if names := left(t, k); names != nil {
		t.Errorf("the files are %q", names)
	}
	owner("secret", "")
	if _, err := k.Device.Persist(t.Context()); err != nil {
		t.Fatal(err)
	}
	owner("", "secret")
	for _, k.Persistent = range []bool{false, true} {
		key, err := k.Create(t.Context(), path, "")
		if err != nil || !key.File.Parent.Persistent() {
			t.Errorf("with a persistent parent: %+v, %v", key, err)
		}
	}
}

func TestTheCertificateRequestIsForTheKeyAndTheRegistrationID(t *testing.T) {
	k, _ := tpmKeys(t)
	for _, a := range []tpm.Algorithm{tpm.P256, tpm.P384, tpm.RSA2048} {
		key, err := k.Create(t.Context(), pathOf(t, k, string(a)), a)
		if err != nil {
			t.Fatal(err)
		}
		text, err := k.Request(t.Context(), key.File, "gw-1")
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(text)
		if block == nil || len(rest) > 0 {
			t.Fatalf("the request is\n%s", text)
		}
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if public := r.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); r.CheckSignature() != nil || r.Subject.String() != "CN=gw-1" || !public.Equal(key.File.Public()) {
			t.Errorf("%s: the request is for %s", a, r.Subject)
		}
	}
}

func TestAnImportedRSAKeyAndAKeyOfEachLengthThatDPSAllowsWork(t *testing.T) {
	k, _ := tpmKeys(t)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	key, err := k.Import(t.Context(), pathOf(t, k, "rsa"), private)
	if err != nil || !key.Tested.TLS12 || !private.PublicKey.Equal(key.File.Public()) {
		t.Errorf("RSA: %+v, %v", key, err)
	}
	for _, n := range []int{16, 32, 64} {
		key, err := k.Seal(t.Context(), pathOf(t, k, "hmac"+string(rune('0'+n/16))), make([]byte, n))
		if err != nil || key.File.Algorithm != tpm.HMAC {
			t.Errorf("%d bytes: %+v, %v", n, key, err)
		}
	}
}

func TestTheLinesOfTheConfigurationNameTheFileOfTheKey(t *testing.T) {
	k, _ := tpmKeys(t)
	private, err := k.Create(t.Context(), pathOf(t, k, "a"), tpm.P256)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Seal(t.Context(), pathOf(t, k, "b"), make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	text := "[dps]\nid_scope = \"0ne1\"\nregistration_id = \"gw-1\"\n" + sealed.Use("") + private.Use("/etc/dpsd/keys/device.pem")
	p, err := setup.ParsePrevious("dpsd.toml", []byte(text))
	if err != nil || p == nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, line := range []string{`key = "file:` + sealed.Path + `"`, `private_key = "file:` + private.Path + `"`, `certificate = "file:/etc/dpsd/keys/device.pem"`} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("the line %s is missing in\n%s", line, text)
		}
	}
}

func TestANameWithoutASlashIsInTheDirectoryOfTheKeys(t *testing.T) {
	p := &setup.Place{Keys: "/etc/dpsd/keys"}
	for name, want := range map[string]string{"a.tss2": "/etc/dpsd/keys/a.tss2", "/srv/a.tss2": "/srv/a.tss2"} {
		if got, err := p.TPMKeyPath(name); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if got, err := p.TPMKeyPath("./a.tss2"); err != nil || !filepath.IsAbs(got) || strings.HasPrefix(got, p.Keys) {
		t.Errorf("./a.tss2: %s, %v", got, err)
	}
	for _, name := range []string{"", "-", "keys/"} {
		if got, err := p.TPMKeyPath(name); err == nil {
			t.Errorf("%q: %s", name, got)
		}
	}
	const key = "ABEiM0RVZneImaq7zN3u/wARIjNEVWZ3iJmqu8zd7v8="
	if _, err := p.TPMKeyPath(key); err == nil || strings.Contains(err.Error(), "ABEi") {
		t.Errorf("a key as the name: %v", err)
	}
}

func TestTheDefaultTypeIsTheFirstOneThatTheTPMSupports(t *testing.T) {
	for _, c := range []struct {
		chip   *tpmtest.TPM
		want   tpm.Algorithm // of the command, or "" for the default
		makes  tpm.Algorithm // "" for an error
		refuse string
	}{
		{&tpmtest.TPM{}, "", tpm.P256, ""},
		{&tpmtest.TPM{}, tpm.P384, tpm.P384, ""},
		{&tpmtest.TPM{Curves: []tpm2.TPMECCCurve{tpm2.TPMECCNistP256}}, "", tpm.P256, ""},
		{&tpmtest.TPM{Curves: []tpm2.TPMECCCurve{tpm2.TPMECCNistP256}}, tpm.P384, "", "the TPM does not support ec-p384; it supports ec-p256, rsa-2048"},
		{&tpmtest.TPM{Curves: []tpm2.TPMECCCurve{tpm2.TPMECCNistP256}, LongSalt: true}, tpm.RSA2048, tpm.RSA2048, ""},
	} {
		dir := t.TempDir()
		k := &setup.TPMKeys{Device: &tpm.Device{Open: c.chip.Open}, Place: &setup.Place{Keys: dir, KeyGroup: -1}}
		key, err := k.Create(t.Context(), pathOf(t, k, "key"), c.want)
		switch {
		case c.makes == "":
			e, is := errors.AsType[*tpm.Error](err)
			if !is || e.Kind != tpm.Unsupported || !strings.Contains(err.Error(), c.refuse) || left(t, k) != nil {
				t.Errorf("%s: %v, want %q", c.want, err, c.refuse)
			}
		case err != nil || key.File.Algorithm != c.makes:
			t.Errorf("%q: %+v, %v", c.want, key, err)
		case key.Tested.TLS13 == c.chip.LongSalt || !key.Tested.TLS12:
			t.Errorf("%q: TLS 1.2 %t, TLS 1.3 %t", c.want, key.Tested.TLS12, key.Tested.TLS13)
		}
	}
}
