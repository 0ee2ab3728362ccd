package test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// postSigned posts a webhook that is signed with a secret, and returns the
// status of the answer.
func (e endpoint) postSigned(t *testing.T, secret string, body []byte) int {
	t.Helper()
	return postSigned(t, "http://"+e.addr+"/webhooks/upload-post", secret, body)
}

func postSigned(t *testing.T, url, secret string, body []byte) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := auth.UploadPost.Sign(req.Header, secret, "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestSecretsAreRotated: what stands in the files that the configuration names
// takes effect without a restart, for senders, brokers and operators. A file that
// makes no sense changes nothing.
func TestSecretsAreRotated(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		// As Kubernetes does it: another file takes the place of the old one.
		if err := os.WriteFile(filepath.Join(dir, name+".new"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("webhook", "whsec_of_an_old_one\n")
	write("nats", "old-password\n")
	write("token", "old-token-0123456789\n")
	w := newWorld(t)
	login := func(password string) {
		w.nats.Stop(t)
		w.nats.Change(func(o *server.Options) { o.Username, o.Password = "relay", password })
		w.nats.Restart(t)
	}
	login("old-password")
	in := func(name string) string { return `"${file:` + filepath.Join(dir, name) + `}"` }
	r := start(t, strings.NewReplacer(
		`"${SECRET}"`, in("webhook"),
		"stream: EVENTS", "user: relay, password: "+in("nats")+", stream: EVENTS",
		`admin: {listen: "${ADMIN}"}`, `admin: {listen: "${ADMIN}", token: `+in("token")+`}`,
	).Replace(w.config))
	if code := r.postSigned(t, "whsec_of_an_old_one", upload(0, 0)); code != http.StatusAccepted {
		t.Fatalf("the first webhook was answered %d", code)
	}
	w.settled(t, r.endpoint)

	write("webhook", "whsec_of_a_new_one\n")
	eventually(t, "the new secret is taken", func() bool { return r.postSigned(t, "whsec_of_a_new_one", upload(0, 1)) < 300 })
	if code := r.postSigned(t, "whsec_of_an_old_one", upload(0, 2)); code != http.StatusUnauthorized {
		t.Errorf("the old secret was answered %d", code)
	}

	write("webhook", "")
	eventually(t, "the file without a secret is refused", func() bool {
		return r.metric(t, `postwire_config_reloads_total{outcome="refused"}`) == "1"
	})
	if code := r.postSigned(t, "whsec_of_a_new_one", upload(0, 3)); code != http.StatusAccepted {
		t.Errorf("with a file that makes no sense, a webhook was answered %d", code)
	}
	write("webhook", "whsec_of_a_new_one\n")

	login("new-password")
	if code := r.postSigned(t, "whsec_of_a_new_one", upload(0, 4)); code != http.StatusAccepted {
		t.Errorf("a webhook was answered %d", code)
	}
	eventually(t, "nats is said to fail", func() bool { return r.metric(t, `postwire_sink_up{sink="nats"}`) == "0" })
	write("nats", "new-password\n")
	w.settled(t, r.endpoint)

	write("token", "new-token-0123456789\n")
	eventually(t, "the new token is taken", func() bool {
		_, _, code := r.ask(t, "dlq", "list", "--token-file", filepath.Join(dir, "token"))
		return code == 0
	})

	w.nats.Stop(t)
	w.nats.Change(func(o *server.Options) { o.Username, o.Password = "", "" })
	w.nats.Restart(t)
	acked := map[string]bool{}
	for _, number := range []int{0, 1, 3, 4} {
		acked[id(0, number)] = true
	}
	check(t, "JetStream", acked, w.onNATS(t), true)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	for _, secret := range []string{"whsec_of_an_old_one", "whsec_of_a_new_one", "-password", "-token-"} {
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
}

// TestRotationUnderLoad lets the service sign with a new secret again and again
// while webhooks come in: not one is refused.
func TestRotationUnderLoad(t *testing.T) {
	dir := t.TempDir()
	now, before := filepath.Join(dir, "secret"), filepath.Join(dir, "previous")
	for _, path := range []string{now, before} {
		if err := os.WriteFile(path, []byte("whsec_0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	r := start(t, w.change(t, `"${SECRET}"`, `"${file:`+now+`}", "${file:`+before+`}"`))
	service := simulator.New(simulator.Options{APIKey: "key", Random: rand.New(rand.NewPCG(7, 8))})
	defer service.Close()
	service.SetWebhook("http://"+r.addr+"/webhooks/upload-post", "whsec_0123456789")
	api := httptest.NewServer(service.Handler())
	defer api.Close()
	t.Setenv("UPLOAD_POST_API_KEY", "key")

	ctx, stop := context.WithCancel(t.Context())
	played := make(chan error, 1)
	go func() {
		played <- service.Play(ctx, simulator.Piece{Rate: 300, Failures: 0.1, Accounts: 0.1, TwoHooks: true})
	}()
	rotations := pick(3, 30)
	for range rotations {
		delivered := service.Counts().Delivered + 100
		eventually(t, "more webhooks are taken", func() bool { return service.Counts().Delivered >= delivered })
		if out, errs, code := command(t, dir, "rotate-secret", "--api-url", api.URL+"/api", "--secret-file", now, "--previous-file", before); code != 0 {
			t.Fatalf("rotate-secret ended with %d\n%s%s", code, out, errs)
		}
	}
	delivered := service.Counts().Delivered + 100
	eventually(t, "more webhooks are taken", func() bool { return service.Counts().Delivered >= delivered })
	stop()
	if err := <-played; !errors.Is(err, context.Canceled) {
		t.Errorf("playing: %v", err)
	}
	c := service.Counts()
	t.Logf("%d rotations, %+v", rotations, c)
	if c.Failed > 0 || c.Dropped > 0 {
		t.Errorf("webhooks were refused: %+v", c)
	}
	w.settled(t, r.endpoint)
}

// TestRotationWithoutAnswer: the service fails in the midst of a rotation. The
// secret that is in use then is in the file, or the command says that it may not
// be.
func TestRotationWithoutAnswer(t *testing.T) {
	t.Setenv("UPLOAD_POST_API_KEY", "key")
	const first = "whsec_0123456789"
	for _, tt := range []struct {
		name      string
		status    func(rotation int) int // of the answer; 0 is the service's own
		effect    bool                   // whatever the status
		silent    bool                   // the settings cannot be read afterwards
		code      int
		says      string
		rotations int // that are asked for
	}{
		{"which took effect", func(int) int { return 502 }, true, false, 0, "rotated", 1},
		{"which took none at first", func(n int) int { return []int{503, 503, 0}[n-1] }, false, false, 0, "rotated", 3},
		{"which never took any", func(int) int { return 503 }, false, false, 1, "Upload-Post still returns the present secret", 3},
		{"which is not allowed", func(int) int { return 403 }, false, false, 1, "may it do that?", 1},
		{"of which nothing can be known", func(int) int { return 502 }, true, true, 1, "may have taken effect", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			service := simulator.New(simulator.Options{APIKey: "key"})
			defer service.Close()
			service.SetWebhook("http://127.0.0.1:1/", first)
			rotations := 0
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				status := 0
				switch {
				case strings.HasSuffix(r.URL.Path, "/webhook-secret"):
					rotations++
					if status = tt.status(rotations); tt.effect {
						service.Handler().ServeHTTP(httptest.NewRecorder(), r)
					}
				case rotations > 0 && tt.silent:
					status = http.StatusBadRequest
				}
				if status > 0 {
					http.Error(w, "", status)
					return
				}
				service.Handler().ServeHTTP(w, r)
			}))
			defer api.Close()
			dir := t.TempDir()
			now, before := filepath.Join(dir, "now"), filepath.Join(dir, "before")
			if err := os.WriteFile(now, []byte(first+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			out, errs, code := command(t, dir, "rotate-secret", "--api-url", api.URL+"/api", "--secret-file", now, "--previous-file", before)
			tellsNoSecret(t, out+errs)
			if code != tt.code || !strings.Contains(out+errs, tt.says) || rotations != tt.rotations {
				t.Errorf("it ended with %d after %d attempts, want %d after %d, and %q\n%s%s", code, rotations, tt.code, tt.rotations, tt.says, out, errs)
			}
			straight := httptest.NewServer(service.Handler())
			defer straight.Close()
			client, err := uploadpost.New(uploadpost.Options{BaseURL: straight.URL + "/api", APIKey: "key"})
			if err != nil {
				t.Fatal(err)
			}
			settings, err := client.Notifications(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			inUse := settings.WebhookSecret.Reveal()
			for path, want := range map[string]string{now: inUse, before: first} {
				if tt.silent && path == now {
					want = first
				}
				if text, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(text)) != want {
					t.Errorf("%s has %s, want %s: %v", filepath.Base(path), text, want, err)
				}
			}
		})
	}
}

// TestSecretFromAPI: the relay reads the secret from the service, at its start
// and when the service signs with another one; no webhook is refused.
func TestSecretFromAPI(t *testing.T) {
	service := simulator.New(simulator.Options{APIKey: "key", Random: rand.New(rand.NewPCG(12, 13))})
	defer service.Close()
	api := httptest.NewServer(service.Handler())
	defer api.Close()
	w := newWorld(t)
	r := start(t, w.change(t, `auth: {signature: {secrets: ["${SECRET}"]}}`, "auth: {signature: {from_api: true}}\n    api: {key: key, url: "+api.URL+"/api}"))
	service.SetWebhook("http://"+r.addr+"/webhooks/upload-post", "")
	client, err := uploadpost.New(uploadpost.Options{BaseURL: api.URL + "/api", APIKey: "key"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	played := make(chan error, 1)
	go func() { played <- service.Play(ctx, simulator.Piece{Rate: 200, Failures: 0.1}) }()
	taken := func() {
		t.Helper()
		goal := service.Counts().Delivered + 100
		eventually(t, "more webhooks are taken", func() bool { return service.Counts().Delivered >= goal })
	}
	taken()
	for range 2 {
		if _, err := client.RotateSecret(t.Context()); err != nil {
			t.Fatal(err)
		}
		taken()
	}
	stop()
	if err := <-played; !errors.Is(err, context.Canceled) {
		t.Errorf("playing: %v", err)
	}
	if c := service.Counts(); c.Failed > 0 || c.Dropped > 0 {
		t.Errorf("webhooks were refused: %+v", c)
	}
	// A stranger's signature is refused all the same.
	if code := r.postSigned(t, "whsec_of_a_stranger", upload(0, 0)); code != http.StatusUnauthorized {
		t.Errorf("a stranger was answered %d", code)
	}
	w.settled(t, r.endpoint)
	if err := r.stop(t); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if strings.Contains(r.log.String(), "whsec_") || strings.Contains(r.log.String(), `"key"`) {
		t.Error("the log holds a secret")
	}
}
