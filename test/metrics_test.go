package test

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	diff "github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// family is a metric as a page or a scrape has it.
type family struct{ Type, Labels string }

// TestMetricsPage compares the page with what a relay tells that runs and has
// delivered: nothing is missing on either side.
func TestMetricsPage(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	for range 2 {
		if _, err := r.post(upload(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	w.settled(t, r.endpoint)
	page, scraped := onPage(t), r.scraped(t)
	for name, f := range page {
		// Of a source that does not know its sender's API there is nothing to tell.
		if _, ok := scraped[name]; !ok && strings.HasPrefix(name, "postwire_reconcile") {
			scraped[name] = f
		}
	}
	if d := diff.Diff(page, scraped); d != "" {
		t.Errorf("- page, + scrape:\n%s", d)
	}
	for series, want := range map[string]string{
		`postwire_events_stored_total{source="upload-post"}`:                      "1",
		`postwire_dedupe_hits_total{source="upload-post"}`:                        "1",
		`postwire_request_seconds_count{outcome="accepted",source="upload-post"}`: "1",
		`postwire_sink_latency_seconds_count{sink="nats"}`:                        "1",
		`postwire_sink_latency_seconds_count{sink="kafka"}`:                       "1",
		`postwire_sink_attempt_seconds_count{sink="kafka"}`:                       "1",
		`postwire_config_last_reload_successful`:                                  "1",
		`postwire_tls_certificate_expiry_timestamp_seconds`:                       "0",
		`postwire_received_total{outcome="duplicate",source="upload-post"}`:       "1",
		`postwire_sink_dead_letters_total{reason="too_large",sink="nats"}`:        "0",
		`postwire_sink_discarded_total{reason="after",sink="nats"}`:               "0",
		`postwire_sink_lag_seconds{sink="nats"}`:                                  "0",
	} {
		if got := r.metric(t, series); got != want {
			t.Errorf("%s is %q, want %s", series, got, want)
		}
	}
}

// Histograms are native for a scraper that asks for protobuf.
func TestNativeHistograms(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	if _, err := r.post(upload(0, 0)); err != nil {
		t.Fatal(err)
	}
	w.settled(t, r.endpoint)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	native := map[string]bool{}
	dec := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	for {
		f := &dto.MetricFamily{}
		if dec.Decode(f) != nil {
			break
		}
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); len(h.GetPositiveSpan()) > 0 && h.GetSampleCount() > 0 {
				native[f.GetName()] = true
			}
		}
	}
	want := []string{"postwire_journal_append_seconds", "postwire_journal_group_size", "postwire_request_seconds", "postwire_sink_attempt_seconds", "postwire_sink_latency_seconds"}
	if got := slices.Sorted(maps.Keys(native)); !slices.Equal(got, want) {
		t.Errorf("native are %v, want %v", got, want)
	}
}

// onPage reads the table of the page.
func onPage(t *testing.T) map[string]family {
	t.Helper()
	text, err := os.ReadFile("../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(string(text), "## Values")
	all := map[string]family{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(postwire_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(table, -1) {
		all[row[1]] = family{row[2], strings.NewReplacer("`", "", " ", "").Replace(row[3])}
	}
	if len(all) < 30 {
		t.Fatalf("the page has %d metrics", len(all))
	}
	return all
}

// scraped reads what the relay tells of itself.
func (e endpoint) scraped(t *testing.T) map[string]family {
	t.Helper()
	resp, err := http.Get("http://" + e.admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]family{}
	for name, f := range families {
		if !strings.HasPrefix(name, "postwire_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		all[name] = family{strings.ToLower(f.GetType().String()), strings.Join(labels, ",")}
	}
	return all
}
