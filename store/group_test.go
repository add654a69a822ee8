package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

// group is a group of every Debian system, of which the user of the service is no member.
const group = "users"

func groupID(t *testing.T, name string) int {
	t.Helper()
	found, err := user.LookupGroup(name)
	if err != nil {
		missing(t, "the group "+name)
	}
	id, err := strconv.Atoi(found.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// likeTmpfiles creates the directory of the certificates like systemd-tmpfiles does.
func likeTmpfiles(t *testing.T, directory string, gid int) {
	t.Helper()
	certificate := filepath.Join(directory, "certificate")
	if err := errors.Join(os.Mkdir(certificate, 0o750), os.Chown(certificate, serviceUser, gid), os.Chmod(certificate, 0o750|fs.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
}

// access returns the mode, owner and group of a file.
func access(t *testing.T, elements ...string) string {
	t.Helper()
	info, err := os.Stat(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%v %d:%d", info.Mode(), stat.Uid, stat.Gid)
}

func inGroup(name string) func(*exec.Cmd) {
	return func(c *exec.Cmd) { c.Env = append(c.Env, "DPSD_TEST_GROUP="+name) }
}

func memberOf(gid int) func(*exec.Cmd) {
	return func(c *exec.Cmd) { c.SysProcAttr.Credential.Groups = []uint32{uint32(gid)} }
}

// ownUsers runs the service in a user namespace with only its own user and group, like
// PrivateUsers=yes in systemd.
func ownUsers(c *exec.Cmd) {
	c.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	one := []syscall.SysProcIDMap{{ContainerID: serviceUser, HostID: serviceUser, Size: 1}}
	c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings = one, one
	c.SysProcAttr.Credential.NoSetGroups = true
}

func TestTheGroupMayReadTheCertificate(t *testing.T) {
	for _, test := range []struct {
		say    string
		passed string // the group that the directory passes on, like that of systemd-tmpfiles; "" for none
		with   func(gid int) []func(*exec.Cmd)
		shared bool
		notice string
	}{
		{"a pair inherits the group of the directory that systemd-tmpfiles creates", group,
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group)} }, true, ""},
		{"a pair inherits this group in a user namespace without the group, too", group,
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group), ownUsers} }, true, ""},
		{"dpsd sets the group if it is a member", "",
			func(gid int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group), memberOf(gid)} }, true, ""},
		{"dpsd cannot set the group if it is no member", "",
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group)} }, false, group + ": operation not permitted"},
		{"the group nogroup is not taken for an unknown one", "nogroup",
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group)} }, false, group + ": operation not permitted"},
		{"nor in a user namespace without the group", "",
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup(group), ownUsers} }, false, group + ": invalid argument"},
		{"a group that does not exist is reported", group,
			func(int) []func(*exec.Cmd) { return []func(*exec.Cmd){inGroup("no-such-group")} }, false, "no-such-group: there is no such group"},
		{"without a group, only the owner may read the pair", group,
			func(int) []func(*exec.Cmd) { return nil }, false, ""},
	} {
		t.Run(test.say, func(t *testing.T) {
			directory, runtime := places(t)
			gid := groupID(t, group)
			if test.passed != "" {
				likeTmpfiles(t, directory, groupID(t, test.passed))
			}
			s := startService(t, directory, runtime, test.with(gid)...)
			for _, question := range []string{"request", "issue"} {
				if got := s.answer(question); got != "<nil>" {
					t.Fatalf("%s: %s", question, got)
				}
			}
			s.saves(1, "written 1")
			file, dir := "-rw------- ", "drwx------ "
			if test.shared {
				file, dir = "-rw-r----- ", "drwxr-x--- "
			}
			for name, want := range map[string]string{"": dir, "key.pem": file, "chain.pem": file, "certificate.json": file} {
				got := access(t, directory, "certificate", "1", name)
				if !strings.HasPrefix(strings.Replace(got, "dgrwx", "drwx", 1), want) || test.shared && !strings.HasSuffix(got, fmt.Sprintf("%d:%d", serviceUser, gid)) {
					t.Errorf("1/%s: %s, want %s and group %d", name, got, want, gid)
				}
			}
			notices := s.answer("notices")
			if test.notice == "" && notices != "[]" || !strings.Contains(notices, test.notice) {
				t.Errorf("notices: %s, want %q", notices, test.notice)
			}
			key := filepath.Join(directory, "certificate", "current", "key.pem")
			for _, reader := range []struct {
				say string
				gid int
				may bool
			}{{"a member of the group", gid, test.shared}, {"another user", serviceUser + 1, false}} {
				cat := exec.Command("cat", key)
				cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUser + 1, Gid: uint32(reader.gid)}}
				if out, err := cat.CombinedOutput(); (err == nil) != reader.may {
					t.Errorf("%s reads %q: %v", reader.say, out, err)
				}
			}
			if want := fmt.Sprintf("drwxr-x--- %d:%d", serviceUser, serviceUser); test.passed == "" && !test.shared && access(t, directory, "certificate") != want {
				t.Errorf("certificate: %s, want %s", access(t, directory, "certificate"), want)
			}
		})
	}
}

func TestTheAccessFollowsTheConfiguredGroupAtTheNextStart(t *testing.T) {
	directory, _ := places(t)
	gid := groupID(t, group)
	likeTmpfiles(t, directory, gid)
	issued(t, directory, 1)
	for _, test := range []struct{ group, want string }{
		{"", "-rw-------"}, {group, "-rw-r-----"}, {group, "-rw-r-----"}, {"no-such-group", "-rw-r-----"}, {"", "-rw-------"},
	} {
		s := mustOpen(t, store.Options{Directory: directory, CertificateGroup: test.group})
		s.Close()
		if got, want := access(t, directory, "certificate", "1", "key.pem"), fmt.Sprintf("%s %d:%d", test.want, serviceUser, gid); got != want {
			t.Errorf("group %q: %s, want %s", test.group, got, want)
		}
	}
}

// The service must be able to replace and remove what a command of root has written.
func TestWhatRootWritesBelongsToTheOwnerOfTheDirectory(t *testing.T) {
	directory, runtime := places(t)
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	issue(t, s, 1, days(30))
	if err := s.SavePendingKey(pendingKey(2)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for name, want := range map[string]string{
		"": "drwxr-x---", "1": "drwx------", "1/key.pem": "-rw-------", "1/chain.pem": "-rw-------", "1/certificate.json": "-rw-------",
		"pending": "drwx------", "pending/key.pem": "-rw-------", "pending/certificate.json": "-rw-------",
	} {
		if got, want := access(t, directory, "certificate", name), fmt.Sprintf("%s %d:%d", want, serviceUser, serviceUser); got != want {
			t.Errorf("certificate/%s: %s, want %s", name, got, want)
		}
	}
	service := startService(t, directory, runtime)
	for _, question := range []string{"check", "issue", "request", "issue"} {
		if got := service.answer(question); got != "<nil>" {
			t.Errorf("%s: %s", question, got)
		}
	}
}

func TestACertificateOnAFullDisk(t *testing.T) {
	if !withMounts(t) {
		return
	}
	directory := tmpfs(t, "size=128k,mode=0755")
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	issue(t, s, 1, days(30))
	refused := func(say string, err error, errno syscall.Errno) {
		t.Helper()
		if !errors.As(err, new(*store.WriteError)) || !errors.Is(err, errno) {
			t.Errorf("%s: %v, want %v", say, err, errno)
		}
		if got := consistent(t, say, s, directory); got != 1 {
			t.Errorf("%s: key %d is published", say, got)
		}
		for _, pattern := range []string{".pending/.*", "pending/.*", ".current"} {
			if left, _ := filepath.Glob(filepath.Join(directory, "certificate", pattern)); len(left) > 0 {
				t.Errorf("%s: %q is left", say, left)
			}
		}
	}
	room := stuff(t, directory)
	refused("a pending key on a full disk", s.SavePendingKey(pendingKey(2)), syscall.ENOSPC)
	room()
	if err := s.SavePendingKey(pendingKey(2)); err != nil {
		t.Fatal(err)
	}
	room = stuff(t, directory)
	refused("a certificate on a full disk", s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon), syscall.ENOSPC)
	refused("another pending key on a full disk", s.SavePendingKey(pendingKey(3)), syscall.ENOSPC)
	if key, found, err := s.PendingKey(); !found || err != nil || keyNumber(key.PEM) != 2 {
		t.Errorf("the pending key is lost: %v, %v, key %d", found, err, keyNumber(key.PEM))
	}
	room()
	if err := syscall.Mount("", directory, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = mustOpen(t, store.Options{Directory: directory})
	refused("a certificate on a read-only disk", s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon), syscall.EROFS)
	refused("a pending key on a read-only disk", s.SavePendingKey(pendingKey(3)), syscall.EROFS)
	mustSave(t, s, numbered(1), store.Unchanged)
	if err := syscall.Mount("", directory, "", syscall.MS_REMOUNT, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	if err := s.SavePair(pairUntil(days(90)), chainFor(keyText(2)), noon); err != nil {
		t.Error(err)
	}
	mustSave(t, s, numbered(1), store.Written)
	if got := consistent(t, "in the end", s, directory); got != 2 {
		t.Errorf("key %d is published", got)
	}
}
