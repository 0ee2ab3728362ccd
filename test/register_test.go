package test

import (
	"context"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// tellsNoSecret: enough of a secret to tell two apart is all that may be shown.
func tellsNoSecret(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		for _, after := range strings.Split(line, "whsec_")[1:] {
			if !strings.HasPrefix(after[min(len(after), 3):], "…") {
				t.Errorf("a secret is printed: %s", line)
			}
		}
	}
}

// TestRegister connects an account to a relay and takes it away again, and says
// at which step a test got lost.
func TestRegister(t *testing.T) {
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "secret")
	if err := os.WriteFile(secretFile, []byte("whsec_of-nobody-at-all"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	r := start(t, w.change(t, `"${SECRET}"`, `"${file:`+secretFile+`}"`))
	service := simulator.New(simulator.Options{APIKey: "key", Random: rand.New(rand.NewPCG(9, 9)), Quirks: simulator.Quirks{EventsAsList: true, LimitEvery: 15}})
	defer service.Close()
	api := httptest.NewServer(service.Handler())
	defer api.Close()
	client, err := uploadpost.New(uploadpost.Options{BaseURL: api.URL + "/api", APIKey: "key"})
	if err != nil {
		t.Fatal(err)
	}
	chat := "42"
	if err := client.SetNotifications(t.Context(), uploadpost.Change{Channels: uploadpost.Channels{"telegram": true}, TelegramChatID: &chat}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("UPLOAD_POST_API_KEY", "key")
	url := "http://" + r.addr + "/webhooks/upload-post"
	run := func(code int, says string, args ...string) {
		t.Helper()
		out, errs, got := command(t, dir, append(args, "--api-url", api.URL+"/api")...)
		if got != code || !strings.Contains(out+errs, says) {
			t.Errorf("%v ended with %d, want %d and %q\n%s%s", args, got, code, says, out, errs)
		}
		tellsNoSecret(t, out+errs)
	}
	settings := func() uploadpost.Notifications {
		t.Helper()
		n, err := client.Notifications(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}

	run(0, "no change applied", "register", "--url", url, "--dry-run")
	if n := settings(); n.WebhookURL != "" || n.Channels["webhook"] {
		t.Errorf("after a dry run: %+v", n)
	}
	run(1, "wrong signature", "register", "--url", url, "--events", "upload_completed", "--test", "--test-timeout", "6s", "--admin", "http://"+r.admin)
	if n := settings(); n.WebhookURL != url || !n.Channels["webhook"] || !n.Channels["telegram"] || strings.Join(n.WebhookEvents.Names(), " ") != "upload_completed" {
		t.Errorf("registered: %+v", n)
	}
	run(1, "the relay received no request", "register", "--url", "http://"+natstest.FreeAddr(t)+"/x", "--test", "--test-timeout", "1s", "--admin", "http://"+r.admin)
	run(1, "a path without a source", "register", "--url", "http://"+r.addr+"/elsewhere", "--test", "--test-timeout", "2s", "--admin", "http://"+r.admin)
	run(0, "the relay received the test notification: source upload-post, accepted", "register", "--url", url, "--secret-file", secretFile, "--test", "--admin", "http://"+r.admin)

	run(0, "webhooks of profile marta-cooks to", "register", "--url", url, "--profile", "marta-cooks")
	run(0, "unregistered", "unregister", "--profile", "marta-cooks")
	if p, err := client.ProfileWebhook(context.Background(), "marta-cooks"); err != nil || p.WebhookURL != "" {
		t.Errorf("the profile's webhook is %+v: %v", p, err)
	}
	run(0, "unregistered", "unregister")
	if n := settings(); n.Channels["webhook"] || !n.Channels["telegram"] || n.TelegramChatID != chat {
		t.Errorf("unregistered: %+v", n)
	}

	run(2, "--url", "register")
	run(2, "there is no event", "register", "--url", url, "--events", "upload")
	run(2, "--previous-file", "rotate-secret", "--secret-file", secretFile)
	t.Setenv("UPLOAD_POST_API_KEY", "another")
	run(1, "is the API key right", "register", "--url", url)
	t.Setenv("UPLOAD_POST_API_KEY", "")
	run(2, "UPLOAD_POST_API_KEY", "unregister")
}
