package app

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/golden"
)

// secretText is in every secret of the configurations that are described.
const secretText = "TOPSECRET"

// TestAsyncAPI compares the documents of whole configurations. Those files are
// read by the official parser in test.
func TestAsyncAPI(t *testing.T) {
	files, err := filepath.Glob("../../config/examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range append(files, "testdata/asyncapi/everything.yaml") {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			plan, err := Parse(file, text, func(name string) (string, bool) {
				if strings.Contains(name, "SIGNING") {
					return "whsec_VE9QU0VDUkVUVE9QU0VDUkVUVE9QU0VDUkVU", true
				}
				return secretText + "-" + secretText, true
			})
			if err != nil {
				t.Fatal(err)
			}
			document, err := plan.AsyncAPI("1.2.3")
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(document, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(got), secretText) {
				t.Error("the document holds a secret")
			}
			golden.Check(t, filepath.Join("testdata", "asyncapi", name+".golden.json"), string(got)+"\n")
		})
	}
}

// TestAsyncAPIIsServed to those who may ask, and says what the command says.
func TestAsyncAPIIsServed(t *testing.T) {
	plan, err := Parse("postwire.yaml", []byte(`
server: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0", token: 0123456789abcdef}
journal: {dir: /journal, min_free_bytes: 0}
sources: [{name: in, type: uploadpost, paths: [/a], auth: none}]
sinks: [{name: out, type: kafka, brokers: ["127.0.0.1:1"], topic: t}]
`), env)
	if err != nil {
		t.Fatal(err)
	}
	plan.Disk = vfs.NewMem()
	a, err := New(t.Context(), plan, LogTo(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
	}()
	document, err := plan.AsyncAPI(ReadVersion().Version)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/asyncapi", "/api/v1/asyncapi"} {
		for _, token := range []string{"", "0123456789abcdef"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			w := httptest.NewRecorder()
			a.admin.ServeHTTP(w, r)
			if token == "" {
				if w.Code != http.StatusUnauthorized {
					t.Errorf("%s without a token: %d", path, w.Code)
				}
				continue
			}
			if diff := cmp.Diff(decoded(t, want), decoded(t, w.Body.Bytes())); w.Code != http.StatusOK || diff != "" {
				t.Errorf("%s: %d (-want +got):\n%s", path, w.Code, diff)
			}
		}
	}
}

func decoded(t *testing.T, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Errorf("%s: %v", text, err)
	}
	return v
}
