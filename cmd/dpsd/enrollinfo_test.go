package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestAQRCodeIsOnlyPrintedWhereItFits(t *testing.T) {
	for _, row := range []struct {
		name string
		out  terminal
		want string // the beginning of the first row, or ""
	}{
		{"a terminal of its width", terminal{attended: true, columns: 29}, "█████"},
		{"a terminal with colours of its own", terminal{attended: true, coloured: true, columns: 80}, "\x1b[97;40m█████"},
		{"a narrower terminal", terminal{attended: true, columns: 28}, ""},
		{"a file", terminal{columns: 20}, "█████"},
	} {
		var text bytes.Buffer
		row.out.Writer = &text
		err := printQR(&row.out, "gw-1")
		switch {
		case row.want == "":
			if err == nil || err.Error() != "the QR code needs a terminal with at least 29 columns, but this one has 28" || text.Len() > 0 {
				t.Errorf("%s: %v\n%s", row.name, err, text.String())
			}
		case err != nil || !strings.HasPrefix(text.String(), row.want) || !strings.HasSuffix(text.String(), "\ngw-1\n"):
			t.Errorf("%s: %v\n%s", row.name, err, text.String())
		}
	}
}
