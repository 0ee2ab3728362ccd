package console

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// axe is the source of axe-core, which 'npm ci' puts beside this file.
func axe(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		if os.Getenv("POSTWIRE_TEST_CHROMIUM") != "" {
			t.Fatal("axe-core is not there: run 'npm ci --ignore-scripts' in test/console")
		}
		t.Skip("needs axe-core: run 'npm ci --ignore-scripts' in test/console")
	}
	return string(text)
}

type fault struct {
	ID, Impact, Help string
	Nodes            []struct{ HTML, FailureSummary string }
}

// TestAccessibility: axe-core finds nothing serious on any page, in light and
// dark, on a wide and on a narrow screen.
func TestAccessibility(t *testing.T) {
	source := axe(t)
	w := start(t)
	w.refuse.Store(true)
	b := open(t, w.admin)
	w.uploads(4)
	if err := w.service.Send(t.Context(), []byte(`{"event":"upload_completed"}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all entries are in the DLQ", func() bool {
		count, err := w.client.Count(t.Context(), nil)
		return err == nil && count.Total == 5
	})
	w.down.Store(true)
	w.uploads(1)
	checks := 0
	check := func(page string) {
		t.Helper()
		for _, l := range looks() {
			b.wear(l)
			var faults []fault
			b.js(&faults, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations)`)
			checks++
			for _, f := range faults {
				where := ""
				for _, n := range f.Nodes {
					where += fmt.Sprintf("\n  %s\n    %s", n.HTML, strings.ReplaceAll(n.FailureSummary, "\n", " "))
				}
				if f.Impact == "serious" || f.Impact == "critical" {
					t.Errorf("%s, %s: %s (%s)%s", page, l.name, f.Help, f.ID, where)
				} else {
					t.Logf("%s, %s: %s: %s (%s)%s", page, l.name, f.Impact, f.Help, f.ID, where)
				}
			}
		}
		b.wear(looks()[0])
	}
	b.signIn(operatorToken)
	b.js(nil, "(() => {"+strings.ReplaceAll(source, "%", "%%")+"})()")
	for _, page := range [][3]string{
		{"overview", "Overview", "dead letters of shaky"},
		{"events", "Events", "upload_completed"},
		{"event/1", "upload_completed", "dead letter"},
		{"sinks", "Sinks", "503"},
		{"dlq", "Dead letters", "invalid for the broker"},
		{"entry/1%40shaky", "upload_completed", "invalid for the broker"},
		{"replays", "Replay", "No replay yet"},
		{"sources", "Sources", "Reconcile"},
		{"configuration", "Configuration", "retention"},
		{"nowhere", "There is no such page", ""},
	} {
		b.page(page[0], page[1])
		b.shows(page[2])
		check(page[0])
	}
	b.page("sinks", "Sinks")
	b.click(`[data-key="shaky"] [data-act="pause"]`)
	b.shows("Pause shaky?")
	check("a dialog")
	b.confirm()
	b.shows("shaky is paused.")
	check("a message")
	b.click(".who button")
	b.find("#token")
	check("the door")
	if checks < 50 {
		t.Errorf("%d checks were made", checks)
	}
}
