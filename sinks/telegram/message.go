package telegram

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"html/template"
	"regexp"
	"strings"
	"unicode/utf16"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/postwire/postwire/pkg/event"
)

// maxLength is the maximum length of a message in UTF-16 code units, after its
// entities have been parsed (Bot API, sendMessage).
const maxLength = 4096

// standard suits the events of Upload-Post, and names any other.
const standard = `
{{- $at := .event.platform}}{{with .event.profile}}{{$at = printf "%s · %s" $at .}}{{end -}}
{{- if eq .event.outcome "success" -}}
✅ <b>Published</b> on {{$at}}
{{- with get .data "title"}}
{{cut 200 .}}{{end}}
{{- with get .data "result" "url"}}
<a href="{{.}}">{{cut 200 .}}</a>{{end}}
{{- else if eq .event.outcome "failure" -}}
❌ <b>Failed</b> on {{$at}}
{{- with get .data "title"}}
{{cut 200 .}}{{end}}
{{- with get .data "result" "error"}}
<i>{{cut 1000 .}}</i>{{end}}
{{- else if get .data "account_name" -}}
{{if eq .event.outcome "connected"}}🔗{{else}}⚠️{{end}} <b>{{get .data "account_name"}}</b> on {{$at}}: {{.event.outcome}}
{{- with get .data "reason"}}
<i>{{cut 200 .}}</i>{{end}}
{{- else -}}
<b>{{.event.type}}</b>
{{.event.id}}
{{- end}}`

// parse parses a template, and executes the template on an event without data,
// so that errors show when the configuration is read.
func parse(text string) (*template.Template, error) {
	if text == "" {
		text = standard
	}
	t, err := template.New("template").Option("missingkey=zero").Funcs(template.FuncMap{"get": get, "cut": cut}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("is not a template: %w", err)
	}
	if _, err := execute(t, view{"event": map[string]string{}, "data": nil, "json": ""}); err != nil {
		return nil, fmt.Errorf("fails on an event without data; take fields with get, which gives nothing where one is missing: %w", err)
	}
	return t, nil
}

var errTemplate = errors.New("the template fails on this event; take fields with get, which gives nothing where one is missing")

// view is an event as seen by a template.
type view map[string]any

func viewOf(e event.Event) view {
	whole, _, err := event.Structured(e)
	if err != nil {
		whole = nil // not a CloudEvent
	}
	attributes := map[string]string{}
	for _, name := range append(event.Attributes(), names(e.CloudEvent)...) {
		if value, ok := e.Attribute(name); ok {
			attributes[name] = value
		}
	}
	return view{"event": attributes, "data": dataOf(e), "json": string(whole)}
}

// dataOf returns the data of an event, with numbers as sent; nil for data other
// than JSON.
func dataOf(e event.Event) (data any) {
	d := json.NewDecoder(bytes.NewReader(event.TrimBOM(e.CloudEvent.DataEncoded)))
	d.UseNumber()
	if err := d.Decode(&data); err != nil || d.More() {
		return nil
	}
	return data
}

func names(e cloudevents.Event) (names []string) {
	for name := range e.Extensions() {
		names = append(names, name)
	}
	return names
}

// get returns a field of the data by path, or nothing for a missing field.
func get(data any, path ...string) any {
	for _, name := range path {
		object, ok := data.(map[string]any)
		if !ok || object[name] == nil {
			return ""
		}
		data = object[name]
	}
	if data == nil {
		return ""
	}
	return data
}

// cut shortens a text of more than n characters.
func cut(n int, v any) string {
	text := fmt.Sprint(v)
	if runes := []rune(text); len(runes) > n {
		return string(runes[:max(0, n-1)]) + "…"
	}
	return text
}

// render renders an event as a message within the limit: the texts of the event
// are shortened step by step, and finally the whole message as plain text.
func render(t *template.Template, e event.Event) (text string, isHTML bool, err error) {
	v := viewOf(e)
	for _, limit := range []int{0, 1000, 300, 100, 30} {
		if limit > 0 {
			v["data"] = shorten(v["data"], limit)
		}
		if text, err = execute(t, v); err != nil {
			return "", false, errTemplate // not wrapped, because the error may quote the data
		}
		if length(plain(text)) <= maxLength {
			return text, true, nil
		}
	}
	return clip(plain(text), maxLength), false, nil
}

func execute(t *template.Template, v view) (string, error) {
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return "", err
	}
	return strings.TrimSpace(out.String()), nil
}

// shorten cuts all texts in v.
func shorten(v any, limit int) any {
	switch v := v.(type) {
	case string:
		return cut(limit, v)
	case map[string]any:
		short := make(map[string]any, len(v))
		for name, value := range v {
			short[name] = shorten(value, limit)
		}
		return short
	case []any:
		short := make([]any, len(v))
		for i, value := range v {
			short[i] = shorten(value, limit)
		}
		return short
	}
	return v
}

var tags = regexp.MustCompile(`<[^>]*>`)

// plain removes the tags of HTML and decodes the entities.
func plain(text string) string { return html.UnescapeString(tags.ReplaceAllString(text, "")) }

func length(text string) (n int) {
	for _, r := range text {
		n += utf16.RuneLen(r)
	}
	return n
}

// clip cuts plain text to a length.
func clip(text string, limit int) string {
	if length(text) <= limit {
		return text
	}
	n := 1 // for the dots
	for i, r := range text {
		if n += utf16.RuneLen(r); n > limit {
			return text[:i] + "…"
		}
	}
	return text
}

// digest summarises many events in one message: the number of events per
// outcome, and the failed events, as far as there is room.
func digest(batch []event.Event) string {
	var order []string
	counts := map[string]int{}
	var lines []string
	for _, e := range batch {
		outcome, ok := e.Attribute(event.Outcome)
		if !ok {
			outcome = "other"
		}
		if counts[outcome]++; counts[outcome] == 1 {
			order = append(order, outcome)
		}
		if outcome != "success" {
			lines = append(lines, line(e, outcome))
		}
	}
	head := fmt.Sprintf("📬 %d events:", len(batch))
	for i, outcome := range order {
		if i > 0 {
			head += ","
		}
		head += fmt.Sprintf(" %d %s", counts[outcome], outcome)
	}
	const more = "\n… and %d more"
	room := maxLength - length(head) - len(more) - 10
	for i, line := range lines {
		if room -= 1 + length(line); room < 0 {
			return head + fmt.Sprintf(more, len(lines)-i)
		}
		head += "\n" + line
	}
	return head
}

// line describes an event on a line.
func line(e event.Event, outcome string) string {
	mark := "•"
	if outcome == "failure" {
		mark = "❌"
	}
	words := []string{mark}
	for _, name := range []string{event.Platform, event.Profile} {
		if value, ok := e.Attribute(name); ok {
			words = append(words, value)
		}
	}
	if len(words) == 1 {
		words = append(words, e.CloudEvent.Type())
	}
	data := dataOf(e)
	for _, path := range [][]string{{"result", "error"}, {"reason"}} {
		if text := get(data, path...); text != "" {
			return strings.Join(words, " ") + ": " + cut(150, text)
		}
	}
	return strings.Join(words, " ") + ": " + outcome
}
