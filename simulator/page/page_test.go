package page

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// answer sends a request to a page, with the Host header that a browser sends.
func answer(p *Page, r *http.Request) *httptest.ResponseRecorder {
	if r.Host == "example.com" { // the default of httptest
		r.Host = "localhost:8080"
	}
	w := httptest.NewRecorder()
	p.Handler().ServeHTTP(w, r)
	return w
}

func get(p *Page, target string) *httptest.ResponseRecorder {
	return answer(p, httptest.NewRequest(http.MethodGet, target, nil))
}

func post(p *Page, target, origin string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	return answer(p, r)
}

const own = "http://localhost:8080"

func TestRequestsWithTheNameOfAnotherHostAreRefused(t *testing.T) {
	p := &Page{Feed: &Feed{}, Hosts: []string{"sim.example"}}
	for host, want := range map[string]int{
		"localhost:8080": 200, "LOCALHOST": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "[::1]": 200, "192.0.2.7": 200,
		"sim.example:8080": 200, "rebound.example:8080": 421, "localhost.rebound.example": 421, "127.0.0.1.rebound.example": 421, "": 421,
	} {
		for _, target := range []string{"/", "/log.jsonl", "/static/page.js"} {
			r := httptest.NewRequest(http.MethodGet, target, nil)
			r.Host = host
			w := httptest.NewRecorder()
			p.Handler().ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%q %s: %d, want %d", host, target, w.Code, want)
			}
		}
	}
}

func TestFormsOfOtherOriginsAreRefused(t *testing.T) {
	for origin, want := range map[string]int{
		own: 303, "https://localhost:8080": 303, "": 403, "null": 403, "http://localhost:8081": 403, "ftp://localhost:8080": 403, "http://rebound.example": 403, "http://%": 403,
	} {
		f := &Feed{}
		f.add(entries(1, "a")...)
		p := &Page{Feed: f, Faults: faults(t)}
		if w := post(p, "/clear", origin, nil); w.Code != want {
			t.Errorf("%q: %d, want %d", origin, w.Code, want)
		}
		if total := f.view(query{Page: 1}).Total; (total == 0) != (want == 303) {
			t.Errorf("%q: %d devices are left", origin, total)
		}
		form := url.Values{"fault": {"connack-3"}, "times": {"1"}}
		if w := post(p, "/faults", origin, form); w.Code != want || len(p.Faults.Faults()) == 1 != (want == 303) {
			t.Errorf("%q: %d, %d faults", origin, w.Code, len(p.Faults.Faults()))
		}
	}
}

func TestTheModulesOfADeviceAreShownIfItHasAny(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")...)
	f.add(entries(2, "b")...)
	p := &Page{Feed: f, Modules: func(registrationID string) []string {
		return map[string][]string{"a": {"broker", "<metrics>"}}[registrationID]
	}}
	if body := get(p, "/?device=a").Body.String(); !strings.Contains(body, "<dt>Modules</dt><dd>broker, &lt;metrics&gt;</dd>") {
		t.Error(body)
	}
	if body := get(p, "/?device=b").Body.String(); strings.Contains(body, "Modules") {
		t.Error(body)
	}
}

func TestNoGETRequestChangesAnything(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")...)
	p := &Page{Feed: f, Faults: faults(t)}
	for _, target := range []string{"/clear", "/faults?fault=connack-3&times=1", "/faults/remove?number=0"} {
		if w := get(p, target); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
	if f.view(query{Page: 1}).Total != 1 || len(p.Faults.Faults()) != 0 {
		t.Error("something has changed")
	}
}

func TestEveryAnswerForbidsInlineCodeAndForeignFrames(t *testing.T) {
	p := &Page{Feed: &Feed{}}
	for _, target := range []string{"/", "/log.jsonl", "/static/page.css", "/nothing"} {
		h := get(p, target).Header()
		if h.Get("Content-Security-Policy") != "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'" ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "same-origin" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%s: %v", target, h)
		}
	}
	if w := get(p, "/nothing"); w.Code != 404 {
		t.Error(w.Code)
	}
}

func TestTheNameOfADeviceIsNeverMarkup(t *testing.T) {
	f := &Feed{}
	const evil = `"><script>alert(1)</script>'`
	f.add(entries(1, evil)...)
	p := &Page{Feed: f, Faults: faults(t), Endpoint: Endpoint{Directory: "sim", MQTTPort: 8883}}
	w := get(p, "/?"+query{Page: 1, Device: evil, Selected: true, Text: "script"}.encode())
	body := w.Body.String()
	if w.Code != 200 || strings.Contains(body, "<script>alert") || !strings.Contains(body, "&lt;script&gt;alert(1)") {
		t.Errorf("%d %s", w.Code, body)
	}
	if strings.Contains(body, "mosquitto_sub") {
		t.Error("there are command lines for a name that is not a registration ID")
	}
}

func TestThePageWorksWithoutJavaScript(t *testing.T) {
	f := &Feed{}
	for i := range 60 {
		f.add(entries(i, fmt.Sprintf("gateway-%02d", i))...)
	}
	p := &Page{Feed: f, Endpoint: Endpoint{IDScope: "0ne00000001"}}
	body := get(p, "/?q=gateway").Body.String()
	for _, want := range []string{
		"Devices 1 to 50 of 60", `href="/?page=2&amp;q=gateway"`, `<noscript><a href="/?q=gateway">Reload`, "0ne00000001",
		`href="/?device=gateway-59&amp;q=gateway"`, "Faults are disabled.", `value="gateway"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing", want)
		}
	}
	body = get(p, "/?device=gateway-07").Body.String()
	for _, want := range []string{"<summary", "Client ID", "0000  10", "CONNECT"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

func TestTheDownloadIsAPacketLogWithoutSecrets(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")...)
	f.add(entries(2, "b")...)
	w := get(&Page{Feed: f}, "/log.jsonl")
	log, err := simulator.ReadLog(w.Body)
	if err != nil || len(log) != 8 || log[2].Packet != "CONNECT" || log[2].RegistrationID != "a" {
		t.Errorf("%v: %+v", err, log)
	}
	if !strings.Contains(w.Header().Get("Content-Disposition"), "dpsd-sim-log.jsonl") {
		t.Error(w.Header())
	}
}

// faults returns the faults of a simulator without a scenario.
func faults(t *testing.T) *simulator.Server {
	t.Helper()
	s, err := simulator.New(simulator.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestEachFaultThatThePageOffersIsAValidRule(t *testing.T) {
	for _, preset := range presets() {
		p := &Page{Feed: &Feed{}, Faults: faults(t)}
		device := "gw-*"
		if preset.All {
			device = ""
		}
		w := post(p, "/faults", own, url.Values{"fault": {preset.Name}, "device": {device}, "times": {"2"}, "view": {"q=gw&page=2&evil=1"}})
		if w.Code != 303 || w.Header().Get("Location") != "/?page=2&q=gw" {
			t.Errorf("%s: %d %s %s", preset.Name, w.Code, w.Header().Get("Location"), w.Body)
			continue
		}
		added := p.Faults.Faults()
		if len(added) != 1 || added[0].Rule.Times != 2 || added[0].Rule.RegistrationID != device {
			t.Errorf("%s: %+v", preset.Name, added)
			continue
		}
		if active := activeFaults(added); active[0].Label != preset.Label || active[0].Device != device {
			t.Errorf("%s is shown as %+v", preset.Name, active)
		}
		if w := post(p, "/faults/remove", own, url.Values{"number": {fmt.Sprint(added[0].Number)}}); w.Code != 303 || len(p.Faults.Faults()) != 0 {
			t.Errorf("%s was not removed: %d", preset.Name, w.Code)
		}
	}
}

func TestAWrongFaultIsRefusedWithAReason(t *testing.T) {
	p := &Page{Feed: &Feed{}, Faults: faults(t)}
	for want, form := range map[string]url.Values{
		"there is no fault":      {"fault": {"nothing"}, "times": {"1"}},
		"applies to all devices": {"fault": {"expired"}, "device": {"gw-1"}, "times": {"1"}},
		"must not be negative":   {"fault": {"connack-3"}, "times": {"-1"}},
		"must be a number":       {"fault": {"connack-3"}},
		"pattern":                {"fault": {"connack-3"}, "device": {"gw-["}, "times": {"1"}},
		"cannot add the fault":   {"fault": {"connack-3"}, "device": {"gw-["}, "times": {"0"}},
	} {
		w := post(p, "/faults", own, form)
		if w.Code != 400 || !strings.Contains(strings.ToLower(w.Body.String()), want) {
			t.Errorf("%v: %d %s, want %q", form, w.Code, w.Body, want)
		}
	}
	if len(p.Faults.Faults()) != 0 {
		t.Error("a fault was added")
	}
}

func TestAFormThatIsCutOffOrTooLargeChangesNothing(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "gw-1")...)
	p := &Page{Feed: f, Faults: faults(t)}
	for target, form := range map[string]string{
		"/faults": "fault=connack-3&times=1&device=gw%2", "/clear": "view=" + strings.Repeat("x", maxForm),
	} {
		r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", own)
		if w := answer(p, r); w.Code != 400 || !strings.Contains(w.Body.String(), "The form is not valid") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
	if len(p.Faults.Faults()) != 0 || len(f.names(query{Page: 1})) != 1 {
		t.Error("something has changed")
	}
}

func TestFaultsThatAreNotAllowedCannotBeCaused(t *testing.T) {
	p := &Page{Feed: &Feed{}}
	for _, target := range []string{"/faults", "/faults/remove"} {
		if w := post(p, target, own, url.Values{"fault": {"connack-3"}, "times": {"1"}, "number": {"0"}}); w.Code != 403 || !strings.Contains(w.Body.String(), "--allow-faults") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
}

// stream reads the events of a page.
type stream struct {
	t      *testing.T
	events chan string
}

// live opens a live view. Call it in a bubble; the view ends with the context.
func live(ctx context.Context, t *testing.T, p *Page, target string) *stream {
	r, w := io.Pipe()
	request := httptest.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	request.Host = "localhost"
	go func() {
		p.Handler().ServeHTTP(&pipeWriter{header: http.Header{}, Writer: w}, request)
		w.Close()
	}()
	s := &stream{t: t, events: make(chan string, 1000)}
	go func() {
		defer close(s.events)
		event := ""
		for in := bufio.NewScanner(r); in.Scan(); {
			if line, isData := strings.CutPrefix(in.Text(), "data: "); isData {
				event += line + "\n"
			} else {
				s.events <- event
				event = ""
			}
		}
	}()
	return s
}

// pipeWriter is a ResponseWriter without a network.
type pipeWriter struct {
	header http.Header
	io.Writer
}

func (w *pipeWriter) Header() http.Header { return w.header }
func (w *pipeWriter) WriteHeader(int)     {}
func (w *pipeWriter) Flush()              {}

// next returns the events that have arrived by now.
func (s *stream) next() (all []string) {
	synctest.Wait()
	for {
		select {
		case e := <-s.events:
			all = append(all, e)
		default:
			return all
		}
	}
}

func TestALiveViewReceivesOnlyWhatHasChangedAndNotTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := &Feed{}
		p := &Page{Feed: f, Faults: faults(t)}
		s := live(ctx, t, p, "/events?device=a")
		first := s.next()
		if len(first) != 1 || !strings.Contains(first[0], `id="list"`) || !strings.Contains(first[0], `id="detail"`) || !strings.Contains(first[0], `id="faults"`) {
			t.Fatalf("%q", first)
		}
		for i := range 1000 {
			f.add(entries(i, "b")...)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(interval)
		updates := s.next()
		if len(updates) < 2 || len(updates) > 4 {
			t.Errorf("%d updates in %v and a half", len(updates), time.Second)
		}
		for _, u := range updates {
			if !strings.Contains(u, `id="list"`) || strings.Contains(u, `id="detail"`) || strings.Contains(u, `id="faults"`) {
				t.Errorf("%q", u)
			}
		}
		time.Sleep(time.Hour)
		if late := s.next(); len(late) != 0 {
			t.Errorf("%d updates without a change", len(late))
		}
		post(p, "/faults", own, url.Values{"fault": {"connack-3"}, "times": {"1"}})
		if update := s.next(); len(update) != 1 || !strings.Contains(update[0], `id="faults"`) || strings.Contains(update[0], `id="list"`) {
			t.Errorf("%q", update)
		}
		cancel()
		synctest.Wait()
		if _, open := <-s.events; open {
			t.Error("the view did not end with the request")
		}
		if len(f.watchers) != 0 {
			t.Error("the feed still has a watcher")
		}
	})
}

func TestTheSizeOfAnUpdateDoesNotGrowWithTheNumberOfDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Feed{}
		for i := range 10_000 {
			f.add(entries(i, fmt.Sprintf("gateway-%05d", i))...)
		}
		s := live(t.Context(), t, &Page{Feed: f}, "/events")
		first := s.next()
		if n := strings.Count(first[0], "<tr id="); n != pageSize || len(first[0]) > 64<<10 {
			t.Errorf("%d rows in %d bytes", n, len(first[0]))
		}
	})
}

func TestTheSizeOfThePageDoesNotGrowWithNamesAndTheTextOfTheSearch(t *testing.T) {
	f := &Feed{}
	long := strings.Repeat("<é>", 20_000)
	for i := range 2 * pageSize {
		f.add(entries(i, fmt.Sprint(i, long))...)
	}
	p := &Page{Feed: f}
	for _, target := range []string{"/", "/?q=" + url.QueryEscape(long), "/?device=" + url.QueryEscape("7"+long)} {
		w := get(p, target)
		if w.Code != 200 || w.Body.Len() > 512<<10 {
			t.Errorf("%.20s…: %d, %d bytes", target, w.Code, w.Body.Len())
		}
	}
	if body := get(p, "/?device="+url.QueryEscape("7"+long)).Body.String(); strings.Contains(body, "No packet of this device") {
		t.Error("a device with a long name cannot be selected")
	}
}

func TestCommandLinesContainNoKeyAndSurviveAShell(t *testing.T) {
	e := Endpoint{Host: "localhost", MQTTPort: 8883, WebSocketPort: 8443, IDScope: "0ne00000001", Directory: "/tmp/my sim's", HTTPS: true}
	lines := ""
	for _, c := range e.commands("gw-1") {
		lines += c.Line + "\n"
	}
	for _, want := range []string{
		`dpsd-sim credentials --dir '/tmp/my sim'\''s' --registration-id gw-1`,
		`--cert '/tmp/my sim'\''s/gw-1.pem' --key '/tmp/my sim'\''s/gw-1-key.pem'`,
		`'https://localhost:8443/0ne00000001/registrations/gw-1/register?api-version=2021-06-01'`,
		`--topic '$dps/registrations/res/#'`,
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("%s is missing in\n%s", want, lines)
		}
	}
	e.HTTPS, e.MQTTPort = false, 0
	if all := e.commands("gw-1"); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	for _, id := range []string{"", "a b", "a\nb", "$(id)", "a'b"} {
		if all := e.commands(id); all != nil {
			t.Errorf("%q: %+v", id, all)
		}
	}
}

func TestALiveViewBeyondTheLimitIsRefusedUntilAnotherOneEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := &Page{Feed: &Feed{}}
		for range maxViews {
			live(ctx, t, p, "/events")
		}
		synctest.Wait()
		if w := get(p, "/events"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "Close some of them") {
			t.Error(w.Code, w.Body)
		}
		if w := get(p, "/"); w.Code != http.StatusOK {
			t.Error("the page itself:", w.Code)
		}
		cancel()
		synctest.Wait()
		time.Sleep(interval)
		if n := p.views.Load(); n != 0 {
			t.Error(n, "views are counted after all have ended")
		}
	})
}
