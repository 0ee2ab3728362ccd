package console

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

func TestSignIn(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.expect("401")
	b.do(chromedp.Navigate(w.admin + "/console/"))
	b.fill("#token", "wrong")
	b.click("form.door button")
	b.shows("Wrong token.")
	b.shots("door")
	b.fill("#token", operatorToken)
	b.click("form.door button")
	b.shows("Signed in as operator")
	var cookies, kept string
	b.js(&cookies, "document.cookie")
	b.js(&kept, "JSON.stringify([{...localStorage}, {...sessionStorage}])")
	if cookies != "" || kept != "[{},{}]" {
		t.Errorf("scripts of the page can read %q and %s", cookies, kept)
	}
	b.do(chromedp.Reload()) // the session is the cookie's
	b.shows("Signed in as operator")
	b.click(".who button")
	b.find("#token")
	var status int
	b.js(&status, `fetch("/api/v1/status").then((r) => r.status)`)
	if status != http.StatusUnauthorized {
		t.Errorf("signed out, the API answers %d", status)
	}
}

// TestSessionsEndByTheClock: a page that is open when its session ends says so,
// and shows nothing more.
func TestSessionsEndByTheClock(t *testing.T) {
	var ahead atomic.Int64
	w := startAt(t, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	b := open(t, w.admin)
	b.expect("401")
	b.signIn(operatorToken)
	ahead.Store(int64(9 * time.Hour))
	b.js(nil, `location.hash = "#/sinks"`)
	b.shows("The session has ended. Sign in again.")
	b.until(`!document.querySelector("nav")`)
}

// TestChangesNeedMoreThanTheCookie: what a browser sends by itself does nothing.
func TestChangesNeedMoreThanTheCookie(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.expect("403")
	b.signIn(operatorToken)
	for _, headers := range []map[string]string{{}, {"X-CSRF-Token": "guessed"}} {
		var status int
		b.js(&status, `fetch("/api/v1/sinks/shaky/pause", {method: "POST", headers: %s}).then((r) => r.status)`, headers)
		if status != http.StatusForbidden {
			t.Errorf("with %v: answered %d", headers, status)
		}
	}
	if s, err := w.client.Status(t.Context()); err != nil || s.Sinks[1].State == "paused" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestViewersLookOnly(t *testing.T) {
	w := start(t)
	w.refuse.Store(true)
	w.post(upload("instagram", "bakery", "1"))
	eventually(t, "it is a dead letter", func() bool {
		count, err := w.client.Count(t.Context(), nil)
		return err == nil && count.Total == 1
	})
	b := open(t, w.admin)
	b.expect("403")
	b.signIn(viewerToken)
	b.shows("Signed in as viewer")
	for page, heading := range map[string]string{
		"overview": "Overview", "events": "Events", "event/1": "upload_completed", "sinks": "Sinks", "dlq": "Dead letters", "entry/1%40shaky": "upload_completed",
		"replays": "Replay", "sources": "Sources", "configuration": "Configuration",
	} {
		b.page(page, heading)
		b.until(`document.querySelectorAll("main *").length > 3`)
		var buttons []string
		b.js(&buttons, `[...document.querySelectorAll("main button")].map((x) => x.innerText)`)
		for _, text := range buttons {
			if !strings.Contains(text, "Search") && !strings.Contains(text, "Follow") && !strings.Contains(text, "Filter") && !strings.Contains(text, "registration") && !strings.Contains(text, "registered webhook") {
				t.Errorf("%s: a viewer is offered %q", page, text)
			}
		}
		var shown string
		b.js(&shown, "document.documentElement.outerHTML")
		if strings.Contains(shown, "A private") || strings.Contains(shown, "who@example.com") {
			t.Errorf("%s: a viewer is shown personal data", page)
		}
	}
	// Nor by asking past the page.
	for _, path := range []string{"/dlq/1@shaky", "/events/1?data=true", "/events/tail?data=true"} {
		var status int
		b.js(&status, `fetch("/api/v1" + %s).then((r) => r.status)`, path)
		if status != http.StatusForbidden {
			t.Errorf("%s: answered %d", path, status)
		}
	}
	var status int
	b.js(&status, `fetch("/api/v1/session").then((r) => r.json()).then((s) => fetch("/api/v1/sinks/shaky/pause", {method: "POST", headers: {"X-CSRF-Token": s.csrf}})).then((r) => r.status)`)
	if status != http.StatusForbidden {
		t.Errorf("a viewer's pause is answered %d", status)
	}
}

// TestMarkupStaysText: a sender writes markup and script into every field there
// is. It is shown as it is written, wherever it is shown.
func TestMarkupStaysText(t *testing.T) {
	w := start(t)
	w.refuse.Store(true)
	const evil = `"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script><svg onload="window.pwned=1">{{7*7}}';window.pwned=1//`
	body, err := json.Marshal(map[string]any{
		"event": "upload_completed", "user_email": evil, "profile_username": evil, "platform": evil, "media_type": evil, "title": evil, "caption": evil, "job_id": evil,
		"result": map[string]any{"success": true, "publish_id": evil, "post_id": evil, "url": "javascript:window.pwned=1", "error": evil}, "created_at": evil, evil: evil,
	})
	if err != nil {
		t.Fatal(err)
	}
	if code := w.post(string(body)); code != http.StatusAccepted {
		t.Fatalf("answered %d", code)
	}
	if err := w.service.Send(t.Context(), []byte(`{"event":`+string(mustJSON(t, evil))+`,"platform":7,`+string(mustJSON(t, evil))+`:1}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a dead letter", func() bool {
		count, err := w.client.Count(t.Context(), nil)
		return err == nil && count.Total >= 1
	})
	page, err := w.client.List(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, w.admin)
	b.signIn(operatorToken)
	harmless := func(where string) {
		t.Helper()
		var found string
		b.js(&found, `[window.pwned ? "a script ran" : "", ...[...document.querySelectorAll("#app img, #app script, #app iframe, #app [onerror], #app [onload], dialog img, dialog script")].map((e) => e.outerHTML), ...[...document.querySelectorAll("a")].map((a) => a.href).filter((h) => !h.startsWith(location.origin))].join(" ")`)
		if strings.TrimSpace(found) != "" {
			t.Errorf("%s: %s", where, found)
		}
	}
	b.page("events", "Events")
	b.shows("<img src=x onerror=")
	harmless("events")
	b.page("event/1", "<img")
	b.click("#content-toggle")
	b.shows("window.pwned=1</script>")
	harmless("event")
	b.shot("event")
	b.page("dlq", "Dead letters")
	b.shows("<img src=x onerror=")
	harmless("dlq")
	for _, e := range page.Entries {
		b.js(nil, `location.hash = "#/entry/" + encodeURIComponent(%s)`, e.ID)
		b.click("#content-toggle")
		b.shows("window.pwned=1")
		harmless("entry " + e.ID)
	}
	b.page("overview", "Overview")
	harmless("overview")
	// And what stands in the address.
	b.js(nil, `location.hash = "#/events?id=" + encodeURIComponent(%s)`, evil)
	b.until(`document.querySelector("#id")?.value.includes("pwned")`)
	harmless("a search in the address")
	b.js(nil, `location.hash = "#/" + encodeURIComponent(%s)`, evil)
	b.shows("There is no such page")
	harmless("a page in the address")
	// The live tail, too.
	b.page("events", "Events")
	b.click("#live")
	b.shows("Waiting for the next event")
	w.post(upload(evil, evil, "live"))
	b.until(`document.querySelector("#results tbody tr")?.innerText.includes("live")`)
	harmless("live")
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestAnotherSiteGetsNothing: a page of another origin can neither read nor act,
// nor show the console in a frame.
func TestAnotherSiteGetsNothing(t *testing.T) {
	w := start(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.admin+"/api/v1/session", strings.NewReader(`{"token":"`+operatorToken+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "https://evil.example.com")
	resp, err := w.client.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("Access-Control-Allow-Origin") != "" || len(resp.Cookies()) > 0 {
		t.Errorf("answered %s %v", resp.Status, resp.Header)
	}
}
