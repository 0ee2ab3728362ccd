package console

import (
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/postwire/postwire/pkg/admin"
)

func TestOverviewSaysWhatNeedsAttention(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.shows("Nothing. Every sink accepts events")
	w.uploads(6)
	eventually(t, "both sinks have them", func() bool { return w.taken.Load() == 6 && w.shaky.Load() == 6 })
	b.until(`document.querySelector('[data-node="source"][data-key="upload-post"]').innerText.includes("Stored\n6")`)
	b.until(`document.querySelectorAll(".wire").length === 4`)
	b.shots("calm")

	w.down.Store(true)
	w.uploads(6)
	b.shows("Delivery to shaky fails")
	b.shows("503 Service Unavailable")
	b.until(`document.querySelector('[data-node="sink"][data-key="shaky"]').innerText.includes("breaker open")`)
	b.until(`document.querySelector('[data-node="sink"][data-key="steady"] .state').innerText.includes("up")`)
	b.shots("trouble")
	w.down.Store(false)
	b.shows("Nothing. Every sink accepts events")
}

func TestEventsAreFoundAndTheirFateIsTold(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	for _, body := range []string{upload("instagram", "bakery", "111"), upload("tiktok", "bakery", "222"), upload("youtube", "runners", "333")} {
		if code := w.post(body); code != 202 {
			t.Fatalf("answered %d", code)
		}
	}
	eventually(t, "they arrive", func() bool { return w.shaky.Load() == 3 && w.taken.Load() == 3 })
	b.signIn(operatorToken)
	b.page("events", "Events")
	b.until(`document.querySelectorAll("#results tbody tr").length === 3`)
	b.fill("#profile", "bakery")
	b.fill("#platform", "tiktok")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until(`!document.querySelector("#results").ariaBusy && document.querySelectorAll("#results tbody tr").length === 1`)
	b.shows("upload_completed/tiktok/222/success")
	b.until(`location.hash.includes("profile=bakery") && location.hash.includes("platform=tiktok")`)
	b.shots("search")

	b.click("#results tbody a")
	b.until(`document.querySelector("main h1")?.textContent === "upload_completed/tiktok/222/success"`)
	b.until(`document.querySelectorAll("main tbody tr").length === 2 && [...document.querySelectorAll("main tbody tr")].every((row) => row.innerText.includes("delivered"))`)
	var shown string
	b.js(&shown, "document.body.innerText")
	if strings.Contains(shown, "A private") || strings.Contains(shown, "who@example.com") {
		t.Error("personal data is shown that nobody asked for")
	}
	var came string
	b.js(&came, `[...document.querySelectorAll("dt")].find((t) => t.innerText === "Received by")?.nextElementSibling.innerText ?? "nothing"`)
	if came != "raw" {
		t.Errorf("the event came by %q", came)
	}
	b.shots("event")
	b.click("#content-toggle")
	b.shows("A private caption")
	b.click("#content-toggle")
	b.until(`!document.body.innerText.includes("A private")`)

	b.click(`button[data-sink="shaky"]`)
	b.shows("Send this event to shaky again?")
	b.confirm()
	eventually(t, "it arrives again", func() bool { return w.shaky.Load() == 4 })
	if ids := w.delivered(); ids[3] != "upload_completed%2Ftiktok%2F222%2Fsuccess" && ids[3] != "upload_completed/tiktok/222/success" {
		t.Errorf("what arrived is %s", ids[3])
	}
	b.page("replays", "Replay")
	b.shows("1 of 1")
}

func TestFatesAfterTrouble(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.expect("404")
	w.post(upload("instagram", "bakery", "1"))
	eventually(t, "it arrives", func() bool { return w.shaky.Load() == 1 })
	w.restart()
	w.refuse.Store(true)
	w.post(upload("instagram", "bakery", "2"))
	b.signIn(operatorToken)
	b.page("event/1", "upload_completed")
	b.until(`[...document.querySelectorAll("main tbody tr")].every((row) => row.innerText.includes("about "))`) // a restart has not forgotten when
	b.page("event/2", "upload_completed")
	b.shows("dead letter")
	b.shows("invalid for the broker")
	b.shows("422 Unprocessable Entity")
	b.shots("refused")
	b.page("event/99", "Event")
	b.shows("the event has expired or never existed")
}

func TestLiveTail(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.page("events", "Events")
	b.shows("No event is stored yet")
	b.fill("#platform", "tiktok")
	b.click("#live")
	b.shows("Waiting for the next event")
	b.until(`document.querySelector("#live").getAttribute("aria-pressed") === "true"`)
	w.post(upload("instagram", "bakery", "not this one"))
	w.post(upload("tiktok", "it's 100%", "that one"))
	b.until(`[...document.querySelectorAll("#results tbody tr")][0]?.innerText.includes("that one")`)
	b.until(`[...document.querySelectorAll("#results tbody tr")][0]?.innerText.match(/delivered/g)?.length === 2`)
	b.until(`!document.querySelector("#results").innerText.includes("not this one")`)
	b.shots("live")
	b.fill("#profile", "it's 100%")
	b.click("#live")
	b.click("#live")
	b.shows("Waiting for the next event")
	w.post(upload("tiktok", "it's 100%", "quoted"))
	b.until(`[...document.querySelectorAll("#results tbody tr")][0]?.innerText.includes("quoted")`)
	b.fill("#profile", "")
	b.fill("#platform", "")
	b.fill("#source", "raw")
	b.click("#live")
	b.click("#live")
	b.shows("Waiting for the next event")
	w.uploads(1) // to the other source
	w.post(upload("youtube", "runners", "by this one"))
	b.until(`document.querySelectorAll("#results tbody tr").length === 1 && document.querySelector("#results tbody tr").innerText.includes("by this one")`)
	b.click("#live")
	b.until(`document.querySelector("#live").getAttribute("aria-pressed") === "false"`)
}

func TestPauseOutlivesARestart(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.page("sinks", "Sinks")
	b.click(`[data-key="shaky"] [data-act="pause"]`)
	b.shows("The pause outlives a restart")
	b.shot("dialog")
	b.confirm()
	b.until(`document.querySelector('[data-key="shaky"]').innerText.includes("paused")`)
	b.expect("401") // the restart ends the session
	b.expect("ERR_")
	b.expect("Failed to load")
	w.restart()
	w.uploads(3)
	eventually(t, "the other sink has them", func() bool { return w.taken.Load() == 3 })
	b.signIn(operatorToken)
	b.page("sinks", "Sinks")
	b.until(`document.querySelector('[data-key="shaky"]').innerText.includes("paused")`)
	b.until(`/Lag\s+3/.test(document.querySelector('[data-key="shaky"] .facts').innerText)`)
	if n := w.shaky.Load(); n != 0 {
		t.Errorf("a paused sink was given %d events", n)
	}
	b.shots("paused")
	b.click(`[data-key="shaky"] [data-act="resume"]`)
	b.shows("3 pending events will be delivered")
	b.confirm()
	eventually(t, "they arrive", func() bool { return w.shaky.Load() == 3 })
	b.until(`document.querySelector('[data-key="shaky"] .state').innerText.includes("up")`)
}

func TestSinksTellTheirErrors(t *testing.T) {
	w := start(t)
	w.down.Store(true)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	w.uploads(2)
	b.page("sinks", "Sinks")
	b.until(`document.querySelector('[data-key="shaky"]').innerText.includes("503 Service Unavailable")`)
	b.until(`document.querySelector('[data-key="shaky"]').innerText.includes("Waiting after a failure")`)
	b.until(`/attempts from/.test([...document.querySelectorAll('[data-key="shaky"] .troubles')].map((e) => e.innerText).join())`)
	b.shots("errors")
	b.click(`[data-key="shaky"] [data-act="dead-letter"]`)
	b.shows("Turn this event into a dead letter?")
	b.confirm()
	b.shows("becomes a dead letter")
	count, err := w.client.Count(t.Context(), nil)
	if err != nil || count.Total != 1 {
		t.Errorf("there are %+v, %v", count, err)
	}
	w.down.Store(false)
	eventually(t, "the other event arrives", func() bool { return w.shaky.Load() == 1 })
	b.until(`!document.querySelector('[data-key="shaky"]').innerText.includes("Waiting after a failure")`)
}

func TestDeadLettersAreRetriedAndDropped(t *testing.T) {
	w := start(t)
	w.refuse.Store(true)
	b := open(t, w.admin)
	b.expect("422")
	w.uploads(5)
	if err := w.service.Send(t.Context(), []byte(`{"event":"upload_completed","title":"A private title"}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all entries are in the DLQ", func() bool {
		count, err := w.client.Count(t.Context(), nil)
		return err == nil && count.Total == 6
	})
	b.signIn(operatorToken)
	b.shows("5 dead letters of shaky: invalid for the broker")
	b.page("dlq", "Dead letters and quarantine")
	b.until(`document.querySelectorAll("section:last-of-type tbody tr").length === 6`)
	b.shots("list")

	// One is read.
	b.page("dlq?kind=quarantine", "Dead letters and quarantine")
	b.until(`document.querySelectorAll("section:last-of-type tbody tr").length === 1`)
	b.click("section:last-of-type tbody a")
	b.shows("malformed for the source")
	var shown string
	b.js(&shown, "document.body.innerText")
	if strings.Contains(shown, "A private") {
		t.Error("personal data is shown that nobody asked for")
	}
	b.click("#content-toggle")
	b.shows("A private title")
	b.shots("entry")
	b.click(`[data-act="retry"]`)
	b.confirm()
	b.shows("the source cannot convert the request")
	b.click(`dialog button[type="button"]`)
	b.click(`[data-act="drop"]`)
	b.confirm()
	b.shows("The entry is dropped.")

	// Some are dropped, after it was said how many.
	b.page("dlq?kind=dead_letter", "Dead letters and quarantine")
	b.until(`document.querySelectorAll("section:last-of-type tbody tr").length === 5`)
	for range 2 {
		b.click("section:last-of-type tbody input:not(:checked)")
	}
	b.click(`[data-act="drop-chosen"]`)
	b.shows("Drop 2 entries?")
	b.confirm()
	b.shows("2 entries dropped.")

	// All of a reason are retried, as they were counted.
	w.refuse.Store(false)
	b.click(`[data-act="retry-reason"]`)
	b.shows("Retry 3 entries?")
	b.shows("3 dead letters of shaky: invalid for the broker")
	b.shot("preview")
	b.confirm()
	b.shows("3 entries retried.")
	eventually(t, "they arrive", func() bool { return w.shaky.Load() == 3 })
	b.shows("No dead letters and no quarantined requests.")
	b.shots("empty")
}

func TestReplayIsCountedStartedAndStopped(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.expect("422")
	w.uploads(9) // three of them failed
	eventually(t, "they arrive", func() bool { return w.shaky.Load() == 9 && w.taken.Load() == 9 })
	b.signIn(operatorToken)
	b.page("replays", "Replay")
	b.js(nil, `document.querySelector("#sink").value = "shaky"`)
	b.fill("#filter", `outcome == "failure"`)
	b.click(`form button[type="submit"]`)
	b.shows("This sends 3 events to shaky again")
	b.shots("counted")
	b.fill("#filter", "outcome ==")
	b.until(`!document.querySelector("#start")`) // what is counted is what is started
	b.click(`form button[type="submit"]`)
	b.shows("is not an expression")
	b.fill("#filter", `outcome == "failure"`)
	b.click(`form button[type="submit"]`)
	b.click("#start")
	eventually(t, "they arrive again", func() bool { return w.shaky.Load() == 12 })
	b.shows("3 of 3")

	// A slow one is stopped, and goes on.
	b.fill("#filter", "")
	b.fill("#rate", "1")
	b.click(`form button[type="submit"]`)
	b.shows("This sends 9 events to shaky again")
	b.click("#start")
	b.click(`[data-act="stop"]`)
	b.until(`document.querySelector("main tbody tr").innerText.includes("stopped")`)
	b.shots("stopped")
	b.click(`[data-act="continue"]`)
	b.until(`document.querySelector("main tbody tr").innerText.includes("running")`)
	b.click(`[data-act="stop"]`)
	b.until(`document.querySelector("main tbody tr").innerText.includes("stopped")`)
}

func TestSourcesAndTheirSender(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	w.uploads(2)
	twice := upload("instagram", "bakery", "1")
	w.post(twice)
	w.post(twice)
	w.post("{")
	// What falls into the relay's absence is in the history only.
	w.service.SetWebhook("http://127.0.0.1:1/webhooks/upload-post", "")
	w.uploads(1)
	b.signIn(operatorToken)
	b.page("sources", "Sources")
	b.until(`/1\s+duplicate/.test(document.querySelector('[data-key="raw"]').innerText) && /1\s+refused: malformed/.test(document.querySelector('[data-key="raw"]').innerText)`)
	b.until(`document.querySelector('[data-key="raw"]').innerText.includes("no authentication")`)
	b.until(`document.querySelector('[data-key="upload-post"]').innerText.includes("read from the sender’s API")`)
	b.click(`[data-act="registration"]`)
	b.shows("http://127.0.0.1:1/webhooks/upload-post")
	b.shots("sources")
	b.click(`[data-act="reconcile"]`)
	b.confirm()
	b.shows("1 is missing.")
	b.confirm()
	b.shows("1 event backfilled.")
	b.until(`document.querySelector('[data-key="upload-post"]').innerText.includes("1 event without a webhook")`)
}

func TestConfigurationIsShownWithoutSecrets(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.signIn(operatorToken)
	b.page("configuration", "Configuration")
	b.shows("No reload since the start of the process")
	b.shows("retention: 168h")
	b.shots("configuration")
	var shown string
	b.js(&shown, "document.documentElement.outerHTML")
	for _, secret := range []string{operatorToken, viewerToken, "top-secret-header", "whsec_"} {
		if strings.Contains(shown, secret) {
			t.Errorf("the page holds %q", secret)
		}
	}
	b.click(`[data-act="reload"]`)
	b.shows("The configuration had no change.")
	b.js(nil, `(document.querySelector("#level").value = "debug", document.querySelector("#level").dispatchEvent(new Event("change")))`)
	b.shows("The log level is debug now")
	if l, err := w.client.LogLevel(t.Context()); err != nil || l.Level != "debug" {
		t.Errorf("the level is %v, %v", l, err)
	}
}

// TestKeyboard: what is done with the mouse can be done without.
func TestKeyboard(t *testing.T) {
	w := start(t)
	b := open(t, w.admin)
	b.do(chromedp.Navigate(w.admin + "/console/"))
	b.until(`document.activeElement?.id === "token"`)
	b.do(chromedp.KeyEvent(operatorToken + kb.Enter))
	b.until(`document.activeElement?.tagName === "H1"`)
	b.js(nil, `document.activeElement.blur()`)
	tab := func(until string, arg any) {
		t.Helper()
		for range 40 {
			b.do(chromedp.KeyEvent(kb.Tab))
			var ok bool
			if b.js(&ok, until, arg); ok {
				return
			}
		}
		t.Fatalf("40 tabs do not lead to %v", arg)
	}
	tab(`document.activeElement.textContent === %s`, "Sinks")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until(`document.activeElement?.tagName === "H1" && document.activeElement.textContent === "Sinks"`)
	tab(`document.activeElement.dataset.act === %s`, "pause")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.until(`document.querySelector("dialog[open]")?.contains(document.activeElement)`)
	b.do(chromedp.KeyEvent(kb.Escape))
	b.until(`!document.querySelector("dialog")`)
	b.until(`document.activeElement.dataset.act === "pause"`) // back where one was
	b.do(chromedp.KeyEvent(kb.Enter))
	tab(`document.activeElement.type === %s`, "submit")
	b.do(chromedp.KeyEvent(kb.Enter))
	eventually(t, "it is paused", func() bool {
		s, err := w.client.Status(t.Context())
		return err == nil && s.Sinks[0].State == "paused"
	})
	b.until(`document.querySelector("#said").innerText.includes("steady is paused.")`)
}

// TestScriptsCanDoTheSame: the console has no way of its own.
func TestScriptsCanDoTheSame(t *testing.T) {
	w := start(t)
	w.uploads(3)
	found, err := w.client.Search(t.Context(), url.Values{"outcome": {"failure"}})
	if err != nil || len(found.Events) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if _, err := w.client.SteerSink(t.Context(), "shaky", "pause"); err != nil {
		t.Error(err)
	}
	if _, err := w.client.SteerSink(t.Context(), "shaky", "resume"); err != nil {
		t.Error(err)
	}
	if re, err := w.client.StartReplay(t.Context(), admin.ReplayRequest{Sink: "shaky", From: "1h", Rate: 1000, DryRun: true}); err != nil || re.Total != 3 {
		t.Errorf("%+v, %v", re, err)
	}
}
