package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/natsclient"
)

const engineJetStream = "jetstream"

// processName is the name of this process among the relays that share a journal.
func processName(c config.Config) (string, error) {
	if c.Server.Name != "" {
		return c.Server.Name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("server.name is not set, and the machine's name is not known: %w", err)
	}
	return name, nil
}

func login(c config.JetStream) natsclient.Login {
	return natsclient.Login{CredentialsFile: c.CredentialsFile, NKeyFile: c.NKeyFile, User: c.User, Password: c.Password, Token: c.Token, TLS: c.TLS}
}

// checkCluster reports invalid addresses of the journal's cluster.
func checkCluster(c config.JetStream) config.Invalids {
	var p config.Invalids
	if c.URL != "" && !natsclient.ValidURLs(c.URL) {
		p.Add("url", "is not a list of URLs", "for example nats://a:4222,nats://b:4222") // without the URL, which may contain a password
	}
	login(c).Check("", &p)
	if files := c.Embedded.TLS; files != (config.PeerTLS{}) {
		config.TLS{Enabled: true, CAFile: files.CAFile, CertFile: files.CertFile, KeyFile: files.KeyFile}.Check("embedded.tls", &p)
	}
	return p
}

// startCluster starts the server of the embedded cluster, or returns nil without an embedded
// cluster. The server stores nothing of the journal before openJournal.
func startCluster(c *config.Config, name string, log *zap.Logger) (*embedded.Server, error) {
	e := c.Journal.JetStream.Embedded
	if c.Journal.Engine != engineJetStream || !e.Enabled() {
		return nil, nil //nolint:nilnil // most relays have no embedded cluster
	}
	opts := serverOptions(c, name, log)
	alone, err := wasAlone(c, name)
	if err != nil {
		return nil, err
	}
	if alone { // a cluster would delete the journal
		opts.Dir = filepath.Join(e.Dir, "clustered")
	}
	return embedded.Start(opts)
}

func serverOptions(c *config.Config, name string, log *zap.Logger) embedded.Options {
	e := c.Journal.JetStream.Embedded
	return embedded.Options{
		Name: name, Cluster: e.Cluster, Peers: e.Peers, Listen: e.Listen, Dir: e.Dir, Stream: c.Journal.JetStream.Stream,
		Secret: e.Secret, TLS: e.TLS, MaxBytes: uint64(c.Journal.MaxBytes), Log: log,
	}
}

// wasAlone reports whether this relay is the founder of a cluster, and its folder has the
// journal of the time when it was alone.
func wasAlone(c *config.Config, name string) (bool, error) {
	e := c.Journal.JetStream.Embedded
	if len(e.Peers) == 1 || e.Founder.Relay != name {
		return false, nil
	}
	store, err := embedded.Inspect(e.Dir)
	return store == embedded.Alone || store == embedded.LeftAlone, err
}

// openJournal opens the journal of the configured engine. Cluster is nil without an embedded
// cluster.
func openJournal(ctx context.Context, p *Plan, name string, cluster *embedded.Server, metrics prometheus.Registerer, log *zap.Logger) (journal.Journal, error) {
	groups := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "postwire_journal_group_size", Help: "Appends and other changes per synced write of the local engine.",
		Buckets: []float64{1, 4, 16, 64, 256, 1024}, NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	})
	discarded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postwire_quarantine_discarded_total",
		Help: "Quarantined requests that the journal discarded. reason max_bytes: the source exceeded its quota. reason retention: the request was older than journal.retention.",
	}, []string{"source", "reason"})
	metrics.MustRegister(groups, discarded)
	for _, s := range p.Sources {
		for _, reason := range []string{journal.QuarantineMaxBytes, journal.QuarantineRetention} {
			discarded.WithLabelValues(s.Name, reason)
		}
	}
	discards := func(d journal.QuarantineDiscards) {
		discarded.WithLabelValues(d.Source, d.Reason).Add(float64(d.Requests))
	}
	if err := checkOtherJournal(ctx, p, name, log); err != nil {
		return nil, err
	}
	c := p.Config.Journal
	if c.Engine != engineJetStream {
		return local.Open(local.Options{
			Dir: c.Dir, Window: p.Config.Dedupe.Window, Retention: c.Retention,
			MaxBytes: uint64(c.MaxBytes), MinFree: uint64(c.MinFreeBytes), Quarantine: uint64(c.Quarantine.MaxBytesPerSource), Discarded: discards,
			Name: name, Log: log,
			FS: p.Disk, Clock: p.Clock, Synced: func(changes int) { groups.Observe(float64(changes)) },
		})
	}
	opts := clusterOptions(p.Config, name, log, p.Clock)
	opts.Discarded = discards
	if cluster != nil {
		opts.Server, opts.Login = cluster, cluster.Login()
		opts.Disk = &jetstream.Disk{Dir: c.JetStream.Embedded.Dir, MinFree: uint64(c.MinFreeBytes)}
	}
	return jetstream.Open(ctx, opts)
}

func clusterOptions(c *config.Config, name string, log *zap.Logger, clock func() time.Time) jetstream.Options {
	j := c.Journal
	opts := jetstream.Options{
		URL: j.JetStream.URL, Login: login(j.JetStream), Stream: j.JetStream.Stream, Replicas: j.JetStream.Replicas, Update: j.JetStream.Update,
		Name: name, Window: c.Dedupe.Window, Retention: j.Retention, MaxBytes: uint64(j.MaxBytes), Quarantine: uint64(j.Quarantine.MaxBytesPerSource), Hold: j.Spill.Hold,
		Log: log, Clock: clock,
	}
	if j.Spill.Enabled {
		opts.Spill = &jetstream.Spill{Dir: j.Spill.Dir, MaxBytes: uint64(j.Spill.MaxBytes), MinFree: uint64(j.MinFreeBytes)}
	}
	return opts
}

// measureJournal registers the gauges of the journal. A gauge is 0 if its value is unknown
// or unlimited.
func measureJournal(r prometheus.Registerer, j journal.Journal, now func() time.Time) {
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("postwire_journal_bytes", "Disk space of the journal.", func() float64 { return float64(j.Usage().Bytes) })
	gauge("postwire_journal_max_bytes", "Size of the journal at which the relay refuses new events; 0 without a limit.", func() float64 { return float64(j.Usage().MaxBytes) })
	gauge("postwire_journal_free_bytes", "Free space on the journal's disk.", func() float64 { return float64(j.Usage().Free) })
	gauge("postwire_journal_min_free_bytes", "Free disk space below which the relay refuses new events; 0 without a limit.", func() float64 { return float64(j.Usage().MinFree) })
	gauge("postwire_journal_full", "1 while the relay refuses new events because the journal or its disk is full, otherwise 0.", func() float64 {
		if errors.Is(j.Check(), journal.ErrFull) {
			return 1
		}
		return 0
	})
	gauge("postwire_journal_spilled", "Events and requests in the spill of this relay, kept until the NATS cluster accepts events again.", func() float64 { return float64(j.Usage().Spilled) })
	gauge("postwire_journal_spilled_seconds", "Age of the oldest event in the spill of this relay, 0 while the spill is empty.", func() float64 {
		since := j.Usage().SpilledSince
		if since.IsZero() {
			return 0
		}
		return max(0, now().Sub(since).Seconds())
	})
	gauge("postwire_journal_events", "Stored events, delivered or not.", func() float64 { return float64(j.Usage().Events) })
	gauge("postwire_journal_keys", "Identity keys inside the dedupe window; 0 for the jetstream engine, which does not count keys.", func() float64 { return float64(j.Usage().Keys) })
	oldest := &oldestEvent{journal: j}
	gauge("postwire_journal_oldest_seconds", "Age of the oldest stored event, delivered or not; 0 for an empty or unreadable journal.", func() float64 {
		at := oldest.accepted()
		if at.IsZero() {
			return 0
		}
		return max(0, now().Sub(at).Seconds())
	})
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "postwire_journal_trimmed_total", Help: "Delivered events that were removed before journal.retention to free space.",
	}, func() float64 { return float64(j.Usage().Trimmed) }))
}

// oldestEvent caches the acceptance time of the oldest event.
type oldestEvent struct {
	journal journal.Log

	mu  sync.Mutex
	seq journal.Seq // sequence of the cached event; 0 is none
	at  time.Time
}

// accepted returns the acceptance time, or zero without events or if the read takes longer
// than a scrape may.
func (o *oldestEvent) accepted() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	oldest := o.journal.Oldest()
	if oldest == o.seq {
		return o.at
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	records, err := o.journal.Read(ctx, oldest, 1)
	if err != nil || len(records) == 0 {
		return time.Time{}
	}
	o.seq, o.at = oldest, records[0].Accepted
	return o.at
}
