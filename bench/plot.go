package main

import (
	"fmt"
	"image/color"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// palette distinguishes the contestants, in greyscale too.
func palette() []color.Color {
	return []color.Color{color.RGBA{0, 90, 181, 255}, color.RGBA{230, 130, 0, 255}, color.RGBA{130, 130, 130, 255}}
}

// drawComparison draws the cost of a registration relative to dpsd, and the time to assigned
// over the round-trip time, as SVG.
func drawComparison(file string, contestants []contestant, near round, far []round) error {
	costs, err := drawCosts(contestants, near)
	if err != nil {
		return err
	}
	times, err := drawTimes(contestants, far)
	if err != nil {
		return err
	}
	canvas := vgsvg.New(26*vg.Centimeter, 11*vg.Centimeter)
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: 12 * vg.Millimeter, PadTop: 2 * vg.Millimeter, PadBottom: 2 * vg.Millimeter, PadLeft: 2 * vg.Millimeter, PadRight: 8 * vg.Millimeter}
	for i, c := range plot.Align([][]*plot.Plot{{costs, times}}, tiles, draw.New(canvas))[0] {
		[]*plot.Plot{costs, times}[i].Draw(c)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// figure is a plot whose text is legible at half its size.
func figure(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = 3 * vg.Millimeter
	for style, size := range map[*text.Style]vg.Length{
		&p.Title.TextStyle: 15, &p.X.Label.TextStyle: 14, &p.Y.Label.TextStyle: 14,
		&p.X.Tick.Label: 13, &p.Y.Tick.Label: 13, &p.Legend.TextStyle: 13,
	} {
		style.Font.Size = vg.Points(float64(size))
	}
	// On the left, the text extends away from its symbol, however wide the reader's font is.
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Millimeter
	return p
}

// drawCosts draws a group of bars for each property, in multiples of dpsd's value.
func drawCosts(contestants []contestant, near round) (*plot.Plot, error) {
	p := figure("Cost of a registration", "below: the values of dpsd", "ratio to dpsd")
	properties := []struct {
		name string
		of   func(sample) float64
		unit string
	}{{"CPU", cpu, "%.0f ms"}, {"peak memory", peak, "%.0f MB"}, {"bytes up", up, "%.0f"}, {"bytes down", down, "%.0f"}}
	const width = 22
	names := make([]string, 0, len(properties))
	for _, property := range properties {
		own := near.medians(property.of)[0]
		names = append(names, property.name+"\n"+fmt.Sprintf(property.unit, own))
	}
	highest := 1.0
	for i, c := range contestants {
		values := make(plotter.Values, 0, len(properties))
		for _, property := range properties {
			all := near.medians(property.of)
			values = append(values, all[i]/all[0])
			highest = max(highest, all[i]/all[0])
		}
		bars, err := plotter.NewBarChart(values, vg.Points(width))
		if err != nil {
			return nil, err
		}
		bars.Color, bars.LineStyle.Width = palette()[i], 0
		bars.Offset = vg.Points(width * (float64(i) - float64(len(contestants)-1)/2))
		p.Add(bars)
		p.Legend.Add(c.name, bars)
		labels := plotter.XYLabels{}
		for x, v := range values {
			labels.XYs = append(labels.XYs, plotter.XY{X: float64(x), Y: v})
			labels.Labels = append(labels.Labels, ratio(v))
		}
		numbers, err := plotter.NewLabels(labels)
		if err != nil {
			return nil, err
		}
		for j := range numbers.TextStyle {
			numbers.TextStyle[j].Font.Size = vg.Points(12)
			numbers.TextStyle[j].XAlign = text.XCenter
		}
		numbers.Offset = vg.Point{X: bars.Offset, Y: vg.Points(2)}
		p.Add(numbers)
	}
	p.NominalX(names...)
	p.Y.Min, p.Y.Max = 0, highest*1.1
	p.Legend.XOffs = 6 * vg.Centimeter // beside the tall bars
	return p, nil
}

// drawTimes draws a line for each contestant.
func drawTimes(contestants []contestant, far []round) (*plot.Plot, error) {
	p := figure("Time to assigned", "simulated round-trip time, ms", "start to end, s")
	p.Add(plotter.NewGrid())
	for i, c := range contestants {
		points := make(plotter.XYs, 0, len(far))
		for j, rtt := range roundTripTimes() {
			points = append(points, plotter.XY{X: float64(rtt.Milliseconds()), Y: far[j].medians(elapsed)[i]})
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = palette()[i], vg.Points(2.5)
		dots.Color, dots.Shape, dots.Radius = palette()[i], []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}[i], vg.Points(4)
		p.Add(line, dots)
		p.Legend.Add(c.name, line, dots)
	}
	p.X.Min, p.Y.Min = 0, 0
	return p, nil
}
