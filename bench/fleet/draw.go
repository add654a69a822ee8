package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/dpsd-project/dpsd/fleet"
)

// colours can be distinguished with red-green colour blindness (Okabe and Ito).
var colours = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{86, 180, 233, 255},
	color.RGBA{213, 94, 0, 255}, color.RGBA{230, 159, 0, 255}, color.RGBA{90, 90, 90, 255},
}

const width, height = 20 * vg.Centimeter, 11 * vg.Centimeter

// draw writes the plots into a directory.
func (b *bench) draw(dir string) error {
	provisioned, requests := b.provisioned(), b.requests()
	return errors.Join(
		save(filepath.Join(dir, "fleet-power.svg"), provisioned, requests),
		save(filepath.Join(dir, "fleet-scenarios.svg"), b.afterwards()),
	)
}

// span is the displayed time after the power returns.
const span = 16 * time.Minute

func (b *bench) provisioned() *plot.Plot {
	p := panel("Power returns to 10,000 gateways, 1,000 registrations per minute", "minutes after the power returned", "gateways provisioned, %")
	for n, c := range b.power {
		add(p, n, c.name, share(c.result, func(d time.Duration) float64 { return d.Minutes() }, span))
	}
	quota := line(p, plotter.XYs{{X: 0, Y: 0}, {X: gateways / 1000, Y: 100}}, len(colours)-1)
	quota.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Legend.Add("the quota, used evenly", quota)
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, span.Minutes(), 0, 100
	p.X.Tick.Marker = every(2)
	p.Legend.XOffs = width * 43 / 100
	return p
}

// requests shows the mean of every ten seconds, so that the curves can be distinguished.
func (b *bench) requests() *plot.Plot {
	const step = 10
	p := panel("Requests that reach the service, mean over 10 s", "minutes after the power returned", "requests per second")
	for n, c := range b.power {
		var points plotter.XYs
		for from := 0; from < min(int(span.Seconds()), len(c.result.Seconds)); from += step {
			sum := 0
			for _, s := range c.result.Seconds[from:min(from+step, len(c.result.Seconds))] {
				sum += int(s.Registers + s.Polls)
			}
			// A logarithmic scale has no zero.
			points = append(points, plotter.XY{X: float64(from+step/2) / 60, Y: max(0.5, float64(sum)/step)})
		}
		line(p, points, n) // the legend of the other panel applies to both
	}
	capacity := line(p, plotter.XYs{{X: 0, Y: 1000}, {X: span.Minutes(), Y: 1000}}, len(colours)-1)
	capacity.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Legend.Add("5xx above this, in the model", capacity)
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.ConstantTicks{{Value: 1, Label: "1"}, {Value: 10, Label: "10"}, {Value: 100, Label: "100"}, {Value: 1000, Label: "1,000"}}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, span.Minutes(), 0.5, 5000
	p.X.Tick.Marker = every(2)
	p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs = true, width*56/100, -vg.Points(2)
	return p
}

func (b *bench) afterwards() *plot.Plot {
	p := panel("10,000 gateways, default delays", "time after the cause ended", "gateways provisioned, %")
	for n, c := range b.others {
		// A logarithmic scale has no zero.
		add(p, n, c.name, share(c.result, func(d time.Duration) float64 { return max(10, d.Seconds()) }, 24*time.Hour))
	}
	p.X.Scale = plot.LogScale{}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 10, 86400, 0, 100
	p.X.Tick.Marker = plot.ConstantTicks{
		{Value: 10, Label: "10 s"}, {Value: 60, Label: "1 min"}, {Value: 300, Label: "5 min"}, {Value: 900, Label: "15 min"},
		{Value: 3600, Label: "1 h"}, {Value: 4 * 3600, Label: "4 h"}, {Value: 12 * 3600, Label: "12 h"},
	}
	p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs = true, vg.Points(8), -vg.Points(24)
	return p
}

func panel(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size, p.Title.Padding = vg.Points(14), vg.Points(6)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size, axis.Tick.Label.Font.Size = vg.Points(13), vg.Points(12)
		axis.Label.Padding = vg.Points(4)
	}
	p.Legend.TextStyle.Font.Size, p.Legend.ThumbnailWidth, p.Legend.Padding = vg.Points(12), vg.Points(24), vg.Points(1)
	// The legend is at the left because the viewer's font may be wider than the one measured here.
	p.Legend.Left, p.Legend.YOffs = true, vg.Points(8)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{225}, color.Gray{225}
	p.Add(grid)
	return p
}

func line(p *plot.Plot, points plotter.XYs, n int) *plotter.Line {
	l := &plotter.Line{XYs: points, LineStyle: draw.LineStyle{Color: colours[n%len(colours)], Width: vg.Points(2)}}
	p.Add(l)
	return l
}

func add(p *plot.Plot, n int, name string, points plotter.XYs) {
	p.Legend.Add(name, line(p, points, n))
}

// share returns the percentage of provisioned gateways over time, in at most 400 steps.
func share(r *fleet.Result, x func(time.Duration) float64, until time.Duration) plotter.XYs {
	points := plotter.XYs{{X: x(0), Y: 0}}
	each := max(1, len(r.At)/400)
	for n := each - 1; n < len(r.At); n += each {
		at := max(0, r.At[n]-r.Fleet.Since)
		if at > until {
			break
		}
		points = append(points, plotter.XY{X: x(at), Y: 100 * float64(n+1) / float64(r.Fleet.Devices)})
	}
	return points
}

// every puts a tick at each multiple of a number.
func every(step float64) plot.Ticker {
	return plot.TickerFunc(func(least, most float64) (ticks []plot.Tick) {
		for x := math.Ceil(least/step) * step; x <= most; x += step {
			ticks = append(ticks, plot.Tick{Value: x, Label: fmt.Sprint(x)})
		}
		return ticks
	})
}

// save writes panels, one above the other.
func save(file string, panels ...*plot.Plot) error {
	c := vgsvg.New(width, height*vg.Length(len(panels)))
	whole := draw.New(c)
	for n, p := range panels {
		from := height * vg.Length(len(panels)-1-n)
		p.Draw(draw.Crop(whole, vg.Points(4), -vg.Points(10), from+vg.Points(4), from-height*vg.Length(len(panels)-1)-vg.Points(6)))
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(out)
	return errors.Join(err, out.Close())
}
