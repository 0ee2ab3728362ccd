package console

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

const (
	operatorToken = "operator-0123456789abcdef"
	viewerToken   = "viewer-0123456789abcdef"
)

// world is a live relay between a service that sends and receivers that take, or
// do not.
type world struct {
	t       *testing.T
	service *simulator.Simulator
	config  string
	ingress string // address
	admin   string // URL
	client  *admin.Client
	clock   func() time.Time

	down   atomic.Bool  // the receiver of the sink shaky answers 503
	refuse atomic.Bool  // and 422
	taken  atomic.Int64 // by the receiver of the sink steady
	shaky  atomic.Int64 // by that of the sink shaky
	stop   func()       // ends the relay
	mu     sync.Mutex   // for ids
	ids    []string     // that the sink shaky has taken, in order
}

// start begins a world. The edits replace parts of its configuration.
func start(t *testing.T, edits ...string) *world {
	t.Helper()
	return startAt(t, nil, edits...)
}

// startAt is start with another clock.
func startAt(t *testing.T, clock func() time.Time, edits ...string) *world {
	t.Helper()
	w := &world{t: t, clock: clock}
	receivers := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/steady":
			w.taken.Add(1)
		case w.down.Load():
			answer.WriteHeader(http.StatusServiceUnavailable)
		case w.refuse.Load():
			answer.WriteHeader(http.StatusUnprocessableEntity)
		default:
			w.shaky.Add(1)
			w.mu.Lock()
			w.ids = append(w.ids, r.Header.Get("ce-id"))
			w.mu.Unlock()
		}
	}))
	t.Cleanup(receivers.Close)
	w.service = simulator.New(simulator.Options{APIKey: "key"})
	t.Cleanup(w.service.Close)
	api := httptest.NewServer(w.service.Handler())
	t.Cleanup(api.Close)
	w.ingress = natstest.FreeAddr(t)
	listen := natstest.FreeAddr(t)
	w.admin = "http://" + listen
	w.client = &admin.Client{URL: w.admin, Token: operatorToken, HTTP: &http.Client{}}
	t.Cleanup(w.client.HTTP.CloseIdleConnections)
	w.config = strings.NewReplacer(append(edits, []string{
		"INGRESS", w.ingress, "ADMIN", listen, "OPERATOR", operatorToken, "VIEWER", viewerToken,
		"DIR", filepath.Join(t.TempDir(), "journal"), "API", api.URL + "/api", "RECEIVERS", receivers.URL,
	}...)...).Replace(`
server: {name: relay-1, listen: "INGRESS", shutdown_delay: 0s}
admin: {listen: "ADMIN", token: OPERATOR, viewer_token: VIEWER}
journal: {dir: "DIR", min_free_bytes: 0}
sources:
  - name: upload-post
    type: uploadpost
    paths: [/webhooks/upload-post]
    auth: {signature: {from_api: true}}
    api: {url: "API", key: key}
  - name: raw
    type: uploadpost
    paths: [/raw]
    auth: none
sinks:
  - {name: steady, type: http, url: "RECEIVERS/steady"}
  - {name: shaky, type: http, url: "RECEIVERS/shaky", retry: {initial: 20ms, max: 100ms}, headers: {X-Api-Key: top-secret-header}}
`)
	w.service.SetWebhook("http://"+w.ingress+"/webhooks/upload-post", "")
	w.run()
	return w
}

// run sets the relay going.
func (w *world) run() {
	w.t.Helper()
	plan, err := app.Parse("postwire.yaml", []byte(w.config), func(string) (string, bool) { return "", false })
	if err != nil {
		w.t.Fatal(err)
	}
	plan.Clock = w.clock
	a, err := app.New(w.t.Context(), plan, app.LogTo(zap.NewNop()))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("the relay: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
	eventually(w.t, "the secret is known", func() bool {
		sources, err := w.client.Sources(w.t.Context())
		return err == nil && (sources[0].Secret == nil || sources[0].Secret.Known)
	})
}

// restart ends the relay and begins it again.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.run()
}

// uploads lets so many uploads end, every third badly.
func (w *world) uploads(n int) {
	w.t.Helper()
	for i := range n {
		if err := w.service.Upload(w.t.Context(), i%3 == 2); err != nil {
			w.t.Fatal(err)
		}
	}
}

// post sends a body to the source that asks for no proof.
func (w *world) post(body string) int {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://"+w.ingress+"/raw", bytes.NewBufferString(body))
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.client.HTTP.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// upload is the body of a webhook.
func upload(platform, profile, id string) string {
	return fmt.Sprintf(`{"event":"upload_completed","user_email":"who@example.com","profile_username":%q,"platform":%q,"media_type":"video",`+
		`"title":"A private title","caption":"A private caption","result":{"success":true,"publish_id":%q,"error":null},"created_at":"2026-01-31T12:00:00.000000"}`, profile, platform, id)
}

func (w *world) delivered() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.ids...)
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !condition(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}
