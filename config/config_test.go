package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
)

// environment is what the golden files may use.
var environment = map[string]string{
	"SECRET": "hunter2-hunter2", "PORT": "70000", "EMPTY": "", "N": "5", "LEVEL": "loud-secret",
	"WORD": "shibboleth", "DURATION": "77", "INJECT": "a\nadmin: {listen: x}", "NAME": "nats",
}

// TestMistakes holds each file of testdata/mistakes against the messages
// below its dashed line.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/mistakes/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			const dashes = "----------\n"
			text, _, _ := strings.Cut(string(data), dashes)
			_, _, err = check("testdata/postwire.yaml", text, environment)
			got := "no error\n"
			if err != nil {
				got = strings.ReplaceAll(err.Error(), "testdata/postwire.yaml", "postwire.yaml") + "\n"
			}
			for name, value := range environment {
				if len(value) > 4 && strings.Contains(got, value) {
					t.Errorf("the value of %s is printed:\n%s", name, got)
				}
			}
			if strings.Contains(got, "open-sesame") {
				t.Errorf("a secret is printed:\n%s", got)
			}
			golden.Check(t, file, text+dashes+got)
		})
	}
}

func TestSchemaAndReference(t *testing.T) {
	schema, err := config.Schema(fakeKinds(), fakeKinds())
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(schema) {
		t.Error("the schema is not JSON")
	}
	golden.Check(t, "testdata/schema.json", string(schema))
	reference, err := config.Reference(fakeKinds(), fakeKinds())
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/reference.md", string(reference))
}

func TestSchemaIsDeterministic(t *testing.T) {
	first, err := config.Schema(fakeKinds(), fakeKinds())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		again, err := config.Schema(fakeKinds(), fakeKinds())
		if err != nil || !bytes.Equal(first, again) {
			t.Fatal("differs from one time to the next: ", err)
		}
	}
}

// TestEveryKeyIsDescribed keeps the reference page whole.
func TestEveryKeyIsDescribed(t *testing.T) {
	var visit func(path string, fields []config.Field)
	visit = func(path string, fields []config.Field) {
		for _, f := range fields {
			if !strings.HasSuffix(f.Doc, ".") {
				t.Errorf("%s%s: description %q is not a sentence", path, f.Key, f.Doc)
			}
			visit(path+f.Key+".", f.Fields)
		}
	}
	visit("", config.Describe(config.Default()))
}

func TestEmptyDocumentsAreTheDefault(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "~\n", "{}\n", "server:\nlog:\n  level:\nsinks:\n", "\n\n"} {
		got, err := config.Parse("postwire.yaml", []byte(text), nil)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(config.Default(), *got, cmpopts.IgnoreUnexported(config.Config{}), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestValues(t *testing.T) {
	const text = `
server:
  listen: "0.0.0.0:${PORT}"
  max_body_bytes: 2MiB
  max_header_bytes: "${BYTES}"
  idle_timeout: 1h30m
  max_connections: "${CONNECTIONS:-12}"
  trusted_proxies: [10.0.0.0/8, "2001:db8::/32"]
journal: {retention: 1w2d, min_free_bytes: 0}
dedupe: {window: 36h}
sinks:
  - name: corner
    type: post
    subject: "$${kept} $ $$ {platform} ${WORD:-{platform}}"
    servers: ["127.0.0.1:80"]
    stamps: 0x10
    weight: 7
    speed: 2
    express: true
    limit: 1.5KiB
    token: ${file:token.txt}
    keys: ["${WORD}", plain]
    headers: {X-One: "1", "x.two": "${EMPTY}"}
    zone: Europe/Berlin
    networks: &nets [10.0.0.0/8]
    home: 127.0.0.1
    clerks: [{name: Ann, hours: 3}, {name: "Bob"}]
    safe: {name: Cleo}
    auth: {key: k, wait: 0}
    cities: [rome]
  - name: other
    type: post
    subject: ""
    networks: *nets
    auth: none
`
	env := map[string]string{"PORT": "8443", "BYTES": "32KiB", "WORD": "a: [b", "EMPTY": ""}
	c, posts, err := check("testdata/postwire.yaml", text, env)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Server.Listen = "0.0.0.0:8443"
	want.Server.MaxBodyBytes = 2 << 20
	want.Server.MaxHeaderBytes = 32 << 10
	want.Server.IdleTimeout = 90 * time.Minute
	want.Server.MaxConnections = 12
	want.Server.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	want.Journal.Retention = 9 * 24 * time.Hour
	want.Journal.MinFreeBytes = 0
	want.Dedupe.Window = 36 * time.Hour
	options := cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.IgnoreUnexported(config.Config{}), cmpopts.IgnoreFields(config.Config{}, "Sinks")}
	if diff := cmp.Diff(want, *c, options); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	wantPost := post{
		Base: base{Subject: "${kept} $ $$ {platform} a: [b"}, Servers: []string{"127.0.0.1:80"}, Stamps: 16, Weight: 7,
		Speed: 2, Express: true, Limit: 1536, Token: "from-a-file", Keys: []config.Secret{"a: [b", "plain"},
		Headers: map[string]string{"X-One": "1", "x.two": ""}, Zone: berlin,
		Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Home: netip.MustParseAddr("127.0.0.1"),
		Clerks: []clerk{{"Ann", 3}, {"Bob", 0}}, Safe: &clerk{Name: "Cleo"}, Auth: door{Key: "k"}, Cities: []string{"rome"},
	}
	secrets := cmp.Comparer(func(a, b config.Secret) bool { return a.Reveal() == b.Reveal() })
	zones := cmp.Comparer(func(a, b *time.Location) bool { return a.String() == b.String() })
	if diff := cmp.Diff(wantPost, posts[0], options, secrets, zones); diff != "" {
		t.Errorf("post (-want +got):\n%s", diff)
	}
	if !posts[1].Auth.None || len(posts[1].Networks) != 1 || posts[1].Stamps != 3 {
		t.Errorf("second post: %+v", posts[1])
	}
	if b := c.Sinks[0]; !b.Has("safe.name") || b.Has("safe.hours") || b.Has("tls") || b.Name != "corner" || b.Path != "sinks[0]" {
		t.Errorf("block: %+v", b)
	}
}

// TestListWithCommas: a text of a list may have several entries, so that one variable can hold
// the list. A refused entry is reported at the text.
func TestListWithCommas(t *testing.T) {
	env := map[string]string{"SERVERS": "127.0.0.1:80, 127.0.0.1:81,"}
	for text, want := range map[string][]string{
		"[\"${SERVERS}\"]":                   {"127.0.0.1:80", "127.0.0.1:81"},
		"\"${SERVERS}\"":                     {"127.0.0.1:80", "127.0.0.1:81"},
		"[\"127.0.0.1:1\", \"${SERVERS}\"]":  {"127.0.0.1:1", "127.0.0.1:80", "127.0.0.1:81"},
		"127.0.0.1:1":                        {"127.0.0.1:1"},
		"[\"127.0.0.1:1\", \"127.0.0.1:2\"]": {"127.0.0.1:1", "127.0.0.1:2"},
	} {
		_, posts, err := check("postwire.yaml", "sinks: [{name: a, type: post, subject: x, servers: "+text+"}]", env)
		if err != nil || !slices.Equal(posts[0].Servers, want) {
			t.Errorf("servers: %s is %v, %v; want %v", text, posts, err, want)
		}
	}
	_, _, err := check("postwire.yaml", "sinks:\n  - name: a\n    type: post\n    subject: x\n    servers: 127.0.0.1:1, nowhere\n", nil)
	if err == nil || !strings.Contains(err.Error(), "postwire.yaml:5") || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a wrong entry: %v", err)
	}
	_, _, err = check("postwire.yaml", "sinks: [{name: a, type: post, subject: x, servers: [\"${SERVERS}\"]}]", map[string]string{"SERVERS": "127.0.0.1:1,from-outside"})
	if err == nil || strings.Contains(err.Error(), "from-outside") || !strings.Contains(err.Error(), "${SERVERS}") {
		t.Errorf("a wrong entry of a variable: %v", err)
	}
}

// TestExpansionOfTemplateDefault: braces of a template do not end a default.
func TestExpansionOfTemplateDefault(t *testing.T) {
	_, posts, err := check("postwire.yaml", "sinks: [{name: a, type: post, subject: \"${NO:-events.{platform}}.x\"}]", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := posts[0].Base.Subject; got != "events.{platform}.x" {
		t.Errorf("subject is %q", got)
	}
}

func TestRender(t *testing.T) {
	const text = `
server: {listen: ":1"}
journal: {jetstream: {url: "nats://me:open-sesame@host"}}
sinks:
  - name: corner
    type: post
    subject: "$${NOT} {platform} ${N}"
    token: open-sesame
    keys: [open-sesame]
    auth: none
    headers: {b: "1", a: "true"}
    clerks: [{name: Ann}]
    safe: {name: Bob}
    networks: [10.0.0.0/8]
`
	c, posts, err := check("postwire.yaml", text, environment)
	if err != nil {
		t.Fatal(err)
	}
	out, err := config.Render(c, nil, [][]any{{defaultSettings(), &posts[0]}})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("open-sesame")) {
		t.Error("a secret is printed")
	}
	golden.Check(t, "testdata/render.yaml", string(out))
	// What is printed is read again, and means the same but for secrets.
	again, reread, err := check("postwire.yaml", string(out), nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Server.Listen != ":1" || reread[0].Base != posts[0].Base || !reread[0].Auth.None {
		t.Errorf("read again: %+v %+v", again.Server, reread[0])
	}
	if _, err := config.Render(c, nil, nil); err == nil {
		t.Error("blocks without values are rendered")
	}
}

func TestRenderOfTheDefaultIsTheDefault(t *testing.T) {
	c := config.Default()
	out, err := config.Render(&c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse("postwire.yaml", out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, *got, cmpopts.IgnoreUnexported(config.Config{}), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	const s = config.Secret("open-sesame")
	type holder struct {
		S config.Secret  `json:"s" yaml:"s"`
		P *config.Secret `json:"p" yaml:"p"`
	}
	p := s
	h := holder{s, &p}
	var shown []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%t", "%10s", "% x", "%T"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, h), fmt.Sprintf(verb, []config.Secret{s}), fmt.Sprintf(verb, map[config.Secret]config.Secret{s: s}))
	}
	j, err := json.Marshal(map[string]any{"h": h, "m": map[string]config.Secret{"k": s}})
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	shown = append(shown, string(j), string(y), string(text), s.String(), s.GoString(), fmt.Sprint(s), fmt.Sprintf("%v", errors.New(s.String())))
	for _, out := range shown {
		for _, leak := range []string{"sesame", "736573616d65", "736573616D65", "73 65 73"} {
			if strings.Contains(out, leak) {
				t.Errorf("%q shows the secret", out)
			}
		}
	}
	if s.Reveal() != "open-sesame" {
		t.Error("Reveal does not")
	}
	if empty := config.Secret(""); empty.String() != "" || fmt.Sprintf("%v", empty) != "" {
		t.Error("an empty secret is not empty")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]config.Size{
		"0": 0, "1": 1, "1KiB": 1024, "1kib": 1024, "64 KiB": 65536, "1.5GB": 1500000000, "1MB": 1000000, "7B": 7, "2TiB": 2 << 40,
	} {
		if got, err := config.ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "B", "1.5", "1XB", "many", "99999999TiB", "1e5MB", "0x10", "9223372036854775808", "1.KiB.", "٣KiB"} {
		if got, err := config.ParseSize(text); err == nil {
			t.Errorf("%q is %d, want an error", text, got)
		}
	}
	for size, want := range map[config.Size]string{0: "0", 1: "1", 1024: "1KiB", 1 << 20: "1MiB", 1500: "1500", 3 << 30: "3GiB"} {
		if got := size.String(); got != want {
			t.Errorf("%d is %q, want %q", int64(size), got, want)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "7d": 168 * time.Hour, "1w": 168 * time.Hour, "1d12h": 36 * time.Hour, "1.5d": 36 * time.Hour,
		"-5m": -5 * time.Minute, "+1h30m": 90 * time.Minute, "1ms": time.Millisecond, "3µs": 3 * time.Microsecond, "2us": 2 * time.Microsecond, "0s": 0,
	} {
		if got, err := config.ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "d", "-", "5 m", "1y", "1.2.3d", "99999999w", "200000d200000d", "1h-5m", "-0h -", "9999999h", "5M"} {
		if got, err := config.ParseDuration(text); err == nil {
			t.Errorf("%q is %v, want an error", text, got)
		}
	}
	for d, want := range map[time.Duration]string{
		168 * time.Hour: "168h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 0: "0s", 1500 * time.Millisecond: "1.5s",
	} {
		if got := config.FormatDuration(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestTLS(t *testing.T) {
	if c, err := (config.TLS{}).Config(); c != nil || err != nil {
		t.Errorf("not enabled: %v, %v", c, err)
	}
	c, err := config.TLS{Enabled: true, ServerName: "x"}.Config()
	if err != nil || c.MinVersion != 0x0303 || c.ServerName != "x" {
		t.Errorf("enabled: %+v, %v", c, err)
	}
	if _, err := (config.TLS{Enabled: true, CAFile: "testdata/token.txt"}).Config(); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a CA file without certificates: %v", err)
	}
	if _, err := (config.TLS{Enabled: true, CertFile: "none.pem", KeyFile: "none.pem"}).Config(); err == nil {
		t.Error("a missing certificate is no error")
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := config.Load(filepath.Join(dir, "no.yaml"), nil); err == nil || !strings.HasSuffix(err.Error(), "no.yaml: configuration file does not exist; name a different file with -c") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := config.Load(dir, nil); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("a folder: %v", err)
	}
	file := filepath.Join(dir, "postwire.yaml")
	if err := os.WriteFile(file, []byte("log: {level: \"${file:level}\"}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "level"), []byte("debug\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file, os.LookupEnv)
	if err != nil || c.Log.Level != "debug" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestMerge(t *testing.T) {
	if err := config.Merge(nil, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	a := config.Problem{File: "f", Line: 2, Column: 1, Key: "b", What: "late"}
	b := config.Problem{File: "f", Line: 1, Column: 9, Key: "a", What: "early", Hint: "hurry"}
	err := config.Merge(config.Problems{a, b}, fmt.Errorf("wrapped: %w", config.Problems{a}), errors.Join(b, errors.New("foreign")), nil)
	const want = "foreign\nf:1:9: a: early; hurry\nf:2:1: b: late"
	if err == nil || err.Error() != want {
		t.Errorf("merged:\n%v\nwant:\n%s", err, want)
	}
	if _, ok := errors.AsType[config.Problems](err); !ok {
		t.Errorf("a %T is not Problems", err)
	}
}

func TestJoinAndNest(t *testing.T) {
	if err := config.Join(nil, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	var inner, outer config.Invalids
	inner.Add("[1]", "is odd", "")
	inner.Add("x", "is bad", "use y")
	outer.Nest("list", inner.Err())
	outer.Nest("none", nil)
	if got := config.Join(outer.Err()).Error(); got != "list[1]: is odd\nlist.x: is bad; use y" {
		t.Errorf("nested: %s", got)
	}
}

func TestBlockOfNoDocument(t *testing.T) {
	b := config.Block{Name: "a", Type: "pots", Path: "sinks[0]"}
	s := defaultSettings()
	if err := b.Decode(&s); err != nil || s.Start != "latest" {
		t.Errorf("decoded: %+v, %v", s, err)
	}
	if err := b.UnknownType("sink", []string{"post"}); err == nil || !strings.Contains(err.Error(), `did you mean "post"?`) {
		t.Errorf("unknown type: %v", err)
	}
	if err := b.Check(nil, nil); err != nil || b.Has("x") {
		t.Errorf("check: %v", err)
	}
}

// FuzzParse: no bytes make it panic, and each problem is inside the file.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/mistakes/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		text, _, _ := strings.Cut(string(data), "----------\n")
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, posts, err := check("postwire.yaml", string(data), environment)
		if err == nil {
			return
		}
		if c == nil && posts != nil {
			t.Fatal("blocks of no configuration")
		}
		var problems config.Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("a %T is not problems", err)
		}
		lines := bytes.Count(data, []byte("\n")) + 1
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.File != "postwire.yaml" || p.What == "" {
				t.Errorf("problem outside of the file of %d lines: %#v", lines, p)
			}
		}
	})
}

// TestStampIsOfWhatWasRead: a file that is written again after it was read has
// another stamp than the configuration that was made of it, whoever looks first.
func TestStampIsOfWhatWasRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	c, err := config.Parse("postwire.yaml", []byte("admin: {token: \"${file:"+path+"}\"}\n"), os.LookupEnv)
	if c == nil {
		t.Fatal(err)
	}
	if files := c.Files(); len(files) != 1 || c.Stamp() != config.Stamp(files...) {
		t.Errorf("stamp %q of %v, want %q", c.Stamp(), files, config.Stamp(files...))
	}
	write("another, and longer")
	if c.Stamp() == config.Stamp(c.Files()...) {
		t.Error("what was written later has the stamp of what was read")
	}
}
