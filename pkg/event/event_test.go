package event

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/types"
)

func sample() Event {
	e := cloudevents.NewEvent()
	e.SetID("upload_completed/instagram/1/success")
	e.SetSource("https://upload-post.com/profiles/demo")
	e.SetType("com.upload-post.upload_completed")
	e.SetTime(time.Date(2024, 3, 15, 14, 30, 0, 120_000_000, time.FixedZone("", 3600)))
	e.SetExtension(Platform, "instagram")
	e.SetExtension(RecordedTime, types.Timestamp{Time: time.Date(2024, 3, 15, 13, 30, 1, 0, time.UTC)})
	return Event{CloudEvent: e, SourceName: "upload-post"}
}

func TestKeysOfOtherPartsDiffer(t *testing.T) {
	seen := map[Key][]string{}
	for _, parts := range [][]string{
		{"a", "bc"}, {"ab", "c"}, {"abc"}, {"a", "b", "c"}, {"", "abc"}, {"abc", ""}, {"1:a", "bc"}, {"a", "1:b", "c"}, {"3:abc"},
	} {
		k := NewKey(parts[0], parts[1:]...)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key, %s", parts, other, k)
		}
		seen[k] = parts
		if k != NewKey(parts[0], parts[1:]...) {
			t.Errorf("the key of %q changes", parts)
		}
		if got := k.Parts(); !slices.Equal(got, parts) {
			t.Errorf("the parts of %s are %q", k, got)
		}
		if got := k.Source(); got != parts[0] {
			t.Errorf("the source of %s is %q", k, got)
		}
	}
}

func TestWhatIsNoKeyHasNoParts(t *testing.T) {
	for _, k := range []Key{"", "a", "1:", "-1:a", "2:a"} {
		if name := k.Source(); name != "" {
			t.Errorf("%q is of the source %q", k, name)
		}
	}
	for _, k := range []Key{"", "a", "1:", "-1:a", "2:a", "1:ab"} {
		if parts := k.Parts(); parts != nil {
			t.Errorf("%q has the parts %q", k, parts)
		}
	}
}

func TestAttribute(t *testing.T) {
	for name, want := range map[string]string{
		"specversion": "1.0", "id": "upload_completed/instagram/1/success", "source": "https://upload-post.com/profiles/demo",
		"type": "com.upload-post.upload_completed", "time": "2024-03-15T13:30:00.12Z", Platform: "instagram",
		RecordedTime: "2024-03-15T13:30:01Z", "subject": "", Outcome: "", "": "",
	} {
		got, ok := sample().Attribute(name)
		if got != want || ok != (want != "") {
			t.Errorf("%s is %q, %v; want %q", name, got, ok, want)
		}
	}
	if v, ok := (Event{}).Attribute("id"); ok {
		t.Errorf("an event without a context has the id %q", v)
	}
}

func TestTemplateMistakes(t *testing.T) {
	for text, want := range map[string]struct {
		offset int
		what   string
	}{
		"events.{Platfrm}": {7, "{Platfrm} names no attribute"},
		"events.{":         {7, "a { without its }"},
		"events.}":         {7, "a } without its {"},
		"{platform}.{}":    {11, "{} names no attribute"},
		"{plat{form}}":     {0, "{plat{form} names no attribute"},
		"{Tenant}":         {0, "{Tenant} names no attribute"},
		"{tenant-id}":      {0, "{tenant-id} names no attribute"},
	} {
		_, err := ParseTemplate(text)
		e, ok := errors.AsType[*TemplateError](err)
		if !ok || e.Offset != want.offset || e.What != want.what || e.Hint == "" {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestExpand(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"events":                    "events",
		"events.{platform}":         "events.INSTAGRAM",
		"{platform}{platform}":      "INSTAGRAMINSTAGRAM",
		"events.{outcome}.x":        "events.NONE.x",
		"events.{tenant}":           "events.NONE",
		"é.{type}":                  "é.COM.UPLOAD-POST.UPLOAD_COMPLETED",
		"{specversion}/{publishid}": "1.0/NONE",
		"from.{sourcename}":         "from.UPLOAD-POST",
	} {
		tmpl, err := ParseTemplate(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := tmpl.Expand(sample(), strings.ToUpper); got != want {
			t.Errorf("%s gives %q, want %q", text, got, want)
		}
		if tmpl.String() != text || tmpl.Static() == strings.Contains(text, "{") {
			t.Errorf("%s: String %q, Static %v", text, tmpl, tmpl.Static())
		}
	}
}

// A template either is refused with the place, or expands to its literal text
// around values that went through safe.
func FuzzTemplate(f *testing.F) {
	for _, text := range []string{"", "events.{platform}", "{", "}", "{}", "{platform}{id}", "a{platform"} {
		f.Add(text)
	}
	e := sample()
	f.Fuzz(func(t *testing.T, text string) {
		tmpl, err := ParseTemplate(text)
		if err != nil {
			if at, ok := errors.AsType[*TemplateError](err); !ok || at.Offset < 0 || at.Offset >= len(text) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		got := tmpl.Expand(e, func(string) string { return "\x00" })
		if strings.Count(got, "\x00") != strings.Count(text, "{")+strings.Count(text, "\x00") {
			t.Errorf("%q expands to %q", text, got)
		}
	})
}

func ExampleTemplate() {
	t, err := ParseTemplate("events.{platform}.{outcome}")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(t.Expand(sample(), strings.ToLower))
	// Output: events.instagram.none
}

func ExampleParseTemplate() {
	_, err := ParseTemplate("events.{Platform}")
	fmt.Println(err)
	// Output: at offset 7: {Platform} names no attribute; did you mean {platform}?
}
