package page_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dpsd-project/dpsd/bench/page"
)

func TestInsert(t *testing.T) {
	const begin, end = "<!-- name:begin -->\n", "<!-- name:end -->\n"
	file := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the text between the markers is replaced, and nothing else", func(t *testing.T) {
		write("before\n" + begin + "old\n" + end + "after\n")
		if err := page.Insert(file, "name", "new\n"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if want := "before\n" + begin + "new\n" + end + "after\n"; err != nil || string(got) != want {
			t.Errorf("the page is %q, want %q (%v)", got, want, err)
		}
	})
	t.Run("a page without the end marker is not changed", func(t *testing.T) {
		write("before\n" + begin + "old\n")
		if err := page.Insert(file, "name", "new\n"); err == nil {
			t.Error("no error")
		}
		if got, _ := os.ReadFile(file); string(got) != "before\n"+begin+"old\n" {
			t.Errorf("the page is %q", got)
		}
	})
}
