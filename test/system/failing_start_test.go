package system

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sealedKey is the path of the key in the example of encrypted credentials.
const sealedKey = "/etc/credstore.encrypted/dps-primary-key"

// holdLock makes the unit holder take the lock of dpsd, now or as soon as dpsd ends.
const holdLock = `install -d -o dpsd -g dpsd -m 755 /var/lib/dpsd
test -e /var/lib/dpsd/lock || install -o dpsd -g dpsd -m 600 /dev/null /var/lib/dpsd/lock
systemd-run --quiet --unit=holder flock /var/lib/dpsd/lock sleep infinity
while flock --nonblock /var/lib/dpsd/lock true; do sleep 0.1; done`

// failingStarts are the reasons why every start of dpsd fails.
var failingStarts = []struct {
	name    string
	prepare string // a shell script
	dropIn  string // lines of [Service]
	status  string // ExecMainStatus
}{
	{"a missing encrypted credential", "", "LoadCredentialEncrypted=dps-primary-key:" + sealedKey, "243"},
	{"a damaged encrypted credential", "mkdir -p -m 700 /etc/credstore.encrypted; echo damaged >" + sealedKey, "LoadCredentialEncrypted=dps-primary-key:" + sealedKey, "243"},
	{"a missing directory of ReadWritePaths=", "", "ReadWritePaths=/srv/missing", "226"},
	{"a held lock", holdLock, "", "1"},
	{"a killed process", "", "ExecStart=\nExecStart=/bin/sh -c 'kill -KILL $$$$'", "9"},
}

// starting matches the entry of systemd for each start of dpsd, SD_MESSAGE_UNIT_STARTING.
const starting = "--boot UNIT=dpsd.service MESSAGE_ID=7d4958e842da4a758f6c1cdc7b36dcc5"

func TestAFailingStartIsRetriedNoEarlierThanRestartSec(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		g.configure(g.service(prompt), "")
		for _, with := range []struct {
			what, prepare string
			units         []string // those that are active with dpsd
		}{
			{"without the target", "systemctl --quiet mask dpsd-provisioned.target", nil},
			{"with the target", "systemctl --quiet unmask dpsd-provisioned.target", []string{"dpsd-provisioned.target"}},
			{"with the target and a consumer", "cp /usr/share/doc/dpsd/examples/consumer.service /etc/systemd/system/ && systemctl daemon-reload && systemctl --quiet enable consumer",
				[]string{"dpsd-provisioned.target", "consumer.service"}},
			{"with the target and consumers of every kind", "systemctl --quiet disable consumer\n" + enableWanting(), append([]string{"dpsd-provisioned.target"}, wanting()...)},
		} {
			g.run(with.prepare)
			for _, failing := range failingStarts {
				g.failingStart(failing.name+", "+with.what, failing.prepare, failing.dropIn, failing.status)
				g.until("the units are active when the cause is removed", "systemctl is-active dpsd.service "+strings.Join(with.units, " "))
				g.run("systemctl stop dpsd " + strings.Join(with.units, " "))
			}
		}
	})
}

// failingStart observes four failing starts, and then removes the cause.
func (g *gateway) failingStart(what, prepare, dropIn, status string) {
	g.t.Helper()
	const shortest = time.Second // between two starts: RestartSec below
	g.write("/etc/systemd/system/dpsd.service.d/failing.conf", "[Service]\nRestartSec=1s\n"+dropIn+"\n", 0o644)
	g.run("rm -rf /var/lib/dpsd/*\n" + prepare + "\nsystemctl daemon-reload") // nothing was published yet
	before := len(g.journal(starting))
	lines := g.journalLines()
	g.run("systemctl start --no-block dpsd")
	g.until("four starts with "+what, fmt.Sprintf("test $(journalctl --quiet --no-pager --output=cat %s | wc -l) -ge %d", starting, before+4))
	g.untilShown("dpsd.service", "ExecMainStatus", status)
	restarts := g.show("dpsd.service", "NRestarts")
	after := g.journalLines()
	entries := g.journal(starting)[before:]
	g.write("/etc/systemd/system/dpsd.service.d/failing.conf", "[Service]\nRestartSec=1s\n", 0o644)
	g.run("rm -f " + sealedKey + "; systemctl daemon-reload; systemctl stop holder 2>/dev/null || :")

	var first, last time.Duration
	for i, e := range entries {
		microseconds, err := strconv.ParseInt(e.text("__MONOTONIC_TIMESTAMP"), 10, 64)
		if err != nil {
			g.t.Fatal(err)
		}
		at := time.Duration(microseconds) * time.Microsecond
		if i == 0 {
			first = at
		} else if gap := at - last; gap < shortest {
			g.t.Errorf("%s: %s: start %d came %s after the one before, want at least %s", g.suite.name, what, i+1, gap, shortest)
		}
		last = at
	}
	g.t.Logf("%s: %s: %s restarts and %d journal lines in %.1f s", g.suite.name, what, restarts, after-lines, (last - first).Seconds())
}

// journalLines counts the entries of the whole journal of this boot.
func (g *gateway) journalLines() int {
	g.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(g.run("journalctl --quiet --no-pager --boot --output=cat | wc -l")))
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}
