package test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// jobs counts the events on each broker by the job they are of.
func (w *world) jobs(t *testing.T) (onNATS, onKafka map[string]int) {
	t.Helper()
	onNATS, onKafka = map[string]int{}, map[string]int{}
	w.nats.Each(t, w.nats.Connect(t), "EVENTS", func(m *nats.Msg, _ time.Time) { onNATS[m.Header.Get("ce-correlationid")]++ })
	w.kafka.Each(t, w.topic, func(m kafka.Message) {
		i := slices.IndexFunc(m.Headers, func(h kafka.Header) bool { return h.Key == "ce_correlationid" })
		onKafka[string(m.Headers[i].Value)]++
	})
	return onNATS, onKafka
}

// TestGapsClose kills the relay while the service sends, so that its breaker
// opens and webhooks are lost. Afterwards every upload of the history is on both
// brokers, exactly once, whether a webhook told of it or the history did.
func TestGapsClose(t *testing.T) {
	service := simulator.New(simulator.Options{
		APIKey: "key", Random: rand.New(rand.NewPCG(10, 11)), Breaker: simulator.Breaker{Timeout: 2 * time.Second, Failures: 5, Pause: 500 * time.Millisecond},
		Quirks: simulator.Quirks{PostIDLists: true, HistoryKey: "items", FailEvery: 5},
	})
	defer service.Close()
	api := httptest.NewServer(service.Handler())
	defer api.Close()
	w := newWorld(t)
	r := start(t, w.change(t, "paths: [/webhooks/upload-post]",
		"paths: [/webhooks/upload-post]\n    api: {key: key, url: "+api.URL+"/api}\n    reconcile: {interval: 1s, lookback: 1h, settle: 2s}"))
	service.SetWebhook("http://"+r.addr+"/webhooks/upload-post", secret)

	ctx, stop := context.WithCancel(t.Context())
	played := make(chan error, 1)
	go func() { played <- service.Play(ctx, simulator.Piece{Rate: 150, Failures: 0.2, TwoHooks: true}) }()
	until := func(what string, n func(simulator.Counts) int, more int) {
		t.Helper()
		goal := n(service.Counts()) + more
		eventually(t, what, func() bool { return n(service.Counts()) >= goal })
	}
	delivered := func(c simulator.Counts) int { return c.Delivered }
	dropped := func(c simulator.Counts) int { return c.Dropped }
	rounds := pick(2, 10)
	for range rounds {
		until("webhooks are taken", delivered, 100)
		r.kill(t)
		until("webhooks are lost", dropped, 50)
		r.start(t)
	}
	until("webhooks are taken", delivered, 100)
	stop()
	if err := <-played; !errors.Is(err, context.Canceled) {
		t.Errorf("playing: %v", err)
	}

	client, err := uploadpost.New(uploadpost.Options{BaseURL: api.URL + "/api", APIKey: "key"})
	if err != nil {
		t.Fatal(err)
	}
	var uploads []uploadpost.Upload
	for u, err := range client.History(t.Context(), uploadpost.Query{From: time.Now().Add(-time.Hour), To: time.Now()}) {
		if err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, u)
	}
	var onNATS, onKafka map[string]int
	eventually(t, "all gaps are closed", func() bool {
		onNATS, onKafka = w.jobs(t)
		return len(onNATS) >= len(uploads) && len(onKafka) >= len(uploads)
	})
	// Two more comparisons change nothing.
	if out := r.must(t, nil, "reconcile", "--from", "1h"); !strings.Contains(out, " 0 backfilled") {
		t.Errorf("reconcile says %s", out)
	}
	w.settled(t, r.endpoint)
	onNATS, onKafka = w.jobs(t)
	twice := 0
	for _, u := range uploads {
		if onNATS[u.JobID] != 1 || onKafka[u.JobID] < 1 {
			t.Errorf("%+v is %d times on JetStream, %d on Kafka", u, onNATS[u.JobID], onKafka[u.JobID])
		}
		twice += onKafka[u.JobID] - 1
	}
	recovered := r.metric(t, `postwire_reconciled_total{source="upload-post"}`)
	t.Logf("%d uploads, %+v; the last process recovered %s; %d sent to Kafka twice by the kills", len(uploads), service.Counts(), recovered, twice)
	if recovered == "0" || recovered == "" {
		t.Error("nothing was recovered")
	}
	if err := r.stop(t); err != nil { // the log is whole then
		t.Errorf("stopping: %v", err)
	}
	if strings.Contains(r.log.String(), `"key"`) {
		t.Error("the log holds the API key")
	}
}
