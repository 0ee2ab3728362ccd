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
	sampleInterval = 5 * time.Second
	samples        = 720 // one hour
)

// MetricsRing keeps samples of metrics for one hour, for the console. The memory is
// bounded by the number of sources and sinks: 6 KiB per time series.
type MetricsRing struct {
	gatherer prometheus.Gatherer
	now      func() time.Time

	mu    sync.Mutex
	times [samples]time.Time // ring of sample times
	next  int                // number of samples so far
	all   map[seriesKey][]float64
}

// seriesKey identifies a time series. name is the source or the sink.
type seriesKey struct{ metric, name, outcome string }

// NewMetricsRing returns an empty ring of the metrics of gatherer. Run takes samples.
func NewMetricsRing(gatherer prometheus.Gatherer, now func() time.Time) *MetricsRing {
	return &MetricsRing{gatherer: gatherer, now: now, all: map[seriesKey][]float64{}}
}

// Run takes a sample at once, and then every sampleInterval, until ctx is done.
func (h *MetricsRing) Run(ctx context.Context) {
	tick := time.NewTicker(sampleInterval)
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

// read returns the present values of the metrics. A metric that cannot be gathered is
// omitted.
func (h *MetricsRing) read() map[seriesKey]float64 {
	families, _ := h.gatherer.Gather()
	values := map[seriesKey]float64{}
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
			key := seriesKey{metric: f.GetName(), name: labelOf(m, label)}
			if label == "source" {
				key.outcome = labelOf(m, "outcome")
			}
			values[key] += m.GetCounter().GetValue() + m.GetGauge().GetValue() // a metric has only one of the two
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

// sample adds one sample to every time series.
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
				delete(h.all, key) // the source or sink was removed more than an hour ago
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

// Points are the values of a time series; NaN, in JSON null, is an unknown value.
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

// TimeSeries are the time series of the last hour. Every list has one value per time.
type TimeSeries struct {
	Times   []int64                 `json:"times" doc:"Unix seconds. Every value covers the time from the previous entry of times."`
	Sources map[string]SourceSeries `json:"sources"`
	Sinks   map[string]SinkSeries   `json:"sinks"`
	Journal JournalSeries           `json:"journal"`
}

// SourceSeries are the time series of a source.
type SourceSeries struct {
	Received    Points `json:"received" doc:"Requests per second."`
	Stored      Points `json:"stored" doc:"New events per second."`
	Duplicates  Points `json:"duplicates" doc:"Duplicates per second."`
	Quarantined Points `json:"quarantined" doc:"Quarantined requests per second."`
	Refused     Points `json:"refused" doc:"Requests per second that were answered with an error."`
}

// SinkSeries are the time series of a sink.
type SinkSeries struct {
	Delivered Points `json:"delivered" doc:"Events per second that the broker acknowledged, replays included."`
	Retries   Points `json:"retries" doc:"Failed and retried attempts per second."`
	Dead      Points `json:"dead" doc:"Dead letters per second."`
	LagEvents Points `json:"lag_events" doc:"Maximum lag in events."`
	Age       Points `json:"age" doc:"Maximum age of the oldest pending event, in seconds."`
	Open      Points `json:"open" doc:"1 if the circuit breaker was open, otherwise 0."`
}

// JournalSeries are the time series of the journal.
type JournalSeries struct {
	Bytes  Points `json:"bytes" doc:"Maximum size in bytes."`
	Events Points `json:"events" doc:"Maximum number of stored events."`
}

// isSuccess reports whether an outcome of a request is not an error.
func isSuccess(outcome string) bool {
	switch outcome {
	case "accepted", "duplicate", "quarantined", "consented", "challenge":
		return true
	}
	return false
}

// Series returns the time series of the last hour, with a maximum number of points.
func (h *MetricsRing) Series(points int) TimeSeries {
	h.mu.Lock()
	defer h.mu.Unlock()
	filled := min(h.next, samples)
	stride := max(1, (filled+points-1)/points)
	var ends []int // number of the last sample of every point, oldest first
	for n := h.next - 1; n > h.next-filled; n -= stride {
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
	// rate adds the growth rate of a counter to every point. A smaller value means that
	// a restart has reset the counter to 0.
	rate := func(p Points, line []float64) {
		for i, n := range ends {
			first := max(n-stride, h.next-filled)
			start, end := line[first%samples], line[n%samples]
			if end < start {
				start = 0
			}
			if seconds := h.times[n%samples].Sub(h.times[first%samples]).Seconds(); seconds > 0 {
				add(p, i, (end-start)/seconds)
			}
		}
	}
	maximum := func(p Points, line []float64) {
		for i, n := range ends {
			for k := max(n-stride+1, h.next-filled); k <= n; k++ {
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
			if key.name != "" { // "" for unknown paths
				f.Sources[key.name] = source
			}
		case "postwire_journal_bytes":
			of = nil
			maximum(f.Journal.Bytes, line)
		case "postwire_journal_events":
			of = nil
			maximum(f.Journal.Events, line)
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
			case !isSuccess(key.outcome):
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
			maximum(sink.LagEvents, line)
		case "postwire_sink_lag_seconds":
			maximum(sink.Age, line)
		case "postwire_sink_breaker_open":
			maximum(sink.Open, line)
		}
	}
	return f
}

func (a *API) stats(api huma.API) {
	huma.Register(api, operation("show-stats", http.MethodGet, "/stats", "Show time series of the last hour, as observed by this relay", 422),
		func(_ context.Context, in *struct {
			Points int `query:"points" minimum:"2" maximum:"720" default:"120" doc:"Maximum number of points."`
		},
		) (*struct{ Body TimeSeries }, error) {
			return &struct{ Body TimeSeries }{a.Series.Series(in.Points)}, nil
		})
}

// Stats returns the time series of the last hour.
func (c *Client) Stats(ctx context.Context) (f TimeSeries, err error) {
	return f, c.call(ctx, http.MethodGet, "/stats", nil, &f)
}
