package app

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/admin"
)

func TestRegisteredURLsAreShownWithoutWhatIsSecret(t *testing.T) {
	paths := []string{"/hooks/a"}
	for _, tt := range []struct {
		url   string
		token bool
		shown string
		here  bool
	}{
		{"", false, "", false},
		{"https://relay.example.com/hooks/a", false, "https://relay.example.com/hooks/a", true},
		{"https://relay.example.com/behind/a/proxy/hooks/a", false, "https://relay.example.com/behind/a/proxy/hooks/a", true},
		{"https://relay.example.com/other", false, "https://relay.example.com/other", false},
		{"https://relay.example.com/hooks/a/top-secret", true, "https://relay.example.com/hooks/a/***", true},
		{"https://me:top-secret@relay.example.com/hooks/a?key=top-secret", false, "https://me:xxxxx@relay.example.com/hooks/a?…", true},
		{"https://%zz/top-secret", false, "***", false},
	} {
		shown, here := destination(tt.url, paths, tt.token)
		if shown != tt.shown || here != tt.here || strings.Contains(shown, "top-secret") {
			t.Errorf("%s: shown as %s, %v", tt.url, shown, here)
		}
	}
}

const inspected = `
server: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0", token: top-secret-number-1, viewer_token: top-secret-number-2}
journal: {dir: /journal, min_free_bytes: 0}
sources:
  - {name: signed, type: uploadpost, paths: [/a], auth: {signature: {secrets: [top-secret-number-3]}}}
  - {name: asked, type: uploadpost, paths: [/b], auth: {signature: {from_api: true}}, api: {key: top-secret-number-4}, reconcile: {interval: 5m}}
sinks: [{name: out, type: stdout}]
`

func TestOperatorsSeeWhatRuns(t *testing.T) {
	plan, err := Parse("postwire.yaml", []byte(inspected), env)
	if err != nil {
		t.Fatal(err)
	}
	plan.Disk = vfs.NewMem()
	a, err := New(t.Context(), plan, LogTo(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.close(); err != nil {
			t.Error(err)
		}
	})
	c, err := a.configuration()
	if err != nil || c.Last != nil || c.File != "postwire.yaml" || time.Since(c.Began) > time.Minute || !strings.Contains(c.YAML, "name: signed") || strings.Contains(c.YAML, "top-secret") {
		t.Errorf("the configuration: %+v, %v", c, err)
	}
	a.recordReload(nil, errors.New("sinks[0].steam: unknown key"))
	if c, err = a.configuration(); err != nil || c.Last.Applied || c.Last.Problem != "sinks[0].steam: unknown key" || c.Last.Changed == nil {
		t.Errorf("a reload that was refused: %+v, %v", c.Last, err)
	}
	sources := a.inspect()
	if s := sources[0]; s.Source != "signed" || !s.AuthRequired || s.Secret.From != "configuration" || !s.Secret.Known || s.Secret.Since.Sub(c.Began) > time.Minute || s.Secret.Rotated || s.Reconcile != nil {
		t.Errorf("the first source: %+v, %+v", s, s.Secret)
	}
	a.now = func() time.Time { return c.Began.Add(time.Hour) }
	a.trackSecrets(plan) // as it was
	if s := a.inspect()[0].Secret; s.Since.Sub(c.Began) > time.Minute || s.Rotated {
		t.Errorf("a secret that is the same: %+v", s)
	}
	other, err := Parse("postwire.yaml", []byte(strings.ReplaceAll(inspected, "top-secret-number-3", "top-secret-number-3, top-secret-number-5")), env)
	if err != nil {
		t.Fatal(err)
	}
	a.trackSecrets(other)
	if s := a.inspect()[0].Secret; !s.Since.Equal(c.Began.Add(time.Hour)) || !s.Rotated {
		t.Errorf("a secret that has been rotated: %+v", s)
	}
	if s := sources[1]; s.Secret.From != "api" || s.Secret.Known || s.Secret.Since != nil || s.Reconcile.Every != "5m" || s.Reconcile.Last != nil {
		t.Errorf("the second one: %+v, %+v, %+v", s, s.Secret, s.Reconcile)
	}
	if _, err := a.registration(t.Context(), "signed"); !errors.Is(err, admin.ErrNoHistory) {
		t.Errorf("a source that does not know its sender's API: %v", err)
	}
	if _, err := a.registration(t.Context(), "none"); !errors.Is(err, admin.ErrNoSource) {
		t.Errorf("a source that is none: %v", err)
	}
}

// Viewers' token is rotated like the other one.
func TestTheViewersTokenChangesWithoutARestart(t *testing.T) {
	was, err := Parse("postwire.yaml", []byte(inspected), env)
	if err != nil {
		t.Fatal(err)
	}
	is, err := Parse("postwire.yaml", []byte(strings.Replace(inspected, "top-secret-number-2", "another-one-than-it-was", 1)), env)
	if err != nil {
		t.Fatal(err)
	}
	restart, later := was.restarts(is)
	if len(restart) > 0 || len(later) > 0 || !slices.Equal(was.changes(is), []string{"admin.viewer_token"}) {
		t.Errorf("restarts %v, later %v, changes %v", restart, later, was.changes(is))
	}
}
