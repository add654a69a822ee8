package operations

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

const simulatorPage = "../../docs/simulator.md"

// pages are the steps of a person who follows a page exactly, by the name of the block with the
// whole output.
var pages = map[string]func(*gateway){
	"certificates": followCertificates,

	"simulator": func(g *gateway) {
		text, err := os.ReadFile(simulatorPage)
		must(err)
		must(os.Mkdir("/run/developer", 0o755))
		c := g.command("sh", "-eu", "-c", strings.Join(blocksOf(string(text), "dpsd against it", "sh"), ""))
		c.Dir = "/run/developer"
		out, err := c.CombinedOutput()
		if err != nil {
			panic(fmt.Errorf("%w\n%s", err, out))
		}
		g.blocks["simulator"] = string(out)
	},
}

// blocksOf returns the blocks of a language in a section of a page.
func blocksOf(text, heading, language string) (all []string) {
	_, section, _ := strings.Cut(text, "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, match := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(section, -1) {
		all = append(all, match[1])
	}
	return all
}

func TestADeveloperWithoutAnAccountRunsDpsdAgainstTheSimulator(t *testing.T) {
	orSkip(t)
	text, err := os.ReadFile(simulatorPage)
	if err != nil {
		t.Fatal(err)
	}
	shown := blocksOf(string(text), "dpsd against it", "console")
	if len(shown) != 1 {
		t.Fatalf("%d transcripts in the section", len(shown))
	}
	seen := play(t, furnish(t), "simulator")["simulator"]
	rest := mask(seen)
	for line := range strings.Lines(mask(shown[0])) {
		_, after, found := strings.Cut("\n"+rest, "\n"+line)
		if !found {
			t.Errorf("the page shows, and there is not: %sin\n%s", line, seen)
			break
		}
		rest = after
	}
	for _, want := range []string{"DPSD_ASSIGNED_HUB=\"localhost\"\n", "ok       connect (websocket)", "dpsd: unauthorized: ", "assigned, according to the state files: dpsd is not running\n"} {
		if !strings.Contains(seen, want) {
			t.Errorf("following the page does not lead to %q:\n%s", want, seen)
		}
	}
}
