package webhook

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/sourcetest"
)

var received = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)

// configured reads the keys of a source as they stand in a file.
func configured(keys string) (source.Configured, error) {
	text := "sources:\n  - name: hooks\n    type: webhook\n    paths: [/hook]\n"
	for line := range strings.Lines(keys) {
		text += "    " + line
	}
	c, err := config.Parse("postwire.yaml", []byte(text), nil)
	if err != nil {
		return source.Configured{}, err
	}
	return config.NewRegistry(Kind()).Configure("source", c.Sources[0])
}

func newSource(t testing.TB, keys string) source.Source {
	t.Helper()
	c, err := configured(keys)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Open(source.Env{Name: c.Name})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// readRequest reads a case: a line with method and target, headers, an empty
// line, and the body to the end.
func readRequest(t testing.TB, file string) *source.Request {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := bytes.Cut(data, []byte("\n\n"))
	r := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(head, "\n\n"...))))
	line, err := r.ReadLine()
	if err != nil {
		t.Fatal(err)
	}
	header, err := r.ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	method, target, _ := strings.Cut(line, " ")
	path, query, _ := strings.Cut(target, "?")
	return &source.Request{Method: method, Path: path, RawQuery: query, Header: http.Header(header), Body: body, Received: received}
}

// outcome is what a golden file holds.
type outcome struct {
	Malformed string  `json:"malformed,omitempty"`
	Challenge string  `json:"challenge,omitempty"`
	Events    []piece `json:"events,omitempty"`
}

type piece struct {
	Keys  [][]string      `json:"keys"`
	Event json.RawMessage `json:"event"`
	Data  string          `json:"data,omitempty"` // where it is not the body
}

func outcomeOf(t *testing.T, r *source.Request, events []event.Event, err error) (got outcome) {
	t.Helper()
	if malformed, ok := errors.AsType[*source.MalformedError](err); ok {
		got.Malformed = malformed.Error()
		return got
	}
	if challenge, ok := errors.AsType[*source.ChallengeError](err); ok {
		got.Challenge = challenge.Answer
		return got
	}
	if err != nil {
		t.Fatalf("Normalize = %v", err)
	}
	for _, e := range events {
		ce := e.CloudEvent
		if err := ce.Validate(); err != nil {
			t.Errorf("the SDK finds the event invalid: %v", err)
		}
		var p piece
		if data := string(ce.Data()); data != string(r.Body) {
			p.Data = data
		}
		for _, k := range e.Keys {
			p.Keys = append(p.Keys, k.Parts())
		}
		ce.DataEncoded = nil
		if p.Event, err = ce.MarshalJSON(); err != nil {
			t.Fatal(err)
		}
		got.Events = append(got.Events, p)
	}
	return got
}

// groups are the folders of cases: one configuration each.
func groups(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*/config.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no groups: %v", err)
	}
	for i, file := range files {
		files[i] = filepath.Dir(file)
	}
	return files
}

func cases(t testing.TB, group string) []string {
	t.Helper()
	files, err := filepath.Glob(group + "/*.http")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in %s: %v", group, err)
	}
	return files
}

func configOf(t testing.TB, group string) string {
	t.Helper()
	keys, err := os.ReadFile(filepath.Join(group, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(keys)
}

func TestNormalize(t *testing.T) {
	for _, group := range groups(t) {
		src := newSource(t, configOf(t, group))
		for _, file := range cases(t, group) {
			t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "testdata/"), ".http"), func(t *testing.T) {
				r := readRequest(t, file)
				events, err := src.Normalize(r)
				text, err := json.MarshalIndent(outcomeOf(t, r, events, err), "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				golden.Check(t, strings.TrimSuffix(file, ".http")+".golden.json", string(text)+"\n")
			})
		}
	}
}

// sent is a source whose requests come with more than a body.
type sent struct {
	source.Source
	with *source.Request
}

func (s sent) Normalize(r *source.Request) ([]event.Event, error) {
	whole := *s.with
	whole.Body, whole.Received = r.Body, r.Received
	return s.Source.Normalize(&whole)
}

func TestConformance(t *testing.T) {
	for _, group := range groups(t) {
		t.Run(filepath.Base(group), func(t *testing.T) {
			files := cases(t, group)
			var bodies [][]byte
			for _, file := range files {
				if body := readRequest(t, file).Body; len(body) < 4096 {
					bodies = append(bodies, body)
				}
			}
			sourcetest.Run(t, sent{newSource(t, configOf(t, group)), readRequest(t, files[0])}, bodies)
		})
	}
	t.Run("signed", func(t *testing.T) {
		keys := "preset: github\nauth: {signature: {secrets: [whsec_of_the_tests]}}\n"
		sourcetest.Run(t, newSource(t, keys), [][]byte{[]byte(`{"action":"opened"}`)})
	})
}

func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			keys, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = configured(string(keys))
			if err == nil {
				t.Fatal("it was accepted")
			}
			golden.Check(t, strings.TrimSuffix(file, ".yaml")+".txt", err.Error()+"\n")
		})
	}
}

// A signature is made as the sender of the preset does, wherever preset stands.
func TestPresetSigns(t *testing.T) {
	body := []byte(`{"type":"a","id":"b"}`)
	for _, preset := range []auth.Preset{auth.GitHub, auth.Stripe, auth.StandardWebhooks, auth.Slack} {
		secret := "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // base64, as one of the presets wants it
		for _, keys := range []string{
			fmt.Sprintf("preset: %s\nauth: {signature: {secrets: [%s]}}\n", preset, secret),
			fmt.Sprintf("auth: {signature: {secrets: [%s]}}\npreset: %s\n", secret, preset),
		} {
			h := http.Header{}
			if err := preset.Sign(h, secret, "msg_1", received, body); err != nil {
				t.Fatal(err)
			}
			r := &source.Request{Header: h, Body: body, Received: received}
			src := newSource(t, keys)
			if err := src.Verify(r); err != nil {
				t.Errorf("%s: %v", preset, err)
			}
			r.Body = []byte(`{"type":"a","id":"c"}`)
			if err := src.Verify(r); !errors.Is(err, source.ErrUnauthenticated) {
				t.Errorf("%s: another body is taken: %v", preset, err)
			}
		}
	}
	src := newSource(t, "preset: github\nauth: {signature: {secrets: [s], allow_weak: true, preset: stripe}}\n")
	h := http.Header{}
	if err := auth.Stripe.Sign(h, "s", "", received, body); err != nil {
		t.Fatal(err)
	}
	if err := src.Verify(&source.Request{Header: h, Body: body, Received: received}); err != nil {
		t.Errorf("a signature's own preset does not count: %v", err)
	}
}

func TestWrittenKeysCountMoreThanThePreset(t *testing.T) {
	src := newSource(t, `
preset: stripe
event: {type: '"pay." + body.type', subject: "null"}
dedupe: [body.request.id]
auth: none
`)
	events, err := src.Normalize(&source.Request{Body: []byte(`{"id":"evt_1","type":"a","request":{"id":"r1"},"data":{"object":{"id":"o"}}}`), Received: received})
	if err != nil {
		t.Fatal(err)
	}
	e := events[0]
	if ce := e.CloudEvent; ce.Type() != "pay.a" || ce.Subject() != "" || ce.ID() != "evt_1" {
		t.Errorf("the event is %s", ce)
	}
	if diff := cmp.Diff([]event.Key{event.NewKey("hooks", "dedupe", "0", "r1")}, e.Keys); diff != "" {
		t.Error(diff)
	}
}

// What is secret in a request finds no way into an event.
func TestNothingSecretIsSeen(t *testing.T) {
	src := newSource(t, `
event:
  type: '"t"'
  extensions:
    a: headers["authorization"]
    b: headers["cookie"]
    c: headers["x-token"]
    d: headers["x-original-url"]
    e: query.again
    f: headers["x-plain"]
auth:
  header: {name: X-Token, values: [confidential-of-a-header]}
  path_token: {tokens: [confidential-0123456789]}
`)
	events, err := src.Normalize(&source.Request{
		Header: http.Header{
			"Authorization": {"confidential"}, "Cookie": {"confidential"}, "X-Token": {"confidential-of-a-header"},
			"X-Original-Url": {"/hook/confidential-0123456789"}, "X-Plain": {"plain"},
		},
		Path: "/hook", Target: "/hook/confidential-0123456789?again=confidential-0123456789",
		RawQuery: "again=confidential-0123456789", Token: "confidential-0123456789",
		Body: []byte(`{}`), Received: received,
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := events[0].CloudEvent.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "confidential") || !strings.Contains(string(text), `"f":"plain"`) {
		t.Errorf("the event is %s", text)
	}
}

// A body cannot make an expression cost much, whatever it holds.
func TestCostIsBounded(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	list := "[" + strings.TrimSuffix(strings.Repeat(`{"a":"`+strings.Repeat("b", 1000)+`"},`, 900), ",") + "]"
	for name, tt := range map[string]struct{ keys, body string }{
		"a long text is searched":             {`event: {type: 'body.contains("b") ? "x" : "y"'}`, `"` + long + `"`},
		"a long text is matched":              {`event: {type: 'body.matches("(a*)*b") ? "x" : "y"'}`, `"` + long + `"`},
		"a long text is replaced":             {`event: {type: 'body.replace("a", "aaaaaaaa")'}`, `"` + long + `"`},
		"a text is taken apart":               {`event: {type: 'body.split("").join("x")'}`, `"` + long + `"`},
		"a long text goes into every element": {"split: body.l\nevent: {type: '\"t\"', subject: envelope.a + body}", `{"a":"` + long[:1<<19] + `","l":["b"` + strings.Repeat(`,"b"`, 900) + `]}`},
		"many elements, each within limits":   {"split: body\nevent: {type: 'body.a.matches(\"^(b+)+$|" + strings.Repeat("x", 100) + "\") ? \"t\" : \"y\"'}", list},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newSource(t, tt.keys+"\nauth: none\n").Normalize(&source.Request{Body: []byte(tt.body), Received: received})
			malformed, ok := errors.AsType[*source.MalformedError](err)
			if !ok || !errors.Is(malformed, errExpensive) {
				t.Errorf("Normalize = %v", err)
			}
		})
	}
}

// Any bytes of a request give valid events, a challenge or a malformed error.
func FuzzNormalize(f *testing.F) {
	var sources []source.Source
	for _, group := range groups(f) {
		sources = append(sources, newSource(f, configOf(f, group)))
		for _, file := range cases(f, group) {
			if r := readRequest(f, file); len(r.Body) < 4096 {
				f.Add(r.Body, r.Header.Get("Content-Type"), r.Header.Get("X-GitHub-Event"), r.Path, r.RawQuery)
			}
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, contentType, header, path, query string) {
		r := &source.Request{Method: http.MethodPost, Path: path, RawQuery: query, Header: http.Header{
			"Content-Type": {contentType}, "X-Github-Event": {header}, "X-Github-Delivery": {header}, "Webhook-Id": {header}, "X-Via": {path},
		}}
		for _, s := range sources {
			sourcetest.Check(t, sent{s, r}, body)
		}
	})
}

// Any text is an expression that can be worked out, or has a mistake with what
// would be right.
func FuzzExpression(f *testing.F) {
	for _, group := range groups(f) {
		c, err := configured(configOf(f, group))
		if err != nil {
			f.Fatal(err)
		}
		m := c.Own.(Config).Event
		for _, text := range []string{m.Type, m.Source, m.Subject, m.ID, m.Time} {
			f.Add(text)
		}
	}
	f.Add(`body.a.exists(x, x == 1) ? "a" : "b"`)
	f.Add("\"a\n\" + bdy.é\t+ '\xff'")
	l, err := newLanguage(true)
	if err != nil {
		f.Fatal(err)
	}
	variables := map[string]any{
		varBody: map[string]any{"a": int64(1), "b": []any{"x", nil}}, varEnvelope: nil, varHeaders: map[string]string{"a": "b"},
		varPath: "/", varQuery: map[string]string{},
	}
	f.Fuzz(func(t *testing.T, text string) {
		x, fault := l.compile("k", text, wantTime())
		if fault != nil {
			if fault.What == "" || fault.Hint == "" {
				t.Errorf("%q: %+v", text, fault)
			}
			return
		}
		at, err := x.time(&scope{variables: variables})
		if err == nil && !at.IsZero() && (at.Year() < 1 || at.Year() > 9999) {
			t.Errorf("%q gives %v", text, at)
		}
		if s, err := x.text(&scope{variables: variables}); err == nil && strings.ContainsAny(s, "\x00\r\n") {
			t.Errorf("%q gives a control character", text)
		}
	})
}

// Every function of the language is in the docs, so that none comes in unseen
// with an upgrade.
func TestFunctionsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, language, _ := strings.Cut(string(page), "\n## CEL operators and functions\n")
	language, _, _ = strings.Cut(language, "\n## ")
	l, err := newLanguage(false)
	if err != nil {
		t.Fatal(err)
	}
	for name := range l.env.Functions() {
		if strings.ContainsAny(name, "_@!") || strings.HasPrefix(name, "get") {
			continue // operators, and the parts of a time
		}
		if !strings.Contains(language, "`"+name+"`") {
			t.Errorf("docs/webhooks.md lacks %s", name)
		}
	}
}
