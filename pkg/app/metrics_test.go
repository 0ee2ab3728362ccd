package app

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/internal/golden"
)

// alerts is where the rules are that the page refers to.
const alerts = "../../deploy/alerts/postwire.yaml"

// gathered assembles a relay that has all there is to measure, and returns what
// a scrape of it holds, but for what Go tells of the process.
func gathered(t *testing.T) (registry *prometheus.Registry, own []*dto.MetricFamily) {
	t.Helper()
	plan, err := Parse("postwire.yaml", []byte(`
server: {listen: "127.0.0.1:0"}
admin: {listen: "127.0.0.1:0"}
journal: {dir: /journal, min_free_bytes: 0}
sources: [{name: upload-post, type: uploadpost, paths: [/a], auth: none, api: {key: key}}]
sinks: [{name: out, type: stdout}]
`), env)
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
	families, err := a.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "postwire_") {
			own = append(own, f)
		}
	}
	return a.metrics, own
}

func TestMetricsPageIsFresh(t *testing.T) {
	_, own := gathered(t)
	golden.Check(t, filepath.Join("..", "..", "docs", "reference", "metrics.md"), metricsPage(t, own))
}

// Each metric that is registered has a series from the start: a rate over it is
// right, and the page, which is made of a scrape, has all.
func TestEveryMetricIsThereFromTheStart(t *testing.T) {
	registry, own := gathered(t)
	there := map[string]bool{}
	for _, f := range own {
		there[f.GetName()] = true
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		registry.Describe(descs)
		close(descs)
	}()
	name := regexp.MustCompile(`fqName: "(postwire_[a-z_]+)"`)
	count := 0
	for desc := range descs {
		if m := name.FindStringSubmatch(desc.String()); m != nil {
			if count++; !there[m[1]] {
				t.Errorf("%s is registered, and a scrape does not have it", m[1])
			}
		}
	}
	if count < len(own) || count < 30 {
		t.Errorf("%d are registered, %d were scraped", count, len(own))
	}
}

func TestMetricsAreNamedAsPrometheusHasIt(t *testing.T) {
	_, own := gathered(t)
	problems, err := promlint.NewWithMetricFamilies(own).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Labels are of the configuration, or of a set that is closed in the code: none
// is anything that a sender chooses.
func TestLabelsAreBounded(t *testing.T) {
	_, own := gathered(t)
	for _, f := range own {
		for _, label := range labels(f) {
			if !slices.Contains([]string{"source", "sink", "outcome", "reason", "operation", "kind", "version", "commit", "go"}, label) {
				t.Errorf("%s has a label %s", f.GetName(), label)
			}
		}
	}
}

func metricsPage(t *testing.T, own []*dto.MetricFamily) string {
	t.Helper()
	alerting := alertsOf(t)
	var b strings.Builder
	b.WriteString(`<!-- Generated from the registered metrics; do not edit. -->
# Metrics

Metrics at ` + "`/metrics` on `admin.listen`" + `, in the Prometheus format, in addition to the metrics of the Prometheus Go client (` + "`go_…`, `process_…`" + `). The
value of a label is a name in the configuration (` + "`source`, `sink`" + `) or one value of a closed set (below): a sender cannot choose a value. Histograms are
native histograms if the scraper requests native histograms, with a few classic buckets in addition. Names and labels are part of the contract.

| name | type | labels | unit | meaning | alert |
|---|---|---|---|---|---|
`)
	for _, f := range own {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			code(labels(f)), unit(f), f.GetHelp(), strings.Join(alerting[f.GetName()], ", "))
	}
	b.WriteString("\n## Label values\n\n| name | label | values |\n|---|---|---|\n")
	for _, f := range own {
		for _, label := range []string{"kind", "operation", "outcome", "reason"} {
			if values := valuesOf(f, label); len(values) > 1 {
				fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", f.GetName(), label, code(values))
			}
		}
	}
	return b.String()
}

func code(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return "`" + strings.Join(words, "`, `") + "`"
}

func labels(f *dto.MetricFamily) (names []string) {
	for _, l := range f.GetMetric()[0].GetLabel() {
		names = append(names, l.GetName())
	}
	return names
}

func valuesOf(f *dto.MetricFamily, label string) []string {
	all := map[string]bool{}
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == label {
				all[l.GetValue()] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// unit is what a value counts or measures, as its name has it.
func unit(f *dto.MetricFamily) string {
	name := strings.TrimSuffix(f.GetName(), "_total")
	for _, unit := range []string{"seconds", "bytes"} {
		if strings.HasSuffix(name, "_"+unit) {
			return unit
		}
	}
	switch {
	case strings.HasPrefix(f.GetHelp(), "1 ") || strings.HasPrefix(f.GetHelp(), "Always 1") || strings.HasPrefix(f.GetHelp(), "0 while"):
		return "0 or 1"
	case strings.HasPrefix(name, "postwire_received"), strings.Contains(name, "admin_busy"), strings.Contains(name, "requests_evicted"), strings.Contains(name, "quarantine_discarded"):
		return "requests"
	case strings.Contains(name, "connections"):
		return "connections"
	case strings.Contains(name, "retries"), strings.Contains(name, "unreadable"), strings.Contains(name, "failures"), strings.Contains(name, "sign_ins"):
		return "attempts"
	case strings.Contains(name, "lines"):
		return "lines"
	case strings.HasSuffix(name, "_admin_tails"):
		return "tails"
	case strings.Contains(name, "reloads"), strings.Contains(name, "admin_changes"), strings.Contains(name, "group_size"):
		return "changes"
	}
	return "events"
}

// alertsOf returns the alerts that look at each metric.
func alertsOf(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(alerts)
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	of := map[string][]string{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, name := range regexp.MustCompile(`postwire_[a-z_]+`).FindAllString(r.Expr, -1) {
				for _, suffix := range []string{"_bucket", "_count", "_sum"} {
					name = strings.TrimSuffix(name, suffix)
				}
				if !slices.Contains(of[name], r.Alert) {
					of[name] = append(of[name], r.Alert)
				}
			}
		}
	}
	return of
}
