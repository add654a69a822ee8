package system

import "testing"

// In its mount namespace, dpsd keeps the unmounted file system.
func TestAStateDirectoryThatIsUnmountedUnderneathIsAFault(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.run("mkdir -p /var/lib/dpsd && mount -t tmpfs -o mode=755 tmpfs /var/lib/dpsd")
		provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")
		g.run("test -s /var/lib/dpsd/state.json && umount --lazy /var/lib/dpsd && test ! -e /var/lib/dpsd/state.json")
		g.untilShown("dpsd.service", "StatusText", "state-unwritable")
		g.contains("dpsd status", "was mounted on /var/lib/dpsd or unmounted from it", "systemctl restart --no-block dpsd")
		g.run("test -s /run/dpsd/state.json") // consumers find the record here in the meantime
		g.expect("dpsd.service", "MainPID", process)
		g.run("systemctl restart dpsd && test -s /var/lib/dpsd/state.json")
	})
}
