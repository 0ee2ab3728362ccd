package console

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// browser is a Chromium with one page open. What goes wrong in the page, and
// what its Content-Security-Policy had to refuse, fails the test.
type browser struct {
	t    *testing.T
	ctx  context.Context
	base string // of the admin port

	mu       sync.Mutex
	expected []string // parts of messages that the test provokes
}

// chromium is the browser's program, or "" where there is none.
func chromium() string {
	for _, name := range []string{os.Getenv("POSTWIRE_TEST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func open(t *testing.T, base string) *browser {
	t.Helper()
	path := chromium()
	if path == "" {
		if os.Getenv("POSTWIRE_TEST_CHROMIUM") != "" {
			t.Fatal("POSTWIRE_TEST_CHROMIUM is set, and names no program")
		}
		t.Skip("needs Chromium: install it, or name it by POSTWIRE_TEST_CHROMIUM")
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("force-color-profile", "srgb"),
		chromedp.Flag("hide-scrollbars", true), chromedp.UserDataDir(t.TempDir()))
	ctx, cancel := chromedp.NewContext(allocator)
	b := &browser{t: t, ctx: ctx, base: base}
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, 900)); err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	console, err := chromedp.Run(ctx, func(ctx context.Context, _ *chromedp.Target) (func(func(chromedp.ConsoleMessage, error) bool), error) {
		return chromedp.Console(ctx), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		for m, err := range console {
			if err != nil {
				return
			}
			b.said(m.String())
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			b.shot("failed")
		}
		b.violations()
		cancel()
		stop()
		<-listening
	})
	// Whatever the policy refuses is kept, from the first script of each page on.
	b.js(nil, `void 0`)
	return b
}

// said fails the test for what the page complains of.
func (b *browser) said(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, part := range b.expected {
		if strings.Contains(text, part) {
			return
		}
	}
	b.t.Errorf("the page says: %s", text)
}

// expect lets a complaint pass that the test provokes.
func (b *browser) expect(part string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, part)
}

// js evaluates an expression in the page.
func (b *browser) js(into any, expression string, args ...any) {
	b.t.Helper()
	for i, a := range args {
		text, err := json.Marshal(a)
		if err != nil {
			b.t.Fatal(err)
		}
		args[i] = string(text)
	}
	expression = fmt.Sprintf(expression, args...)
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[json.RawMessage]("Promise.resolve("+expression+").then((v) => JSON.stringify(v === undefined ? null : v))", chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	if into == nil {
		return
	}
	var text string
	if err := json.Unmarshal(result, &text); err != nil {
		b.t.Fatalf("%s: %s: %v", expression, result, err)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		b.t.Fatalf("%s: %s: %v", expression, text, err)
	}
}

// until waits for an expression to be true.
func (b *browser) until(expression string, args ...any) {
	b.t.Helper()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); ; <-tick.C {
		ok := false
		b.js(&ok, "!!("+expression+")", append([]any(nil), args...)...)
		if ok {
			return
		}
		if time.Now().After(end) {
			var text string
			b.js(&text, "document.body.innerText")
			b.t.Fatalf("timed out: "+expression+"\nthe page shows:\n%s", append(args, text)...)
		}
	}
}

// shows waits for a text in the page, in the case in which it is written.
func (b *browser) shows(text string) {
	b.t.Helper()
	b.until("document.body.innerText.includes(%s)", text)
}

// open shows a page of the console.
func (b *browser) page(name, heading string) {
	b.t.Helper()
	b.js(nil, "location.hash = %s", "#/"+name)
	b.until("document.querySelector('main h1')?.textContent.includes(%s) && document.activeElement === document.querySelector('main h1')", heading)
}

// find waits for an element.
func (b *browser) find(selector string) {
	b.t.Helper()
	b.until("document.querySelector(%s)?.disabled !== true && document.querySelector(%s)", selector, selector)
}

// click clicks an element with the mouse, where nothing covers it.
func (b *browser) click(selector string) {
	b.t.Helper()
	b.find(selector)
	b.until(`(() => {
		const el = document.querySelector(%s);
		el.scrollIntoView({block: "center"});
		const r = el.getClientRects()[0]; // of the first line, where there are several
		if (!r) return false;
		window.spot = [r.x + r.width / 2, r.y + r.height / 2];
		const there = document.elementFromPoint(...spot);
		return el === there || el.contains(there);
	})()`, selector)
	var spot [2]float64
	b.js(&spot, "spot")
	b.do(chromedp.MouseClickXY(spot[0], spot[1]))
}

// fill types into a field, in place of what was there.
func (b *browser) fill(selector, text string) {
	b.t.Helper()
	b.find(selector)
	b.js(nil, "(document.querySelector(%s).focus(), document.querySelector(%s).select())", selector, selector)
	if text == "" {
		text = kb.Delete
	}
	b.do(chromedp.KeyEvent(text))
}

// confirm agrees in the dialog that is open.
func (b *browser) confirm() {
	b.t.Helper()
	b.click("dialog button[type=submit]")
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// signIn opens the console with a token; an empty one is not asked for.
func (b *browser) signIn(token string) {
	b.t.Helper()
	b.do(chromedp.Navigate(b.base + "/console/"))
	b.js(nil, `(window.violations = [], addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective + " " + e.blockedURI)), 1)`)
	if token != "" {
		b.find("#token")
		b.fill("#token", token)
		b.click("form.door button[type=submit]")
	}
	b.until("document.querySelector('main h1') && document.querySelector('nav')")
}

// violations fails the test for what the Content-Security-Policy had to refuse.
// Chromium tells of it in the console too, where said hears it.
func (b *browser) violations() {
	if b.ctx.Err() != nil {
		return
	}
	var refused []string
	b.js(&refused, "window.violations || []")
	for _, r := range refused {
		b.t.Errorf("the policy refused: %s", r)
	}
}

// look is how the page is shown.
type look struct {
	name  string
	width int64
	theme string
}

func looks() []look {
	return []look{{"light", 1280, "light"}, {"dark", 1280, "dark"}, {"phone", 390, "light"}, {"phone-dark", 390, "dark"}}
}

func (b *browser) wear(l look) {
	b.t.Helper()
	if _, err := chromedp.Run(b.ctx, func(ctx context.Context, _ *chromedp.Target) (struct{}, error) {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.theme}}})
		return struct{}{}, err
	}); err != nil {
		b.t.Fatal(err)
	}
	b.do(chromedp.EmulateViewport(l.width, 900))
	// Two frames later it is drawn.
	b.js(nil, "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(() => drawn(1))))")
}

// shot keeps a picture of the page in the folder POSTWIRE_TEST_SCREENSHOTS.
func (b *browser) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("POSTWIRE_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	image, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.MkdirAll(dir, 0o750)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png"), image, 0o600)
	}
	if err != nil {
		b.t.Logf("taking a picture: %v", err)
	}
}

// shots keeps a picture in each look, and ends in the first.
func (b *browser) shots(name string) {
	b.t.Helper()
	for _, l := range looks() {
		b.wear(l)
		var overflow int
		b.js(&overflow, "document.documentElement.scrollWidth - document.documentElement.clientWidth")
		if overflow > 0 {
			b.t.Errorf("%s, %s: the page is %d pixels wider than the screen", name, l.name, overflow)
		}
		b.shot(name + "-" + l.name)
	}
	b.wear(looks()[0])
}
