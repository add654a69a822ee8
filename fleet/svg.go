package fleet

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The sizes of the drawing in pixels. It has two panels, one above the other.
const (
	svgWidth    = 800
	panelHeight = 300
	panelLeft   = 70 // left edge of the plot; the labels are left of it
	panelRight  = svgWidth - 20
	panelTop    = 40
	panelBottom = panelHeight - 55
	columns     = 350 // points of a curve, at most
)

// The colours can be distinguished with red-green colour blindness (Okabe and Ito).
const (
	blue, orange, vermilion, grey = "#0072b2", "#e69f00", "#d55e00", "#777"
)

// curve is one line of a panel. Its points are evenly spaced over the time axis.
type curve struct {
	name, colour string
	values       []float64
}

// WriteSVG draws how many gateways are provisioned and which requests reach the service, over
// time. It does not use a plotting library, because such a library with its fonts would nearly
// double the size of the program.
func (r *Result) WriteSVG(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="16">
<rect width="100%%" height="100%%" fill="white"/>
`, svgWidth, 2*panelHeight)
	c := r.course((len(r.Seconds) + columns - 1) / columns)
	time := timeAxis(c.length)
	since := min(1, float64(r.Fleet.Since)/float64(c.length))
	drawPanel(out, 0, fmt.Sprintf("%d gateways with %s: provisioned, %%", r.Fleet.Devices, r.Fleet.Client), 100, time, since,
		[]curve{{"", blue, c.provisioned}})
	drawPanel(out, panelHeight, fmt.Sprintf("Requests per second that reach the service, mean over %s", c.bin), max(1, slices.Max(c.requests)), time, since,
		[]curve{{"all", blue, c.requests}, {"429 responses", orange, c.throttled}, {"5xx responses", vermilion, c.failed}})
	fmt.Fprintln(out, "</svg>")
	return out.Flush()
}

// course is a result reduced to a limited number of points, one for each bin of time.
type course struct {
	bin, length                 time.Duration
	provisioned                 []float64 // percent, at the end of the bin
	requests, throttled, failed []float64 // per second, mean
}

func (r *Result) course(seconds int) (c course) {
	seconds = max(1, seconds)
	mean := func(n uint32) float64 { return float64(n) / float64(seconds) }
	provisioned := uint32(0)
	for bin := range slices.Chunk(append(r.Seconds[:len(r.Seconds):len(r.Seconds)], Second{}), seconds) {
		var sum Second
		for _, s := range bin {
			provisioned += s.Provisioned
			sum.Registers += s.Registers + s.Polls
			sum.Throttled += s.Throttled
			sum.Failed += s.Failed
		}
		c.provisioned = append(c.provisioned, 100*float64(provisioned)/float64(r.Fleet.Devices))
		c.requests, c.throttled, c.failed = append(c.requests, mean(sum.Registers)), append(c.throttled, mean(sum.Throttled)), append(c.failed, mean(sum.Failed))
	}
	c.bin = time.Duration(seconds) * time.Second
	c.length = c.bin * time.Duration(len(c.requests))
	return c
}

// axis has ticks and a unit.
type axis struct {
	unit  string
	ticks []tick
}

// tick is a mark at a fraction of the axis length.
type tick struct {
	at    float64
	label string
}

// timeAxis chooses the unit that gives the fewest digits.
func timeAxis(length time.Duration) axis {
	switch {
	case length > 3*time.Hour:
		return axis{"hours", ticks(length.Hours())}
	case length > 3*time.Minute:
		return axis{"minutes", ticks(length.Minutes())}
	}
	return axis{"seconds", ticks(length.Seconds())}
}

// ticks returns four to nine round numbers from 0 to most.
func ticks(most float64) (all []tick) {
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, smaller := range []float64{2, 2.5, 2} { // 5, 2, 1 of a decade
		if most/step >= 4 {
			break
		}
		step /= smaller
	}
	for n := 0; float64(n)*step <= most*1.0001; n++ {
		value := float64(n) * step
		all = append(all, tick{value / most, strconv.FormatFloat(value, 'g', 6, 64)})
	}
	return all
}

// drawPanel draws curves with values from 0 to most, below the given vertical position.
// since is the fraction of the time at which the cause was removed.
func drawPanel(out io.Writer, from int, title string, most float64, time axis, since float64, curves []curve) {
	x := func(share float64) float64 { return panelLeft + share*(panelRight-panelLeft) }
	y := func(share float64) float64 { return panelBottom - share*(panelBottom-panelTop) }
	fmt.Fprintf(out, `<g transform="translate(0 %d)">`+"\n", from)
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(out, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, s)
	}
	rule := func(x1, y1, x2, y2 float64, style string) {
		fmt.Fprintf(out, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
	}
	const grid = `stroke="#ddd"`
	for _, t := range time.ticks {
		rule(x(t.at), y(0), x(t.at), y(1), grid)
		text(x(t.at), panelBottom+20, "middle", t.label)
	}
	for _, t := range ticks(most) {
		rule(x(0), y(t.at), x(1), y(t.at), grid)
		text(panelLeft-8, y(t.at)+5, "end", t.label)
	}
	text(panelLeft, 24, "start", title)
	text(x(0.5), panelBottom+42, "middle", time.unit+" after the start")
	if since > 0 {
		rule(x(since), y(0), x(since), y(1), `stroke="`+grey+`" stroke-dasharray="5 4"`)
	}
	legend := float64(panelTop)
	for _, c := range curves {
		var points strings.Builder
		for n, value := range c.values {
			fmt.Fprintf(&points, "%.1f,%.1f ", x((float64(n)+0.5)/float64(len(c.values))), y(value/most))
		}
		fmt.Fprintf(out, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>`+"\n", c.colour, strings.TrimSpace(points.String()))
		if c.name != "" {
			legend += 20
			rule(panelRight-165, legend-5, panelRight-135, legend-5, `stroke-width="2" stroke="`+c.colour+`"`)
			text(panelRight-127, legend, "start", c.name)
		}
	}
	fmt.Fprintln(out, "</g>")
}
