package telegram

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "123456:AAH-secret_token"

// service is a Bot API that keeps what it is sent.
type service struct {
	*httptest.Server
	mu     sync.Mutex
	kept   []message
	answer func(m message) string // in place of the usual answer; "" is that one
}

func start(t *testing.T) *service {
	t.Helper()
	s := &service{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

var known = regexp.MustCompile(`</?(b|i|u|s|a|code|pre|blockquote)( href="[^"<>]*")?>`)

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the connection broke
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply := func(code int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, text)
	}
	refuse := func(code int, what string) {
		reply(code, fmt.Sprintf(`{"ok":false,"error_code":%d,"description":%q}`, code, what))
	}
	switch r.Method + r.URL.Path {
	case "POST/bot" + token + "/getMe":
		reply(200, `{"ok":true,"result":{"id":123456,"is_bot":true}}`)
		return
	case "POST/bot" + token + "/sendMessage":
	default:
		refuse(401, "Unauthorized")
		return
	}
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		refuse(400, "Bad Request: "+err.Error())
		return
	}
	text := m.Text
	if m.Mode == "HTML" {
		if rest := known.ReplaceAllString(text, ""); strings.ContainsAny(rest, "<>") {
			refuse(400, "Bad Request: can't parse entities")
			return
		}
		text = html.UnescapeString(known.ReplaceAllString(text, ""))
	}
	switch {
	case strings.TrimSpace(text) == "":
		refuse(400, "Bad Request: message text is empty")
	case length(text) > 4096:
		refuse(400, "Bad Request: message is too long")
	default:
		if s.answer != nil {
			if other := s.answer(m); other != "" {
				reply(200, other)
				return
			}
		}
		s.kept = append(s.kept, m)
		reply(200, `{"ok":true,"result":{}}`)
	}
}

func (s *service) messages() []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]message(nil), s.kept...)
}

// block is a configuration of the sink.
func (s *service) block(more string) string {
	return fmt.Sprintf("token: %q\nchat_id: \"42\"\nurl: %s\n%s", token, s.URL, more)
}

func (s *service) open(t *testing.T, more string) sinks.Sink {
	t.Helper()
	p := sinktest.Configure(t, Kind(), s.block(more))
	sink, err := p.Open(t.Context(), sinks.Env{Name: "chat", Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	return sink
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: []string{""},
		Env:   map[string]string{"TELEGRAM_BOT_TOKEN": token},
		Lacks: map[string]string{
			"an event that is too large is refused alone": "a message is cut to the limit",
		},
		Start: func(t *testing.T) sinktest.Broker {
			s, world := start(t), sinktest.NewNetwork()
			return sinktest.Broker{
				Kind: Kind(), World: world, Config: s.block("digest: 0\ntemplate: \"{{.json}}\""),
				Read: func(t *testing.T) (all []sinktest.Message) {
					for _, m := range s.messages() {
						text := m.Text
						if m.Mode == "HTML" {
							text = html.UnescapeString(text)
						}
						strict, err := sinktest.StrictJSON([]byte(text))
						if err != nil {
							t.Fatalf("%s: %v", text, err)
						}
						var e cloudevents.Event
						if err := e.UnmarshalJSON([]byte(text)); err != nil {
							t.Fatalf("the SDK: %v", err)
						}
						all = append(all, sinktest.Message{
							Wire: m.Text + "\n", Read: map[string]sinktest.ReadEvent{"specification": strict, "SDK": sinktest.FromSDK(&e)},
						})
					}
					return all
				},
			}
		},
	})
}

// upload is an event as the source makes it.
func upload(outcome, data string) event.Event {
	e := cloudevents.NewEvent()
	e.SetID("upload_completed/instagram/1/" + outcome)
	e.SetSource("https://upload-post.com/profiles/brightside_bakery")
	e.SetType("com.upload-post.upload_completed")
	e.SetExtension(event.Platform, "instagram")
	e.SetExtension(event.Profile, "brightside_bakery")
	if outcome != "" {
		e.SetExtension(event.Outcome, outcome)
	}
	e.SetDataContentType("application/json")
	e.DataEncoded = []byte(data)
	return event.Event{CloudEvent: e, Keys: []event.Key{event.Key(e.ID())}}
}

// TestStandardMessages are what comes without a template.
func TestStandardMessages(t *testing.T) {
	s := start(t)
	sink := s.open(t, "")
	bare := upload("", "")
	bare.CloudEvent.SetType("org.example.other")
	events := []event.Event{
		upload("success", `{"title":"Tom & <Jerry>","caption":"c","result":{"success":true,"url":"https://www.instagram.com/p/1/?a=1&b=2"}}`),
		upload("success", `{"result":{"url":"javascript:alert(1)"}}`),
		upload("failure", `{"title":"T","result":{"success":false,"error":"Rate <limit> reached"}}`),
		upload("reauth_required", `{"account_name":"shop","status":"reauth_required","reason":"max_auth_strikes"}`),
		bare,
	}
	for _, e := range events {
		if err := sink.Deliver(t.Context(), []event.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	var text strings.Builder
	for _, m := range s.messages() {
		if m.ChatID != "42" || m.Mode != "HTML" {
			t.Errorf("sent %+v", m)
		}
		fmt.Fprintf(&text, "%s\n----------\n", m.Text)
	}
	golden.Check(t, "testdata/standard.txt", text.String())
}

// TestLongMessages are cut until they fit, and stay whole HTML where they can.
func TestLongMessages(t *testing.T) {
	s := start(t)
	long := strings.Repeat("😀&", 5000)
	for _, tt := range []struct{ name, template, mode string }{
		{"the standard", "", "HTML"},
		{"a field of the data", `template: "<b>{{get .data \"title\"}}</b>"`, "HTML"},
		{"an attribute, which is not cut", `template: "<b>{{.event.subject}}</b>"`, ""},
		{"all of it", `template: "<pre>{{.json}}</pre>"`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := upload("success", fmt.Sprintf(`{"title":%q}`, long))
			e.CloudEvent.SetSubject(long)
			if err := s.open(t, tt.template).Deliver(t.Context(), []event.Event{e}); err != nil {
				t.Fatal(err)
			}
			all := s.messages()
			if m := all[len(all)-1]; m.Mode != tt.mode || !strings.Contains(m.Text, "…") {
				t.Errorf("sent in mode %q: %.100s", m.Mode, m.Text)
			}
		})
	}
}

// TestDigest: many that wait are told of by one message, and each counts as
// delivered.
func TestDigest(t *testing.T) {
	s := start(t)
	sink := s.open(t, "digest: 3")
	var few, many []event.Event
	for i := range 3 {
		few = append(few, upload("success", fmt.Sprintf(`{"title":"%d"}`, i)))
	}
	for i := range 500 {
		outcome, data := "success", `{}`
		if i%3 == 0 {
			outcome, data = "failure", fmt.Sprintf(`{"result":{"error":"went <wrong> %d"}}`, i)
		}
		many = append(many, upload(outcome, data))
	}
	if err := sink.Deliver(t.Context(), few); err != nil {
		t.Fatal(err)
	}
	if n := len(s.messages()); n != 3 {
		t.Errorf("%d messages tell of 3 events", n)
	}
	if err := sink.Deliver(t.Context(), many); err != nil {
		t.Fatal(err)
	}
	all := s.messages()
	if len(all) != 4 {
		t.Fatalf("%d messages tell of 500 more", len(all)-3)
	}
	golden.Check(t, "testdata/digest.txt", all[3].Text+"\n")
	if all[3].Mode != "" || length(all[3].Text) > maxLength {
		t.Errorf("%d units in mode %q", length(all[3].Text), all[3].Mode)
	}
}

// TestAnswers: what lies in one message is set aside, everything else waits, and
// no error shows the token.
func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		reason       sinks.Reason
		wait         time.Duration
		says         string
	}{
		{"too many", `{"ok":false,"error_code":429,"description":"Too Many Requests: retry after 7","parameters":{"retry_after":7}}`, "", 7 * time.Second, "retry after 7"},
		{"too long", `{"ok":false,"error_code":400,"description":"Bad Request: message is too long"}`, sinks.ReasonTooLarge, 0, ""},
		{"not HTML", `{"ok":false,"error_code":400,"description":"Bad Request: can't parse entities: unclosed tag"}`, sinks.ReasonInvalid, 0, ""},
		{"no such chat", `{"ok":false,"error_code":400,"description":"Bad Request: chat not found"}`, "", 0, "check chat_id"},
		{"removed", `{"ok":false,"error_code":403,"description":"Forbidden: bot was kicked from the group chat"}`, "", 0, "check chat_id"},
		{"another chat now", `{"ok":false,"error_code":400,"description":"Bad Request: group chat was upgraded","parameters":{"migrate_to_chat_id":-100123}}`, "", 0, `"-100123"`},
		{"token revoked", `{"ok":false,"error_code":401,"description":"Unauthorized"}`, "", 0, "check token"},
		{"their fault", `{"ok":false,"error_code":502,"description":"Bad Gateway"}`, "", 0, "502"},
		{"not the Bot API", `<html>`, "", 0, "is url right?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t)
			sink := s.open(t, "")
			first := true
			s.mu.Lock()
			s.answer = func(message) string {
				if !first {
					return ""
				}
				first = false
				return tt.answer
			}
			s.mu.Unlock()
			err := sink.Deliver(t.Context(), []event.Event{upload("success", "{}"), upload("failure", "{}")})
			each, ok := errors.AsType[sinks.BatchError](err)
			if !ok || each[0] == nil {
				t.Fatalf("Deliver = %v", err)
			}
			reason, refused := sinks.IsPermanent(each[0])
			if reason != tt.reason || refused != (each[1] == nil) || sinks.Wait(each[0]) != tt.wait || !strings.Contains(each[0].Error(), tt.says) {
				t.Errorf("reason %q, wait %v, second %v: %v", reason, sinks.Wait(each[0]), each[1], each[0])
			}
			if at := sinks.IsAtDestination(each[0]); at != (strings.Contains(tt.says, "check") || strings.Contains(tt.says, "url") || strings.Contains(tt.says, "-100")) {
				t.Errorf("of the destination: %v: %v", at, each[0])
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
	s := start(t)
	s.Close()
	p := sinktest.Configure(t, Kind(), s.block(""))
	if _, err := p.Open(t.Context(), sinks.Env{}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("with nobody there: %v", err)
	}
}

// TestWrongToken shows when the sink is opened.
func TestWrongToken(t *testing.T) {
	s := start(t)
	p := sinktest.Configure(t, Kind(), strings.Replace(s.block(""), token, "123456:wrong", 1))
	if _, err := p.Open(t.Context(), sinks.Env{}); err == nil || !strings.Contains(err.Error(), "check token") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("opening: %v", err)
	}
}

// TestTemplateFails: an event that the template cannot write is set aside.
func TestTemplateFails(t *testing.T) {
	s := start(t)
	sink := s.open(t, `template: "{{with .data}}{{len .}}{{end}} {{.event.id}}"`)
	err := sink.Deliver(t.Context(), []event.Event{upload("success", "true"), upload("failure", "{}")})
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 2 || each[1] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, _ := sinks.IsPermanent(each[0]); reason != sinks.ReasonInvalid || !strings.Contains(each[0].Error(), "template") {
		t.Errorf("the first: %v", each[0])
	}
}

func TestConfigMistakes(t *testing.T) {
	good := Config{Token: token, ChatID: "42", URL: "https://api.telegram.org", Digest: 5}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Token = "" }, "token: is missing"},
		{func(c *Config) { c.Token = "AAH-secret" }, "token: is not the token of a bot"},
		{func(c *Config) { c.ChatID = "" }, "chat_id"},
		{func(c *Config) { c.ChatID = "the team" }, "chat_id"},
		{func(c *Config) { c.ThreadID = -1 }, "thread_id"},
		{func(c *Config) { c.Digest = -1 }, "digest"},
		{func(c *Config) { c.URL = "api.telegram.org" }, "url"},
		{func(c *Config) { c.URL = "https://api.telegram.org/" }, "url"},
		{func(c *Config) { c.Template = "{{.event.platform" }, "template: is not a template"},
		{func(c *Config) { c.Template = "{{nothing}}" }, "template: is not a template"},
		{func(c *Config) { c.Template = "{{.data.result.url}}" }, "template: fails on an event without data"},
	} {
		c := good
		tt.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("want %s: %v", tt.want, err)
		}
	}
}

// FuzzRender: whatever an event holds, its message is one that Telegram takes.
func FuzzRender(f *testing.F) {
	for _, seed := range []string{`{"title":"<b>&","result":{"url":"https://x/?a&b","error":"\u0000"}}`, `[1]`, `{`, `{"title":{"a":[1]}}`} {
		f.Add("instagram", "success", []byte(seed))
		f.Add("<x>", "failure", []byte(seed))
	}
	t, err := parse("")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(ft *testing.T, platform, outcome string, data []byte) {
		e := upload(outcome, string(data))
		e.CloudEvent.SetExtension(event.Platform, platform)
		text, isHTML, err := render(t, e)
		if err != nil {
			return // the event cannot be written in JSON, or not by the template
		}
		if isHTML {
			rest := known.ReplaceAllString(text, "")
			if strings.ContainsAny(rest, "<>") {
				ft.Errorf("%q is no HTML that Telegram takes", text)
			}
			text = html.UnescapeString(rest)
		}
		if length(text) > maxLength {
			ft.Errorf("a message has %d units", length(text))
		}
	})
}

// TestClip: what is cut stays within the limit in UTF-16.
func TestClip(t *testing.T) {
	for _, text := range []string{"", "abc", strings.Repeat("😀", 10), strings.Repeat("x", 10)} {
		got := clip(text, 8)
		if length(got) > 8 || length(text) <= 8 && got != text {
			t.Errorf("clip(%q) = %q", text, got)
		}
	}
	if diff := cmp.Diff("ab…", cut(3, "abcd")); diff != "" {
		t.Error(diff)
	}
}
