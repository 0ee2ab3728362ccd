package app

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	client "github.com/postwire/postwire/pkg/uploadpost"
)

const (
	// Limit of reads of the service's secrets while signatures do not match: a stranger
	// with wrong signatures must not cause constant reads. The burst of one more is for a
	// sender that arrived just before a read finished.
	askEvery = 5 * time.Second
	askBurst = 2
	// Retry after a failed read, so that a held webhook need not be refused.
	retryInterval = 2 * time.Second
	// askFor is how long a webhook is held while the secrets are read: long enough for a
	// read that begins after the webhook arrived, also if a stranger has just caused
	// another read. Senders wait ten seconds.
	askFor = 8 * time.Second
	// overlap is how long the previous secret stays valid: webhooks signed with it may be
	// in flight.
	overlap = time.Hour
)

// secrets are the secrets of sources that read them from the sender's API.
type secrets struct {
	log    *zap.Logger
	now    func() time.Time
	change func(name string) // called after a source got another secret
	scrub  *config.Scrubber

	mu      sync.Mutex
	sources map[string]*secret
	start   func(name string, k *secret) // starts a reader; nil while run does not run
}

// secret is the secret of one source.
type secret struct {
	ask  chan struct{}      // holds a request for a read
	stop context.CancelFunc // nil before the reader runs; guarded by secrets.mu

	mu       sync.Mutex
	api      *client.Client
	last     config.Secret // empty before the first successful read
	previous config.Secret
	rotated  time.Time // time at which previous was replaced
	failed   bool      // the last read failed
}

func newSecrets(now func() time.Time, log *zap.Logger) *secrets {
	return &secrets{log: log, now: now, sources: map[string]*secret{}}
}

// setSources stops the readers of sources that were removed or no longer read their secrets
// from the API, and starts the readers of new sources. Other sources keep their secrets.
func (s *secrets) setSources(apis map[string]*apis) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, k := range s.sources {
		if api := apis[name]; api == nil || api.secret == nil {
			if k.stop != nil {
				k.stop()
			}
			delete(s.sources, name)
		}
	}
	var inUse []config.Secret
	defer func() {
		if len(inUse) > 0 { // the scrubber forgets secrets after some reloads
			s.scrub.Add(inUse...)
		}
	}()
	for name, api := range apis {
		switch k := s.sources[name]; {
		case api.secret == nil:
		case k != nil:
			k.mu.Lock()
			k.api = api.secret
			inUse = append(inUse, k.last, k.previous)
			k.mu.Unlock()
		default:
			k = &secret{api: api.secret, ask: make(chan struct{}, 1)}
			s.sources[name] = k
			if s.start != nil {
				s.start(name, k)
			}
		}
	}
}

// of returns the secret of a source; nil without one from the API.
func (s *secrets) of(name string) *secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sources[name]
}

// fromAPI returns the API configuration of a source with secrets from the API.
func fromAPI(s source.Configured) (uploadpost.Config, bool) {
	own, ok := s.Own.(uploadpost.Config)
	return own, ok && own.Auth.Signature != nil && own.Auth.Signature.FromAPI
}

// open opens a source with the current secrets.
func (s *secrets) open(p *Plan, src source.Configured) (source.Source, error) {
	own, ok := fromAPI(src)
	known := s.of(src.Name)
	if !ok || known == nil {
		return src.Open(p.sourceEnv(src))
	}
	signature := *own.Auth.Signature
	signature.Secrets = slices.Concat(known.current(s.now()), signature.Secrets)
	own.Auth.Signature = &signature
	return uploadpost.New(own, p.sourceEnv(src))
}

// current returns the valid secrets.
func (k *secret) current(now time.Time) (all []config.Secret) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != "" {
		all = append(all, k.last)
	}
	if k.previous != "" && now.Sub(k.rotated) < overlap {
		all = append(all, k.previous)
	}
	return all
}

// requestRead requests a read, and returns how long to wait for it. The read begins after this
// call, so that every request gets secrets read after its arrival, also with many requests.
func (s *secrets) requestRead(name string) time.Duration {
	k := s.of(name)
	if k == nil {
		return 0
	}
	select {
	case k.ask <- struct{}{}:
	default: // already requested and not begun
	}
	return askFor
}

// run reads the secrets at once and after each request, until ctx is done.
func (s *secrets) run(ctx context.Context) {
	var all sync.WaitGroup
	s.mu.Lock()
	s.start = func(name string, k *secret) {
		running, stop := context.WithCancel(ctx)
		k.stop = stop
		all.Go(func() {
			defer stop()
			s.keep(running, name, k)
		})
	}
	for name, k := range s.sources {
		s.start(name, k)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.start = nil
	s.mu.Unlock()
	all.Wait()
}

// keep reads one secret until ctx is done.
func (s *secrets) keep(ctx context.Context, name string, k *secret) {
	looks := rate.NewLimiter(rate.Every(askEvery), askBurst)
	for {
		var retry <-chan time.Time // set after a failed read
		if !s.read(ctx, name, k) {
			retry = time.After(retryInterval)
		}
		select {
		case <-k.ask:
			if err := looks.Wait(ctx); err != nil {
				return
			}
			select {
			case <-k.ask: // requests that arrived meanwhile
			default:
			}
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// read reads a secret, applies a changed secret, and reports whether a secret is known.
func (s *secrets) read(ctx context.Context, name string, k *secret) bool {
	k.mu.Lock()
	api := k.api
	k.mu.Unlock()
	settings, err := api.Notifications(ctx)
	if ctx.Err() != nil {
		return true // stopped
	}
	k.mu.Lock()
	failedBefore := k.failed
	k.failed = err != nil || settings.WebhookSecret == ""
	failed := k.failed
	changed := !failed && settings.WebhookSecret != k.last
	if changed {
		k.previous, k.last, k.rotated = k.last, settings.WebhookSecret, s.now()
		s.scrub.Add(settings.WebhookSecret)
	}
	k.mu.Unlock()
	log := s.log.With(zap.String("source", name))
	switch {
	case failed && failedBefore: // already logged
	case err != nil:
		log.Error("the signing secret cannot be read from the sender's API; it is tried again until it can", zap.Error(err))
	case settings.WebhookSecret == "":
		log.Error("the sender's API tells no signing secret; it makes one when a webhook is saved: see 'postwire register'")
	case changed:
		s.change(name)
		log.Info("the signing secret was read from the sender's API")
	}
	return !failed
}
