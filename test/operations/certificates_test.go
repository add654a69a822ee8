package operations

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const certificatesPage = "../../docs/certificates.md"

// What systemd does on the page. A gateway of this package has no systemd.
const (
	restartCommand = "systemctl restart --no-block dpsd\n"
	disableCommand = "systemctl stop 'dpsd-hub@*.socket'\nsystemctl disable --now dpsd\n"
)

// certificatesBlocks returns the blocks of a language in a section of the page.
func certificatesBlocks(heading, language string) string {
	text, err := os.ReadFile(certificatesPage)
	must(err)
	all := blocksOf(string(text), heading, language)
	if len(all) == 0 {
		panic(fmt.Sprintf("%s: the section %q has no block of %s", certificatesPage, heading, language))
	}
	return strings.Join(all, "")
}

// withCertificates adds the table of the page to dpsd.toml.
func (g *gateway) withCertificates() {
	g.write("/etc/group", "root:x:0:\ndpsd-certificate:x:0:\n") // this namespace has only one group
	g.write("/etc/dpsd/dpsd.toml", g.read("/etc/dpsd/dpsd.toml")+"\n"+certificatesBlocks("Configuration", "toml"))
}

// followCertificates is the administrator of a gateway that is assigned without a certificate.
func followCertificates(g *gateway) {
	g.serve("")
	g.start()
	g.until("DPSD_EVENT=assigned")
	g.withCertificates()
	g.follow("configuration", certificatesBlocks("Configuration", "sh"))
	g.follow("files", certificatesBlocks("Files", "sh"))
	g.follow("commands", certificatesBlocks("Commands", "sh"))
	g.follow("state", `jq -r .certificate.certificateFile /var/lib/dpsd/state.json
. /var/lib/dpsd/state.env
ls -lL $DPSD_CERTIFICATE_FILE $DPSD_PRIVATE_KEY_FILE
`)
	g.follow("removal", certificatesBlocks("Downgrade and removal", "sh"))
	g.follow("removal", "ls -A /var/lib/dpsd")
}

// follow runs the commands of a page. A command that fails ends the gateway.
func (g *gateway) follow(block, commands string) {
	if before, after, found := strings.Cut(commands, restartCommand); found {
		g.follow(block, before)
		g.stop(&g.dpsd)
		g.start()
		commands = after
	}
	if after, found := strings.CutPrefix(commands, disableCommand); found {
		g.stop(&g.dpsd)
		commands = after
	}
	// The shell prints each command, like a terminal.
	out, err := g.command("sh", "-euvc", commands).CombinedOutput()
	if err != nil {
		panic(fmt.Errorf("%s: %w\n%s", block, err, out))
	}
	g.blocks[block] += string(out)
}

func TestTheCommandsOfTheCertificatesPageWork(t *testing.T) {
	orSkip(t, "openssl")
	seen := play(t, furnish(t), "certificates")
	// The lines of the page are among those of the command, in the same order.
	rest := mask(seen["commands"])
	for line := range strings.Lines(mask(certificatesBlocks("Commands", "console"))) {
		if line == "…\n" {
			continue
		}
		_, after, found := strings.Cut("\n"+rest, "\n"+line)
		if !found {
			t.Errorf("the page shows, and there is not: %sin\n%s", line, seen["commands"])
			break
		}
		rest = after
	}
	for block, wants := range map[string][]string{
		"files": {device, "notAfter="},
		"state": {"/var/lib/dpsd/certificate/2/chain.pem\n", "-rw-r----- 1 root root ", "certificate/current/key.pem\n"},
	} {
		for _, want := range wants {
			if !strings.Contains(seen[block], want) {
				t.Errorf("%s: following the page does not lead to %q:\n%s", block, want, seen[block])
			}
		}
	}
}

// The test above runs the blocks of all sections but "Programs that use the pair";
// TestTheCommandsOfTheCertificatesPageGiveAServiceThePair in test/system runs all of them.
func TestEachCommandOfTheCertificatesPageIsInABlockThatATestRuns(t *testing.T) {
	text, err := os.ReadFile(certificatesPage)
	if err != nil {
		t.Fatal(err)
	}
	run := ""
	sections := []string{"Configuration", "Files", "Commands", "Downgrade and removal", "Programs that use the pair"}
	for _, heading := range sections {
		run += certificatesBlocks(heading, "sh")
	}
	if n := strings.Count(string(text), "\n```sh\n"); n != len(sections) {
		t.Errorf("%d blocks of sh, and %d of them are run", n, len(sections))
	}
	commands := []string{"dpsd", "systemctl", "journalctl", "apt", "openssl", "jq", "usermod", "readlink", "mosquitto", "curl"}
	for _, code := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(string(text), -1) {
		name, arguments, _ := strings.Cut(code[1], " ")
		if arguments != "" && slices.Contains(commands, name) && !strings.Contains(run, code[1]) {
			t.Errorf("no test runs %s", code[1])
		}
	}
}
