package schema_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
)

func open(t *testing.T, dir string) *schema.Library {
	t.Helper()
	l, err := schema.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newSource(t *testing.T) source.Source {
	t.Helper()
	s, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: auth.Auth{None: true}}, source.Env{Name: "in"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSchemasAreSchemas holds each against the meta-schema, and its $id against
// its name.
func TestSchemasAreSchemas(t *testing.T) {
	l := open(t, "")
	meta, err := jsonschema.NewCompiler().Compile("https://json-schema.org/draft/2020-12/schema")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Names() {
		text, _ := l.Text(n)
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := meta.Validate(doc); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		id, _ := doc.(map[string]any)["$id"].(string)
		if got, ok := schema.ParseDataSchema(id, ""); !ok || got != n {
			t.Errorf("%s has $id %q", n, id)
		}
	}
}

// TestWhatTheSourceAcceptsTheSchemaAccepts goes through the source's own cases;
// each type that has a schema is among them.
func TestWhatTheSourceAcceptsTheSchemaAccepts(t *testing.T) {
	l, src := open(t, ""), newSource(t)
	files, err := filepath.Glob("../source/uploadpost/testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	accepted, seen := 0, map[string]bool{}
	for _, file := range append(files, "../source/uploadpost/sample/example.json") {
		if strings.HasSuffix(file, ".golden.json") {
			continue
		}
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		events, err := src.Normalize(&source.Request{Body: body, Received: time.Unix(1e9, 0)})
		if err != nil {
			continue
		}
		for _, e := range events {
			n, ok := schema.ParseDataSchema(e.CloudEvent.DataSchema(), "")
			if !ok {
				t.Errorf("%s: dataschema %q names nothing", file, e.CloudEvent.DataSchema())
			}
			if err := l.Check(n, e.CloudEvent.DataContentType(), e.CloudEvent.Data()); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			if _, known := l.Text(n); known {
				accepted++
				seen[n.Type] = true
			}
		}
	}
	if accepted < 30 {
		t.Errorf("only %d payloads were held against a schema", accepted)
	}
	for _, n := range l.Names() {
		if strings.HasPrefix(n.Type, "com.upload-post.") && !seen[n.Type] {
			t.Errorf("no payload is of type %s", n.Type)
		}
	}
}

func TestDataSchemaNamesASchema(t *testing.T) {
	for _, tt := range []struct {
		dataschema, base string
		want             schema.Name
	}{
		{"urn:postwire:schema:com.upload-post.upload_completed:1", "", schema.Name{Type: "com.upload-post.upload_completed", Version: "1"}},
		{source.Env{}.Schema("a b:c/d"), "", schema.Name{Type: "a b:c/d", Version: "1"}},
		{source.Env{SchemaBase: "https://x/s"}.Schema("a b:c/d"), "https://x/s/", schema.Name{Type: "a b:c/d", Version: "1"}},
		{"https://x/s/a/12", "https://x/s", schema.Name{Type: "a", Version: "12"}},
		{"https://y/s/a/12", "https://x/s", schema.Name{}},
		{"https://x/s/a/12", "", schema.Name{}},
		{"urn:postwire:schema:a", "", schema.Name{}},
		{"urn:postwire:schema:a:01", "", schema.Name{}},
		{"urn:postwire:schema:a:x", "", schema.Name{}},
		{"urn:postwire:schema::1", "", schema.Name{}},
		{"urn:postwire:schema:%zz:1", "", schema.Name{}},
		{"", "", schema.Name{}},
	} {
		got, ok := schema.ParseDataSchema(tt.dataschema, tt.base)
		if ok != (tt.want != schema.Name{}) || ok && got != tt.want {
			t.Errorf("%q below %q names %+v, %v", tt.dataschema, tt.base, got, ok)
		}
	}
}

// TestMismatchQuotesNothingOfTheData, not even the name of a field.
func TestMismatchQuotesNothingOfTheData(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "own.type/1.json", `{"properties":{"email":{"type":"integer"},"kind":{"enum":["a"]},"code":{"pattern":"^x$"}},
		"propertyNames":{"maxLength":9},"patternProperties":{"^s-":false},"additionalProperties":{"type":"string"},"required":["there"],"dependentRequired":{"email":["other"]},"unevaluatedProperties":false}`)
	l := open(t, dir)
	const secret = "someone@example.com"
	err := l.Check(schema.Name{Type: "own.type", Version: "1"}, "application/json", []byte(
		`{"email":"`+secret+`","kind":"`+secret+`","code":"`+secret+`","`+secret+`":"`+secret+`","s-`+secret+`":1,"n":5}`))
	m, ok := errors.AsType[*schema.MismatchError](err)
	if !ok || len(m.Where) != 5 {
		t.Fatalf("Check = %v, want five places", err)
	}
	if strings.Contains(m.Error(), "someone") || strings.Contains(m.Error(), "example.com") {
		t.Errorf("it quotes the data: %v", m)
	}
}

func TestCheck(t *testing.T) {
	l := open(t, "")
	upload := schema.Name{Type: "com.upload-post.upload_completed", Version: "1"}
	for _, tt := range []struct {
		name              schema.Name
		contentType, data string
		want              string
	}{
		{upload, "application/json", `{"event":"upload_completed","platform":"","result":{"success":false}}`, ""},
		{upload, "application/vnd.x+json; charset=utf-8", `{"event":"upload_completed","platform":"","result":{"success":false}}`, ""},
		{upload, "", `{"event":"other","platform":"","result":{"success":false}}`, "does not fit schema com.upload-post.upload_completed/1 at /properties/event/const"},
		{upload, "", `{"event":"upload_completed","platform":1,"result":{}}`, "does not fit schema com.upload-post.upload_completed/1 at /properties/platform/type, /properties/result/required"},
		{upload, "", `[`, "is not JSON, which schema com.upload-post.upload_completed/1 asks for"},
		{upload, "text/plain", `{}`, "is not JSON, which schema com.upload-post.upload_completed/1 asks for"},
		{schema.Name{Type: "unknown", Version: "1"}, "", `[`, ""},
	} {
		got := ""
		if err := l.Check(tt.name, tt.contentType, []byte(tt.data)); err != nil {
			got = err.Error()
		}
		if got != tt.want && !sorted(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.data, got, tt.want)
		}
	}
}

// sorted reports whether both name the same places, in whatever order.
func sorted(a, b string) bool {
	first, placesA, _ := strings.Cut(a, " at ")
	second, placesB, _ := strings.Cut(b, " at ")
	return first == second && cmp.Equal(strings.Split(placesA, ", "), strings.Split(placesB, ", "), cmp.Transformer("sort", func(s []string) map[string]bool {
		set := map[string]bool{}
		for _, v := range s {
			set[v] = true
		}
		return set
	}))
}

func TestCheckedSource(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "com.upload-post.ping/1.json", `{"required":["n"]}`)
	l := open(t, dir)
	for mode, want := range map[string]struct {
		told    int
		refused bool
	}{source.SchemaOff: {0, false}, "": {0, false}, source.SchemaWarn: {1, false}, source.SchemaQuarantine: {1, true}} {
		told := 0
		src := schema.Checked(newSource(t), l, "", mode, func(*schema.MismatchError) { told++ })
		for body, fits := range map[string]bool{`{"event":"ping","n":1}`: true, `{"event":"ping"}`: false, `{"event":"pong"}`: true} {
			events, err := src.Normalize(&source.Request{Body: []byte(body), Received: time.Unix(1e9, 0)})
			_, malformed := errors.AsType[*source.MalformedError](err)
			if refused := want.refused && !fits; malformed != refused || refused != (len(events) == 0) || err != nil && !malformed {
				t.Errorf("schema: %s: %s gives %d events, %v", mode, body, len(events), err)
			}
		}
		if _, err := src.Normalize(&source.Request{Body: []byte(`{`)}); err == nil {
			t.Errorf("schema: %s: what is no JSON is understood", mode)
		}
		if told != want.told {
			t.Errorf("schema: %s: told of %d mismatches, want %d", mode, told, want.told)
		}
	}
}

func TestOpenSaysWhichFileIsWrong(t *testing.T) {
	for file, text := range map[string]string{
		"a/1.json": `{"type":"strin"}`, "a/2.json": `{`, "a/x.json": `{}`, "a/3.json": `{"$ref":"https://example.com/other"}`, "a/0.json": `{}`,
		"com.upload-post.upload_completed/1.json": `{}`,
	} {
		dir := t.TempDir()
		write(t, dir, file, text)
		if _, err := schema.Open(dir); err == nil || !strings.Contains(err.Error(), filepath.FromSlash(file)) {
			t.Errorf("%s: %v", file, err)
		}
	}
	if _, err := schema.Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a folder that is not there is read")
	}
}

func TestHandler(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "own type/7.json", `{}`)
	l := open(t, dir)
	s := httptest.NewServer(schema.Handler(func() *schema.Library { return l }))
	defer s.Close()
	get := func(path string) (int, string, string) {
		res := httptest.NewRecorder()
		s.Config.Handler.ServeHTTP(res, httptest.NewRequest(http.MethodGet, path, nil))
		return res.Code, res.Header().Get("Content-Type"), res.Body.String()
	}
	for _, n := range l.Names() {
		want, _ := l.Text(n)
		if code, typ, got := get("/schemas/" + n.String()); code != http.StatusOK || typ != "application/schema+json" || got != string(want) {
			t.Errorf("%s: %d %s", n, code, typ)
		}
	}
	for _, path := range []string{"/schemas/none/1", "/schemas/own%20type/8", "/schemas/own%20type", "/schemas/own%20type/7/x"} {
		if code, _, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, typ, got := get("/schemas/"); code != http.StatusOK || typ != "application/json" || !strings.Contains(got, `"/schemas/own%20type/7"`) || !strings.Contains(got, `"/schemas/com.upload-post.upload_completed/1"`) {
		t.Errorf("the list: %d %s %s", code, typ, got)
	}
}

func write(t *testing.T, dir, file, text string) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(file))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
