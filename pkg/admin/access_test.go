package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	operatorToken = "an-operator's-long-secret"
	viewerToken   = "a-viewer's-long-secret"
	aliceToken    = "alice's:löng:secret"
	bobToken      = "bob's-quite-long-secret"
)

// browser is one that keeps the session's cookie.
type browser struct {
	t       *testing.T
	w       *world
	session Session
	cookie  *http.Cookie
}

func (b *browser) ask(method, path, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), method, "http://relay.example.com"+BasePath+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if b.cookie != nil {
		r.AddCookie(b.cookie)
		r.Header.Set("X-CSRF-Token", b.session.CSRF)
	}
	for _, c := range change {
		c(r)
	}
	answer := httptest.NewRecorder()
	b.w.server.ServeHTTP(answer, r)
	return answer
}

func (b *browser) signIn(token string) *httptest.ResponseRecorder {
	b.t.Helper()
	answer := b.ask(http.MethodPost, "/session", `{"token":"`+token+`"}`)
	if answer.Code == http.StatusOK {
		b.cookie = answer.Result().Cookies()[0]
		if err := json.Unmarshal(answer.Body.Bytes(), &b.session); err != nil {
			b.t.Fatal(err)
		}
	}
	return answer
}

func TestBrowsersSignIn(t *testing.T) {
	w := newWorld(t, operatorToken)
	b := &browser{t: t, w: w}
	if code := b.ask(http.MethodGet, "/status", "").Code; code != http.StatusUnauthorized {
		t.Errorf("without a session: %d", code)
	}
	if answer := b.signIn("wrong"); answer.Code != http.StatusUnauthorized || strings.Contains(answer.Body.String(), "wrong") || answer.Header().Get("Set-Cookie") != "" {
		t.Errorf("with a wrong token: %d %s", answer.Code, answer.Body)
	}
	if b.signIn(operatorToken); b.session.Role != Operator || b.session.CSRF == "" {
		t.Fatalf("signed in: %+v", b.session)
	}
	if c := b.cookie; !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure || c.Path != BasePath+"/" {
		t.Errorf("the cookie is %v", c)
	}
	if code := b.ask(http.MethodGet, "/status", "").Code; code != http.StatusOK {
		t.Errorf("signed in: %d", code)
	}
	if answer := b.ask(http.MethodGet, "/session", ""); !strings.Contains(answer.Body.String(), b.session.CSRF) {
		t.Errorf("a page that is loaded again: %s", answer.Body)
	}
	if answer := b.ask(http.MethodDelete, "/session", ""); answer.Code != http.StatusOK || answer.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("signing out: %d %v", answer.Code, answer.Header())
	}
	if answer := b.ask(http.MethodGet, "/status", ""); answer.Code != http.StatusUnauthorized || !strings.Contains(answer.Body.String(), "session has ended") {
		t.Errorf("signed out: %d %s", answer.Code, answer.Body)
	}
	overTLS := &browser{t: t, w: w}
	answer := overTLS.ask(http.MethodPost, "/session", `{"token":"`+operatorToken+`"}`, func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") })
	if !answer.Result().Cookies()[0].Secure {
		t.Error("over TLS the cookie is not Secure")
	}
}

func TestSessionsEnd(t *testing.T) {
	now := time.Now()
	operator, viewer := Credential{"admin.token", Operator, operatorToken}, Credential{"bob", Viewer, bobToken}
	c := NewCredentials(operator, viewer)
	find := func() *holder { return c.find(operatorToken, false) }
	s := newSessions(func() time.Time { return now })
	id, in := s.begin(find())
	other, _ := s.begin(find())
	if s.find(id) != in || s.find("no") != nil {
		t.Error("a session is not found by its id")
	}
	now = now.Add(sessionAge - time.Second)
	if s.find(id) == nil {
		t.Error("it ended too early")
	}
	now = now.Add(time.Second)
	if s.find(id) != nil || in.life.Err() == nil {
		t.Error("it did not end by the clock")
	}
	again, in := s.begin(find())
	if s.open[other] != nil {
		t.Error("a session that was over was kept")
	}
	c.Replace(operator) // another one is gone
	if s.find(again) != in {
		t.Error("it ended with the token of another holder")
	}
	for name, replaced := range map[string]Credential{
		"token": {"admin.token", Operator, "rotated-rotated-rotated"}, "role": {"admin.token", Viewer, operatorToken}, "name": {"alice", Operator, operatorToken},
	} {
		c.Replace(operator)
		id, in := s.begin(find())
		c.Replace(replaced)
		if !errors.Is(context.Cause(in.life), errTokenRevoked) || s.find(id) != nil {
			t.Errorf("it outlived its %s", name)
		}
	}
}

// Sessions of one token end none of another one, whatever the roles.
func TestSessionsOfATokenAreBounded(t *testing.T) {
	now := time.Now()
	c := NewCredentials(testCredentials(operatorToken)...)
	s := newSessions(func() time.Time { return now })
	operators, _ := s.begin(c.find(operatorToken, false))
	bobs, _ := s.begin(c.find(bobToken, false))
	var first string
	for i := range 2*maxSessions + 1 {
		id, _ := s.begin(c.find(viewerToken, false))
		if i == 0 {
			first = id
		}
		now = now.Add(time.Millisecond)
	}
	if s.find(operators) == nil || s.find(bobs) == nil {
		t.Error("a viewer has ended the session of another token")
	}
	if len(s.open) != maxSessions+2 || s.find(first) != nil {
		t.Errorf("%d sessions are kept, the oldest among them: %v", len(s.open), s.find(first) != nil)
	}
}

// What a browser sends by itself, the cookie, is not enough to change anything.
func TestChangesNeedTheCSRFToken(t *testing.T) {
	w := newWorld(t, operatorToken)
	b := &browser{t: t, w: w}
	b.signIn(operatorToken)
	for name, change := range map[string]func(*http.Request){
		"no token":      func(r *http.Request) { r.Header.Del("X-CSRF-Token") },
		"another token": func(r *http.Request) { r.Header.Set("X-CSRF-Token", "x") },
		"another site":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"another port":  func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
	} {
		if answer := b.ask(http.MethodPut, "/log-level", `{"level":"debug"}`, change); answer.Code != http.StatusForbidden {
			t.Errorf("%s: answered %d", name, answer.Code)
		}
	}
	if code := b.ask(http.MethodPut, "/log-level", `{"level":"debug"}`).Code; code != http.StatusOK {
		t.Errorf("our own page: answered %d", code)
	}
	stranger := &browser{t: t, w: w}
	answer := stranger.ask(http.MethodPost, "/session", `{"token":"`+operatorToken+`"}`, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
	if answer.Code != http.StatusForbidden {
		t.Errorf("another site signs its reader in: answered %d", answer.Code)
	}
}

// A session that ends takes what it follows with it.
func TestSigningOutEndsTails(t *testing.T) {
	w := newWorld(t, operatorToken)
	b := &browser{t: t, w: w}
	b.signIn(operatorToken)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.client.URL+BasePath+"/events/tail", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(b.cookie)
	resp, err := w.client.HTTP.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %s", resp.Status)
	}
	b.ask(http.MethodDelete, "/session", "")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for buf := make([]byte, 1024); err == nil; {
			_, err = resp.Body.Read(buf)
		}
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the tail goes on")
	}
}

// operations are those of the description, as METHOD path.
func operations(t *testing.T, w *world) (all []string) {
	t.Helper()
	resp, err := http.Get(w.client.URL + BasePath + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for path, methods := range doc.Paths {
		for method := range methods {
			all = append(all, strings.ToUpper(method)+" "+strings.TrimPrefix(path, BasePath))
		}
	}
	slices.Sort(all)
	return all
}

// TestEveryOperationIsGuarded goes by the description of the API, so that no
// operation is forgotten.
func TestEveryOperationIsGuarded(t *testing.T) {
	w := newWorld(t, operatorToken)
	viewer, nobody := &browser{t: t, w: w}, &browser{t: t, w: w}
	if viewer.signIn(viewerToken); viewer.session.Role != Viewer {
		t.Fatalf("signed in: %+v", viewer.session)
	}
	anyones := []string{"GET /session", "POST /session"}
	viewers := []string{"DELETE /session"}
	for _, o := range operations(t, w) {
		method, path, _ := strings.Cut(o, " ")
		path = strings.NewReplacer("{id}", "x", "{sink}", "out", "{seq}", "1", "{source}", "in", "{name}", "in").Replace(path)
		if code := nobody.ask(method, path, "{}").Code; !slices.Contains(anyones, o) && code != http.StatusUnauthorized {
			t.Errorf("%s: nobody is answered %d", o, code)
		}
		if method == http.MethodGet || slices.Contains(anyones, o) || slices.Contains(viewers, o) {
			continue
		}
		for name, change := range map[string]func(*http.Request){
			"session": func(*http.Request) {},
			"token":   func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+viewerToken) },
		} {
			if code := viewer.ask(method, path, "{}", change).Code; code != http.StatusForbidden {
				t.Errorf("%s: a viewer's %s is answered %d", o, name, code)
			}
		}
	}
}

// TestViewersSeeNoPersonalData: only operators do, and where it is not given
// by default only if they ask.
func TestViewersSeeNoPersonalData(t *testing.T) {
	w := newWorld(t, operatorToken)
	b := &browser{t: t, w: w}
	b.signIn(viewerToken)
	for _, path := range personalPaths() {
		if answer := b.ask(http.MethodGet, path, ""); answer.Code != http.StatusForbidden {
			t.Errorf("%s: a viewer is answered %d %s", path, answer.Code, answer.Body)
		}
	}
	for _, query := range []string{"data=true;", "data=true;x", "data=tr%zzue", "%zz&data=true"} {
		if answer := b.ask(http.MethodGet, "/events/1?"+query, ""); answer.Code != http.StatusBadRequest {
			t.Errorf("%s: a viewer is answered %d %s", query, answer.Code, answer.Body)
		}
	}
	c := *w.client
	c.Token = viewerToken
	if _, err := c.List(t.Context(), nil); err != nil {
		t.Errorf("a viewer lists: %v", err)
	}
	_, err := c.Handle(t.Context(), "drop", map[string]any{})
	if r, ok := errors.AsType[*RefusedError](err); !ok || r.Status != http.StatusForbidden {
		t.Errorf("a viewer drops: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var seen atomic.Int64
	if err := c.Tail(ctx, url.Values{}, func(Message) error { seen.Add(1); cancel(); return nil }); !errors.Is(err, context.Canceled) || seen.Load() == 0 {
		t.Errorf("a viewer follows: %v", err)
	}
}

// personalPaths ask for personal data in each way that the API would understand.
func personalPaths() (paths []string) {
	for _, path := range []string{"/events/tail", "/events/1", "/dlq/1@out"} {
		for _, query := range []string{"data=true", "data=1", "data=t", "data=T", "data=TRUE", "data=True", "data=false&data=true", "data=true&data=false", "data=&data=true", "%64ata=true", "data=yes"} {
			paths = append(paths, path+"?"+query)
		}
	}
	return append(paths, "/dlq/1@out")
}

func TestSecurityHeaders(t *testing.T) {
	w := newWorld(t, operatorToken)
	for _, path := range []string{"/livez", "/metrics", "/", "/console/", "/console", "/console/main.js", BasePath + "/status", BasePath + "/openapi.json", "/nowhere"} {
		answer := httptest.NewRecorder()
		w.server.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		h := answer.Header()
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("X-Frame-Options") != "DENY" {
			t.Errorf("%s: %v", path, h)
		}
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy: %s", path, csp)
		}
	}
}
