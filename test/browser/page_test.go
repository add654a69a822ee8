package browser

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/dpsd-project/dpsd/simulator"
)

var screenshots = flag.Bool("screenshots", false, "write the screenshots of the documentation")

// live is true when the page receives updates.
const live = "document.getElementById('state').textContent === 'Live'"

// axe returns the violations of the accessibility rules of WCAG 2.2 level AA that axe finds, and
// those of its best practices.
func axe(b *tab) []string {
	b.t.Helper()
	source, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if err != nil {
		without(b.t, "axe-core")
	}
	b.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.EvaluateAsDevTools[json.RawMessage](string(source)+"; true")(ctx, target)
		return chromedp.Void{}, err
	})
	result := eval[struct {
		Passes     int
		Violations []string
	}](b, `axe.run(document, {resultTypes: ["violations"]}).then(r => ({
		passes: r.passes.length,
		violations: r.violations.flatMap(v => v.nodes.map(n => v.id + ": " + v.help + ": " + n.html + " " + n.failureSummary)),
	}))`)
	if result.Passes < 15 {
		b.t.Errorf("axe has checked %d rules only", result.Passes)
	}
	return result.Violations
}

func TestAxeFindsNoViolationInLightAndDarkAndInANarrowWindow(t *testing.T) {
	browser, s := chromium(t), serve(t)
	empty := serve(t)
	populate(t, s)
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{wide, narrow} {
			for name, view := range map[string]struct {
				s      *service
				target string
				before string // JavaScript
			}{
				"no device":         {empty, "/", ""},
				"the list":          {s, "/", ""},
				"no match":          {s, "/?q=nothing", ""},
				"a filter":          {s, "/?outcome=refused", ""},
				"an assigned one":   {s, "/?device=gateway-17", ""},
				"a refused one":     {s, "/?device=press-3", ""},
				"before CONNECT":    {s, "/?device=", ""},
				"everything opened": {s, "/?device=press-3", "document.querySelectorAll('details').forEach(d => d.open = true)"},
				"paused":            {s, "/?paused=1", ""},
			} {
				t.Run(fmt.Sprintf("%s, %d px, %s", scheme, width, name), func(t *testing.T) {
					b := open(browser, t, view.s.url+view.target, scheme, width)
					b.until("the script runs", "document.getElementById('state').textContent !== ''")
					if view.before != "" {
						b.until("prepared", "("+view.before+", true)")
					}
					for _, v := range axe(b) {
						t.Error(v)
					}
					if got := eval[int64](b, "document.scrollingElement.scrollWidth"); got > width {
						t.Errorf("the page is %d px wide, the window %d px", got, width)
					}
					b.sound(view.s)
				})
			}
		}
	}
}

func TestADeviceAppearsAndIsUpdatedWithoutReloading(t *testing.T) {
	browser, s := chromium(t), serve(t)
	b := open(browser, t, s.url+"/", "light", wide)
	b.until("the view is live", live)
	b.until("mark the document", "(document.documentElement.dataset.mark = 'same', true)")
	device{id: "gateway-1"}.mustRegister(t, s, "200")
	b.until("the device appears", "document.querySelector('#rows tr')?.innerText.includes('Assigned')")
	device{id: "gateway-1", key: wrongKey}.mustRegister(t, s, "401")
	b.until("the device changes", "document.querySelector('#rows tr').innerText.includes('Refused')")
	if got := eval[string](b, "document.documentElement.dataset.mark"); got != "same" {
		t.Error("the document was loaded again")
	}
	b.sound(s)
}

func TestTheKeyboardIsSufficient(t *testing.T) {
	browser, s := chromium(t), serve(t)
	populate(t, s)
	b := open(browser, t, s.url+"/", "light", wide)
	b.until("the view is live", live)
	// tab presses Tab until an element has the focus.
	tabTo := func(id string) {
		t.Helper()
		for range 120 {
			if b.focused() == id {
				visible := eval[bool](b, "(o => o.outlineStyle !== 'none' && parseFloat(o.outlineWidth) >= 2)(getComputedStyle(document.activeElement))")
				if !visible {
					t.Errorf("the focus on %s cannot be seen", id)
				}
				return
			}
			b.press(kb.Tab)
		}
		t.Fatalf("Tab does not lead to %s", id)
	}
	b.press(kb.Tab)
	if got := eval[string](b, "document.activeElement.className"); got != "skip" {
		t.Errorf("the first stop is %q, not the link that skips the header", got)
	}
	b.press(kb.Enter)
	if got := b.focused(); got != "list" {
		t.Errorf("the skip link leads to %q", got)
	}

	// Search, and open a device.
	tabTo("q")
	b.press("p", "r", "e", "s", "s", kb.Enter)
	b.until("the search has one result", "document.querySelectorAll('#rows tr').length === 1")
	if got := b.focused(); got != "q" {
		t.Errorf("after a search, the focus is on %q", got)
	}
	link := eval[string](b, "document.querySelector('#rows a').id")
	tabTo(link)
	b.press(kb.Enter)
	b.until("the device is open, and has the focus", "document.activeElement.id === 'device'")
	if got := b.text("#why"); !strings.Contains(got, "401") {
		t.Errorf("the reason is %q", got)
	}

	// Close the reply, and open it again.
	reply := eval[string](b, "document.querySelector('#packets details[open] summary').id")
	tabTo(reply)
	b.press(kb.Enter)
	b.until("the reply is closed", "!document.querySelector('#packets details[open]')")
	b.press(" ")
	b.until("the reply is open", "!!document.querySelector('#packets details[open]')")

	// Cause a fault for this device, and remove it.
	b.press(kb.Escape)
	b.do(chromedp.Focus("#q"))
	eval[bool](b, "(document.activeElement.blur(), document.body.focus(), scrollTo(0, 0), true)")
	open := func() { tabTo("faults-summary"); b.press(kb.Enter) }
	before := len(s.Faults())
	eval[bool](b, "(document.getElementById('clear').focus(), true)")
	open()
	tabTo("fault")
	b.press("T") // Throttle registrations
	tabTo("cause")
	b.press(kb.Enter)
	b.until("the fault is listed", fmt.Sprintf("document.querySelectorAll('#active li').length === %d", before+1))
	added := s.Faults()[0]
	if added.Rule.Status != 429 || added.Rule.RegistrationID != "press-3" || added.Rule.Times != 1 {
		t.Errorf("%+v", added.Rule)
	}
	tabTo(fmt.Sprintf("remove-%d", added.Number))
	b.press(kb.Enter)
	b.until("the fault is removed", fmt.Sprintf("document.querySelectorAll('#active li').length === %d", before))

	// Pause, resume, and close the device.
	eval[bool](b, "(document.querySelector('.skip').focus(), true)")
	tabTo("pause")
	b.press(kb.Enter)
	b.until("the view is paused", "document.getElementById('state').textContent === 'Paused'")
	tabTo("pause")
	b.press(kb.Enter)
	b.until("the view is live again", live)
	tabTo("close")
	b.press(kb.Enter)
	b.until("the focus returns to the device in the list", "document.activeElement.id === '"+link+"'")

	// Clear.
	eval[bool](b, "(document.querySelector('.skip').focus(), true)")
	tabTo("clear")
	b.press(kb.Enter)
	b.until("the list is empty", "!document.querySelector('#rows')")
	b.sound(s)
}

func TestAnUpdateKeepsTheFocusTheTextAndWhatIsOpen(t *testing.T) {
	browser, s := chromium(t), serve(t)
	device{id: "gateway-1"}.mustRegister(t, s, "200")
	b := open(browser, t, s.url+"/?device=gateway-1", "light", wide)
	b.until("the view is live", live)
	eval[bool](b, `(() => {
		document.querySelector('#packets details').open = true; // the CONNECT
		document.querySelector('#packets details[data-auto]').open = false;
		document.getElementById('fault-device').value = 'typed';
		document.querySelector('#rows a').focus();
		return true;
	})()`)
	focused := b.focused()
	for i := range 3 {
		device{id: fmt.Sprintf("other-%d", i)}.mustRegister(t, s, "200")
	}
	b.until("the other devices appear", "document.querySelectorAll('#rows tr').length === 4")
	if got := b.focused(); got != focused {
		t.Errorf("the focus moved from %q to %q", focused, got)
	}
	if !eval[bool](b, `document.querySelector('#packets details').open && !document.querySelector('#packets details[data-auto]').open && document.getElementById('fault-device').value === 'typed'`) {
		t.Error("an update has changed what the reader opened, closed or typed")
	}
	b.sound(s)
}

func TestASearchDoesNotOvertakeWhatTheReaderDoesNext(t *testing.T) {
	browser, s := chromium(t), serve(t)
	device{id: "gateway-1"}.mustRegister(t, s, "200")
	b := open(browser, t, s.url+"/", "light", wide)
	b.until("the view is live", live)
	// The search waits for a pause in typing; the reader opens the device before.
	eval[bool](b, `(() => {
		const q = document.getElementById('q');
		q.value = 'gate';
		q.dispatchEvent(new Event('input', {bubbles: true}));
		const fetched = fetch;
		window.fetched = [];
		window.fetch = (url, options) => { window.fetched.push(String(url)); return fetched(url, options) };
		document.querySelector('#rows a').click();
		return true;
	})()`)
	b.until("the device is open", "document.activeElement.id === 'device'")
	if got := eval[[]string](b, "new Promise(done => setTimeout(() => done(fetched), 300))"); len(got) != 1 || !strings.Contains(got[0], "device=gateway-1") {
		t.Errorf("requests: %q", got)
	}
	b.sound(s)
}

func TestAPausedViewDoesNotChange(t *testing.T) {
	browser, s := chromium(t), serve(t)
	device{id: "gateway-1"}.mustRegister(t, s, "200")
	b := open(browser, t, s.url+"/", "light", wide)
	b.until("the view is live", live)
	b.do(chromedp.Click("#pause"))
	b.until("the view is paused", "document.getElementById('state').textContent === 'Paused'")
	b.until("the event stream has ended", "performance.getEntriesByType('resource').some(e => e.name.includes('/events'))")
	device{id: "gateway-2"}.mustRegister(t, s, "200")
	if got := eval[int](b, "document.querySelectorAll('#rows tr').length"); got != 1 {
		t.Errorf("%d devices in a paused view", got)
	}
	b.do(chromedp.Click("#pause"))
	b.until("the second device appears", "document.querySelectorAll('#rows tr').length === 2")
	b.sound(s)
}

func TestACommandLineIsCopied(t *testing.T) {
	browser, s := chromium(t), serve(t)
	device{id: "gateway-1"}.mustRegister(t, s, "200")
	b := open(browser, t, s.url+"/?device=gateway-1", "light", wide)
	b.until("the view is live", live)
	// A headless browser has no clipboard permission, so the test looks at what the page writes.
	eval[bool](b, "(navigator.clipboard.writeText = async text => { document.body.dataset.copied = text }, document.getElementById('commands').open = true)")
	b.do(chromedp.Click("#copy-0"))
	b.until("the button confirms", "document.getElementById('copy-0').textContent === 'Copied'")
	if got := eval[string](b, "document.body.dataset.copied"); got != "dpsd-sim credentials --dir sim --registration-id gateway-1" {
		t.Errorf("%q", got)
	}
	b.sound(s)
}

func TestThePageIsAPlainListWithoutJavaScript(t *testing.T) {
	browser, s := chromium(t), serve(t)
	populate(t, s)
	b := open(browser, t, "about:blank", "light", narrow)
	b.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return chromedp.Void{}, err
	}, chromedp.Navigate(s.url+"/"), chromedp.WaitVisible("noscript a"))
	b.do(chromedp.SendKeys("#q", "press\r"), chromedp.WaitNotPresent("#rows tr:nth-child(2)"))
	b.do(chromedp.Click("#rows a"), chromedp.WaitVisible("#why"))
	if got := b.text("#why"); !strings.Contains(got, "401") {
		t.Errorf("the reason is %q", got)
	}
	b.do(chromedp.Click("#packets details:not([open]) summary"), chromedp.WaitVisible("#packets details[open] .raw"))
	b.do(chromedp.Click("#back"), chromedp.WaitVisible("#rows"))
	b.do(chromedp.Click("#clear"), chromedp.WaitVisible("#list .empty"))
}

// What makes a page stutter is counted: the elements in the document, and the bytes that it
// receives. How long the browser was busy depends on the machine, so it is printed only.
func TestTenThousandDevicesCauseAConstantAmountOfWork(t *testing.T) {
	browser, s := chromium(t), serve(t)
	b := open(browser, t, s.url+"/", "light", wide)
	b.until("the view is live", live)
	eval[bool](b, `(() => {
		window.measured = {updates: 0, bytes: 0, rows: 0, elements: 0, tasks: [], frames: 0};
		new PerformanceObserver(list => list.getEntries().forEach(e => measured.tasks.push(e.duration))).observe({type: "longtask"});
		const parse = DOMParser.prototype.parseFromString;
		DOMParser.prototype.parseFromString = function (text, type) { measured.updates++; measured.bytes += text.length; return parse.call(this, text, type) };
		new MutationObserver(() => {
			measured.rows = Math.max(measured.rows, document.querySelectorAll("#rows tr").length);
			measured.elements = Math.max(measured.elements, document.querySelectorAll("*").length);
		}).observe(document.body, {childList: true, subtree: true});
		const frame = () => { measured.frames++; requestAnimationFrame(frame) };
		frame();
		return true;
	})()`)
	const devices = 10_000
	began := time.Now()
	for i := range devices {
		for _, e := range registration(i) {
			s.feed.Add(e)
		}
		if i%1000 == 999 {
			b.until("the browser keeps up", fmt.Sprintf("document.getElementById('chip-').textContent.includes('%s')", map[bool]string{true: "10,000", false: fmt.Sprintf("%d,000", (i+1)/1000)}[i == devices-1]))
		}
	}
	took := time.Since(began)
	m := eval[struct {
		Updates, Bytes, Rows, Elements, Frames int
		Tasks                                  []float64
	}](b, "measured")
	t.Logf("%d devices in %.1f s: %d updates with %d bytes each, %d frames, %d tasks above 50 ms: %.0f ms",
		devices, took.Seconds(), m.Updates, m.Bytes/max(1, m.Updates), m.Frames, len(m.Tasks), m.Tasks)
	if m.Rows != 50 {
		t.Errorf("the list has %d rows, want 50", m.Rows)
	}
	if m.Elements > 1200 {
		t.Errorf("the document has %d elements", m.Elements)
	}
	if most := 2 * (int(took/(500*time.Millisecond)) + 2); m.Updates == 0 || m.Updates > most {
		t.Errorf("%d updates in %v", m.Updates, took)
	}
	if m.Bytes/max(1, m.Updates) > 64<<10 {
		t.Errorf("an update has %d bytes", m.Bytes/max(1, m.Updates))
	}
	b.sound(s)
}

// registration returns what a registration adds to the log.
func registration(i int) []simulator.Entry {
	id, now := fmt.Sprintf("gateway-%05d", i), time.Now()
	number := 1_000_000 + i
	body := `{"operationId":"5.1","status":"assigned","registrationState":{"registrationId":"` + id + `","assignedHub":"dpsd-sim.azure-devices.net","deviceId":"` + id + `","status":"assigned"}}`
	topic := "$dps/registrations/res/200/?$rid=1"
	field := func(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }
	reply := field(topic) + body
	raw := append([]byte{0x30, byte(len(reply)&0x7f | 0x80), byte(len(reply) >> 7)}, reply...)
	entry := func(packet, direction, topic string, raw []byte) simulator.Entry {
		return simulator.Entry{Connection: number, Time: now, Protocol: "mqtt", Packet: packet, Direction: direction, Topic: topic, RegistrationID: id, Size: len(raw), Raw: raw}
	}
	return []simulator.Entry{
		entry("OPEN", "", "", nil), entry("TLS", "", "", nil), entry("CONNECT", "up", "", nil), entry("CONNACK", "down", "", nil),
		entry("SUBSCRIBE", "up", "", nil), entry("SUBACK", "down", "", nil),
		entry("PUBLISH", "up", "$dps/registrations/PUT/iotdps-register/?$rid=1", nil),
		entry("PUBLISH", "down", topic, raw), entry("DISCONNECT", "up", "", nil), entry("CLOSE", "", "", nil),
	}
}

func TestTheScreenshotsOfTheDocumentation(t *testing.T) {
	browser, s := chromium(t), serve(t)
	populate(t, s)
	for _, shot := range []struct {
		name, scheme, target string
		width, height        int64
		scale                float64
	}{
		{"light", "light", "/?device=press-3", wide, 1240, 1.5},
		{"dark", "dark", "/?device=gateway-17", wide, 1240, 1.5},
		{"narrow", "light", "/?device=press-3", narrow, 960, 2},
	} {
		b := open(browser, t, s.url+shot.target, shot.scheme, shot.width)
		b.do(chromedp.EmulateViewport(shot.width, shot.height, chromedp.EmulateScale(shot.scale)))
		b.until("the view is live", live)
		image, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
		if err != nil || len(image) == 0 {
			t.Fatal(err)
		}
		if *screenshots {
			if err := os.WriteFile("../../docs/images/simulator-"+shot.name+".png", image, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b.sound(s)
	}
}
