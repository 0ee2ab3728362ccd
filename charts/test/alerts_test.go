package charts

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

const runbook = "https://github.com/postwire/postwire/blob/main/docs/runbook.md#"

var (
	promql = parser.NewParser(parser.Options{})
	quiet  = slog.New(slog.DiscardHandler)
)

// theRules reads the alerts as Prometheus does.
func theRules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "alerts", "postwire.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(text, false, model.UTF8Validation, promql, quiet)
	for _, err := range errs {
		t.Error(err)
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 15 {
		t.Fatalf("there are %d alerts", len(all))
	}
	return all
}

// known is what the page of metrics says of each: its labels, and the values of
// those that are a closed set.
type known struct {
	histogram bool
	labels    []string
	values    map[string][]string
}

func metricsOnPage(t *testing.T) map[string]*known {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "reference", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	table, values, _ := strings.Cut(string(text), "## Values of labels")
	words := func(cell string) []string { return strings.Fields(strings.NewReplacer("`", "", ",", "").Replace(cell)) }
	all := map[string]*known{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(postwire_[a-z_]+)` \\| (\\w+) \\| ([^|]*) \\|").FindAllStringSubmatch(table, -1) {
		all[row[1]] = &known{histogram: row[2] == "histogram", labels: words(row[3]), values: map[string][]string{}}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(postwire_[a-z_]+)` \\| `(\\w+)` \\| ([^|]*) \\|").FindAllStringSubmatch(values, -1) {
		all[row[1]].values[row[2]] = words(row[3])
	}
	if len(all) < 30 {
		t.Fatalf("the page has %d metrics", len(all))
	}
	return all
}

// scraped are labels that a scrape adds.
var scraped = []string{"namespace", "pod", "le"}

// holds checks a query against the page: each metric is there, with the labels
// that are asked for, and values that they can have.
func holds(t *testing.T, where, query string, page map[string]*known) (asked []string) {
	t.Helper()
	expr, err := promql.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	var has []string // all labels of all metrics of the query
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m, name := page[s.Name], s.Name
		if m == nil {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				if base, cut := strings.CutSuffix(s.Name, suffix); cut && page[base] != nil && page[base].histogram {
					m, name = page[base], base
				}
			}
		}
		if m == nil {
			t.Errorf("%s: there is no metric %s", where, s.Name)
			return nil
		}
		asked, has = append(asked, name), append(has, m.labels...)
		for _, match := range s.LabelMatchers {
			if match.Name == model.MetricNameLabel || slices.Contains(scraped, match.Name) {
				continue
			}
			if !slices.Contains(m.labels, match.Name) {
				t.Errorf("%s: %s has no label %s", where, name, match.Name)
			}
			if closed := m.values[match.Name]; len(closed) > 0 && match.Type != labels.MatchNotEqual {
				for value := range strings.SplitSeq(match.Value, "|") {
					if !slices.Contains(closed, value) {
						t.Errorf("%s: %s never has %s %q", where, name, match.Name, value)
					}
				}
			}
		}
		return nil
	})
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok && !a.Without {
			for _, by := range a.Grouping {
				if !slices.Contains(has, by) && !slices.Contains(scraped, by) {
					t.Errorf("%s: by %s, which none of its metrics has", where, by)
				}
			}
		}
		return nil
	})
	return asked
}

// Alerts and the dashboard ask for what the product tells.
func TestQueriesHold(t *testing.T) {
	page := metricsOnPage(t)
	var asked []string
	for _, r := range theRules(t) {
		asked = append(asked, holds(t, r.Alert, r.Expr, page)...)
	}
	text, err := os.ReadFile(filepath.Join(root, "deploy", "grafana", "postwire.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	ids, places := map[int]bool{}, map[string]string{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("%s: two panels are number %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				at := fmt.Sprint(x, ",", y)
				if other := places[at]; other != "" && other != p.Title || x >= 24 {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				places[at] = p.Title
			}
		}
		for _, target := range p.Targets {
			query := strings.NewReplacer("$__rate_interval", "5m", "$namespace", "relay").Replace(target.Expr)
			asked = append(asked, holds(t, p.Title, query, page)...)
		}
	}
	if slices.Sort(asked); len(slices.Compact(asked)) < 25 {
		t.Errorf("only %v are asked for", asked)
	}
}

// Each alert says what it is about, and has its part in the runbook; the runbook
// has no other.
func TestRunbook(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "runbook.md"))
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for _, part := range strings.Split("\n"+string(text), "\n## ")[1:] {
		name, body, _ := strings.Cut(part, "\n")
		parts[name] = body
	}
	for _, r := range theRules(t) {
		body, ok := parts[r.Alert]
		delete(parts, r.Alert)
		for _, step := range []string{"**Meaning.**", "**Diagnosis.**", "**Mitigation.**"} {
			if !ok || !strings.Contains(body, step) {
				t.Errorf("%s: the runbook does not say %s", r.Alert, step)
			}
		}
		if want := runbook + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || !slices.Contains([]string{"warning", "critical"}, r.Labels["severity"]) {
			t.Errorf("%s: summary, description or severity is missing", r.Alert)
		}
	}
	for name := range parts {
		t.Errorf("the runbook has %s, which is no alert", name)
	}
}

// situation is what is told, minute by minute, and whether an alert fires at a
// minute, and with what it is described then.
type situation struct {
	series string // a line each, as Prometheus's own tests have them
	at     time.Duration
	says   string // part of the description; empty: it does not fire
}

const where = `namespace="relay"`

// situations are what each alert is to fire in, and one that is near and not it.
var situations = map[string][]situation{
	"PostwireGone": {
		{`postwire_build_info{` + where + `,pod="a"} 1x30 stale`, 150 * time.Minute, "has scraped no relay in relay"},
		{`postwire_build_info{` + where + `,pod="a"} 1x200`, 150 * time.Minute, ""},
	},
	"PostwireNotAccepting": {
		{`postwire_journal_full{` + where + `,pod="a"} 0x5 1x10`, 10 * time.Minute, "relay/a is full"},
		{`postwire_journal_full{` + where + `,pod="a"} 0x20`, 10 * time.Minute, ""},
	},
	"PostwireRefusing": {
		{`postwire_received_total{` + where + `,source="s",outcome="unavailable"} 0+3x20`, 10 * time.Minute, "the outcome unavailable"},
		{`postwire_received_total{` + where + `,source="s",outcome="unauthenticated"} 0+3x20`, 10 * time.Minute, ""},
	},
	"PostwireJournalFilling": {
		{"postwire_journal_bytes{" + where + `,pod="a"} 96x60` + "\npostwire_journal_max_bytes{" + where + `,pod="a"} 100x60`, 30 * time.Minute, "96% of journal.max_bytes"},
		{"postwire_journal_bytes{" + where + `,pod="a"} 96x60` + "\npostwire_journal_max_bytes{" + where + `,pod="a"} 0x60`, 30 * time.Minute, ""},
	},
	"PostwireJournalFullSoon": {
		{"postwire_journal_bytes{" + where + `,pod="a"} 830+1x60` + "\npostwire_journal_max_bytes{" + where + `,pod="a"} 1000x60`, 50 * time.Minute, "relay/a grows"},
		{"postwire_journal_bytes{" + where + `,pod="a"} 300+5x60` + "\npostwire_journal_max_bytes{" + where + `,pod="a"} 1000x60`, 50 * time.Minute, ""},
		{"postwire_journal_bytes{" + where + `,pod="a"} 900x60` + "\npostwire_journal_max_bytes{" + where + `,pod="a"} 1000x60`, 50 * time.Minute, ""},
	},
	"PostwireDiskFilling": {
		{"postwire_journal_free_bytes{" + where + `,pod="a"} 200x30` + "\npostwire_journal_min_free_bytes{" + where + `,pod="a"} 64x30`, 20 * time.Minute, "has 200B left"},
		{"postwire_journal_free_bytes{" + where + `,pod="a"} 2000x30` + "\npostwire_journal_min_free_bytes{" + where + `,pod="a"} 64x30`, 20 * time.Minute, ""},
	},
	"PostwireDiskFullSoon": {
		{"postwire_journal_free_bytes{" + where + `,pod="a"} 5000-20x100` + "\npostwire_journal_min_free_bytes{" + where + `,pod="a"} 64x100`, 90 * time.Minute, "less than four hours"},
		{"postwire_journal_free_bytes{" + where + `,pod="a"} 50000-20x100` + "\npostwire_journal_min_free_bytes{" + where + `,pod="a"} 64x100`, 90 * time.Minute, ""},
	},
	"PostwireSpilled": {
		{`postwire_journal_spilled_seconds{` + where + `,pod="a"} 0x10 60+60x20`, 25 * time.Minute, "relay/a has kept events in its spill for"},
		{`postwire_journal_spilled_seconds{` + where + `,pod="a"} 0x10 60 120 180 0x20`, 25 * time.Minute, ""},
	},
	"PostwireSpillAbandoned": {
		{`postwire_journal_spilled{` + where + `,pod="postwire-2"} 0x5 1175x10 stale`, 40 * time.Minute, "relay/postwire-2 is gone, and 1175 acknowledged events"},
		{`postwire_journal_spilled{` + where + `,pod="postwire-2"} 0x5 1175x10 0x5 stale`, 40 * time.Minute, ""},
		{`postwire_journal_spilled{` + where + `,pod="postwire-2"} 0x5 1175x60`, 40 * time.Minute, ""},
	},
	"PostwireAppendSlow": {
		{"postwire_journal_append_seconds_bucket{" + where + `,le="1.024"} 0+90x30` + "\npostwire_journal_append_seconds_bucket{" + where + `,le="4.096"} 0+100x30` + "\npostwire_journal_append_seconds_bucket{" + where + `,le="+Inf"} 0+100x30`, 25 * time.Minute, "longer than a second"},
		{"postwire_journal_append_seconds_bucket{" + where + `,le="0.512"} 0+100x30` + "\npostwire_journal_append_seconds_bucket{" + where + `,le="+Inf"} 0+100x30`, 25 * time.Minute, ""},
	},
	"PostwireSinkDown": {
		{`postwire_sink_up{` + where + `,sink="nats",pod="a"} 1x5 0x20`, 20 * time.Minute, "to sink nats in relay"},
		{"postwire_sink_up{" + where + `,sink="nats",pod="a"} 0x30` + "\npostwire_sink_up{" + where + `,sink="nats",pod="b"} 1x30`, 20 * time.Minute, ""},
		{"postwire_sink_up{" + where + `,sink="nats"} 0x30` + "\npostwire_sink_paused{" + where + `,sink="nats"} 0x30`, 20 * time.Minute, "to sink nats in relay"},
		{"postwire_sink_up{" + where + `,sink="nats"} 0x30` + "\npostwire_sink_paused{" + where + `,sink="nats"} 1x30`, 20 * time.Minute, ""},
	},
	"PostwireSinkLagging": {
		{`postwire_sink_lag_seconds{` + where + `,sink="nats"} 0+60x60`, 40 * time.Minute, "is 40m 0s old"},
		{`postwire_sink_lag_seconds{` + where + `,sink="nats"} 600x60`, 40 * time.Minute, ""},
		{"postwire_sink_lag_seconds{" + where + `,sink="nats"} 0+60x60` + "\npostwire_sink_paused{" + where + `,sink="nats"} 1x60`, 40 * time.Minute, ""},
		{"postwire_sink_lag_seconds{" + where + `,sink="nats"} 0+60x60` + "\npostwire_sink_paused{" + where + `,sink="other"} 1x60`, 40 * time.Minute, "is 40m 0s old"},
	},
	"PostwireSinkLagGrowing": {
		{`postwire_sink_lag_events{` + where + `,sink="nats"} 0+600x120`, 80 * time.Minute, "grows by 10 events per second"},
		{`postwire_sink_lag_events{` + where + `,sink="nats"} 90000-600x120`, 80 * time.Minute, ""},
		{`postwire_sink_lag_events{` + where + `,sink="nats"} 0+1x120`, 80 * time.Minute, ""},
		{"postwire_sink_lag_events{" + where + `,sink="nats"} 0+600x120` + "\npostwire_sink_paused{" + where + `,sink="nats"} 1x120`, 80 * time.Minute, ""},
	},
	"PostwireSinkPaused": {
		{"postwire_sink_paused{" + where + `,sink="nats",pod="a"} 0x5 1x120` + "\npostwire_sink_lag_events{" + where + `,sink="nats",pod="a"} 0+7x120`, 100 * time.Minute, "700 events are pending"},
		{"postwire_sink_paused{" + where + `,sink="nats",pod="a"} 0x5 1x120` + "\npostwire_sink_lag_events{" + where + `,sink="nats",pod="a"} 0x120`, 100 * time.Minute, "0 events are pending"},
		{"postwire_sink_paused{" + where + `,sink="nats",pod="a"} 0x5 1x40 0x80` + "\npostwire_sink_lag_events{" + where + `,sink="nats",pod="a"} 0+7x120`, 100 * time.Minute, ""},
		{"postwire_sink_paused{" + where + `,sink="nats",pod="a"} 0x120` + "\npostwire_sink_lag_events{" + where + `,sink="nats",pod="a"} 0+7x120`, 100 * time.Minute, ""},
	},
	"PostwireSinkFilterNeverMatches": {
		{"postwire_sink_filtered_total{" + where + `,sink="nats"} 0+1x240` + "\npostwire_sink_matched_total{" + where + `,sink="nats"} 0x240`, 200 * time.Minute, "matched none of"},
		{"postwire_sink_filtered_total{" + where + `,sink="nats"} 0+1x240` + "\npostwire_sink_matched_total{" + where + `,sink="nats"} 0x20 1x220`, 200 * time.Minute, ""},
		{"postwire_sink_filtered_total{" + where + `,sink="nats"} 0x240` + "\npostwire_sink_matched_total{" + where + `,sink="nats"} 0x240`, 200 * time.Minute, ""},
		{"postwire_sink_filtered_total{" + where + `,sink="nats"} 0x20 50x220` + "\npostwire_sink_matched_total{" + where + `,sink="nats"} 0x240`, 200 * time.Minute, ""},
	},
	"PostwireSinkFilterErrors": {
		{`postwire_sink_filter_errors_total{` + where + `,sink="nats"} 0x5 1x10`, 10 * time.Minute, "could not be evaluated"},
		{`postwire_sink_filter_errors_total{` + where + `,sink="nats"} 7x30`, 20 * time.Minute, ""},
	},
	"PostwireSinkUnconfigured": {
		{"postwire_sink_unconfigured_lag_events{" + where + `,sink="old"} 7x60`, 30 * time.Minute, "7 events that were pending"},
		{"postwire_sink_unconfigured_lag_events{" + where + `,sink="old"} 0x60`, 30 * time.Minute, ""},
		{"postwire_sink_unconfigured_lag_events{" + where + `,sink="old"} 7x4`, 30 * time.Minute, ""},
	},
	"PostwireSinkUnreadable": {
		{`postwire_sink_unreadable_total{` + where + `,sink="nats"} 0x5 1x10`, 10 * time.Minute, "journal check"},
		{`postwire_sink_unreadable_total{` + where + `,sink="nats"} 7x30`, 20 * time.Minute, ""},
	},
	"PostwireDeadLetters": {
		{`postwire_sink_dead_letters_total{` + where + `,sink="kafka",reason="too_large"} 0x5 1x10`, 10 * time.Minute, "(too_large)"},
		{`postwire_sink_dead_letters_total{` + where + `,sink="kafka",reason="too_large"} 3x30`, 20 * time.Minute, ""},
	},
	"PostwireBrokerDiscards": {
		{`postwire_sink_duplicates_total{` + where + `,sink="nats",outcome="lost"} 0x5 1x10`, 10 * time.Minute, "sink nats"},
		{`postwire_sink_duplicates_total{` + where + `,sink="nats",outcome="repeat"} 0x5 9x10`, 10 * time.Minute, ""},
	},
	"PostwireSinkBlocked": {
		{`postwire_sink_blocked_keys{` + where + `,sink="kafka"} 1x30` + "\npostwire_sink_blocked_destinations{" + where + `,sink="kafka"} 0x30`, 20 * time.Minute, "sinks blocked kafka"},
		{`postwire_sink_blocked_keys{` + where + `,sink="kafka"} 0x30` + "\npostwire_sink_blocked_destinations{" + where + `,sink="kafka"} 0x30`, 20 * time.Minute, ""},
	},
	"PostwireSinkDiscarding": {
		{`postwire_sink_discarded_total{` + where + `,sink="kafka",reason="after"} 0x5 9x10`, 10 * time.Minute, "discard.after"},
		{`postwire_sink_discarded_total{` + where + `,sink="kafka",reason="after"} 0x30`, 10 * time.Minute, ""},
	},
	"PostwireQuarantine": {
		{`postwire_received_total{` + where + `,source="s",outcome="quarantined"} 0x5 1x10`, 10 * time.Minute, "source s"},
		{`postwire_received_total{` + where + `,source="s",outcome="malformed"} 0x5 1x10`, 10 * time.Minute, ""},
	},
	"PostwireQuarantineDiscards": {
		{`postwire_quarantine_discarded_total{` + where + `,source="s",reason="max_bytes"} 0x5 1x10`, 10 * time.Minute, "Source s"},
		{`postwire_quarantine_discarded_total{` + where + `,source="s",reason="retention"} 0x5 1x10`, 10 * time.Minute, ""},
	},
	"PostwireUnauthenticated": {
		{"postwire_received_total{" + where + `,source="s",outcome="unauthenticated"} 0+6x60` + "\npostwire_received_total{" + where + `,source="s",outcome="accepted"} 0+1x60`, 40 * time.Minute, "fail authentication"},
		{"postwire_received_total{" + where + `,source="s",outcome="unauthenticated"} 0+1x60` + "\npostwire_received_total{" + where + `,source="s",outcome="accepted"} 0+6x60`, 40 * time.Minute, ""},
	},
	"PostwireSilent": {
		{`postwire_received_total{` + where + `,source="s",outcome="accepted"} 0+1x1440 1440x600`, 33 * time.Hour, "no webhook for six hours"},
		{`postwire_received_total{` + where + `,source="s",outcome="accepted"} 0x720 1x1320`, 33 * time.Hour, ""},
		{`postwire_received_total{` + where + `,source="s",outcome="accepted"} 0+1x2100`, 33 * time.Hour, ""},
	},
	"PostwireReconcileFailing": {
		{"postwire_reconcile_last_success_seconds{" + where + `,source="s"} 60x200` + "\npostwire_reconcile_failures_total{" + where + `,source="s"} 0+1x200`, 2 * time.Hour, "source s"},
		{"postwire_reconcile_last_success_seconds{" + where + `,source="s"} 0x200` + "\npostwire_reconcile_failures_total{" + where + `,source="s"} 0x200`, 2 * time.Hour, ""},
	},
	"PostwireReloadRefused": {
		{`postwire_config_last_reload_successful{` + where + `,pod="a"} 1x5 0x10`, 10 * time.Minute, "relay/a"},
		{`postwire_config_last_reload_successful{` + where + `,pod="a"} 1x5 0x3 1x10`, 10 * time.Minute, ""},
	},
	"PostwireCertificateExpiring": {
		{`postwire_tls_certificate_expiry_timestamp_seconds{` + where + `,pod="a"} 86400x10`, 5 * time.Minute, "expires in 23h 55m"},
		{`postwire_tls_certificate_expiry_timestamp_seconds{` + where + `,pod="a"} 8640000x10`, 5 * time.Minute, ""},
		{`postwire_tls_certificate_expiry_timestamp_seconds{` + where + `,pod="a"} 0x10`, 5 * time.Minute, ""},
	},
}

// Each alert fires in the situation that it is for, with a description that names
// it, and not in one that is near.
func TestAlerts(t *testing.T) {
	engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
	for _, r := range theRules(t) {
		cases := situations[r.Alert]
		if !slices.ContainsFunc(cases, func(s situation) bool { return s.says != "" }) || !slices.ContainsFunc(cases, func(s situation) bool { return s.says == "" }) {
			t.Errorf("%s: there is no situation in which it fires, or none in which it does not", r.Alert)
		}
		for i, s := range cases {
			t.Run(fmt.Sprint(r.Alert, "/", i), func(t *testing.T) {
				storage := promqltest.LoadedStorage(t, "load 1m\n  "+strings.ReplaceAll(s.series, "\n", "\n  ")+"\n")
				defer storage.Close()
				expr, err := promql.ParseExpr(r.Expr)
				if err != nil {
					t.Fatal(err)
				}
				rule := rules.NewAlertingRule(r.Alert, expr, time.Duration(r.For), 0, labels.FromMap(r.Labels), labels.FromMap(r.Annotations), labels.EmptyLabels(), "", true, quiet)
				query := rules.EngineQueryFunc(engine, storage)
				for now := time.Duration(0); now <= s.at; now += time.Minute {
					if _, err := rule.Eval(t.Context(), 0, time.Unix(0, 0).Add(now).UTC(), query, &url.URL{}, 0); err != nil {
						t.Fatal(err)
					}
				}
				var said []string
				for _, a := range rule.ActiveAlerts() {
					if a.State == rules.StateFiring {
						said = append(said, a.Annotations.Get("description"))
					}
				}
				if s.says == "" && len(said) > 0 {
					t.Errorf("it fires: %q", said)
				}
				if s.says != "" && (len(said) != 1 || !strings.Contains(said[0], s.says) || strings.Contains(said[0], "<error") || strings.Contains(said[0], "<no value>")) {
					t.Errorf("it says %q, want %q", said, s.says)
				}
			})
		}
	}
}

// The rules of a release are about the pods of this release: another release in the namespace
// neither silences an alert nor fires it.
func TestRulesOfARelease(t *testing.T) {
	page := metricsOnPage(t)
	for name, values := range map[string]map[string]any{"StatefulSet": sets(t)["local"], "Deployment": sets(t)["jetstream-deployment"]} {
		values["metrics"] = map[string]any{"prometheusRule": map[string]any{"enabled": true}}
		all := only[*monitoringv1.PrometheusRule](objects(t, mustRender(t, "postwire", values)))
		if len(all) != 1 || len(all[0].Spec.Groups) != 1 || len(all[0].Spec.Groups[0].Rules) < 15 {
			t.Fatalf("%s: %d rules", name, len(all))
		}
		for _, r := range all[0].Spec.Groups[0].Rules {
			holds(t, r.Alert, r.Expr.String(), page)
			expr, err := promql.ParseExpr(r.Expr.String())
			if err != nil {
				continue // holds has said so
			}
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				s, ok := n.(*parser.VectorSelector)
				if !ok {
					return nil
				}
				matches := func(label, value string) bool {
					for _, m := range s.LabelMatchers {
						if m.Name == label {
							return m.Matches(value)
						}
					}
					return true
				}
				own, other := "postwire-0", "postwire-shop-0"
				if name == "Deployment" {
					own, other = "postwire-66db46dd8c-x7k2p", "other-66db46dd8c-x7k2p"
				}
				if !matches("pod", own) || matches("pod", other) || !matches("namespace", namespace) || matches("namespace", "other") {
					t.Errorf("%s: %s selects pods of another release, or not those of this release", r.Alert, s)
				}
				return nil
			})
		}
	}
}
