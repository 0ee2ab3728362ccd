package console

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, name string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, Path+"/"+name, nil)
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w
}

func each(t *testing.T, f func(name, text string)) {
	t.Helper()
	err := fs.WalkDir(files, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, name)
		f(strings.TrimPrefix(name, "static/"), string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreServed(t *testing.T) {
	kinds := map[string]string{".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
	each(t, func(name, text string) {
		w := get(t, name)
		if got := w.Header().Get("Content-Type"); w.Code != http.StatusOK || !strings.HasPrefix(got, kinds[path.Ext(name)]) || w.Body.String() != text {
			t.Errorf("%s: answered %d, %s", name, w.Code, got)
		}
		again := get(t, name, func(r *http.Request) { r.Header.Set("If-None-Match", w.Header().Get("ETag")) })
		if again.Code != http.StatusNotModified || again.Body.Len() > 0 {
			t.Errorf("%s, once more: answered %d", name, again.Code)
		}
	})
	if w := get(t, ""); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "main.js") {
		t.Errorf("the page itself: answered %d", w.Code)
	}
	for _, name := range []string{"nowhere", "pages", "../console.go", "..%2fconsole.go", "/etc/passwd"} {
		if w := get(t, name); w.Code != http.StatusNotFound {
			t.Errorf("%s: answered %d", name, w.Code)
		}
	}
}

// TestNothingComesFromElsewhere, and nothing of a text is made HTML or a script:
// the policy forbids it, and the code does not try.
func TestNothingComesFromElsewhere(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|javascript:|<style|style="|\son[a-z]+="|@import|(src|href)="(https?:)?//|url\(`)
	each(t, func(name, text string) {
		if found := forbidden.FindString(text); found != "" {
			t.Errorf("%s has %q", name, found)
		}
	})
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") || strings.Contains(policy, "http") {
		t.Errorf("the policy lets in too much: %s", policy)
	}
}
