package simulator

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBreaker: five failures in a row are a pause, in which everything is lost;
// an answer in between begins the count anew.
func TestBreaker(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusTeapot)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) }))
	defer hook.Close()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	s := New(Options{Random: rand.New(rand.NewPCG(1, 2)), Now: func() time.Time { return now }})
	defer s.Close()
	s.SetWebhook(hook.URL, "")
	upload := func(n int) {
		t.Helper()
		for range n {
			if err := s.Upload(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	upload(4)
	status.Store(http.StatusAccepted)
	upload(1)
	status.Store(http.StatusTeapot)
	upload(4)
	if c := s.Counts(); c != (Counts{Events: 9, Delivered: 1, Failed: 8}) {
		t.Errorf("so far: %+v", c)
	}
	upload(1)
	status.Store(http.StatusAccepted)
	upload(3)
	now = now.Add(29 * time.Minute)
	upload(1)
	if c := s.Counts(); c != (Counts{Events: 14, Delivered: 1, Failed: 9, Dropped: 4, Pauses: 1}) {
		t.Errorf("in the pause: %+v", c)
	}
	now = now.Add(2 * time.Minute)
	upload(1)
	if c := s.Counts(); c.Delivered != 2 || c.Dropped != 4 {
		t.Errorf("after it: %+v", c)
	}
}

// TestDeliveries are signed so that the source takes them, and go to the
// account's webhook and the profile's alike, each under an ID of its own.
func TestDeliveries(t *testing.T) {
	s := New(Options{Random: rand.New(rand.NewPCG(1, 2))})
	defer s.Close()
	const secret = "whsec_that_was_given"
	src, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: auth.Auth{
		Default: auth.UploadPost, Signature: &auth.Signature{Secrets: []config.Secret{secret}},
	}}, source.Env{Name: "up"})
	if err != nil {
		t.Fatal(err)
	}
	ids, deliveries := map[string]int{}, map[string]bool{}
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		req := &source.Request{Header: r.Header, Body: body, Received: time.Now().UTC()}
		if err := src.Verify(req); err != nil {
			t.Error(err)
		}
		events, err := src.Normalize(req)
		if err != nil || len(events) != 1 {
			t.Errorf("%s: %v", body, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		ids[events[0].CloudEvent.ID()]++
		deliveries[r.Header.Get(uploadpost.DeliveryHeader)] = true
	}))
	defer server.Close()
	s.SetWebhook(server.URL, secret)
	body, err := sample.Random(rand.New(rand.NewPCG(3, 4)), sample.UploadCompleted, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.profiles["brightside_bakery"] = &hook{url: server.URL}
	for range 20 {
		if err := s.Upload(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range sample.Events()[1:] {
		if err := s.Account(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Send(t.Context(), body); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 24 || len(deliveries) != s.Counts().Delivered || len(deliveries) <= 24 {
		t.Errorf("%d events in %d deliveries: %+v", len(ids), len(deliveries), s.Counts())
	}
}
