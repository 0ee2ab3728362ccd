package admin

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

const (
	sampleEvery = 5 * time.Second
	samples     = 720 // an hour
)

// MetricsRing keeps an hour of what the metrics said, so that the last hour can be
// seen where nobody scrapes them. What it takes is bounded by the number of
// sources and sinks: 6 KiB a figure.
type MetricsRing struct {
	gatherer prometheus.Gatherer
	now      func() time.Time

	mu    sync.Mutex
	times [samples]time.Time // a ring
	next  int                // where the next sample goes
	all   map[figure][]float64
}

// figure names one line of the history.
type figure struct{ metric, name, outcome string }

// NewHistory makes one of what gatherer tells. Run fills it.
func NewHistory(gatherer prometheus.Gatherer, now func() time.Time) *MetricsRing {
	return &MetricsRing{gatherer: gatherer, now: now, all: map[figure][]float64{}}
}

// Run takes a sample at once and then again and again, until ctx is done.
func (h *MetricsRing) Run(ctx context.Context) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		h.sample()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// read returns what the metrics say now. A metric that cannot be read is left
// out: others are worth showing all the same.
func (h *MetricsRing) read() map[figure]float64 {
	families, _ := h.gatherer.Gather()
	values := map[figure]float64{}
	for _, f := range families {
		label := map[string]string{
			"postwire_received_total": "source", "postwire_events_stored_total": "source", "postwire_dedupe_hits_total": "source",
			"postwire_sink_delivered_total": "sink", "postwire_sink_lag_events": "sink", "postwire_sink_lag_seconds": "sink",
			"postwire_sink_retries_total": "sink", "postwire_sink_dead_letters_total": "sink", "postwire_sink_discarded_total": "sink",
			"postwire_sink_breaker_open": "sink", "postwire_sink_filtered_total": "sink", "postwire_sink_replayed_total": "sink",
			"postwire_journal_bytes": "-", "postwire_journal_events": "-",
		}[f.GetName()]
		if label == "" {
			continue
		}
		for _, m := range f.GetMetric() {
			key := figure{metric: f.GetName(), name: labelOf(m, label)}
			if label == "source" {
				key.outcome = labelOf(m, "outcome")
			}
			values[key] += m.GetCounter().GetValue() + m.GetGauge().GetValue() // it is one of them
		}
	}
	return values
}

func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// sample takes one.
func (h *MetricsRing) sample() {
	values := h.read()
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.next % samples
	h.times[at] = h.now()
	for key := range values {
		if h.all[key] == nil {
			line := make([]float64, samples)
			for i := range line {
				line[i] = math.NaN()
			}
			h.all[key] = line
		}
	}
	for key, line := range h.all {
		value, ok := values[key]
		if line[at] = value; !ok {
			line[at] = math.NaN()
			if at == 0 && empty(line) {
				delete(h.all, key) // of a source or sink that has been gone for long
			}
		}
	}
	h.next++
}

func empty(line []float64) bool {
	for _, v := range line {
		if !math.IsNaN(v) {
			return false
		}
	}
	return true
}

// Points are the values of a figure over time; NaN, in JSON null, is unknown.
type Points []float64

// MarshalJSON implements json.Marshaler.
func (p Points) MarshalJSON() ([]byte, error) {
	values := make([]*float64, len(p))
	for i, v := range p {
		if !math.IsNaN(v) {
			v = math.Round(v*1000) / 1000
			values[i] = &v
		}
	}
	return json.Marshal(values)
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *Points) UnmarshalJSON(text []byte) error {
	var values []*float64
	if err := json.Unmarshal(text, &values); err != nil {
		return err
	}
	*p = make(Points, len(values))
	for i, v := range values {
		if (*p)[i] = math.NaN(); v != nil {
			(*p)[i] = *v
		}
	}
	return nil
}

// Schema implements huma.SchemaProvider.
func (Points) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeNumber, Nullable: true}}
}

// TimeSeries are the last hour. All lists are as long as times, and belong to them.
type TimeSeries struct {
	Times   []int64                 `json:"times" doc:"Unix seconds; each value is of the time until then, since the one before."`
	Sources map[string]SourceSeries `json:"sources"`
	Sinks   map[string]SinkSeries   `json:"sinks"`
	Journal JournalSeries           `json:"journal"`
}

// SourceSeries are those of a source, a second.
type SourceSeries struct {
	Received    Points `json:"received" doc:"Requests a second."`
	Stored      Points `json:"stored" doc:"New events a second."`
	Duplicates  Points `json:"duplicates" doc:"Repeats a second."`
	Quarantined Points `json:"quarantined" doc:"Requests a second that made no sense and were set aside."`
	Refused     Points `json:"refused" doc:"Requests a second that were answered with an error."`
}

// SinkSeries are those of a sink.
type SinkSeries struct {
	Delivered Points `json:"delivered" doc:"Events a second that the broker acknowledged, replays included."`
	Retries   Points `json:"retries" doc:"Attempts a second that failed and were repeated."`
	Dead      Points `json:"dead" doc:"Events a second that were set aside."`
	Behind    Points `json:"lag_events" doc:"Largest lag, in events."`
	Age       Points `json:"age" doc:"Age of the oldest one that waited, in seconds."`
	Open      Points `json:"open" doc:"1 where the breaker was open."`
}

// JournalSeries are those of the journal.
type JournalSeries struct {
	Bytes  Points `json:"bytes"`
	Events Points `json:"events"`
}

// Outcomes of requests that are no error.
func welcome(outcome string) bool {
	switch outcome {
	case "accepted", "duplicate", "quarantined", "consented", "challenge":
		return true
	}
	return false
}

// Last returns the last hour in so many points at most.
func (h *MetricsRing) Last(points int) TimeSeries {
	h.mu.Lock()
	defer h.mu.Unlock()
	have := min(h.next, samples)
	stride := max(1, (have+points-1)/points)
	var ends []int // samples, counted from the first one ever, the oldest first
	for n := h.next - 1; n > h.next-have; n -= stride {
		ends = append([]int{n}, ends...)
	}
	f := TimeSeries{Times: []int64{}, Sources: map[string]SourceSeries{}, Sinks: map[string]SinkSeries{}}
	for _, n := range ends {
		f.Times = append(f.Times, h.times[n%samples].Unix())
	}
	blank := func() Points {
		p := make(Points, len(ends))
		for i := range p {
			p[i] = math.NaN()
		}
		return p
	}
	add := func(p Points, i int, v float64) {
		switch {
		case math.IsNaN(v):
		case math.IsNaN(p[i]):
			p[i] = v
		default:
			p[i] += v
		}
	}
	// rate adds how fast a counter grew up to each point; one that was set back
	// by a restart began at nothing.
	rate := func(p Points, line []float64) {
		for i, n := range ends {
			first := max(n-stride, h.next-have)
			before, now := line[first%samples], line[n%samples]
			if now < before {
				before = 0
			}
			if took := h.times[n%samples].Sub(h.times[first%samples]).Seconds(); took > 0 {
				add(p, i, (now-before)/took)
			}
		}
	}
	most := func(p Points, line []float64) {
		for i, n := range ends {
			for k := max(n-stride+1, h.next-have); k <= n; k++ {
				if v := line[k%samples]; math.IsNaN(p[i]) || v > p[i] {
					p[i] = v
				}
			}
		}
	}
	f.Journal = JournalSeries{blank(), blank()}
	for key, line := range h.all {
		source, known := f.Sources[key.name]
		if !known {
			source = SourceSeries{blank(), blank(), blank(), blank(), blank()}
		}
		sink, known := f.Sinks[key.name]
		if !known {
			sink = SinkSeries{blank(), blank(), blank(), blank(), blank(), blank()}
		}
		of := &f.Sinks
		switch key.metric {
		case "postwire_received_total", "postwire_events_stored_total", "postwire_dedupe_hits_total":
			of = nil
			if key.name != "" { // of paths that nobody knows
				f.Sources[key.name] = source
			}
		case "postwire_journal_bytes":
			of = nil
			most(f.Journal.Bytes, line)
		case "postwire_journal_events":
			of = nil
			most(f.Journal.Events, line)
		}
		if of != nil {
			f.Sinks[key.name] = sink
		}
		switch key.metric {
		case "postwire_received_total":
			rate(source.Received, line)
			switch {
			case key.outcome == "quarantined":
				rate(source.Quarantined, line)
			case !welcome(key.outcome):
				rate(source.Refused, line)
			}
		case "postwire_events_stored_total":
			rate(source.Stored, line)
		case "postwire_dedupe_hits_total":
			rate(source.Duplicates, line)
		case "postwire_sink_delivered_total", "postwire_sink_replayed_total":
			rate(sink.Delivered, line)
		case "postwire_sink_retries_total":
			rate(sink.Retries, line)
		case "postwire_sink_dead_letters_total":
			rate(sink.Dead, line)
		case "postwire_sink_lag_events":
			most(sink.Behind, line)
		case "postwire_sink_lag_seconds":
			most(sink.Age, line)
		case "postwire_sink_breaker_open":
			most(sink.Open, line)
		}
	}
	return f
}

func (a *API) figures(api huma.API) {
	huma.Register(api, operation("figures", http.MethodGet, "/stats", "The last hour in figures, as this process has seen it", 422),
		func(_ context.Context, in *struct {
			Points int `query:"points" minimum:"2" maximum:"720" default:"120" doc:"Most points in time."`
		},
		) (*struct{ Body TimeSeries }, error) {
			return &struct{ Body TimeSeries }{a.History.Last(in.Points)}, nil
		})
}

// Figures asks for the last hour in so many points.
func (c *Client) Figures(ctx context.Context) (f TimeSeries, err error) {
	return f, c.ask(ctx, http.MethodGet, "/stats", nil, &f)
}
