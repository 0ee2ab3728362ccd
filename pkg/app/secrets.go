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
	// The service is asked at most so often while signatures do not match, in the
	// long run: whoever sends wrong ones must not make us ask it all the time. One
	// more is for a sender that came a moment too early to see the secret that was
	// just read.
	askEvery = 5 * time.Second
	askBurst = 2
	// After an attempt that failed it is asked again by itself, so that a
	// webhook which is held meanwhile need not be refused.
	askAgain = 2 * time.Second
	// askFor is how long a webhook is held while the service is asked: long enough
	// for a look that begins after the webhook has come, also where a stranger has
	// just caused another one. Senders wait ten seconds.
	askFor = 8 * time.Second
	// overlap is how long the secret before the last one is still taken:
	// webhooks that were signed with it may be on their way.
	overlap = time.Hour
)

// secrets are those of sources that read theirs from the sender's API.
type secrets struct {
	log    *zap.Logger
	now    func() time.Time
	change func(name string) // a source has another secret now
	scrub  *config.Scrubber

	mu      sync.Mutex
	sources map[string]*secret
	start   func(name string, k *secret) // sets one going; nil while run does not run
}

// secret is that of one source.
type secret struct {
	ask  chan struct{}      // holds one word when a look is asked for
	stop context.CancelFunc // nil until it runs; guarded by secrets.mu

	mu       sync.Mutex
	api      *client.Client
	last     config.Secret // empty until it could be read
	previous config.Secret
	rotated  time.Time // when previous was the last one
	failed   bool      // the last attempt
}

func newSecrets(now func() time.Time, log *zap.Logger) *secrets {
	return &secrets{log: log, now: now, sources: map[string]*secret{}}
}

// exchange lets go of the secrets of sources that are no more, or do not read
// theirs from the API any more, and sets those going that are new. Those that
// stay keep what they know.
func (s *secrets) exchange(apis map[string]*apis) {
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
		if len(inUse) > 0 { // the scrubber forgets them after some configurations otherwise
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

// of returns the secret of a source; nil where it has none of this kind.
func (s *secrets) of(name string) *secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sources[name]
}

// fromAPI returns the configuration of a source that reads its secret from the
// sender's API.
func fromAPI(s source.Configured) (uploadpost.Config, bool) {
	own, ok := s.Own.(uploadpost.Config)
	return own, ok && own.Auth.Signature != nil && own.Auth.Signature.FromAPI
}

// open opens a source with the secrets that are known by now.
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

// current is what signatures may be made with now.
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

// doubt asks for a look, and returns how long it is worth waiting for. The look
// begins after this call, so that no doubt is spent on what was read before; how many
// others doubt does not matter.
func (s *secrets) doubt(name string) time.Duration {
	k := s.of(name)
	if k == nil {
		return 0
	}
	select {
	case k.ask <- struct{}{}:
	default: // it is asked for already, and has not begun
	}
	return askFor
}

// run reads the secrets at once, and again when they are in doubt, until ctx is
// done.
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
		var again <-chan time.Time // never, unless it failed
		if !s.read(ctx, name, k) {
			again = time.After(askAgain)
		}
		select {
		case <-k.ask:
			if err := looks.Wait(ctx); err != nil {
				return
			}
			select {
			case <-k.ask: // by those who came meanwhile
			default:
			}
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// read reads a secret, lets the source have it if it is another one, and reports
// whether there is one.
func (s *secrets) read(ctx context.Context, name string, k *secret) bool {
	k.mu.Lock()
	api := k.api
	k.mu.Unlock()
	settings, err := api.Notifications(ctx)
	if ctx.Err() != nil {
		return true // it is over
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
	case failed && failedBefore: // it has been said
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
