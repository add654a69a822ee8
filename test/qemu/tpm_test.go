package qemu

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// computer is a gateway with a disk and a TPM, which can be booted repeatedly.
type computer struct {
	t     *testing.T
	suite string
	dir   string // its directory on this machine: the disk, and the state of the TPM
}

// needTPM returns the directory of the root file systems, and that of the package to test.
func needTPM(t *testing.T) (roots, deb string) {
	t.Helper()
	roots, deb = os.Getenv("DPSD_ROOTS"), os.Getenv("DPSD_DEB")
	if roots == "" || deb == "" {
		t.Skip("no DPSD_ROOTS and DPSD_DEB: make test-tpm-machine makes them and runs this")
	}
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	if _, err := os.Stat(filepath.Join(roots, "machine-trixie.key")); err != nil {
		missing("no root file systems: ", err)
	}
	for _, tool := range []string{"qemu-system-x86_64", "swtpm", "mkfs.ext4", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(err)
		}
	}
	if os.Getuid() != 0 {
		missing("only root installs a package in a root file system")
	}
	return roots, deb
}

// newComputer returns a gateway with a new TPM and without a disk.
func newComputer(t *testing.T, suite string) computer {
	t.Helper()
	dir := newDir(t)
	if err := os.Mkdir(filepath.Join(dir, "tpm"), 0o700); err != nil {
		t.Fatal(err)
	}
	return computer{t: t, suite: suite, dir: dir}
}

func (c computer) disk() string { return filepath.Join(c.dir, "disk") }

// installation is a shell script that creates a disk: Debian with the package of dpsd, which
// apt-get installs as image builders do, and the units of testdata/root. $1 is the directory of the
// gateway, $2 the root file system, $3 the package. The script runs in its own mount namespace, so
// that nothing remains mounted after it.
const installation = `set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o "lowerdir=$2,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
cp "$3" /mnt/root/dpsd.deb
LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive chroot /mnt/root apt-get -qq -y install /dpsd.deb
rm /mnt/root/dpsd.deb
cp -R testdata/root/. /mnt/root
install testdata/random /mnt/root/usr/local/bin/random
touch /mnt/root/etc/.updated /mnt/root/var/.updated # otherwise, the first boot repeats what dpkg has done
mkfs.ext4 -q -d /mnt/root "$1/disk" 600M
`

// install gives the gateway a disk with dpsd.
func (c computer) install() {
	c.t.Helper()
	roots, deb := needTPM(c.t)
	script := exec.Command("unshare", "--mount", "--propagation=private", "sh", "-c", installation, "install", c.dir, c.root(roots), deb)
	if out, err := script.CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
}

func (c computer) root(roots string) string { return filepath.Join(roots, "machine-"+c.suite) }

// boot starts the gateway, and waits until it accepts commands.
func (c computer) boot() *machine {
	c.t.Helper()
	roots, _ := needTPM(c.t)
	control := listen(c.t, filepath.Join(newDir(c.t), "control"))
	inherited, err := control.File()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { inherited.Close() })
	tpm := start(c.t, "swtpm", []string{
		"socket", "--tpm2", "--tpmstate", "dir=" + filepath.Join(c.dir, "tpm"), "--ctrl", "type=unixio,fd=3", "--terminate",
	}, inherited)
	m := launch(c.t, []string{
		"-kernel", c.bootFile(roots, "vmlinuz-*"), "-initrd", c.bootFile(roots, "initrd.img-*"),
		"-append", commandLine + " root=/dev/vda rw net.ifnames=0",
		"-drive", "if=none,id=disk,format=raw,file=" + c.disk(), "-device", "virtio-blk-pci,drive=disk",
		"-chardev", "socket,id=tpm,path=" + control.Addr().String(),
		"-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm",
	})
	m.ended = append(m.ended, tpm)
	return m
}

// copied returns another computer, with a TPM of its own and a copy of the disk.
func (c computer) copied() computer {
	c.t.Helper()
	other := newComputer(c.t, c.suite)
	if out, err := exec.Command("cp", "--sparse=always", c.disk(), other.disk()).CombinedOutput(); err != nil {
		c.t.Fatalf("%v\n%s", err, out)
	}
	return other
}

// bootFile returns the only file of that name in the directory /boot of the root file system.
func (c computer) bootFile(roots, pattern string) string {
	c.t.Helper()
	found, err := filepath.Glob(filepath.Join(c.root(roots), "boot", pattern))
	if err != nil || len(found) != 1 {
		c.t.Fatalf("want one %s, got %q (%v)", pattern, found, err)
	}
	return found[0]
}

// example is the drop-in of the package that gives the service access to the TPM.
const example = "/usr/share/doc/dpsd/examples/tpm.conf"

// TestTheDropInGivesTheServiceTheTPMAndNothingElse starts a program that asks the TPM for random
// bytes, in the sandbox of the service, as the user of the service.
func TestTheDropInGivesTheServiceTheTPMAndNothingElse(t *testing.T) {
	t.Parallel()
	needTPM(t)
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			c := newComputer(t, suite)
			c.install()
			m := c.boot()
			// Until udev has applied the rules of the package tpm-udev, the devices belong to root.
			m.run(`until [ "$(echo $(stat -c %U:%G:%a /dev/tpm0 /dev/tpmrm0))" = "tss:root:660 tss:tss:660" ]; do sleep 0.1; done`)
			reply := regexp.MustCompile(`^80010000001400000000[0-9a-f]{20}$`)
			for _, tt := range []struct {
				name     string
				dropIn   string // a command that prints it
				device   string
				want     *regexp.Regexp // what the program prints
				exposure float64        // the limit
			}{
				{"without the drop-in", "true", "/dev/tpmrm0", regexp.MustCompile(`there is no device`), 1.2},
				{"with the drop-in", "cat " + example, "/dev/tpmrm0", reply, 2.0},
				{"without the group", "grep -v ^SupplementaryGroups= " + example, "/dev/tpmrm0", regexp.MustCompile(`Permission denied`), 2.0},
				{"without the device", "grep -v ^DeviceAllow= " + example, "/dev/tpmrm0", regexp.MustCompile(`Operation not permitted`), 2.0},
				{"the device without a resource manager", "cat " + example, "/dev/tpm0", regexp.MustCompile(`Permission denied|Operation not permitted`), 2.0},
			} {
				m.run("mkdir -p /etc/systemd/system/dpsd.service.d; " + tt.dropIn + " >/etc/systemd/system/dpsd.service.d/tpm.conf")
				got := m.inSandbox("/usr/local/bin/random " + tt.device)
				exposure := m.exposure()
				t.Logf("%s: exposure %.1f, %s", tt.name, exposure, got)
				if !tt.want.MatchString(got) {
					t.Errorf("%s: a program in the sandbox that opens %s prints %q, want %q", tt.name, tt.device, got, tt.want)
				}
				if exposure > tt.exposure {
					t.Errorf("%s: the exposure is %.1f, want at most %.1f", tt.name, exposure, tt.exposure)
				}
			}
		})
	}
}

// exposure returns the exposure of the service with its drop-ins according to systemd-analyze(1),
// from 0 to 10.
func (m *machine) exposure() float64 {
	m.t.Helper()
	said := m.run("systemd-analyze security --no-pager dpsd.service")
	found := regexp.MustCompile(`Overall exposure level for dpsd.service: ([0-9.]+) `).FindStringSubmatch(said)
	if found == nil {
		m.t.Fatalf("systemd-analyze security says no exposure:\n%s", said)
	}
	exposure, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return exposure
}

// inSandbox runs a program once in place of dpsd, with all other settings of the service, and
// returns its output. It fails if the program runs in the user namespace of the machine
// (PrivateUsers=).
func (m *machine) inSandbox(program string) string {
	m.t.Helper()
	lines := []string{
		"[Unit]", "ConditionPathExistsGlob=",
		"[Service]", "Type=oneshot", "Restart=no", "WatchdogSec=0", "StandardOutput=truncate:/run/printed", "StandardError=inherit",
		"ExecStart=", `ExecStart=/bin/sh -c "readlink /proc/self/ns/user; exec ` + program + `"`,
	}
	m.run("mkdir -p /run/systemd/system/dpsd.service.d && printf '%s\\n' '" + strings.Join(lines, "' '") + "' >/run/systemd/system/dpsd.service.d/program.conf")
	m.run("rm -f /run/printed; systemctl daemon-reload; systemctl start dpsd.service || true")
	namespace, printed, _ := strings.Cut(m.run("cat /run/printed"), "\n")
	if outer := m.run("readlink /proc/self/ns/user"); !strings.HasPrefix(namespace, "user:") || namespace == outer {
		m.t.Fatalf("the user namespace of the service is %q, that of the machine %q", namespace, outer)
	}
	return printed
}

// TestACopyOfTheDiskNeverActsAsTheGateway creates a key in the TPM of a gateway, which then
// registers. A second computer with a copy of the disk and another TPM never contacts the service.
func TestACopyOfTheDiskNeverActsAsTheGateway(t *testing.T) {
	t.Parallel()
	needTPM(t)
	c := newComputer(t, "trixie") // one release is enough, because the result does not depend on systemd
	c.install()
	sim := simulator.Start(t, simulator.Options{})
	first := c.boot()
	for path, f := range configured(sim, `type = "x509"
certificate = "file:/etc/dpsd/keys/device.pem"
private_key = "file:/etc/dpsd/keys/device.tss2"`) {
		first.write(path, f)
	}
	first.run("dpsd tpm create-key --csr /root/gateway.csr")
	first.write("etc/dpsd/keys/device.pem", file{text: enrolled(t, sim, first.run("cat /root/gateway.csr")), mode: 0o644})
	first.run("install -D -m 644 " + example + " /etc/systemd/system/dpsd.service.d/tpm.conf && systemctl daemon-reload && systemctl start --no-block dpsd.service")
	assigned := first.next("assigned")
	t.Logf("%7.3f s  assigned", assigned.at.Seconds())
	first.until("active and disconnected", func(s service) bool { return s.state == "active" && closedAll(sim.Log()) })
	first.off()

	contacts := len(sim.Log())
	second := c.copied().boot()
	process := ""
	for range 20 {
		failed := second.next("fault")
		// At boot, dpsd may start before udev has given the TPM to the group.
		for failed.fields["_PID"] == process || failed.fields["DPSD_FAULT"] == "tpm-unavailable" {
			failed = second.next("fault")
		}
		process = failed.fields["_PID"]
		if failed.fields["DPSD_FAULT"] != "tpm-key-unusable" {
			t.Errorf("the fault of a copy is not tpm-key-unusable: %s", failed)
		}
		second.until("waiting with the fault in STATUS=", func(s service) bool {
			return s.state == "activating" && strings.Contains(s.status, "tpm-key-unusable")
		})
		second.run("systemctl restart --no-block dpsd.service")
	}
	if n := second.count("assigned"); n != 0 {
		t.Errorf("a copy was assigned %d times", n)
	}
	if now := sim.Log(); len(now) != contacts {
		t.Errorf("a copy contacted the service: %+v", now[contacts:])
	}
	second.off()

	again := c.boot()
	assigned = again.next("assigned")
	t.Logf("%7.3f s  assigned after the next boot", assigned.at.Seconds())
}

// enrolled issues a certificate for a certificate request, and enrolls it in the service.
func enrolled(t *testing.T, sim *simulator.Local, request string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(request))
	if block == nil {
		t.Fatalf("this is not a certificate request: %s", request)
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: parsed.Subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(day),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, leaf, &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}}, parsed.PublicKey, authority)
	if err != nil {
		t.Fatal(err)
	}
	if err := sim.SetEnrollments(&enroll.Enrollments{Individuals: []enroll.Individual{{
		RegistrationID: gateway, Thumbprint: fmt.Sprintf("%x", sha256.Sum256(certificate)), Attestation: enroll.Attestation{Type: "x509"},
	}}}); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
}
