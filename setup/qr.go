package setup

import (
	"strings"

	"rsc.io/qr/coding"
)

// quiet is the width of the light border of a QR code, in modules (ISO/IEC 18004).
const quiet = 4

// QR returns a text as a QR code in lines of block characters. Each character is two modules
// high, so that modules are square on a terminal. The blocks are the light modules, so the
// background must be dark.
func QR(text string) (string, error) {
	code, err := encode(text)
	if err != nil {
		return "", err
	}
	light := func(x, y int) bool { return !code.Black(x, y) } // also true outside the code
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		for x := -quiet; x < code.Size+quiet; x++ {
			switch below := y+1 < code.Size+quiet && light(x, y+1); {
			case light(x, y) && below:
				b.WriteString("█")
			case light(x, y):
				b.WriteString("▀")
			case below:
				b.WriteString("▄")
			default:
				b.WriteString(" ")
			}
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// encode returns the smallest QR code of a text with the lowest level of error correction,
// which is sufficient for a screen. Package qr does the same, but would also link the image
// packages.
func encode(text string) (*coding.Code, error) {
	content := coding.String(text)
	version := coding.Version(coding.MinVersion)
	for content.Bits(version) > version.DataBytes(coding.L)*8 && version < coding.MaxVersion {
		version++
	}
	plan, err := coding.NewPlan(version, coding.L, 0)
	if err != nil {
		return nil, err
	}
	return plan.Encode(content)
}
