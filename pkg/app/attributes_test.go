package app

import (
	"strings"
	"testing"
)

// A name in a filter or a template that no configured source can set would be
// "" for ever: it is an error, with a suggestion.
func TestAttributeNames(t *testing.T) {
	const (
		uploads = `{name: uploads, type: uploadpost, paths: [/a], auth: none}`
		shop    = `{name: shop, type: webhook, paths: [/b], auth: none, event: {type: body.type, partitionkey: body.customer, extensions: {tenant: body.tenant}}}`
		plain   = `{name: plain, type: webhook, paths: [/d], auth: none, event: {type: body.type}}`
		relayed = `{name: relayed, type: cloudevents, paths: [/c], auth: none}`
		broken  = `{name: broken, type: webhook, paths: [/e], auth: none}`
	)
	for _, tt := range []struct {
		name, sources, filter, subject string
		want                           []string // parts of the error; none is valid
	}{
		{"upload-post", uploads, `outcome == "failure" && sourcename == "uploads" && origin == ""`, "a.{platform}.{sourcename}", nil},
		{"a slip", uploads, `outcom == "failure"`, "a", []string{"sinks[0].filter", "uses outcom, an attribute that no configured source sets", "did you mean outcome?"}},
		{"a text without quotes", uploads, `outcome == failure`, "a", []string{`uses failure`, `text is in quotes: "failure"`}},
		{"of another source", shop, `platform == "instagram"`, "a", []string{"uses platform", "the configured sources set id, source,", "partitionkey, tenant"}},
		{"of the mapping", shop, `tenant == "x" && partitionkey == "y"`, "a.{tenant}", nil},
		{"one source is enough", uploads + "," + shop, `tenant == "x" || platform == "instagram"`, "a.{tenant}.{platform}", nil},
		{"not mapped", plain, `partitionkey == "x"`, "a", []string{"uses partitionkey"}},
		{"by index", plain, `attributes["anything"] == "x"`, "a", nil},
		{"any CloudEvents by name", relayed, `region == "x"`, "a", []string{`attributes["region"] reaches any extension`}},
		{"any CloudEvents by index", relayed, `attributes["region"] == "x" && platform == ""`, "a.{region}", nil},
		{"reserved", uploads, `package == "x"`, "a", []string{`attributes["package"]`}},
		{"a template's slip", uploads, "", "a.{platfrm}", []string{"sinks[0].subject", "uses {platfrm}", "did you mean {platform}?"}},
		{"a template's slip with any CloudEvents", relayed, "", "a.{platfrm}", []string{"did you mean {platform}?"}},
		{"a template of another source", shop, "", "a.{platform}", []string{"sinks[0].subject", "uses {platform}"}},
		{"a source that is wrong may set the name", broken, `tenant == "x"`, "a.{tenant}", []string{"event.type"}},
		{"types", uploads, `time == "x"`, "a", []string{"no matching overload"}},
		{"not boolean", uploads, `platform`, "a", []string{"gives string, must give true or false"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := "journal: {dir: /d}\nsources: [" + tt.sources + "]\nsinks: [{name: s, type: nats, url: 'nats://a:4222', subject: '" + tt.subject + "', stream: S, filter: '" + tt.filter + "'}]\n"
			_, err := Parse("postwire.yaml", []byte(text), env)
			switch {
			case len(tt.want) == 0 && err != nil:
				t.Errorf("%s\n%v", text, err)
			case len(tt.want) > 0 && err == nil:
				t.Errorf("%s\nis valid", text)
			}
			for _, part := range tt.want {
				if err != nil && !strings.Contains(err.Error(), part) {
					t.Errorf("the error has no %q:\n%v", part, err)
				}
			}
			if tt.sources == broken && err != nil && strings.Contains(err.Error(), "no configured source sets") {
				t.Errorf("names are held against a source that is wrong:\n%v", err)
			}
		})
	}
}
