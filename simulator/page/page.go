package page

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// The limits of a live view.
const (
	interval     = 500 * time.Millisecond // the shortest time between two updates
	writeTimeout = 10 * time.Second       // ends a view whose browser does not read
	maxForm      = 16 << 10
	maxViews     = 32 // live views at the same time; each renders its own
)

// Page serves the page. It works without JavaScript as a plain list; with JavaScript it is live.
//
// It has no authentication, so it must listen on loopback. It refuses requests that a foreign
// website could cause: those with the name of another host, and forms of another origin.
type Page struct {
	// Feed receives the packet log. It is required.
	Feed *Feed
	// Faults are the rules that a reader may change; nil means none.
	Faults Faults
	// Modules returns the IDs of the modules that a device has at its hub; nil means that the page
	// does not show them.
	Modules func(registrationID string) []string
	// Endpoint is where the devices connect.
	Endpoint Endpoint
	// Hosts are names under which the page is available, in addition to localhost and IP
	// addresses.
	Hosts []string

	views atomic.Int64 // live
}

//go:embed static page.html
var files embed.FS

var (
	static    = must(fs.Sub(files, "static"))
	templates = template.Must(template.New("").Funcs(template.FuncMap{
		"thousands": thousands,
		"clock":     func(t time.Time) string { return t.Local().Format("15:04:05.000") },
		"stamp":     func(t time.Time) string { return t.Format(time.RFC3339Nano) },
	}).ParseFS(files, "page.html"))
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err) // the embedded files exist
	}
	return value
}

// regions are the parts of the page that are live, by the names of their templates.
var regions = []string{"controls", "faults", "list", "detail"}

// Handler returns the handler of the page, which owns the whole host except what is mounted at
// other paths.
func (p *Page) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.index)
	mux.HandleFunc("GET /events", p.events)
	mux.HandleFunc("GET /log.jsonl", p.download)
	mux.Handle("GET /static/", http.StripPrefix("/static/", http.FileServerFS(static)))
	mux.HandleFunc("POST /clear", p.clear)
	mux.HandleFunc("POST /faults", p.addFault)
	mux.HandleFunc("POST /faults/remove", p.removeFault)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer, forms would have no origin
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !p.knows(r.Host) {
			http.Error(w, "This page is not served under that host name. Use localhost.", http.StatusMisdirectedRequest)
			return
		}
		if r.Method == http.MethodPost && !sameOrigin(r) {
			http.Error(w, "The request did not come from this page.", http.StatusForbidden)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); r.Method == http.MethodPost && err != nil { // a field that is lost could mean all devices
			http.Error(w, "The form is not valid: "+err.Error(), http.StatusBadRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// knows reports whether a Host header names this page. A website can point its own name to a
// loopback address, but it cannot be an IP address or localhost.
func (p *Page) knows(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = strings.Trim(hostPort, "[]")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	same := func(name string) bool { return strings.EqualFold(name, host) }
	return same("localhost") || slices.ContainsFunc(p.Hosts, same)
}

// sameOrigin reports whether a form comes from this page. Every browser sends the origin. The
// page may be served with and without TLS at the same address.
func sameOrigin(r *http.Request) bool {
	origin, err := url.Parse(r.Header.Get("Origin"))
	return err == nil && (origin.Scheme == "http" || origin.Scheme == "https") && strings.EqualFold(origin.Host, r.Host)
}

func (p *Page) view(q query) view {
	v := p.Feed.view(q)
	v.IDScope = p.Endpoint.IDScope
	if v.Detail != nil {
		v.Detail.Commands = p.Endpoint.commands(v.Detail.ID)
		if p.Modules != nil {
			if ids := p.Modules(v.Detail.ID); len(ids) > 0 {
				v.Detail.Facts = append(v.Detail.Facts, field{"Modules", strings.Join(ids, ", ")})
			}
		}
	}
	if p.Faults != nil {
		v.Allowed, v.Presets, v.Active = true, presets(), activeFaults(p.Faults.Faults())
	}
	return v
}

func (p *Page) index(w http.ResponseWriter, r *http.Request) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, "page.html", p.view(parseQuery(r.URL.Query()))); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = out.WriteTo(w)
}

// events sends the regions of a view whenever they change, as HTML in server-sent events.
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	defer p.views.Add(-1)
	if p.views.Add(1) > maxViews {
		http.Error(w, "Too many live views of this page are open. Close some of them, and reload.", http.StatusServiceUnavailable)
		return
	}
	q := parseQuery(r.URL.Query())
	changed, stop := p.Feed.watch()
	defer stop()
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	previous := map[string]string{}
	for {
		v := p.view(q)
		var out bytes.Buffer
		for _, region := range regions {
			var html strings.Builder
			if err := templates.ExecuteTemplate(&html, region, v); err != nil {
				return
			}
			if html.String() == previous[region] {
				continue
			}
			previous[region] = html.String()
			for line := range strings.Lines(html.String()) {
				fmt.Fprintf(&out, "data: %s\n", strings.TrimRight(line, "\r\n"))
			}
		}
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // not supported by every writer
		if _, err := out.WriteTo(w); err != nil {
			return
		}
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(interval):
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// download returns the entries that are kept, in the form of the packet log.
func (p *Page) download(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Content-Disposition", `attachment; filename="dpsd-sim-log.jsonl"`)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	for e := range p.Feed.Log() {
		if out.Encode(e) != nil {
			return
		}
	}
}

func (p *Page) clear(w http.ResponseWriter, r *http.Request) {
	p.Feed.Clear()
	back(w, r)
}

func (p *Page) addFault(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(w) {
		return
	}
	times, err := strconv.Atoi(r.PostFormValue("times"))
	if err != nil {
		http.Error(w, "The number of times must be a number.", http.StatusBadRequest)
		return
	}
	rule, err := newFault(r.PostFormValue("fault"), strings.TrimSpace(r.PostFormValue("device")), times)
	if err == nil {
		_, err = p.Faults.AddFault(rule)
	}
	if err != nil {
		http.Error(w, "Cannot add the fault: "+err.Error(), http.StatusBadRequest)
		return
	}
	p.Feed.Changed()
	back(w, r)
}

func (p *Page) removeFault(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(w) {
		return
	}
	number, err := strconv.Atoi(r.PostFormValue("number"))
	if err != nil {
		http.Error(w, "The number of the fault is not a number.", http.StatusBadRequest)
		return
	}
	p.Faults.RemoveFault(number) // it may already be removed in another window
	p.Feed.Changed()
	back(w, r)
}

func (p *Page) allowed(w http.ResponseWriter) bool {
	if p.Faults == nil {
		http.Error(w, "Faults are disabled. To enable them, start dpsd-sim with --allow-faults.", http.StatusForbidden)
	}
	return p.Faults != nil
}

// back returns to the view that sent a form.
func back(w http.ResponseWriter, r *http.Request) {
	v, err := url.ParseQuery(r.PostFormValue("view"))
	if err != nil {
		v = nil
	}
	http.Redirect(w, r, "/?"+parseQuery(v).encode(), http.StatusSeeOther) //nolint:gosec // only the query comes from the form
}
