package fleet_test

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/fleet"
)

// drawing is the relevant content of an SVG.
type drawing struct {
	texts  []string
	curves [][]string // their points
	dashed int
}

func read(t *testing.T, svg string) (d drawing) {
	t.Helper()
	in := xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			return d
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.CharData:
			if text := strings.TrimSpace(string(token)); text != "" {
				d.texts = append(d.texts, text)
			}
		case xml.StartElement:
			for _, a := range token.Attr {
				switch a.Name.Local {
				case "points":
					d.curves = append(d.curves, strings.Fields(a.Value))
				case "stroke-dasharray":
					d.dashed++
				}
			}
		}
	}
}

func TestWriteSVG(t *testing.T) {
	draw := func(scenario fleet.Scenario) drawing {
		f := fleet.New(scenario, 1500)
		r, err := f.Run()
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := r.WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		return read(t, b.String())
	}
	t.Run("both axes of both panels have units and numbers, and each curve of several a name", func(t *testing.T) {
		d := draw(fleet.Power)
		for _, text := range []string{
			"1500 gateways with dpsd: provisioned, %", "Requests per second that reach the service, mean over 1s",
			"seconds after the start", "all", "429 responses", "5xx responses", "0", "20", "100",
		} {
			if !slices.Contains(d.texts, text) {
				t.Errorf("no %q in %q", text, d.texts)
			}
		}
	})
	t.Run("the first curve ends where all are provisioned", func(t *testing.T) {
		d := draw(fleet.Power)
		if len(d.curves) != 4 {
			t.Fatalf("%d curves", len(d.curves))
		}
		first, last := d.curves[0][0], d.curves[0][len(d.curves[0])-1]
		if !strings.HasSuffix(first, ",245.0") || !strings.HasSuffix(last, ",40.0") {
			t.Errorf("it goes from %s to %s, want from the bottom, 245, to the top, 40", first, last)
		}
	})
	t.Run("hours are drawn in few points, and the time when the cause is removed is marked in both panels", func(t *testing.T) {
		d := draw(fleet.WrongKey)
		if n := len(d.curves[0]); n > 351 || n < 100 {
			t.Errorf("%d points", n)
		}
		if d.dashed != 2 || !slices.Contains(d.texts, "hours after the start") {
			t.Errorf("%d dashed lines, %q", d.dashed, d.texts)
		}
	})
	t.Run("a rehearsal in which nothing happened is drawn as well", func(t *testing.T) {
		var b strings.Builder
		if err := (&fleet.Result{Fleet: fleet.Fleet{Devices: 1, Since: time.Hour}}).WriteSVG(&b); err != nil {
			t.Fatal(err)
		}
		if d := read(t, b.String()); len(d.curves) != 4 || strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
			t.Errorf("%s", b.String())
		}
	})
}
