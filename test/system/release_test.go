package system

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// withApt are the systems whose apt installs the release: Debian 12 and 13, and Ubuntu 24.04.
var withApt = append(slices.Clip(suites), suite{"release-noble", 255})

// site is the host of the repositories, in README and in dpsd.sources.
const site = "dpsd-project.github.io"

// releaseDir returns the directory in which "make test-release" has made a release.
func releaseDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DPSD_RELEASE")
	if dir == "" {
		t.Skip("no DPSD_RELEASE: make test-release makes it and runs this")
	}
	return dir
}

// command runs a program of this machine.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// earlier is the version of an earlier release.
const earlier = "0.9.0"

// sites are the directories that the host of the repositories can publish.
type sites struct {
	earlier   string // an earlier release
	current   string // also this release
	foreign   string // this release, signed with another key
	announced string // an earlier release, whose keyring also has this other key
}

// publishedSites makes the repositories, once. The earlier release has the files of this one.
var publishedSites = sync.OnceValues(func() (sites, error) {
	dir := os.Getenv("DPSD_RELEASE")
	work, err := os.MkdirTemp(images.dir, "sites-")
	if err != nil {
		return sites{}, err
	}
	s := sites{filepath.Join(work, "earlier"), filepath.Join(work, "current"), filepath.Join(work, "foreign"), filepath.Join(work, "announced")}
	out, err := exec.Command("sh", "-ec", `
release=$1 version=$2 earlier=$3 work=$4 arch=$(dpkg --print-architecture)
mkdir "$work/dist"
for name in dpsd dpsd-sim; do
	dpkg-deb --raw-extract "$release/dist/${name}_${version}_$arch.deb" "$work/$name"
	sed -i "s/^Version: .*/Version: $earlier/" "$work/$name/DEBIAN/control"
	dpkg-deb --root-owner-group -Znone --build "$work/$name" "$work/dist/${name}_${earlier}_$arch.deb"
done
time=$(../../packaging/version time)
"$release/release" packages -version "$earlier" -time $((time - 86400)) -tree ../.. -dist "$work/dist" -key "$release/key" -archs "$arch"
repository() { # repository NAME DIST KEY TIME
	"$release/release" repository -time "$4" -dist "$2" -repository "$work/$1" -url https://`+site+`/dpsd/ -key "$3" -archs "$arch"
}
mkdir "$work/announced-dist"
cp "$work"/dist/*.deb "$work/announced-dist/"
"$release/release" packages -version "$earlier" -time $((time - 86400)) -tree ../.. -dist "$work/announced-dist" -key "$release/key" -next-key "$release/foreign-key" -archs "$arch"
repository announced "$work/announced-dist" "$release/key" $((time - 86400))
repository earlier "$work/dist" "$release/key" $((time - 86400))
cp -a "$work/earlier" "$work/current"
repository current "$release/dist" "$release/key" "$time"
repository foreign "$release/dist" "$release/foreign-key" "$time"
`, "sites", dir, os.Getenv("DPSD_VERSION"), earlier, work).CombinedOutput()
	if err != nil {
		return s, fmt.Errorf("%w\n%s", err, out)
	}
	return s, nil
})

// web is the host of the repositories, in the network of a gateway, over HTTPS. The gateway
// trusts its certificate.
type web struct {
	g   *gateway
	dir atomic.Pointer[string]
}

// web starts the host, which publishes a directory.
func (g *gateway) web(dir string) *web {
	g.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: site}, DNSNames: []string{site}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write("/usr/local/share/ca-certificates/site.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	g.run("update-ca-certificates >/dev/null 2>&1; echo 127.0.0.2 " + site + " >>/etc/hosts")

	w := &web{g: g}
	w.publish(dir)
	listener := g.listen("127.0.0.2:443")
	server := &http.Server{
		Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Modified-Since") // the releases of this test are of the same second
			http.StripPrefix("/dpsd", http.FileServer(http.Dir(*w.dir.Load()))).ServeHTTP(out, r)
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: patience,
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.ServeTLS(listener, "", "")
	}()
	g.t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return w
}

// publish replaces what the host publishes.
func (w *web) publish(dir string) { w.dir.Store(&dir) }

// onlyOurs removes the repositories of the distribution: the gateway has no network.
const onlyOurs = "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*\n"

// readme returns the commands of README: those for the repository, the installation, the
// connection of the gateway, and the result.
func readme(t *testing.T) (repository, install, connect, result string) {
	t.Helper()
	all := blocks(t, "README.md", "Install", "sh")
	if len(all) != 4 {
		t.Fatalf("README has %d blocks, want the repository, the installation, the connection and the result", len(all))
	}
	return all[0], all[1], all[2], all[3]
}

// The commands of README are run unchanged, on a Debian and an Ubuntu without dpsd. The simulated service has the
// name, the ID scope and the gateway of README.
func TestTheThreeCommandsOfReadmeAssignAGatewayWithTheRelease(t *testing.T) {
	releaseDir(t)
	inEach(t, withApt, func(t *testing.T, s suite) {
		all, err := publishedSites()
		if err != nil {
			t.Fatal(err)
		}
		repository, install, connect, result := readme(t)
		value := func(pattern string) string {
			match := regexp.MustCompile(pattern).FindStringSubmatch(connect)
			if match == nil {
				t.Fatalf("README does not contain %s", pattern)
			}
			return match[1]
		}
		g := booted(t, s)
		g.web(all.current)
		dps := g.service(prompt)
		gateway, scope := value(`--registration-id (\S+)`), value(`--id-scope (\S+)`)
		key := dps.key(gateway)
		dps.write("id-scope", scope+"\n")
		dps.enroll(fmt.Sprintf("[[individual]]\nregistration_id = %q\ntype = \"symmetric-key\"\nprimary_key = %q\n", gateway, key))
		g.write("/usr/local/share/ca-certificates/service.crt", dps.read("ca.pem")+"\n", 0o644)
		g.run("update-ca-certificates >/dev/null 2>&1")
		g.write("/root/"+value(`--key-file (\S+)`), key+"\n", 0o600)
		g.run(onlyOurs)

		began := time.Now()
		for i, script := range []string{repository, install, connect} {
			step := time.Now()
			t.Logf("%s: %s", s.name, g.run(script))
			t.Logf("%s: command %d took %.1f s", s.name, i+1, time.Since(step).Seconds())
		}
		t.Logf("%s: from an empty system to assigned, the three commands took %.1f s", s.name, time.Since(began).Seconds())
		want := strings.TrimSpace(blocks(t, "README.md", "Install", "console")[0])
		if out := g.run(result); out != want {
			t.Errorf("the result is %q, and README shows %q", out, want)
		}
		g.expect("dpsd.service", "ActiveState", "active")
		g.expect("dpsd.service", "UnitFileState", "enabled")
		if out := g.run("dpkg --verify dpsd dpsd-archive-keyring"); out != "" {
			t.Errorf("the installed files differ from those of the packages: %s", out)
		}
	})
}

// damage returns a copy of a published directory in which one byte of each file with the given
// pattern differs.
func damage(t *testing.T, dir, pattern string) string {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "site")
	command(t, "cp", "-a", dir, copied)
	paths, err := filepath.Glob(filepath.Join(copied, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %d files", pattern, err, len(paths))
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/4] ^= 1 // in the signed part of an entry point
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return copied
}

func TestAptRefusesAReleaseWithOneChangedByteOrAForeignKey(t *testing.T) {
	releaseDir(t)
	inEach(t, withApt, func(t *testing.T, s suite) {
		all, err := publishedSites()
		if err != nil {
			t.Fatal(err)
		}
		repository, _, _, _ := readme(t)
		g := booted(t, s)
		w := g.web(all.current)
		g.run(onlyOurs + repository)
		for _, c := range []struct{ name, dir, want string }{
			{"a changed package", damage(t, all.current, "deb/pool/main/dpsd_*.deb"), "Hash Sum mismatch"},
			{"a changed list of packages", damage(t, all.current, "deb/dists/stable/main/binary-*/by-hash/SHA256/*"), "Hash Sum mismatch"},
			{"a changed entry point", damage(t, all.current, "deb/dists/stable/InRelease"), "not signed"},
			{"the key of someone else", all.foreign, "not signed"},
		} {
			w.publish(c.dir)
			out, status := g.try("rm -rf /var/lib/apt/lists; apt-get clean; apt-get update 2>&1 && apt-get -y install dpsd 2>&1")
			if status == 0 || !strings.Contains(out, c.want) {
				t.Errorf("%s: the status is %d, want an error with %q:\n%s", c.name, status, c.want, out)
			}
			if out, status := g.try("dpkg-query -W dpsd"); status == 0 {
				t.Fatalf("%s: it is installed: %s", c.name, out)
			}
		}
		w.publish(all.current) // and without a change, it is installed
		g.run("rm -rf /var/lib/apt/lists; apt-get -qq update && apt-get -qq -y install dpsd")
	})
}

func TestAptUpgradesAGatewayToTheNextRelease(t *testing.T) {
	releaseDir(t)
	inEach(t, withApt, func(t *testing.T, s suite) {
		all, err := publishedSites()
		if err != nil {
			t.Fatal(err)
		}
		repository, install, _, _ := readme(t)
		g := booted(t, s)
		w := g.web(all.earlier)
		g.run(onlyOurs + repository + install)
		provisioned(g, "")
		version := func() string { return g.run("dpkg-query -W -f '${Version} ' dpsd dpsd-archive-keyring") }
		if v := version(); v != earlier+" "+earlier+" " {
			t.Fatalf("the versions are %q", v)
		}
		record, process := g.run("cat /var/lib/dpsd/state.json"), g.show("dpsd.service", "MainPID")

		w.publish(all.current)
		g.timed("the upgrade", "apt-get -qq update && apt-get -qq -y upgrade")
		now := os.Getenv("DPSD_VERSION")
		if v := version(); v != now+" "+now+" " {
			t.Errorf("the versions are %q, want %q twice", v, now)
		}
		g.until("the new process is ready", "systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != "+process)
		if after := g.run("cat /var/lib/dpsd/state.json"); after != record {
			t.Errorf("the record has changed:\n%s", after)
		}
	})
}

func TestAptAcceptsTheNextKeyAfterTheReleaseThatAnnouncesIt(t *testing.T) {
	releaseDir(t)
	inEach(t, withApt, func(t *testing.T, s suite) {
		all, err := publishedSites()
		if err != nil {
			t.Fatal(err)
		}
		repository, install, _, _ := readme(t)
		g := booted(t, s)
		// The first key comes from a release before the announcement.
		w := g.web(all.earlier)
		g.run(onlyOurs + repository)
		w.publish(all.announced)
		g.run(install)
		w.publish(all.foreign)
		g.run("apt-get -qq update && apt-get -qq -y upgrade")
		if v, want := g.run("dpkg-query -W -f '${Version}' dpsd"), os.Getenv("DPSD_VERSION"); v != want {
			t.Errorf("the version is %s, want %s", v, want)
		}
	})
}

// dnfGateway returns a running gateway with dnf instead of apt, with a package that stands for
// ca-certificates of the distribution, whose certificates it has.
func dnfGateway(t *testing.T) *gateway {
	t.Helper()
	t.Parallel()
	dir := releaseDir(t)
	root := filepath.Join(need(t), "release-bookworm")
	if _, err := os.Stat(root); err != nil {
		t.Fatal(err)
	}
	g := gatewayOver(t, suite{"bookworm", 252}, root)
	g.boot()
	stand.Do(func() {
		spec := "Name: ca-certificates\nVersion: 1\nRelease: 1\nSummary: .\nLicense: .\nBuildArch: noarch\n%description\n.\n%files\n"
		work := filepath.Join(dir, "distribution")
		if err := os.MkdirAll(work, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, "ca-certificates.spec"), []byte(spec), 0o644); err != nil {
			t.Fatal(err)
		}
		command(t, "rpmbuild", "-bb", "--define", "_rpmdir "+work, "--define", "_topdir "+work, filepath.Join(work, "ca-certificates.spec"))
		command(t, "createrepo_c", "--quiet", work)
	})
	g.write("/etc/yum.repos.d/distribution.repo", "[distribution]\nname=distribution\nbaseurl=file://"+there+"/release/distribution\ngpgcheck=0\n", 0o644)
	return g
}

var stand sync.Once

// fedora returns the commands for the RHEL family, with the answer "yes".
func fedora(t *testing.T) string {
	t.Helper()
	return strings.ReplaceAll(blocks(t, "docs/install.md", "Fedora and the RHEL family", "sh")[0], "dnf install", "dnf -y install")
}

func TestDnfInstallsUpgradesAndRemovesTheRelease(t *testing.T) {
	releaseDir(t)
	g := dnfGateway(t)
	all, err := publishedSites()
	if err != nil {
		t.Fatal(err)
	}
	before := lines(g.run(listing))
	w := g.web(all.earlier)
	g.timed("the installation with dnf", fedora(t))
	g.expect("dpsd.service", "UnitFileState", "enabled")
	g.expect("dpsd.service", "ActiveState", "inactive") // there is no configuration yet
	g.run("test \"$(stat -c '%a %U:%G' /etc/dpsd/keys)\" = '750 root:dpsd-keys' && test \"$(stat -c '%a %U:%G' /var/lib/dpsd/certificate)\" = '2750 dpsd:dpsd-certificate'")
	provisioned(g, "")
	if out := g.run("rpm --verify dpsd"); out != "" {
		t.Errorf("the installed files differ from those of the package: %s", out)
	}
	record, process := g.run("cat /var/lib/dpsd/state.json"), g.show("dpsd.service", "MainPID")

	w.publish(all.current)
	g.timed("the upgrade with dnf", "dnf -y upgrade --refresh dpsd")
	g.until("the new process is ready", "systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != "+process)
	if out, want := g.run("rpm -q --queryformat '%{VERSION}' dpsd"), os.Getenv("DPSD_VERSION"); out != want {
		t.Errorf("the version is %s, want %s", out, want)
	}

	g.run("dnf -y remove dpsd")
	if after := g.run("cat /var/lib/dpsd/state.json"); after != record {
		t.Errorf("the record has changed:\n%s", after)
	}
	if state, _ := g.try("systemctl is-system-running"); state != "running" {
		t.Errorf("the system is %s", state)
	}
	// What stays until "dpsd forget" and "rm -r /etc/dpsd", and what belongs to the distribution or to the test.
	kept := regexp.MustCompile(`^(/etc/(dpsd|credstore|yum\.repos\.d)|/var/lib/(dpsd|dnf|rpm)|/run/dpsd|/usr/local/share/ca-certificates)(/|$)|^/etc/ssl/certs/|^/root/|^dpsd(-keys|-certificate)?$|` +
		`^/usr/share/(fish(/vendor_completions\.d)?|licenses|zsh/site-functions)$`)
	for _, left := range lines(g.run(listing)) {
		if !slices.Contains(before, left) && !slices.Contains(own, left) && !kept.MatchString(left) {
			t.Errorf("left: %s", left)
		}
	}
}

func TestDnfRefusesAReleaseWithOneChangedByteOrAForeignKey(t *testing.T) {
	releaseDir(t)
	g := dnfGateway(t)
	all, err := publishedSites()
	if err != nil {
		t.Fatal(err)
	}
	w := g.web(all.current)
	g.run(strings.ReplaceAll(fedora(t), "dnf -y install dpsd", "rpm --import https://"+site+"/dpsd/dpsd-archive-keyring.asc"))
	// The client already has the key, and does not get one from the repository.
	g.run("cp /etc/yum.repos.d/dpsd.repo /root/; curl -fsS https://" + site + "/dpsd/dpsd-archive-keyring.asc -o /etc/dpsd-key.asc; sed -i 's|^gpgkey=.*|gpgkey=file:///etc/dpsd-key.asc|' /etc/yum.repos.d/dpsd.repo")
	for _, c := range []struct{ name, dir, want string }{
		{"a changed package", damage(t, all.current, "rpm/dpsd-[0-9]*.rpm"), "hecksum"},
		{"a changed list of packages", damage(t, all.current, "rpm/repodata/*-primary.xml.gz"), "hecksum"},
		{"a changed entry point", damage(t, all.current, "rpm/repodata/repomd.xml"), "GPG"},
		{"the key of someone else", all.foreign, "GPG"},
	} {
		w.publish(c.dir)
		out, status := g.try("dnf clean all >/dev/null; dnf -y install dpsd 2>&1")
		if status == 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: the status is %d, want an error with %q:\n%s", c.name, status, c.want, out)
		}
		if out, status := g.try("rpm -q dpsd"); status == 0 {
			t.Fatalf("%s: it is installed: %s", c.name, out)
		}
	}
	w.publish(all.current) // and without a change, it is installed
	g.run("dnf clean all; dnf -y install dpsd")
}

func TestTheReleaseArchiveInstallsStartsUpgradesAndRemovesDpsd(t *testing.T) {
	releaseDir(t)
	inBoth(t, func(t *testing.T, s suite) {
		g := booted(t, s)
		before := lines(g.run(listing))
		scripts := blocks(t, "docs/install.md", "Other distributions", "sh")
		g.run("cp " + there + "/release/dist/dpsd-[0-9]*-linux-" + runtime.GOARCH + ".tar.gz .")
		g.timed("the installation of the archive", scripts[0])
		g.expect("dpsd.service", "UnitFileState", "enabled")
		g.expect("dpsd.service", "ActiveState", "inactive")
		provisioned(g, "")
		if out := g.run("readlink /proc/$(systemctl show --value -p MainPID dpsd)/exe; setpriv --reuid=nobody --regid=nogroup --clear-groups /usr/local/bin/dpsd status | head -n 1"); out != "/usr/local/bin/dpsd\nassigned, and confirmed by DPS" {
			t.Errorf("the service is %s", out)
		}
		record, process := g.run("cat /var/lib/dpsd/state.json"), g.show("dpsd.service", "MainPID")
		g.run("./dpsd-*-linux-*/install") // an upgrade
		g.until("the new process is ready", "systemctl -q is-active dpsd.service && test $(systemctl show --value -p MainPID dpsd) != "+process)
		g.reboot()
		g.until("dpsd runs after a boot", "systemctl show --value -p ActiveState dpsd | grep -q activ")

		g.run(scripts[1])
		if after := g.run("cat /var/lib/dpsd/state.json"); after != record {
			t.Errorf("the record has changed:\n%s", after)
		}
		// The directories of the archive, and what stays until "dpsd forget" and "rm -r /etc/dpsd".
		kept := regexp.MustCompile(`^(/etc/(dpsd|credstore)|/var/lib/dpsd|/run/dpsd)(/|$)|^/root/|^/var/tmp/systemd-private|^dpsd(-keys|-certificate)?$|^/etc/(sysusers|tmpfiles)\.d$|^/usr/local/[a-z0-9/._-]*$`)
		if left := g.run("find /usr/local -type f"); left != "" {
			t.Errorf("left: %s", left)
		}
		for _, left := range lines(g.run(listing)) {
			if !slices.Contains(before, left) && !slices.Contains(own, left) && !kept.MatchString(left) {
				t.Errorf("left: %s", left)
			}
		}
	})
}
