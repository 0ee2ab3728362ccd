package filter

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/expression"
)

func sample() event.Event {
	e := cloudevents.NewEvent()
	e.SetID("a")
	e.SetSource("https://upload-post.com/profiles/demo")
	e.SetType("com.upload-post.upload_completed")
	e.SetSubject("instagram/1")
	e.SetTime(time.Date(2024, 3, 15, 14, 30, 0, 0, time.UTC))
	e.SetExtension(event.Platform, "instagram")
	e.SetExtension(event.Profile, "ab")
	e.SetExtension("retries", int32(3))
	e.SetExtension("string", "of a name that is a type in CEL")
	e.SetExtension(event.RecordedTime, types.Timestamp{Time: time.Date(2024, 3, 15, 14, 31, 0, 0, time.UTC)})
	return event.Event{CloudEvent: e, SourceName: "upload-post"}
}

func TestMatches(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  true,
		"  \n":                              true,
		`platform == "instagram"`:           true,
		`platform == 'tiktok'`:              false,
		`platform != "tiktok" && id == "a"`: true,
		`platform == "x" && outcome == "y" || id == "a"`:                                        true, // && binds closer, on either side
		`id == "a" || platform == "x" && outcome == "y"`:                                        true,
		`!(platform == "instagram")`:                                                            false,
		`outcome == ""`:                                                                         true, // absent is ""
		`outcome != "success"`:                                                                  true,
		`nowhere == "" && attributes["nowhere"] == ""`:                                          true,
		`attributes["platform"] == "instagram"`:                                                 true,
		`attributes.platform == platform`:                                                       true,
		`attributes["retries"] == "3" && retries == "3"`:                                        true, // all are text
		`"platform" in attributes && !("outcome" in attributes)`:                                true,
		`type.startsWith("com.upload-post.")`:                                                   true,
		`type == "com.upload-post.upload_completed"`:                                            true,
		`string.startsWith("of")`:                                                               true,
		`platform in ["instagram", "youtube"]`:                                                  true,
		`subject.matches("^instagram/[0-9]+$")`:                                                 true,
		`time < timestamp("2024-03-15T14:30:01Z") && time == timestamp("2024-03-15T14:30:00Z")`: true,
		`time.getFullYear() == 2024`:                                                            true,
		`recordedtime == "2024-03-15T14:31:00Z"`:                                                true,
		`sourcename == "upload-post" && attributes["sourcename"] == sourcename`:                 true,
		`source.endsWith("/demo") && source.contains("upload-post")`:                            true,
		`specversion == "1.0" && datacontenttype == "" && dataschema == ""`:                     true,
		`size(platform) == 9 && platform.size() == 9`:                                           true,
		`platform.upperAscii() == "INSTAGRAM" && platform.substring(0, 5) == "insta"`:           true,
		`(outcome == "failure" ? platform : profile) == "ab"`:                                   true,
		strings.Repeat(`platform == "x" || `, 200) + `id == "a"`:                                true,
		strings.Repeat(`!`, 1000) + `(id == "a")`:                                               true,
		`true`:  true,
		`false`: false,
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("Parse(%.60q) = %v", text, err)
			continue
		}
		if got, err := f.Matches(sample()); got != want || err != nil {
			t.Errorf("%q matches the event: %v, %v; want %v", text, got, err, want)
		}
		if f.String() != text && strings.TrimSpace(text) != "" {
			t.Errorf("%q is printed as %q", text, f)
		}
	}
}

func TestAbsentTimeIsRecordedTime(t *testing.T) {
	e := sample()
	e.CloudEvent = e.CloudEvent.Clone()
	e.CloudEvent.SetTime(time.Time{})
	for text, want := range map[string]bool{
		`time == timestamp("2024-03-15T14:31:00Z")`: true,
		`attributes["time"] == ""`:                  true,
	} {
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Matches(e); got != want || err != nil {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		`platform`:                                        "gives string, must give true or false",
		`1 + 1`:                                           "gives int, must give true or false",
		`platform = "x"`:                                  "write == for equal",
		`platform = 'x'`:                                  "write == for equal",
		`platform <> 'x'`:                                 "write == for equal",
		`outcome == 'a' AND platform == 'b'`:              "&& for and",
		`outcome == 'a' OR platform == 'b'`:               "|| for or",
		`NOT (outcome == 'a')`:                            "! for not",
		`NOT outcome == 'a'`:                              "is not an expression",
		`EXISTS platform`:                                 "is not an expression",
		`platform LIKE 'a%'`:                              "is not an expression",
		`!outcome == "success"`:                           "into parentheses",
		`platform == `:                                    "ends too early",
		`platform == "x`:                                  "close what is open",
		`platform == 1`:                                   "no matching overload",
		`time > "2024-01-01"`:                             "no matching overload",
		`time > timestamp("soon")`:                        "RFC 3339",
		`package == "x"`:                                  `attributes["package"]`,
		`namespace == "x"`:                                `attributes["namespace"]`,
		`Platform == "x"`:                                 "lower case: platform",
		`source.name == "x"`:                              "is not an expression",
		`["a"].exists(x, x == platform)`:                  "there are no loops",
		`platform.matches("[")`:                           "regular expression",
		`platform.matches(profile)`:                       "write the text itself",
		`has(attributes.outcome)`:                         "is not an expression",
		`size(platform) / 0 == 1`:                         "",
		strings.Repeat("(", 2000) + "true":                "is not an expression",
		`platform == "` + strings.Repeat("x", 5000) + `"`: "is not an expression",
		"\x00": "is not an expression",
		"\"":   "is not an expression",
	} {
		f, err := Parse(text)
		if want == "" {
			if err != nil {
				t.Errorf("Parse(%.60q) = %v", text, err)
			} else if matched, err := f.Matches(sample()); matched || err == nil {
				t.Errorf("%q: %v, %v; want an error", text, matched, err)
			}
			continue
		}
		if _, ok := errors.AsType[*expression.Error](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%.60q) = %v, want %q", text, err, want)
		}
	}
}

// What cannot be evaluated selects nothing, and its error quotes no value.
func TestErrorsSelectNothing(t *testing.T) {
	for text, want := range map[string]string{
		`profile.substring(0, size(profile) - 4) == "x"`: "a character index is out of range",
		`profile.substring(0, size(profile) - 4) != "x"`: "a character index is out of range",
		`int(platform) > 3`:                                 "a function does not accept an attribute's value",
		`timestamp(platform) > time`:                        "a function does not accept an attribute's value",
		`100 / (size(profile) - 2) == 1`:                    "division by zero",
		`100 % (size(profile) - 2) == 1`:                    "modulus by zero",
		`size(profile) + 9223372036854775807 > 0`:           "out of range",
		`platform.split("s")[size(profile) * 5] == "x"`:     "an index is out of range",
		`platform.charAt(size(profile) * 50) == "x"`:        "a character index is out of range",
		`attributes == attributes`:                          "does not accept",
		`size(attributes) == 0`:                             "does not accept",
		strings.Repeat("platform+", 200) + `platform == ""`: "",
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("Parse(%.60q) = %v", text, err)
			continue
		}
		matched, err := f.Matches(sample())
		if want == "" {
			if matched || err != nil {
				t.Errorf("%q: %v, %v", text, matched, err)
			}
			continue
		}
		if matched || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, matched, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "instagram") {
			t.Errorf("%q: the error quotes the event: %v", text, err)
		}
	}
}

func TestCostIsLimited(t *testing.T) {
	e := sample()
	e.CloudEvent = e.CloudEvent.Clone()
	e.CloudEvent.SetExtension(event.Platform, strings.Repeat("x", 60_000))
	f, err := Parse(strings.Repeat("platform+", 200) + `platform == ""`)
	if err != nil {
		t.Fatal(err)
	}
	if matched, err := f.Matches(e); matched || err == nil || !strings.Contains(err.Error(), "costs more than") {
		t.Errorf("Matches = %v, %v", matched, err)
	}
}

func TestCheck(t *testing.T) {
	known := []string{"id", "type", "time", "outcome", "platform", "sourcename"}
	for text, want := range map[string]string{
		"": "",
		`outcome == "failure" && time > timestamp("2024-01-01T00:00:00Z")`: "",
		`attributes["tenant"] == "x" && type == "y"`:                       "",
		`outcom == "failure"`:     "did you mean outcome?",
		`outcome == failure`:      `text is in quotes: "failure"`,
		`tenant == "x"`:           `attributes["tenant"] reaches any extension`,
		`id == "a" && region==""`: "the configured sources set id, type, time, outcome, platform, sourcename",
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("Parse(%.60q) = %v", text, err)
			continue
		}
		if err := f.Check(known); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("Check(%q) = %v, want %q", text, err, want)
		}
	}
}

// Random filters over random events: no panic, the cost limit holds, and what
// cannot be evaluated selects nothing.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		`platform == "instagram"`, "outcome != 'x' && !(id in ['a'])", "(((", `type.startsWith("a") || 1 < 2`, "\x00",
		`profile.substring(0, size(profile) - 4) == ""`, `attributes["x"] + attributes["y"] == ""`, `time > timestamp("2024-01-01T00:00:00Z")`,
		`platform.split("").size() > 3`, `subject.replace("a", "b") == ""`, `{"a": platform}["a"] == id`, `duration("1s") < duration(profile)`,
	} {
		f.Add(s, "instagram", "demo")
	}
	f.Fuzz(func(t *testing.T, text, platform, profile string) {
		filter, err := Parse(text)
		if err != nil {
			return
		}
		e := sample()
		e.CloudEvent = e.CloudEvent.Clone()
		e.CloudEvent.SetExtension(event.Platform, platform)
		e.CloudEvent.SetExtension(event.Profile, profile)
		if matched, err := filter.Matches(e); matched && err != nil {
			t.Errorf("%q matches, and cannot be evaluated: %v", text, err)
		} else if err != nil && strings.Contains(err.Error(), "panicked") {
			t.Errorf("%q panics", text)
		}
	})
}

func BenchmarkMatches(b *testing.B) {
	for _, text := range []string{`platform == "instagram"`, `platform == "tiktok" && outcome != "success" || type.startsWith("com.stripe.")`} {
		f, err := Parse(text)
		if err != nil {
			b.Fatal(err)
		}
		e := sample()
		b.Run(text, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = f.Matches(e)
			}
		})
	}
}

func ExampleParse() {
	f, err := Parse(`platform == "instagram" && outcome != "success"`)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(f.Matches(sample()))
	// Output: true <nil>
}
