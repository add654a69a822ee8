package setup_test

import (
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/setup"
)

// picture writes the picture of a terminal that displays a QR code.
func picture(t *testing.T, code string) string {
	t.Helper()
	const size = 6 // pixels of a module
	rows := strings.Split(strings.TrimSuffix(code, "\n"), "\n")
	width := len([]rune(rows[0]))
	img := image.NewGray(image.Rect(0, 0, width*size, 2*len(rows)*size))
	for y, row := range rows {
		if len([]rune(row)) != width {
			t.Fatalf("row %d has a different width:\n%s", y, code)
		}
		for x, block := range []rune(row) {
			for half := range 2 {
				if light := block == '█' || block == '▀' && half == 0 || block == '▄' && half == 1; !light {
					continue
				}
				for px := range size * size {
					img.SetGray(x*size+px%size, (2*y+half)*size+px/size, color.Gray{Y: 255})
				}
			}
		}
	}
	path := filepath.Join(t.TempDir(), "screen.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := png.Encode(f, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAQRCodeOnATerminalIsReadByAScanner(t *testing.T) {
	if _, err := exec.LookPath("zbarimg"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("zbarimg is not installed: apt install zbar-tools")
	}
	for _, text := range []string{"gw-1", "3d1219c7c4c5404aaa1f6d2a48adfda4", "A.b:c_d-", strings.Repeat("g", 128)} {
		code, err := setup.QR(text)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("zbarimg", "--quiet", "--raw", picture(t, code)).Output()
		if err != nil || strings.TrimSpace(string(out)) != text {
			t.Errorf("%s: the scanner reads %q, %v:\n%s", text, out, err, code)
		}
	}
}

func TestAMachineIDFitsOnAConsoleOf80By24(t *testing.T) {
	code, err := setup.QR("3d1219c7c4c5404aaa1f6d2a48adfda4")
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSuffix(code, "\n"), "\n")
	if len(rows) > 22 || len([]rune(rows[0])) > 80 { // below it are the ID and the prompt
		t.Errorf("it has %d rows and %d columns", len(rows), len([]rune(rows[0])))
	}
}

func TestATextThatIsTooLongForAQRCodeIsAnError(t *testing.T) {
	if _, err := setup.QR(strings.Repeat("g", 3000)); err == nil {
		t.Error("no error")
	}
}
