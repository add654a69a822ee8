// Package browser tests the page of the simulator in a real browser.
package browser

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// The widths of the windows in which the page is tested.
const (
	wide   = 1280
	narrow = 320
)

// tab is a tab of a browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	messages []string // errors and warnings in the console, among them violations of the CSP
	requests []string // addresses
}

// without skips a test because a tool is missing, and fails it in CI.
func without(t *testing.T, tool string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed: make test-browser installs it", tool)
	}
	t.Skipf("%s is not installed: make test-browser installs it", tool)
}

// chromium starts a browser, which ends with the test.
func chromium(t *testing.T) context.Context {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		without(t, "chromium")
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
	}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "hide-scrollbars"} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// open opens a new tab. The scheme is "light" or "dark".
func open(browser context.Context, t *testing.T, address, scheme string, width int64) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 3*patience)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	err := chromedp.Listen(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch event := event.(type) {
		case *network.EventRequestWillBeSent:
			b.requests = append(b.requests, event.Request.URL)
		case *log.EventEntryAdded:
			b.messages = append(b.messages, event.Entry.Text)
		case *runtime.EventExceptionThrown:
			b.messages = append(b.messages, event.ExceptionDetails.Text)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.do(
		func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return chromedp.Void{}, err
		},
		chromedp.EmulateViewport(width, 900),
		chromedp.Navigate(address),
	)
	return b
}

func (b *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval returns the value of a JavaScript expression.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// until waits until a JavaScript expression is true. The page allows no eval, so the expression
// is part of the code.
func (b *tab) until(why, expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	code := `new Promise(done => { const look = () => (` + expression + `) ? done(true) : setTimeout(look, 20); look() })`
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](code, chromedp.EvalAwaitPromise)); err != nil {
		b.t.Fatalf("%s: %s: %v\n%s", why, expression, err, eval[string](b, "document.body.innerText"))
	}
}

// press presses keys, one after the other.
func (b *tab) press(keys ...string) {
	b.t.Helper()
	for _, key := range keys {
		b.do(chromedp.KeyEvent(key))
	}
}

// text returns the text of an element.
func (b *tab) text(selector string) string {
	b.t.Helper()
	name, _ := json.Marshal(selector)
	return eval[string](b, "document.querySelector("+string(name)+")?.innerText ?? ''")
}

// focused returns the id of the element that has the focus.
func (b *tab) focused() string {
	b.t.Helper()
	return eval[string](b, "document.activeElement.id")
}

// sound fails the test if the page has caused an error, or a request to another host.
func (b *tab) sound(s *service) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.messages {
		b.t.Errorf("in the console: %s", m)
	}
	for _, r := range b.requests {
		if !strings.HasPrefix(r, s.url+"/") {
			b.t.Errorf("a request to %s", r)
		}
	}
	if len(b.requests) == 0 {
		b.t.Error("no request was seen")
	}
}
