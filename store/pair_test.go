package store_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/watch"
)

// keyText returns the nth of a series of keys. The store does not parse keys.
func keyText(n int) []byte {
	return fmt.Appendf(nil, "-----BEGIN PRIVATE KEY-----\nkey %d\n-----END PRIVATE KEY-----\n", n)
}

// chainFor returns the only chain that belongs to a key.
func chainFor(key []byte) []byte {
	return fmt.Appendf(nil, "-----BEGIN CERTIFICATE-----\n%x\n-----END CERTIFICATE-----\n", sha256.Sum256(key))
}

// keyNumber returns the number of a key of keyText, or 0.
func keyNumber(key []byte) (n int) {
	_, _ = fmt.Sscanf(string(key), "-----BEGIN PRIVATE KEY-----\nkey %d\n", &n)
	return n
}

// days returns a time relative to noon.
func days(n int) time.Time { return noon.AddDate(0, 0, n) }

func pendingKey(n int) store.PendingKey {
	return store.PendingKey{RegistrationID: "gw-0001", KeyType: "ec-p384", PEM: keyText(n)}
}

func pairUntil(end time.Time) store.Pair {
	return store.Pair{
		RegistrationID: "gw-0001", DeviceID: "gw-0001", AssignedHub: "contoso-eu.azure-devices.net", KeyType: "ec-p384",
		NotBefore: days(-200), NotAfter: end, ExpiresFirst: 1, Serial: "5f3a", SHA256: strings.Repeat("ab", 32), Issuer: "CN=Issuing CA",
	}
}

// issue requests and saves the certificate of key n, with the record.
func issue(t *testing.T, s *store.Store, n int, end time.Time) store.Record {
	t.Helper()
	if err := s.SavePendingKey(pendingKey(n)); err != nil {
		t.Fatal(err)
	}
	if err := s.SavePair(pairUntil(end), chainFor(keyText(n)), noon); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(numbered(1), noon); err != nil {
		t.Fatal(err)
	}
	rec, _ := s.Current()
	return rec
}

// issued creates a state directory with a record and the pairs 1 to n. Each expires 30 days
// after the previous one; the first, 30 days after noon.
func issued(t *testing.T, directory string, n int) {
	t.Helper()
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	for i := range n {
		issue(t, s, i+1, days(30*(i+1)))
	}
	s.Close()
}

// wholePair returns the number of the key in a directory, and fails unless the key and the
// chain are there and belong together. 0 means that there is no such directory.
func wholePair(t *testing.T, say, directory string) int {
	t.Helper()
	if _, err := os.Stat(directory); errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	key, err := os.ReadFile(filepath.Join(directory, "key.pem"))
	if err != nil {
		t.Errorf("%s: %v", say, err)
		return 0
	}
	if chain, err := os.ReadFile(filepath.Join(directory, "chain.pem")); err != nil || string(chain) != string(chainFor(key)) {
		t.Errorf("%s: the key in %s has the chain %q, %v", say, directory, chain, err)
	}
	return keyNumber(key)
}

// published returns the number of the key that a reader finds through certificate/current,
// and fails unless the record and state.env name complete pairs. inRecord is the number of the
// key of state.json.
func published(t *testing.T, say, directory string) (current, inRecord int) {
	t.Helper()
	current = wholePair(t, say+": current", filepath.Join(directory, "certificate", "current"))
	if rec, err := store.Read(directory); err == nil && rec.Certificate != nil {
		chain, key, err := rec.Certificate.Read()
		if err != nil || string(chain) != string(chainFor(key)) {
			t.Errorf("%s: state.json names %s: %v, chain %q", say, rec.Certificate.CertificateFile, err, chain)
		}
		inRecord = keyNumber(key)
	}
	env, err := os.ReadFile(filepath.Join(directory, "state.env"))
	if err != nil {
		return current, inRecord
	}
	values, err := environmentFile(string(env))
	if err != nil {
		t.Errorf("%s: state.env: %v", say, err)
	}
	for _, name := range []string{"DPSD_CERTIFICATE_FILE", "DPSD_PRIVATE_KEY_FILE"} {
		if path, found := values[name]; found {
			if _, err := os.Stat(path); err != nil || current == 0 {
				t.Errorf("%s: state.env: %s=%s: %v", say, name, path, err)
			}
		}
	}
	return current, inRecord
}

// consistent fails unless the store, the record and state.env agree, and returns the number of
// the published key, 0 for none.
func consistent(t *testing.T, say string, s *store.Store, directory string) int {
	t.Helper()
	pair, found, err := s.Pair()
	if err != nil {
		t.Errorf("%s: %v", say, err)
	}
	rec := mustRead(t, directory)
	if got := content(t, directory, "state.env"); got != string(store.Environment(rec)) {
		t.Errorf("%s: state.env is %q", say, got)
	}
	if !found {
		if rec.Certificate != nil {
			t.Errorf("%s: there is no pair, and the record names %+v", say, rec.Certificate)
		}
		return 0
	}
	current, inRecord := published(t, say, directory)
	want := filepath.Join(directory, "certificate", strconv.Itoa(pair.Number))
	if rec.Certificate == nil || filepath.Dir(rec.Certificate.CertificateFile) != want || current != inRecord || current == 0 {
		t.Errorf("%s: the pair is %s (key %d), and the record names %+v (key %d)", say, want, current, rec.Certificate, inRecord)
	}
	return current
}

func TestAnIssuedCertificateIsPublished(t *testing.T) {
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory})
	before := mustSave(t, s, numbered(1), store.Written)
	if _, found, err := s.Pair(); found || err != nil {
		t.Fatalf("a pair at first: %v, %v", found, err)
	}
	if _, found, err := s.PendingKey(); found || err != nil {
		t.Fatalf("a pending key at first: %v, %v", found, err)
	}
	if err := s.SavePendingKey(pendingKey(1)); err != nil {
		t.Fatal(err)
	}
	t.Run("the pending key has mode 0600 and can be read again after a restart", func(t *testing.T) {
		for name, want := range map[string]fs.FileMode{"": 0o700, "key.pem": 0o600, "certificate.json": 0o600} {
			if info, err := os.Stat(filepath.Join(directory, "certificate", "pending", name)); err != nil || info.Mode().Perm() != want {
				t.Errorf("pending/%s: %v, %v; want %v", name, info.Mode(), err, want)
			}
		}
		s.Close()
		s = mustOpen(t, store.Options{Directory: directory})
		if key, found, err := s.PendingKey(); !found || err != nil || !cmp.Equal(key, pendingKey(1)) {
			t.Errorf("%+v, %v, %v", key, found, err)
		}
	})
	if err := s.SavePair(pairUntil(days(90)), chainFor(keyText(1)), noon); err != nil {
		t.Fatal(err)
	}
	t.Run("Pair returns what SavePair got", func(t *testing.T) {
		want := pairUntil(days(90))
		want.Schema, want.Number, want.IssuedAt = 1, 1, noon.Truncate(time.Second)
		want.NotBefore, want.NotAfter = want.NotBefore.Truncate(time.Second), want.NotAfter.Truncate(time.Second)
		want.KeySHA256 = fmt.Sprintf("%x", sha256.Sum256(keyText(1)))
		want.ChainSHA256 = fmt.Sprintf("%x", sha256.Sum256(chainFor(keyText(1))))
		pair, found, err := s.Pair()
		if !found || err != nil || !cmp.Equal(pair, want) {
			t.Errorf("%v, %v, %s", found, err, cmp.Diff(want, pair))
		}
		other := mustOpen(t, store.Options{Directory: copied(t, directory)})
		if read, found, err := other.Pair(); !found || err != nil || !cmp.Equal(read, want) {
			t.Errorf("after a restart: %v, %v, %s", found, err, cmp.Diff(want, read))
		}
	})
	t.Run("there is no pending key any more", func(t *testing.T) {
		if _, found, err := s.PendingKey(); found || err != nil {
			t.Errorf("%v, %v", found, err)
		}
	})
	after := mustSave(t, s, numbered(1), store.Written)
	t.Run("the record names its files, with the next generation", func(t *testing.T) {
		pair := filepath.Join(directory, "certificate", "1")
		want := &store.Certificate{
			CertificateFile: filepath.Join(pair, "chain.pem"), PrivateKeyFile: filepath.Join(pair, "key.pem"),
			NotBefore: days(-200).Truncate(time.Second), NotAfter: days(90).Truncate(time.Second),
			Serial: "5f3a", SHA256: strings.Repeat("ab", 32), Issuer: "CN=Issuing CA",
		}
		if after.Generation != before.Generation+1 || !cmp.Equal(after.Certificate, want) {
			t.Errorf("generation %d after %d; %s", after.Generation, before.Generation, cmp.Diff(want, after.Certificate))
		}
		if read := mustRead(t, directory); !cmp.Equal(read, after) {
			t.Error(cmp.Diff(after, read))
		}
	})
	t.Run("state.env names them through current", func(t *testing.T) {
		want := fmt.Sprintf("DPSD_CERTIFICATE_FILE=%q\nDPSD_PRIVATE_KEY_FILE=%q\n",
			filepath.Join(directory, "certificate/current/chain.pem"), filepath.Join(directory, "certificate/current/key.pem"))
		if env := content(t, directory, "state.env"); !strings.HasSuffix(env, "DPSD_GENERATION=\"2\"\n"+want) {
			t.Errorf("%s", env)
		}
	})
	t.Run("a start and a Save with the same pair write nothing, even without a chain in the answer", func(t *testing.T) {
		s.Close()
		mark := prints(t, directory) + prints(t, filepath.Join(directory, "certificate"))
		s = mustOpen(t, store.Options{Directory: directory})
		rec := numbered(1)
		rec.RegistrationState = nil
		mustSave(t, s, rec, store.Unchanged)
		rec.RegistrationState = []byte(`{"issuedCertificateChain":["AAAA"]}`)
		mustSave(t, s, rec, store.Unchanged)
		if got := prints(t, directory) + prints(t, filepath.Join(directory, "certificate")); got != mark {
			t.Errorf("before:\n%safterwards:\n%s", mark, got)
		}
		if len(s.Notices()) > 0 {
			t.Errorf("notices:\n%s", kinds(s))
		}
	})
	t.Run("a renewal is a new identity, and the earlier pair stays", func(t *testing.T) {
		rec := issue(t, s, 2, days(120))
		if rec.Generation != 3 || consistent(t, "renewed", s, directory) != 2 {
			t.Errorf("generation %d", rec.Generation)
		}
		if got := names(t, filepath.Join(directory, "certificate")); !slices.Equal(got, []string{"1", "2", "current"}) {
			t.Errorf("%q", got)
		}
		if wholePair(t, "the earlier one", filepath.Join(directory, "certificate", "1")) != 1 {
			t.Error("it has changed")
		}
	})
	t.Run("an issuer with invisible characters is published without them, and at most 1024 bytes long", func(t *testing.T) {
		if err := s.SavePendingKey(pendingKey(3)); err != nil {
			t.Fatal(err)
		}
		pair := pairUntil(days(150))
		pair.Issuer = "CN=\x1b[2J\u202e\xff" + strings.Repeat("é", 600)
		if err := s.SavePair(pair, chainFor(keyText(3)), noon); err != nil {
			t.Fatal(err)
		}
		rec := mustSave(t, s, numbered(1), store.Written)
		if got := rec.Certificate.Issuer; !strings.HasPrefix(got, "CN=\ufffd[2J\ufffd\ufffdé") || len(got) > 1024 || len(got) < 1020 {
			t.Errorf("%d bytes: %q", len(got), got)
		}
	})
}

// copied returns a copy of a state directory.
func copied(t *testing.T, directory string) string {
	t.Helper()
	to := quick(t)
	if err := os.CopyFS(to, os.DirFS(directory)); err != nil {
		t.Fatal(err)
	}
	return to
}

// harm is a change of the directory certificate.
type harm struct {
	say  string
	do   func(certificate, outside string) error
	key  int    // the number of the key that is published afterwards; 0 for none
	path string // of the *PairError, relative to certificate; "" for none
	kind store.NoticeKind
}

// left reports whether a pair cannot be read, and therefore is never removed.
func (h harm) left(name string) bool { return h.kind == store.Unread && (name == "1" || name == "3") }

// harms are what a user, another program or a failing disk may do to a directory with the pairs
// 1 and 2, of which the second is published. outside must not change.
var harms = []harm{
	{"the key removed: the earlier pair is used", removing("2/key.pem"), 1, "", store.PairReplaced},
	{"the key replaced: the earlier pair is used", writing("2/key.pem", string(keyText(9))), 1, "", store.PairReplaced},
	{"the key empty: the earlier pair is used", writing("2/key.pem", ""), 1, "", store.PairReplaced},
	{"a FIFO in the place of the key: it cannot be read", replacing("2/key.pem", fifo), 2, "2/key.pem", ""},
	{"a link in the place of the key: it cannot be read", replacing("2/key.pem", linkTo("key")), 2, "2/key.pem", ""},
	{"a link to nothing in the place of the key: it cannot be read", replacing("2/key.pem", linkTo("nothing")), 2, "2/key.pem", ""},
	{"a directory in the place of the key: it cannot be read", replacing("2/key.pem", directoryAt), 2, "2/key.pem", ""},
	{"a socket in the place of the key: it cannot be read", replacing("2/key.pem", socketAt), 2, "2/key.pem", ""},
	{"the chain removed: the earlier pair is used", removing("2/chain.pem"), 1, "", store.PairReplaced},
	{"the chain changed: the earlier pair is used", writing("2/chain.pem", string(chainFor(keyText(1)))), 1, "", store.PairReplaced},
	{"a FIFO in the place of the chain: it cannot be read", replacing("2/chain.pem", fifo), 2, "2/chain.pem", ""},
	{"certificate.json removed: the earlier pair is used", removing("2/certificate.json"), 1, "", store.PairReplaced},
	{"certificate.json damaged: the earlier pair is used", writing("2/certificate.json", `{"schema":1,`), 1, "", store.PairReplaced},
	{"certificate.json without a schema: the earlier pair is used", writing("2/certificate.json", `{}`), 1, "", store.PairReplaced},
	{"certificate.json of a pending key: the earlier pair is used", func(certificate, _ string) error {
		return writing("2/certificate.json", fmt.Sprintf(`{"schema":1,"registrationId":"gw","keyType":"ec-p384","keySha256":"%x"}`, sha256.Sum256(keyText(2))))(certificate, "")
	}, 1, "", store.PairReplaced},
	{"certificate.json of a later version: it is left unchanged", writing("2/certificate.json", `{"schema":2}`), 2, "2/certificate.json", ""},
	{"the key missing, and the chain unreadable: it is left unchanged", func(certificate, outside string) error {
		return errors.Join(removing("2/key.pem")(certificate, outside), replacing("2/chain.pem", fifo)(certificate, outside))
	}, 2, "2/chain.pem", ""},
	{"the pair removed: the earlier pair is used", removing("2"), 1, "", store.PairReplaced},
	{"a link in the place of the pair: it cannot be read", func(certificate, outside string) error {
		return replacing("2", linkTo("pair"))(certificate, outside)
	}, 2, "2", ""},
	{"a file in the place of the pair: it cannot be read", func(certificate, outside string) error {
		return errors.Join(os.RemoveAll(certificate+"/2"), os.WriteFile(certificate+"/2", nil, 0o600))
	}, 2, "2", ""},
	{"both pairs damaged: there is none", func(certificate, outside string) error {
		return errors.Join(removing("1/key.pem")(certificate, outside), removing("2/key.pem")(certificate, outside))
	}, 0, "", store.PairDamaged},
	{"the published pair damaged, and the earlier one unreadable: there is none", func(certificate, outside string) error {
		return errors.Join(replacing("1/key.pem", fifo)(certificate, outside), removing("2/key.pem")(certificate, outside))
	}, 0, "", store.Unread},
	{"current removed: it is restored", removing("current"), 2, "", store.PairRestored},
	{"an empty directory in the place of current: it is restored", replacing("current", func(path, _ string) error { return os.Mkdir(path, 0o700) }), 2, "", store.PairRestored},
	{"a directory in the place of current: it is restored", replacing("current", directoryAt), 2, "", store.PairRestored},
	{"a file in the place of current: it is restored", replacing("current", func(path, _ string) error { return os.WriteFile(path, nil, 0o600) }), 2, "", store.PairRestored},
	{"a FIFO in the place of current: it is restored", replacing("current", fifo), 2, "", store.PairRestored},
	{"current points to nothing: it is restored", replacing("current", func(path, _ string) error { return os.Symlink("nothing", path) }), 2, "", store.PairRestored},
	{"current points to a pair that does not exist: it is restored", replacing("current", func(path, _ string) error { return os.Symlink("9", path) }), 2, "", store.PairReplaced},
	{"current points to another directory: it is restored", replacing("current", linkTo("pair")), 2, "", store.PairRestored},
	{"current points to the pair by its absolute path: it is restored", replacing("current", func(path, _ string) error {
		return os.Symlink(filepath.Join(filepath.Dir(path), "2"), path)
	}), 2, "", store.PairRestored},
	{"current points to the earlier pair: the latest is used", replacing("current", func(path, _ string) error { return os.Symlink("1", path) }), 2, "", store.PairCompleted},
	{"a damaged pair after the published one does not matter", func(certificate, _ string) error {
		return errors.Join(os.Mkdir(certificate+"/3", 0o700), os.WriteFile(certificate+"/3/key.pem", keyText(3), 0o600))
	}, 2, "", store.PairDamaged},
	{"an unreadable pair after the published one does not matter", func(certificate, _ string) error {
		return os.WriteFile(certificate+"/3", nil, 0o600)
	}, 2, "", store.Unread},
	{"other names do not matter", func(certificate, _ string) error {
		return errors.Join(os.Mkdir(certificate+"/03", 0o700), os.Mkdir(certificate+"/-3", 0o700), os.Mkdir(certificate+"/3x", 0o700),
			os.Mkdir(certificate+"/99999999999", 0o700), os.Mkdir(certificate+"/0", 0o700))
	}, 2, "", ""},
	{"the directory certificate removed: there is none", func(certificate, _ string) error { return os.RemoveAll(certificate) }, 0, "", ""},
	{"a file in the place of the directory certificate: it cannot be read", func(certificate, _ string) error {
		return errors.Join(os.RemoveAll(certificate), os.WriteFile(certificate, []byte("precious"), 0o600))
	}, 0, ".", ""},
	{"a link in the place of the directory certificate: it is not followed", func(certificate, outside string) error {
		return errors.Join(os.Rename(certificate, outside+"/moved"), os.Symlink(outside+"/moved", certificate))
	}, 2, ".", ""},
	{"a FIFO in the place of the directory certificate: it cannot be read", func(certificate, outside string) error {
		return errors.Join(os.RemoveAll(certificate), fifo(certificate, outside))
	}, 0, ".", ""},
}

func removing(name string) func(string, string) error {
	return func(certificate, _ string) error { return os.RemoveAll(filepath.Join(certificate, name)) }
}

func writing(name, text string) func(string, string) error {
	return func(certificate, _ string) error {
		return os.WriteFile(filepath.Join(certificate, name), []byte(text), 0o600)
	}
}

func replacing(name string, put func(path, outside string) error) func(string, string) error {
	return func(certificate, outside string) error {
		path := filepath.Join(certificate, name)
		return errors.Join(os.RemoveAll(path), put(path, outside))
	}
}

func fifo(path, _ string) error { return syscall.Mkfifo(path, 0o600) }

func linkTo(name string) func(string, string) error {
	return func(path, outside string) error { return os.Symlink(filepath.Join(outside, name), path) }
}

func directoryAt(path, _ string) error {
	return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "precious"), []byte("x"), 0o600))
}

func socketAt(path, _ string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// tree returns everything in a directory, with the contents of files and the targets of links.
func tree(t *testing.T, directory string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(directory, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := ""
		switch d.Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(data)
		case fs.ModeSymlink:
			text, _ = os.Readlink(path)
		}
		fmt.Fprintf(&b, "%s %v %q\n", strings.TrimPrefix(path, directory), info.Mode(), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDamagedPairs(t *testing.T) {
	for _, test := range harms {
		for _, running := range []bool{false, true} {
			when := "at the start"
			if running {
				when = "at run time"
			}
			t.Run(test.say+", "+when, func(t *testing.T) {
				directory, outside := short(t), short(t)
				issued(t, directory, 2)
				put(t, string(keyText(2)), outside, "key")
				if err := os.CopyFS(filepath.Join(outside, "pair"), os.DirFS(filepath.Join(directory, "certificate", "2"))); err != nil {
					t.Fatal(err)
				}
				var s *store.Store
				if running {
					s = mustOpen(t, store.Options{Directory: directory})
				}
				certificate := filepath.Join(directory, "certificate")
				if err := test.do(certificate, outside); err != nil {
					t.Fatal(err)
				}
				harmed, mark := "", tree(t, outside)
				if test.path != "" {
					harmed = tree(t, certificate)
				}
				if running {
					checked := s.CheckPair()
					_, found, err := s.Pair()
					if fmt.Sprint(checked) != fmt.Sprint(err) {
						t.Errorf("CheckPair: %v; Pair: %v", checked, err)
					}
					if damaged := test.key != 2 && test.path == ""; damaged && found {
						t.Error("CheckPair did not notice it")
					}
					if _, err := s.Repair(noon); err != nil {
						t.Errorf("Repair: %v", err)
					}
				} else {
					s = mustOpen(t, store.Options{Directory: directory})
				}
				_, found, err := s.Pair()
				rec := mustRead(t, directory)
				if test.path != "" {
					var unreadable *store.PairError
					if want := filepath.Join(certificate, test.path); !errors.As(err, &unreadable) || unreadable.Path != want || found {
						t.Errorf("Pair: %v, %v; want a *PairError of %s", found, err, want)
					}
					if rec.Generation != 3 || rec.Certificate == nil {
						t.Errorf("while it cannot be read, the record has generation %d and the certificate %+v", rec.Generation, rec.Certificate)
					}
					if got := tree(t, certificate); got != harmed {
						t.Errorf("it was changed:\n%s\nto:\n%s", harmed, got)
					}
				} else {
					if found != (test.key != 0) || consistent(t, "afterwards", s, directory) != test.key {
						t.Errorf("Pair: %v, %v; want key %d", found, err, test.key)
					}
					if want := uint64(3 + map[bool]int{true: 1}[test.key != 2]); rec.Generation != want {
						t.Errorf("generation %d, want %d", rec.Generation, want)
					}
				}
				if test.kind != "" && !noticed(s, test.kind) {
					t.Errorf("no notice %q:\n%s", test.kind, kinds(s))
				}
				count := len(s.Notices())
				if _, err := s.Repair(noon); err != nil || len(s.Notices()) != count {
					t.Errorf("another Repair: %v; notices:\n%s", err, kinds(s))
				}
				if strings.HasPrefix(test.say, "a directory in the place of current") && content(t, certificate, "current.aside", "precious") != "x" {
					t.Error("the contents of the directory are lost")
				}
				if got := tree(t, outside); got != mark {
					t.Errorf("another directory was changed:\n%s\nto:\n%s", mark, got)
				}
				if test.path != "" {
					return
				}
				// The next certificate is published whatever has happened, and nothing damaged
				// remains.
				issue(t, s, 5, days(90))
				if consistent(t, "the next one", s, directory) != 5 {
					t.Error("it is not published")
				}
				for _, name := range names(t, certificate) {
					if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 999 && name == strconv.Itoa(n) && !test.left(name) {
						wholePair(t, "still there", filepath.Join(certificate, name))
					}
				}
			})
		}
	}
}

func TestADamagedPairIsReplacedOnlyByOneThatHasNotExpired(t *testing.T) {
	for _, test := range []struct {
		now time.Time
		key int
	}{{days(29), 1}, {days(31), 0}} {
		t.Run(fmt.Sprintf("%d days after noon, with an earlier pair for 30 days: key %d", int(test.now.Sub(noon).Hours()/24), test.key), func(t *testing.T) {
			directory := quick(t)
			issued(t, directory, 2)
			if err := os.Remove(filepath.Join(directory, "certificate", "2", "key.pem")); err != nil {
				t.Fatal(err)
			}
			s, err := store.Open(store.Options{Directory: directory}, test.now)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got := consistent(t, "afterwards", s, directory); got != test.key {
				t.Errorf("key %d is published", got)
			}
		})
	}
	t.Run("an expired pair remains published until it is renewed", func(t *testing.T) {
		directory := quick(t)
		issued(t, directory, 2)
		s, err := store.Open(store.Options{Directory: directory}, days(500))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if result, err := s.Repair(days(500)); result != store.Unchanged || err != nil {
			t.Errorf("%v, %v", result, err)
		}
		if got := consistent(t, "afterwards", s, directory); got != 2 {
			t.Errorf("key %d is published", got)
		}
	})
}

func TestExpiredPairsAreRemoved(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 3) // they expire 30, 60 and 90 days after noon
	s := mustOpen(t, store.Options{Directory: directory})
	expect := func(say string, want ...string) {
		t.Helper()
		if got := names(t, filepath.Join(directory, "certificate")); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", say, got, want)
		}
		consistent(t, say, s, directory)
	}
	repair := func(now time.Time) {
		t.Helper()
		if result, err := s.Repair(now); result != store.Unchanged || err != nil {
			t.Errorf("%v, %v", result, err)
		}
	}
	expect("at first", "1", "2", "3", "current")
	repair(days(29))
	expect("before the first one expires", "1", "2", "3", "current")
	repair(days(31))
	expect("after the first one has expired", "2", "3", "current")
	if err := s.SavePendingKey(pendingKey(4)); err != nil {
		t.Fatal(err)
	}
	if err := s.SavePair(pairUntil(days(200)), chainFor(keyText(4)), days(100)); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, filepath.Join(directory, "certificate")), []string{"3", "4", "current"}; !slices.Equal(got, want) {
		t.Errorf("the pair that state.json names stays until the next record: %q, want %q", got, want)
	}
	if current, inRecord := published(t, "before the next record", directory); current != 4 || inRecord != 3 {
		t.Errorf("current is key %d, and state.json has %d", current, inRecord)
	}
	if _, err := s.Save(numbered(1), days(100)); err != nil {
		t.Fatal(err)
	}
	expect("after the renewal", "4", "current")
	repair(days(300))
	expect("the published one stays", "4", "current")
}

func TestOnlyTheLatestEarlierPairsAreKept(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 6)
	s := mustOpen(t, store.Options{Directory: directory})
	if _, err := s.Repair(noon); err != nil {
		t.Error(err)
	}
	if got, want := names(t, filepath.Join(directory, "certificate")), []string{"3", "4", "5", "6", "current"}; !slices.Equal(got, want) {
		t.Errorf("the directory contains %q, want %q", got, want)
	}
}

func TestADamagedPairStaysUntilTheNextCertificateAndItsNumberIsNotUsedAgain(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 1)
	if err := os.Remove(filepath.Join(directory, "certificate", "1", "key.pem")); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, store.Options{Directory: directory})
	if _, err := s.Repair(noon); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Join(directory, "certificate", "1")); !slices.Equal(got, []string{"certificate.json", "chain.pem"}) {
		t.Errorf("%q", got)
	}
	issue(t, s, 2, days(90))
	if got := names(t, filepath.Join(directory, "certificate")); !slices.Equal(got, []string{"2", "current"}) {
		t.Errorf("%q", got)
	}
}

func TestPendingKeys(t *testing.T) {
	for _, test := range []struct {
		say   string
		do    func(certificate, outside string) error
		path  string // of the *PairError, relative to certificate; "" for none
		found bool
	}{
		{"nothing has changed", func(string, string) error { return nil }, "", true},
		{"the key removed", removing("pending/key.pem"), "", false},
		{"the key changed", writing("pending/key.pem", string(keyText(8))), "", false},
		{"certificate.json removed", removing("pending/certificate.json"), "", false},
		{"certificate.json damaged", writing("pending/certificate.json", "x"), "", false},
		{"an empty directory", func(certificate, _ string) error {
			return errors.Join(os.RemoveAll(certificate+"/pending"), os.Mkdir(certificate+"/pending", 0o700))
		}, "", false},
		{"a FIFO in the place of the key", replacing("pending/key.pem", fifo), "pending/key.pem", false},
		{"a link in the place of the key", replacing("pending/key.pem", linkTo("key")), "pending/key.pem", false},
		{"a directory in the place of the key", replacing("pending/key.pem", directoryAt), "pending/key.pem", false},
		{"certificate.json of a later version", writing("pending/certificate.json", `{"schema":2}`), "pending/certificate.json", false},
		{"a link in the place of the directory", replacing("pending", linkTo("pending")), "pending", false},
		{"a file in the place of the directory", replacing("pending", func(path, _ string) error { return os.WriteFile(path, keyText(1), 0o600) }), "pending", false},
	} {
		t.Run(test.say, func(t *testing.T) {
			directory, outside := short(t), quick(t)
			issued(t, directory, 1)
			s := mustOpen(t, store.Options{Directory: directory})
			if err := s.SavePendingKey(pendingKey(7)); err != nil {
				t.Fatal(err)
			}
			s.Close()
			certificate := filepath.Join(directory, "certificate")
			put(t, string(keyText(7)), outside, "key")
			if err := errors.Join(os.CopyFS(filepath.Join(outside, "pending"), os.DirFS(filepath.Join(certificate, "pending"))), test.do(certificate, outside)); err != nil {
				t.Fatal(err)
			}
			mark, harmed := tree(t, outside), tree(t, certificate)
			s = mustOpen(t, store.Options{Directory: directory})
			key, found, err := s.PendingKey()
			if found != test.found || found && keyNumber(key.PEM) != 7 {
				t.Errorf("found %v, key %d", found, keyNumber(key.PEM))
			}
			if !found && test.path == "" && !noticed(s, store.PairDamaged) {
				t.Errorf("notices:\n%s", kinds(s))
			}
			saved := s.SavePendingKey(pendingKey(8))
			if test.path == "" {
				if key, found, again := s.PendingKey(); err != nil || saved != nil || !found || again != nil || keyNumber(key.PEM) != 8 {
					t.Errorf("%v; a new key: %v, %v, %d", err, saved, again, keyNumber(key.PEM))
				}
			} else {
				for _, err := range []error{err, saved, s.CheckPair()} {
					var unreadable *store.PairError
					if want := filepath.Join(certificate, test.path); !errors.As(err, &unreadable) || unreadable.Path != want {
						t.Errorf("%v, want a *PairError of %s", err, want)
					}
				}
				if err := s.SavePair(pairUntil(days(90)), chainFor(keyText(7)), noon); !errors.As(err, new(*store.WriteError)) {
					t.Errorf("SavePair: %v", err)
				}
				if got := tree(t, certificate); got != harmed {
					t.Errorf("it was changed:\n%s\nto:\n%s", harmed, got)
				}
			}
			if got := tree(t, outside); got != mark {
				t.Errorf("another directory was changed:\n%s\nto:\n%s", mark, got)
			}
			if consistent(t, "the published pair", s, directory) != 1 {
				t.Error("it is not published any more")
			}
		})
	}
}

func TestNoCertificateIsSavedWithoutAKey(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 1)
	s := mustOpen(t, store.Options{Directory: directory})
	err := s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon)
	if refused := (*store.WriteError)(nil); !errors.As(err, &refused) || !errors.Is(err, store.ErrKeyLost) {
		t.Errorf("SavePair: %v", err)
	}
	if consistent(t, "afterwards", s, directory) != 1 {
		t.Error("the published pair has changed")
	}
}

func TestAKeyThatTheUserOfTheServiceMayNotReadIsNeverOverwritten(t *testing.T) {
	for _, test := range []struct{ name, pair, request string }{
		{"2/key.pem", "0 false 2/key.pem: permission denied", "<nil>"},
		{"2", "0 false 2/key.pem: permission denied", "<nil>"},
		{"pending/key.pem", "2 true <nil>", "/pending/key.pem: permission denied"},
		{"", "0 false : permission denied", "/pending: permission denied"},
	} {
		t.Run("certificate/"+test.name, func(t *testing.T) {
			directory, runtime := places(t)
			issued(t, directory, 2)
			s := mustOpen(t, store.Options{Directory: directory})
			if err := s.SavePendingKey(pendingKey(7)); err != nil {
				t.Fatal(err)
			}
			s.Close()
			certificate := filepath.Join(directory, "certificate")
			path := filepath.Join(certificate, test.name)
			info, err := os.Stat(path)
			if err := errors.Join(err, os.Chown(path, 0, 0), os.Chmod(path, 0o600)); err != nil {
				t.Fatal(err)
			}
			mark := tree(t, path)
			service := startService(t, directory, runtime)
			answer := func(question, want string) {
				t.Helper()
				got := strings.ReplaceAll(service.answer(question), certificate, "")
				if got = strings.ReplaceAll(got, " /", " "); got != want {
					t.Errorf("%s: %q, want %q", question, got, want)
				}
			}
			answer("pair", test.pair)
			answer("request", test.request)
			service.saves(1, "unchanged 3")
			if got := tree(t, path); got != mark {
				t.Errorf("it was changed:\n%s\nto:\n%s", mark, got)
			}
			if err := errors.Join(os.Chown(path, serviceUser, serviceUser), os.Chmod(path, info.Mode().Perm())); err != nil {
				t.Fatal(err)
			}
			answer("check", "<nil>")
			answer("pair", "2 true <nil>")
			service.saves(1, "unchanged 3")
		})
	}
}

// All steps of SavePair can fail once, and the certificate must not be lost.
func TestSavePairCanBeRepeatedAfterAFailureAtAnyStep(t *testing.T) {
	for step := 1; ; step++ {
		directory := quick(t)
		issued(t, directory, 1)
		failing, count := false, 0
		s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(string, string) error {
			if !failing {
				return nil
			}
			if count++; count == step {
				return syscall.EIO
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SavePendingKey(pendingKey(2)); err != nil {
			t.Fatal(err)
		}
		failing = true
		err = s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon)
		if failing = false; count < step {
			if err != nil || step < 10 {
				t.Errorf("%d steps: %v", step, err)
			}
			s.Close()
			return
		}
		if refused := (*store.WriteError)(nil); !errors.As(err, &refused) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("step %d: %v", step, err)
		}
		if current, _ := published(t, fmt.Sprintf("step %d", step), directory); current != 1 && current != 2 {
			t.Errorf("step %d: key %d is published", step, current)
		}
		if step%2 == 0 { // the daemon may check or repair the files in the meantime
			if err := s.CheckPair(); err != nil {
				t.Errorf("step %d: CheckPair: %v", step, err)
			}
			if _, err := s.Repair(noon); err != nil {
				t.Errorf("step %d: Repair: %v", step, err)
			}
		}
		if err := s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon); err != nil {
			t.Errorf("step %d: again: %v", step, err)
		}
		if _, err := s.Save(numbered(1), noon); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		if got := consistent(t, fmt.Sprintf("step %d", step), s, directory); got != 2 {
			t.Errorf("step %d: key %d is published", step, got)
		}
		if got := names(t, filepath.Join(directory, "certificate")); !slices.Equal(got, []string{"1", "2", "current"}) {
			t.Errorf("step %d: %q", step, got)
		}
		s.Close()
	}
}

// An earlier version of dpsd knows neither the member nor the variables, and changes no
// certificate.
func TestAnEarlierVersionAndBack(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 2)
	before := mustRead(t, directory)
	if before.Generation != 3 || before.Certificate == nil {
		t.Fatalf("generation %d, %+v", before.Generation, before.Certificate)
	}
	for _, device := range []string{"the same device", "another device"} {
		t.Run(device+" was published by the earlier version", func(t *testing.T) {
			directory := copied(t, directory)
			old := quick(t)
			s := mustOpen(t, store.Options{Directory: old})
			rec := numbered(1)
			if device == "another device" {
				rec = numbered(2)
			}
			for i := range 4 {
				if i < 3 {
					mustSave(t, s, numbered(10+i), store.Written)
				} else {
					mustSave(t, s, rec, store.Written)
				}
			}
			s.Close()
			// It saved the next record, after that with the certificate.
			for _, name := range []string{"state.json", "state.env"} {
				put(t, content(t, old, name), directory, name)
			}
			put(t, content(t, copied(t, directory), "state.json.prev"), directory, "state.json.prev")
			if rec := mustRead(t, directory); rec.Generation != 4 || rec.Certificate != nil {
				t.Fatalf("generation %d, %+v", rec.Generation, rec.Certificate)
			}
			s = mustOpen(t, store.Options{Directory: directory})
			after := mustRead(t, directory)
			if consistent(t, "after the return", s, directory) != 2 || after.Generation != 5 || after.DeviceID != rec.DeviceID {
				t.Errorf("generation %d of %s", after.Generation, after.DeviceID)
			}
			if env := content(t, directory, "state.env"); !strings.Contains(env, "DPSD_CERTIFICATE_FILE=") {
				t.Errorf("state.env:\n%s", env)
			}
			if !cmp.Equal(after.Certificate.SHA256, before.Certificate.SHA256) {
				t.Error("another certificate is published")
			}
			mustSave(t, s, rec, store.Unchanged)
		})
	}
}

func TestTheRecordBeforeADamagedOneGetsTheLatestCertificate(t *testing.T) {
	directory := quick(t)
	issued(t, directory, 2)
	put(t, "damaged", directory, "state.json")
	s := mustOpen(t, store.Options{Directory: directory})
	if rec := mustRead(t, directory); consistent(t, "restored", s, directory) != 2 || rec.Generation != 4 {
		t.Errorf("generation %d", rec.Generation)
	}
}

func TestAStartWithoutFreeDescriptorsKeepsTheCertificate(t *testing.T) {
	for free := range 12 {
		t.Run(fmt.Sprintf("%d free", free), func(t *testing.T) {
			directory := quick(t)
			issued(t, directory, 2)
			before := tree(t, filepath.Join(directory, "certificate"))
			state := content(t, directory, "state.json")
			if out := starved(t, "open", directory, free, 1); out != "3 <nil>" {
				t.Errorf("Save: %s", out)
			}
			if got := tree(t, filepath.Join(directory, "certificate")); got != before {
				t.Errorf("it was changed:\n%s\nto:\n%s", before, got)
			}
			if got := content(t, directory, "state.json"); got != state {
				t.Errorf("the record is %s", got)
			}
		})
	}
}

// The directory does not exist when the watch begins.
func TestTheFilesOfACertificateAreWatched(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "state")
	changed, err := watch.Files(t.Context(), store.Files(directory)...)
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	issue(t, s, 1, days(30))
	issue(t, s, 2, days(60))
	for _, name := range []string{"current", "N/key.pem", "N/chain.pem", "N", "current"} {
		pair, _, _ := s.Pair()
		name = strings.Replace(name, "N", strconv.Itoa(pair.Number), 1)
		// All earlier events have been handled when the marker is reported.
		marker := filepath.Join(directory, "state.json")
		for settled := false; !settled; {
			select {
			case <-changed:
			default:
				settled = true
			}
		}
		if err := os.Chtimes(marker, noon, noon); err != nil {
			t.Fatal(err)
		}
		<-changed
		if err := os.RemoveAll(filepath.Join(directory, "certificate", name)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("the removal of %s was not noticed within a minute", name)
		}
		if name == "current" {
			if result, err := s.Repair(noon); err != nil || result != store.Written {
				t.Errorf("Repair: %v, %v", result, err)
			}
			continue
		}
		if _, err := s.Repair(noon); err != nil {
			t.Error(err)
		}
		issue(t, s, pair.Number+1, days(60))
	}
}

func TestReadersNeverSeeAKeyWithoutItsChain(t *testing.T) {
	const renewals = 1000
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	now := noon
	renew := func(n int) {
		now = now.Add(24 * time.Hour)
		if err := s.SavePendingKey(pendingKey(n)); err != nil {
			t.Fatal(err)
		}
		if err := s.SavePair(pairUntil(now.AddDate(0, 0, 10)), chainFor(keyText(n)), now); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Save(numbered(1), now); err != nil {
			t.Fatal(err)
		}
	}
	renew(1)
	stop := make(chan struct{})
	seen := make(chan [2]int, 2)
	// Now and then, both readers take a turn, so that they see different pairs on any machine.
	const each = 20
	turn := make(chan struct{})
	read := func(pair func() (chain, key []byte, err error)) {
		different, last, expired := 0, 0, 0
		for {
			select {
			case <-stop:
				seen <- [2]int{different, expired}
				return
			case <-turn:
			default:
			}
			chain, key, err := pair()
			if errors.Is(err, fs.ErrNotExist) {
				expired++ // the reader was slower than ten renewals
				continue
			}
			if err != nil || string(chain) != string(chainFor(key)) || keyNumber(key) < last {
				t.Errorf("after key %d: key %q with chain %q, %v", last, key, chain, err)
				seen <- [2]int{}
				for range turn { // the writer need not know
				}
				return
			}
			if keyNumber(key) != last {
				different++
			}
			last = keyNumber(key)
		}
	}
	go read(func() ([]byte, []byte, error) {
		rec, err := store.Read(directory)
		if err != nil || rec.Certificate == nil {
			return nil, nil, fmt.Errorf("%+v, %w", rec.Certificate, err)
		}
		return rec.Certificate.Read()
	})
	go read(func() ([]byte, []byte, error) {
		current, err := os.OpenRoot(filepath.Join(directory, "certificate", "current"))
		if err != nil {
			return nil, nil, err
		}
		defer current.Close()
		key, err := current.ReadFile("key.pem")
		if err != nil {
			return nil, nil, err
		}
		chain, err := current.ReadFile("chain.pem")
		return chain, key, err
	})
	for n := 2; n <= renewals; n++ {
		renew(n)
		if n%each == 0 {
			turn <- struct{}{}
			turn <- struct{}{}
		}
	}
	close(stop)
	close(turn)
	for range 2 {
		if got := <-seen; got[0] < renewals/each/4 {
			t.Errorf("a reader saw only %d of %d pairs, and %d expired", got[0], renewals, got[1])
		} else {
			t.Logf("a reader saw %d of %d pairs, and %d expired", got[0], renewals, got[1])
		}
	}
	if got := names(t, filepath.Join(directory, "certificate")); len(got) > 13 {
		t.Errorf("%d pairs remain: %q", len(got), got)
	}
}

func TestTheKeyStoreIsSavedWithTheKey(t *testing.T) {
	s := mustOpen(t, store.Options{Directory: t.TempDir()})
	defer s.Close()
	if _, err := s.PairKey(); err == nil {
		t.Error("there is a key, although no pair is published")
	}
	key := pendingKey(1)
	key.KeyStore = "tpm"
	if err := s.SavePendingKey(key); err != nil {
		t.Fatal(err)
	}
	if got, found, err := s.PendingKey(); err != nil || !found || got.KeyStore != "tpm" {
		t.Errorf("%+v, %v, %v", got, found, err)
	}
	pair := pairUntil(days(30))
	pair.KeyStore = "tpm"
	if err := s.SavePair(pair, chainFor(key.PEM), noon); err != nil {
		t.Fatal(err)
	}
	if got, found, err := s.Pair(); err != nil || !found || got.KeyStore != "tpm" {
		t.Errorf("%+v, %v, %v", got, found, err)
	}
	if got, err := s.PairKey(); err != nil || string(got) != string(key.PEM) {
		t.Errorf("%q, %v", got, err)
	}
}
