package app

import (
	"net/http"
	"testing"
	"time"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/source"
)

// A request that was set aside is read again as it came.
func TestWhatWasSetAsideIsReadAgainWhole(t *testing.T) {
	plan, err := Parse("postwire.yaml", []byte(`
sources:
  - name: hooks
    type: webhook
    paths: [/a, /b]
    event: {type: 'headers["x-event"] + path + "?" + query.of'}
    auth: none
sinks: [{name: other, type: stdout}]
`), env)
	if err != nil {
		t.Fatal(err)
	}
	src, err := plan.Sources[0].Open(plan.sourceEnv(plan.Sources[0]))
	if err != nil {
		t.Fatal(err)
	}
	events, err := (&sourceSet{sources: map[string]source.Source{"hooks": src}}).Renormalize(journal.QuarantinedRequest{
		Source: "hooks", Received: time.Unix(1e9, 0).UTC(), Method: http.MethodPost, Path: "/b", RawQuery: "of=x",
		Header: http.Header{"X-Event": {"e"}}, Body: []byte("{}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := events[0].CloudEvent.Type(); got != "e/b?x" {
		t.Errorf("the type is %q", got)
	}
	if _, err := (&sourceSet{}).Renormalize(journal.QuarantinedRequest{Source: "gone"}); err == nil {
		t.Error("a source that is gone understands")
	}
}
