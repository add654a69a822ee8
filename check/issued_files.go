package check

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/dpsd-project/dpsd/input"
)

// packagedGroup is the group that the package creates, and that its tmpfiles.d(5) file gives
// to the directory of the issued certificate.
const packagedGroup = "dpsd-certificate"

// certificateFiles checks who can read the files of the issued certificate: the service and
// the members of the group, but no other user. published is the directory of the published
// pair relative to the state directory, or "".
func (i *inspection) certificateFiles(published string) {
	directory := Result{Name: CertificateFiles, Subject: filepath.Join(i.StateDirectory, "certificate")}
	var g group
	if i.CertificateGroup != "" {
		var err error
		if g, err = lookUpGroup(i.CertificateGroup); err != nil {
			i.warn(directory, "the group "+i.CertificateGroup+" does not exist, so only dpsd and root can read the issued certificate", i.createGroup(published))
			return
		}
	}
	info, err := input.StatBeneath(i.StateDirectory, "certificate")
	switch {
	case errors.Is(err, fs.ErrNotExist) && g.name != "":
		i.warn(directory, "the directory does not exist; if dpsd creates it, it may not belong to the group "+g.name, i.makeDirectory())
		return
	case err != nil:
		i.skip(directory, i.asSeen(err).Error())
		return
	}
	if detail, advice := i.unsuitable(info, g); detail != "" {
		i.warn(directory, detail, corrected(advice, renewAfter(published)))
		return
	}
	if published == "" {
		i.ok(directory, "the next pair will belong to the group "+groupName(gidOf(info))+"; its members: "+g.list())
		return
	}
	i.pairFiles(published, g)
}

// pairFiles checks the directory and the files of a pair.
func (i *inspection) pairFiles(published string, g group) {
	const key = "key.pem"
	for _, name := range []string{"", "chain.pem", key} {
		path := filepath.Join(published, name)
		r := Result{Name: CertificateFiles, Subject: filepath.Join(i.StateDirectory, path)}
		info, err := input.StatBeneath(i.StateDirectory, path)
		if err != nil {
			i.skip(r, i.asSeen(err).Error())
			return
		}
		mode, needs := info.Mode().Perm(), fs.FileMode(0o040)
		if info.IsDir() {
			needs = 0o050
		}
		who := ""
		switch {
		case mode&0o002 != 0:
			who = "every user can change it"
		case name == key && mode&0o004 != 0:
			who = "every user can read it"
		case mode&0o020 != 0:
			who = "the members of its group can change it"
		}
		switch {
		case who != "":
			i.warn(r, fmt.Sprintf("mode %04o: %s", mode, who), renewCommand+", which writes new files; other users may know the previous key, so revoke its certificate")
			return
		case g.name != "" && (gidOf(info) != g.gid || mode&needs != needs):
			i.warn(r, fmt.Sprintf("group %s, mode %04o: the members of the group %s cannot read it", groupName(gidOf(info)), mode, g.name),
				renewCommand+", which writes new files; their group is that of the directory")
			return
		case name != key:
		case g.name == "":
			i.ok(r, fmt.Sprintf("owner %s, group %s, mode %04o", ownerName(info), groupName(gidOf(info)), mode))
		default:
			i.ok(r, fmt.Sprintf("owner %s, mode %04o; only dpsd, root and the members of the group %s can read it; its members: %s", ownerName(info), mode, g.name, g.list()))
		}
	}
}

// unsuitable returns why new pairs in the directory do not get the group, or cannot be
// written, and a command that corrects it.
func (i *inspection) unsuitable(info fs.FileInfo, g group) (detail, advice string) {
	owner, mode := info.Sys().(*syscall.Stat_t), info.Mode()
	what := fmt.Sprintf("owner %s, group %s, mode %s: ", ownerName(info), groupName(gidOf(info)), octal(mode))
	switch {
	case !mode.IsDir():
		return "it is not a directory, so dpsd cannot store an issued certificate", "Remove it, then run: " + i.giveGroup()
	case i.Account.Name != "" && int(owner.Uid) != i.Account.UID:
		return what + "it must belong to " + i.Account.Name + "; otherwise, dpsd cannot store a certificate", i.giveGroup()
	case mode.Perm()&0o022 != 0:
		return what + "other users than dpsd can replace the key", i.giveGroup()
	case g.name == "":
		return "", ""
	case gidOf(info) != g.gid:
		return what + "its group must be " + g.name + ", which new files inherit", i.giveGroup()
	case mode&fs.ModeSetgid == 0:
		return what + "without the set-group-ID bit, new files do not inherit its group", i.giveGroup()
	case mode.Perm()&0o050 != 0o050:
		return what + "the members of the group cannot search it", i.giveGroup()
	}
	return "", ""
}

// renewAfter returns the command after which the files have the group of the directory, or ""
// if there are none.
func renewAfter(published string) string {
	if published == "" {
		return ""
	}
	return renewCommand
}

// createGroup returns the command that creates the group.
func (i *inspection) createGroup(published string) string {
	give := i.giveGroup()
	if published == "" {
		give = i.makeDirectory()
	}
	create := "groupadd --system " + i.CertificateGroup
	if i.packaged() && i.CertificateGroup == packagedGroup {
		create = "systemd-sysusers dpsd.conf"
	}
	return corrected(create+" && "+give+" && "+restartCommand, renewAfter(published))
}

// giveGroup returns the command that gives the directory to the group. At each boot,
// systemd-tmpfiles restores the group of the package unless a file that sorts before
// dpsd.conf names another one.
func (i *inspection) giveGroup() string {
	directory := filepath.Join(i.StateDirectory, "certificate")
	name := cmp.Or(i.CertificateGroup, packagedGroup)
	switch {
	case !i.packaged():
		return fmt.Sprintf("chown -h %s:%s %[3]s && chmod 2750 %[3]s", cmp.Or(i.Account.Name, "dpsd"), name, directory)
	case name == packagedGroup:
		return "systemd-tmpfiles --create dpsd.conf"
	}
	return fmt.Sprintf("echo 'd %s 2750 dpsd %s' >/etc/tmpfiles.d/dpsd-certificate.conf && systemd-tmpfiles --create dpsd-certificate.conf", directory, name)
}

// makeDirectory is giveGroup for a directory that does not exist.
func (i *inspection) makeDirectory() string {
	if i.packaged() {
		return i.giveGroup()
	}
	return "mkdir -p " + filepath.Join(i.StateDirectory, "certificate") + " && " + i.giveGroup()
}

// packaged reports whether systemd-tmpfiles creates the directory of the issued certificate.
func (i *inspection) packaged() bool { return i.unit != nil && i.StateDirectory == "/var/lib/dpsd" }

func gidOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Gid) }

// octal returns a mode as chmod(1) accepts it.
func octal(mode fs.FileMode) string {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	return fmt.Sprintf("%04o", bits)
}
