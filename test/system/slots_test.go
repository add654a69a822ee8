package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dpsd-project/dpsd/test/update"
)

// updates returns one of the blocks of the section of docs/image.md whose commands these tests run.
func updates(t *testing.T, number int) string {
	t.Helper()
	all := blocks(t, "docs/image.md", "A/B updates", "sh")
	if len(all) != 5 {
		t.Fatalf("the section has %d blocks", len(all))
	}
	return all[number]
}

// The indexes of the blocks.
const (
	mounts = iota
	partition
	overlay
	confirm
	reset
)

// earlierSlot builds dpsd as of the last commit before it requested certificates, once for all tests.
// It is next to the images that the tests share.
var earlierSlot = sync.OnceValues(func() (tree string, err error) {
	tree, _, err = update.Earlier(filepath.Join(images.dir, "earlier"), update.BeforeCertificates)
	return tree, err
})

// slots are two read-only root file systems of one gateway with different versions of dpsd, and
// the partition that both mount at /data.
type slots struct {
	current, earlier *gateway
	data             string
	dps              *service // in the network of the slot that runs
	number           string   // of the gateway: its registration ID
}

// onDisk replaces the program and the service files in a root file system, $root, with those of the
// tree $tree. Users and groups keep their IDs.
const onDisk = `
install -m 0755 "$tree/../bin/dpsd" "$root/usr/bin/dpsd"
install -m 0644 "$tree/packaging/systemd/dpsd.service" "$root/usr/lib/systemd/system/dpsd.service"
install -m 0644 "$tree/packaging/systemd/dpsd.tmpfiles" "$root/usr/lib/tmpfiles.d/dpsd.conf"
install -m 0644 "$tree/packaging/systemd/dpsd.sysusers" "$root/usr/lib/sysusers.d/dpsd.conf"
`

// newSlots creates both slots with the commands of docs/image.md. before is a shell script that runs
// in the root file system of the current version before the package is installed.
func newSlots(t *testing.T, s suite, before string) slots {
	t.Helper()
	tree, err := earlierSlot()
	if err != nil {
		t.Fatal(err)
	}
	factory := booted(t, s)
	dps := factory.service(prompt)
	u := slots{number: "sn-0001"}
	slot := func(before, more, after string) *gateway {
		g := newGateway(t, s)
		configuration := fmt.Sprintf(fleet, dps.read("id-scope"), `registration_id_file = "/data/serial"`) + more
		if err := os.WriteFile(filepath.Join(g.dir, "dpsd.toml"), []byte(configuration), 0o600); err != nil {
			t.Fatal(err)
		}
		g.write("/etc/dpsd/ca.pem", dps.read("ca.pem")+"\n", 0o644)
		g.offline("cd \"$1\"; tree=" + tree + "; cp \"$parts\"/current/dpsd_*.deb .\n" + before + "\n" +
			blocks(t, "docs/image.md", "Put dpsd into it", "sh")[0] + updates(t, mounts) + after +
			"mkdir -p \"$root" + there + "\"") // nspawn cannot create its mount point in a read-only file system
		return gatewayOver(t, s, filepath.Join(g.dir, "upper")+":"+g.lower)
	}
	u.current = slot(before, "\n"+issued, "")
	u.earlier = slot("", "", onDisk)

	u.dps = u.current.copyOf(dps)
	u.data = filepath.Join(u.current.dir, "data")
	u.current.offline(fmt.Sprintf("data=%s; mkdir \"$data\"\n", u.data) + updates(t, partition))
	for name, text := range map[string]string{"serial": u.number, "credstore/dps-primary-key": dps.key(u.number)} {
		if err := os.WriteFile(filepath.Join(u.data, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(u.data, "serial"), 0o644); err != nil {
		t.Fatal(err)
	}
	return u
}

// start boots a slot, and returns when dpsd is ready.
func (u *slots) start(g *gateway) {
	g.t.Helper()
	u.startWith(g, "--read-only")
	if out, status := g.try("touch /usr/bin/dpsd"); status == 0 {
		g.t.Fatalf("the root file system is not read-only: %s", out)
	}
}

// startWith is like start, but a flag of nspawn selects how the root file system is mounted.
func (u *slots) startWith(g *gateway, root string) {
	g.t.Helper()
	g.boot(root, "--bind="+u.data+":/data")
	u.dps.g = g
	u.dps.start()
	g.until("dpsd is ready", "systemctl -q is-active dpsd.service")
}

// identity returns the generation, the device and the hub that a service reads.
func (g *gateway) identity() (generation int, device string) {
	g.t.Helper()
	out := strings.Fields(g.run(`. /var/lib/dpsd/state.env; echo "$DPSD_GENERATION" "$DPSD_DEVICE_ID $DPSD_ASSIGNED_HUB"`))
	if len(out) != 3 {
		g.t.Fatalf("state.env has %q", out)
	}
	generation, err := strconv.Atoi(out[0])
	if err != nil {
		g.t.Fatal(err)
	}
	return generation, out[1] + " at " + out[2]
}

// alternate boots the two slots alternately, ends each boot with a shutdown or a power cut, and checks
// that the identity and the issued certificate stay.
func (u *slots) alternate(t *testing.T, rounds int) {
	t.Helper()
	u.start(u.current)
	last, device := u.current.identity()
	key := u.current.run("sha256sum </var/lib/dpsd/certificate/current/key.pem")
	u.current.expectPairs("after the first boot", 1)
	u.current.cut()
	for round := range rounds {
		g := []*gateway{u.earlier, u.current}[round%2]
		u.start(g)
		generation, now := g.identity()
		if now != device || generation < last {
			t.Errorf("round %d: generation %d is %s, and generation %d was %s", round, generation, now, last, device)
		}
		last = generation
		if g == u.current {
			g.expectPairs(fmt.Sprintf("after round %d", round), 1)
			if now := g.run("sha256sum </var/lib/dpsd/certificate/current/key.pem"); now != key {
				t.Errorf("round %d: the key of the issued certificate has changed", round)
			}
			g.run(certificateReader + "cat /var/lib/dpsd/certificate/current/key.pem >/dev/null")
			g.run(updates(t, confirm)) // the new slot works
		}
		if round%3 == 0 {
			g.poweroff()
		} else {
			g.cut()
		}
	}
}

func TestTwoSlotsWithReadOnlyRootsKeepOneIdentity(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		u := newSlots(t, s, "")
		u.alternate(t, 4)

		u.start(u.current)
		u.current.run(updates(t, reset)) // the factory reset
		u.current.until("dpsd is ready", "systemctl -q is-active dpsd.service")
		if generation, _ := u.current.identity(); generation != 1 {
			t.Errorf("after a factory reset, the generation is %d", generation)
		}
		u.current.expectPairs("after a factory reset", 1)
		u.current.cut()

		if err := os.RemoveAll(filepath.Join(u.data, "dpsd")); err != nil {
			t.Fatal(err)
		}
		u.current.offline("data=" + u.data + "\n" + updates(t, partition))
		u.start(u.current)
		u.current.expectPairs("on a new data partition", 1)
	})
}

func TestSlotsMayGiveTheUsersAndGroupsOfDpsdDifferentIDs(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		u := newSlots(t, s, `chroot "$root" sh -ec 'groupadd -r -g 955 dpsd-certificate; groupadd -r -g 956 dpsd-keys; groupadd -r -g 957 dpsd
useradd -r -u 957 -g dpsd -G dpsd-keys -d /var/lib/dpsd -M -s /usr/sbin/nologin dpsd'`)
		u.alternate(t, 4)
	})
}

func TestARootOverlayInMemoryKeepsTheStateOnTheDataPartition(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		u := newSlots(t, s, "")
		g := u.current
		u.startWith(g, "--volatile=overlay")
		before, device := g.identity()
		g.write("/etc/marker", "", 0o644)
		g.cut()
		u.startWith(g, "--volatile=overlay")
		g.run("test ! -e /etc/marker")
		if generation, now := g.identity(); generation != before || now != device {
			t.Errorf("generation %d is %s, and it was generation %d, %s", generation, now, before, device)
		}
		g.expectPairs("after another boot", 1)
	})
}

func TestAConfigurationOverlayPersistsAndHidesTheFilesOfTheImage(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		u := newSlots(t, s, "")
		for _, g := range []*gateway{u.current, u.earlier} {
			g.offline("data=" + u.data + "\n" + updates(t, overlay))
		}
		u.start(u.current)
		u.current.run("cp /etc/credstore/dps-primary-key /etc/dpsd/keys/device.key; chgrp dpsd-keys /etc/dpsd/keys/device.key; chmod 640 /etc/dpsd/keys/device.key")
		u.current.run(`sed -i -e 's|credential:dps-primary-key|file:/etc/dpsd/keys/device.key|' -e '/^\[certificate\]$/d' /etc/dpsd/dpsd.toml`)
		u.current.cut()
		u.start(u.earlier)
		if key := u.earlier.run("grep ^key /etc/dpsd/dpsd.toml"); !strings.Contains(key, "file:/etc/dpsd/keys/device.key") {
			t.Errorf("the other slot has %s", key)
		}
		u.earlier.run(updates(t, confirm))
	})
}
