package main

import (
	"bytes"
	"crypto"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

func TestANewKeyIsPrivateAndNeverReplacesAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := newKeyFile(path, time.Now()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the mode is %s, want -rw-------", info.Mode())
	}
	before := read(t, path)
	if err := newKeyFile(path, time.Now()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the error is %v", err)
	}
	if string(read(t, path)) != string(before) {
		t.Error("the key has changed")
	}
}

func TestASignatureIsNeverOlderThanItsKeyAndAlwaysTheSame(t *testing.T) {
	created := time.Unix(1_800_000_000, 0)
	path := filepath.Join(t.TempDir(), "key")
	if err := newKeyFile(path, created); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ at, want time.Time }{{created.AddDate(-1, 0, 0), created}, {created.AddDate(1, 0, 0), created.AddDate(1, 0, 0)}} {
		k, err := readKey(path, c.at)
		if err != nil {
			t.Fatal(err)
		}
		first, err := k.armored([]byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		second, err := k.armored([]byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		if string(first) != string(second) {
			t.Error("a second signature of the same text differs")
		}
		block, err := armor.Decode(strings.NewReader(string(first)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := packet.Read(block.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.(*packet.Signature).CreationTime; !got.Equal(c.want) {
			t.Errorf("the signature is of %s, want %s", got, c.want)
		}
	}
}

func TestAnUnsuitableKeyIsRefusedWithTheReason(t *testing.T) {
	entity := func(config *packet.Config) *openpgp.Entity {
		t.Helper()
		config.DefaultHash = crypto.SHA512
		e, err := openpgp.NewEntity("a", "", "a@example.com", config)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	file := func(kind string, entities ...*openpgp.Entity) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "key")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := armor.Encode(f, kind, nil)
		for _, e := range entities {
			if kind == openpgp.PublicKeyType {
				err = errors.Join(err, e.Serialize(w))
			} else {
				err = errors.Join(err, e.SerializePrivateWithoutSigning(w, nil))
			}
		}
		if err := errors.Join(err, w.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	small := entity(&packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048})
	locked := entity(&packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 3072})
	large := entity(&packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 3072})
	if err := locked.PrivateKey.Encrypt([]byte("passphrase")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, want string }{
		{file(openpgp.PublicKeyType, large), "this is a public key; signing needs the secret key"},
		{file(openpgp.PrivateKeyType, small), "the key must be an RSA key of at least 3072 bits"},
		{file(openpgp.PrivateKeyType, entity(&packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})), "the key must be an RSA key of at least 3072 bits"},
		{file(openpgp.PrivateKeyType, locked), "the key has a passphrase"},
		{file(openpgp.PrivateKeyType, small, small), "it contains 2 keys, want one"},
	} {
		if _, err := readKey(c.path, time.Now()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("the error is %v, want %q", err, c.want)
		}
	}
	// The next key will have to sign releases, and so must be as suitable.
	if err := new(key).announce(file(openpgp.PublicKeyType, small)); err == nil || !strings.Contains(err.Error(), "at least 3072 bits") {
		t.Errorf("the error about the next key is %v", err)
	}
	if err := new(key).announce(file(openpgp.PublicKeyType, large)); err != nil {
		t.Error(err)
	}
}

func TestAKeyFromGPGWithASubkeyForSigningSignsWithThePrimaryKey(t *testing.T) {
	need(t, "gpg", "gpgconf")
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, "key")
	tool(t, "sh", "-ec", `export GNUPGHOME="$1"
gpg --batch --quiet --passphrase '' --quick-generate-key a@example.com rsa3072 sign never 2>/dev/null
gpg --batch --quiet --passphrase '' --quick-add-key "$(gpg --list-keys --with-colons | sed -n 's/^fpr:*//; T; s/:$//p; q')" ed25519 sign never
gpg --batch --armor --export-secret-keys >"$1/key"
gpgconf --kill gpg-agent`, "sh", home)
	k, err := readKey(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(k.entity.Subkeys) != 1 {
		t.Fatalf("the key has %d subkeys", len(k.entity.Subkeys))
	}
	signature, err := k.detached(strings.NewReader("text"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := packet.Read(bytes.NewReader(signature))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.(*packet.Signature); *got.IssuerKeyId != k.entity.PrimaryKey.KeyId {
		t.Errorf("the key %X has signed, want %X", *got.IssuerKeyId, k.entity.PrimaryKey.KeyId)
	}
}

func TestTheVersionOfApkHasTheOrderOfItsReleases(t *testing.T) {
	for version, want := range map[string]string{
		"1.2.3":                               "1.2.3",
		"1.2.3~rc.1":                          "1.2.3_rc1",
		"1.2.3~snapshot.345.g0123abcde":       "1.2.3_pre345",
		"1.2.3+12.g0123abcde":                 "1.2.3_p12",
		"1.2.3~rc.1+12.g0123abcde":            "1.2.3_rc1_p12",
		"1.2.3+0.g0123abcde.dirty":            "1.2.3_p0",
		"1.2.3~snapshot.345.g0123abcde.dirty": "1.2.3_pre345",
	} {
		if got, err := alpine(version); err != nil || got != want {
			t.Errorf("%s is %s, want %s; %v", version, got, want, err)
		}
	}
	for _, version := range []string{"1.2", "1.2.3~prev", "1.2.3-1", "v1.2.3"} {
		if got, err := alpine(version); err == nil {
			t.Errorf("%s is %s", version, got)
		}
	}
}

func TestTheNotesAreTheTopEntryOfTheChangelog(t *testing.T) {
	const two = "# Changelog\n\n## [Unreleased]\n\n- Later.\n\n## [1.1.0] - 2026-02-01\n\n### Added\n\n- New.\n\n## [1.0.0] - 2026-01-01\n\n- Old.\n"
	if got, err := entry(two); err != nil || got != "### Added\n\n- New." {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := entry("## [1.0.0] - 2026-01-01\n\n- Only.\n"); err != nil || got != "- Only." {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := entry("# Changelog\n"); err == nil {
		t.Error("there is an entry in an empty changelog")
	}
}
