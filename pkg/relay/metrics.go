package relay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// Metrics of the relay.
type Metrics struct {
	lag lags

	delivered, retries, matched, filtered, filterErrors          *prometheus.CounterVec
	dead, discarded, refusedCopies                               *prometheus.CounterVec
	replayed, unreadable, duplicates, opaque                     *prometheus.CounterVec
	up, open, paused, unconfigured, blocked, blockedDestinations *prometheus.GaugeVec
	latency, attempts                                            *prometheus.HistogramVec
}

// NewMetrics registers the metrics of the relay.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	histogram := func(name, help string, buckets ...float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}, []string{"sink"})
		r.MustRegister(h)
		return h
	}
	m := &Metrics{
		lag:           lags{sinks: map[string]lag{}},
		delivered:     counter("postwire_sink_delivered_total", "Events that the broker acknowledged.", "sink"),
		retries:       counter("postwire_sink_retries_total", "Attempts to deliver a batch that failed completely or partly and were retried.", "sink"),
		matched:       counter("postwire_sink_matched_total", "Events that the filter of the sink matched; every event for a sink without a filter.", "sink"),
		filtered:      counter("postwire_sink_filtered_total", "Events that the filter of the sink did not match. The sink does not get these events.", "sink"),
		filterErrors:  counter("postwire_sink_filter_errors_total", "Events for which the filter of the sink could not be evaluated. These events count as filtered, and the sink does not get these events.", "sink"),
		dead:          counter("postwire_sink_dead_letters_total", "Events that became dead letters, because the broker refused the event permanently or a limit of retry was reached.", "sink", "reason"),
		refusedCopies: counter("postwire_sink_dead_letter_copies_refused_total", "Dead letters of other sinks, from dead_letters.sink, that this sink refused permanently. These dead letters stay in the dead-letter queue.", "sink", "reason"),
		discarded:     counter("postwire_sink_discarded_total", "Events that the discard policy of the sink discarded. The sink does not get these events. reason after: older than discard.after. reason beyond: more pending events than discard.beyond.", "sink", "reason"),
		replayed:      counter("postwire_sink_replayed_total", "Events that the broker acknowledged in a replay.", "sink"),
		duplicates:    counter("postwire_sink_duplicates_total", "Acknowledgements by which the broker reports a duplicate message ID and discards the event. outcome repeat: an earlier attempt may have delivered the event, as after a crash or a lost acknowledgement. outcome lost: the event was sent for the first time, so consumers do not get the event.", "sink", "outcome"),
		opaque:        counter("postwire_sink_opaque_data_total", "Messages in structured mode with data that has a JSON media type and is not valid JSON for every parser; such data is sent as data_base64.", "sink"),
		unreadable:    counter("postwire_sink_unreadable_total", "Failed attempts to read the journal for the sink. While reading fails, the sink gets no events.", "sink"),
		up:            prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_up", Help: "1 while the last delivery attempt to the sink was successful, 0 while attempts fail."}, []string{"sink"}),
		open:          prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_breaker_open", Help: "1 while the circuit breaker of the sink is open: attempts fail, and the relay probes the sink with one event at a time. Otherwise 0."}, []string{"sink"}),
		paused:        prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_paused", Help: "1 while an operator has paused delivery to the sink, otherwise 0."}, []string{"sink"}),
	}
	m.blocked = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_blocked_keys", Help: "Partition keys of the sink whose first event failed and waits for its next attempt. The later events of these keys wait, too; an event without a partition key is a key of its own."}, []string{"sink"})
	m.blockedDestinations = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postwire_sink_blocked_destinations", Help: "Destinations of the sink, such as topic partitions or subjects, that fail. Their events wait, and the relay probes each destination with one event at a time."}, []string{"sink"})
	m.unconfigured = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "postwire_sink_unconfigured_lag_events", Help: "Pending events of a removed sink: a sink with a cursor in the journal that is not in the configuration. The events are not delivered until another sink adopts the removed sink. 0 for configured sinks.",
	}, []string{"sink"})
	m.latency = histogram("postwire_sink_latency_seconds", "Time from the acceptance of an event to the acknowledgement of the broker, without replays.",
		.005, .025, .1, .5, 1, 5, 15, 60, 300, 1800, 3600)
	m.attempts = histogram("postwire_sink_attempt_seconds", "Duration of one attempt to deliver a batch, successful or not.",
		.001, .005, .025, .1, .5, 2.5, 10, 30)
	r.MustRegister(m.up, m.open, m.blocked, m.blockedDestinations, m.paused, m.unconfigured, &m.lag)
	return m
}

// sinkMetrics are the metrics of one sink. A scrape computes the lag.
type sinkMetrics struct {
	delivered, retries, matched, filtered, filterErrors prometheus.Counter
	unreadable, opaque                                  prometheus.Counter

	dead, discarded              *prometheus.CounterVec
	refusedCopies                *prometheus.CounterVec
	duplicates                   duplicateCounters
	upGauge, open                prometheus.Gauge
	blocked, blockedDestinations prometheus.Gauge
	latency, attempts            prometheus.Observer

	head atomic.Int64 // acceptance of the oldest event in flight, nanoseconds since 1970; 0 without one
}

func (m *Metrics) sink(name string, c journal.Cursor, now func() time.Time) *sinkMetrics {
	s := &sinkMetrics{
		delivered:           m.delivered.WithLabelValues(name),
		retries:             m.retries.WithLabelValues(name),
		matched:             m.matched.WithLabelValues(name),
		filtered:            m.filtered.WithLabelValues(name),
		filterErrors:        m.filterErrors.WithLabelValues(name),
		unreadable:          m.unreadable.WithLabelValues(name),
		opaque:              m.opaque.WithLabelValues(name),
		dead:                m.dead.MustCurryWith(prometheus.Labels{"sink": name}),
		discarded:           m.discarded.MustCurryWith(prometheus.Labels{"sink": name}),
		refusedCopies:       m.refusedCopies.MustCurryWith(prometheus.Labels{"sink": name}),
		duplicates:          duplicateCounters{lost: m.duplicates.WithLabelValues(name, "lost"), repeat: m.duplicates.WithLabelValues(name, "repeat")},
		upGauge:             m.up.WithLabelValues(name),
		open:                m.open.WithLabelValues(name),
		blocked:             m.blocked.WithLabelValues(name),
		blockedDestinations: m.blockedDestinations.WithLabelValues(name),
		latency:             m.latency.WithLabelValues(name),
		attempts:            m.attempts.WithLabelValues(name),
	}
	m.paused.WithLabelValues(name)
	s.up(true)
	for _, reason := range []string{journal.DiscardedAfter, journal.DiscardedBeyond} {
		s.discarded.WithLabelValues(reason)
	}
	for _, reason := range sinks.Reasons() {
		s.dead.WithLabelValues(string(reason))
		s.refusedCopies.WithLabelValues(string(reason))
	}
	m.replayed.WithLabelValues(name)
	m.lag.set(name, lag{events: c.Lag, seconds: func() float64 {
		head := s.head.Load()
		if head == 0 {
			return 0
		}
		return max(0, now().Sub(time.Unix(0, head)).Seconds())
	}})
	return s
}

// deleteSeries deletes the time series of a removed sink.
func (m *Metrics) deleteSeries(name string) {
	m.lag.set(name, lag{})
	labels := prometheus.Labels{"sink": name}
	for _, vec := range []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}{m.delivered, m.retries, m.matched, m.filtered, m.filterErrors, m.dead, m.discarded, m.refusedCopies, m.replayed, m.unreadable, m.duplicates, m.opaque, m.up, m.open, m.blocked, m.blockedDestinations, m.paused, m.latency, m.attempts} {
		vec.DeletePartialMatch(labels)
	}
}

// setPaused sets whether a sink is paused.
func (m *Metrics) setPaused(sink string, paused bool) {
	value := 0.
	if paused {
		value = 1
	}
	m.paused.WithLabelValues(sink).Set(value)
}

// lags is a prometheus.Collector of the lag of each sink.
type lags struct {
	mu    sync.Mutex
	sinks map[string]lag
}

type lag struct {
	events  func() uint64
	seconds func() float64
}

func (l *lags) set(sink string, how lag) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if how.events == nil {
		delete(l.sinks, sink)
		return
	}
	l.sinks[sink] = how
}

var (
	lagEvents  = prometheus.NewDesc("postwire_sink_lag_events", "Lag of the sink: events in the journal that are not done for the sink.", []string{"sink"}, nil)
	lagSeconds = prometheus.NewDesc("postwire_sink_lag_seconds", "Lag of the sink in seconds: age of the oldest pending event, 0 without pending events.", []string{"sink"}, nil)
)

// Describe implements prometheus.Collector.
func (l *lags) Describe(descs chan<- *prometheus.Desc) { descs <- lagEvents; descs <- lagSeconds }

// Collect implements prometheus.Collector.
func (l *lags) Collect(metrics chan<- prometheus.Metric) {
	l.mu.Lock()
	all := maps.Clone(l.sinks)
	l.mu.Unlock()
	for sink, how := range all {
		metrics <- prometheus.MustNewConstMetric(lagEvents, prometheus.GaugeValue, float64(how.events()), sink)
		metrics <- prometheus.MustNewConstMetric(lagSeconds, prometheus.GaugeValue, how.seconds(), sink)
	}
}

func (s *sinkMetrics) up(up bool) {
	s.upGauge.Set(0)
	if up {
		s.upGauge.Set(1)
	}
}

func (s *sinkMetrics) breaker(open bool) {
	s.open.Set(0)
	if open {
		s.open.Set(1)
	}
}

// setSchedule sets the metrics of the events in hand.
func (s *sinkMetrics) setSchedule(of *schedule) {
	s.blocked.Set(float64(of.blocked))
	s.blockedDestinations.Set(float64(len(of.destinations)))
	if oldest := of.oldest(); oldest.IsZero() {
		s.clearOldest()
	} else {
		s.setOldest(oldest)
	}
}

// detached returns metrics of a replay, which are not registered.
func (s *sinkMetrics) detached() *sinkMetrics {
	return &sinkMetrics{
		refusedCopies: s.refusedCopies,
		retries:       prometheus.NewCounter(prometheus.CounterOpts{}), unreadable: s.unreadable, opaque: s.opaque, duplicates: s.duplicates,
		upGauge: prometheus.NewGauge(prometheus.GaugeOpts{}), open: prometheus.NewGauge(prometheus.GaugeOpts{}),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{}), blockedDestinations: prometheus.NewGauge(prometheus.GaugeOpts{}), attempts: prometheus.NewHistogram(prometheus.HistogramOpts{}),
	}
}

func (s *sinkMetrics) countRefusedCopy(reason string) { s.refusedCopies.WithLabelValues(reason).Inc() }

func (s *sinkMetrics) countDiscarded(reason string) { s.discarded.WithLabelValues(reason).Inc() }

func (s *sinkMetrics) setOldest(since time.Time) { s.head.Store(since.UnixNano()) }

func (s *sinkMetrics) clearOldest() { s.head.Store(0) }

func (s *sinkMetrics) countDeadLetters(dead []journal.DeadLetter) {
	for _, d := range dead {
		s.dead.WithLabelValues(d.Reason).Inc()
	}
}
