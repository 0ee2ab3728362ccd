package app

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestSchemasAreChecked on the way in, as each source says.
func TestSchemasAreChecked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "com.upload-post.ping", "1.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"properties":{"who":{"type":"integer"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	plan, err := Parse("postwire.yaml", []byte(`
server: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
journal: {dir: /journal, min_free_bytes: 0}
schemas: {base_url: "https://example.com/schemas/", dir: "`+dir+`"}
sources:
  - {name: off, type: uploadpost, paths: [/off], auth: none}
  - {name: warn, type: uploadpost, paths: [/warn], auth: none, schema: warn}
  - {name: aside, type: uploadpost, paths: [/aside], auth: {bearer: {tokens: [0123456789abcdef]}}, schema: quarantine}
  - {name: open, type: uploadpost, paths: [/open], auth: none, schema: quarantine}
sinks: [{name: out, type: stdout, filter: "false"}]
`), env)
	if err != nil {
		t.Fatal(err)
	}
	plan.Disk = vfs.NewMem()
	core, logged := observer.New(zap.InfoLevel)
	a, err := New(t.Context(), plan, LogTo(zap.New(core)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
	}()
	const secret = "someone@example.com"
	for _, tt := range []struct {
		path, who, answer string
		status            int
		mismatches        float64
	}{
		{"off", `"` + secret + `"`, "accepted", http.StatusAccepted, 0},
		{"warn", `1`, "accepted", http.StatusAccepted, 0},
		{"warn", `"` + secret + `"`, "accepted", http.StatusAccepted, 1},
		{"aside", `2`, "accepted", http.StatusAccepted, 0},
		{"aside", `"` + secret + `"`, "quarantined", http.StatusAccepted, 1},
		{"open", `"` + secret + `"`, "could not be understood", http.StatusBadRequest, 1},
	} {
		r := httptest.NewRequest(http.MethodPost, "/"+tt.path, strings.NewReader(`{"event":"ping","who":`+tt.who+`}`))
		r.Header.Set("Authorization", "Bearer 0123456789abcdef")
		w := httptest.NewRecorder()
		a.ingress.ServeHTTP(w, r)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.answer) {
			t.Errorf("%s %s: %d %s, want %d %s", tt.path, tt.who, w.Code, w.Body, tt.status, tt.answer)
		}
		if got := testutil.ToFloat64(a.mismatches.count.WithLabelValues(tt.path)); got != tt.mismatches {
			t.Errorf("%s %s: %v mismatches, want %v", tt.path, tt.who, got, tt.mismatches)
		}
	}
	if logged.FilterMessage("an event does not fit its schema").Len() != 3 {
		t.Errorf("logged: %v", logged.All())
	}
	for _, e := range logged.All() {
		for key, v := range e.ContextMap() {
			if text, ok := v.(string); ok && strings.Contains(text, secret) || strings.Contains(e.Message, secret) {
				t.Errorf("%s of %q quotes the data", key, e.Message)
			}
		}
	}
	w := httptest.NewRecorder()
	a.admin.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/schemas/com.upload-post.ping/1", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"who"`) {
		t.Errorf("the schema is not served: %d %s", w.Code, w.Body)
	}
}

func TestSchemasOfTheOperatorAreReadAtTheStart(t *testing.T) {
	_, err := Parse("postwire.yaml", []byte(`
schemas: {dir: "`+filepath.Join(t.TempDir(), "none")+`"}
sources: [{name: in, type: uploadpost, paths: [/a], auth: none, schema: sometimes}]
sinks: [{name: out, type: stdout}]
`), env)
	for _, want := range []string{"schemas.dir", "no such file", "schema", "off, warn"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
