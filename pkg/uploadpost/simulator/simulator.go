// Package simulator simulates Upload-Post, to try and test a relay without an account: it
// sends webhooks as the service does, with its pause after failures, and serves the API
// with settings and history.
package simulator

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

// Breaker configures the pause after failed webhooks.
type Breaker struct {
	Timeout  time.Duration // for an answer
	Failures int           // consecutive failures
	Pause    time.Duration // duration without webhooks; webhooks of that time are never sent
}

// DefaultBreaker is the breaker of the service.
func DefaultBreaker() Breaker { return Breaker{10 * time.Second, 5, 30 * time.Minute} }

// Quirks are variants in which the service answers at times. The zero Quirks is the
// documented behavior.
type Quirks struct {
	HistoryKey   string // name of the history's list: history, uploads, data or items; empty is history
	PostIDLists  bool   // platform_post_id is a list
	EventsAsList bool   // webhook_events is a list of names
	ConfigKey    bool   // the settings are under config
	NotAllowed   bool   // the notifications answer 405
	WebPages     bool   // answers are web pages
	LimitEvery   int    // every nth request is answered 429
	FailEvery    int    // every nth request is answered 503
	LateHistory  time.Duration
}

// Options of a Simulator.
type Options struct {
	APIKey  config.Secret // API key of callers; empty accepts any
	Breaker Breaker       // the zero Breaker is DefaultBreaker
	Quirks  Quirks
	Random  *mathrand.Rand   // nil is random
	Now     func() time.Time // nil is time.Now
	Log     *zap.Logger      // nil is silent
}

// Simulator simulates the service. The methods may be called concurrently.
type Simulator struct {
	opts Options
	http *http.Client

	mu       sync.Mutex
	random   *mathrand.Rand
	settings settings
	profiles map[string]*hook // by profile_username
	account  *hook            // nil without a webhook
	history  []entry
	requests int
	counts   Counts
}

// Counts are counters of the simulator.
type Counts struct {
	Events    int // simulated events
	Delivered int // webhooks with a 2xx answer
	Failed    int // webhooks with another answer, or none in time
	Dropped   int // webhooks in a pause, never sent
	Pauses    int
}

// settings are the settings of the account.
type settings struct {
	channels map[string]bool
	events   map[string]bool // nil is all
	telegram string
	slack    string
	whatsapp string
	secret   config.Secret
}

// hook is a webhook with the state of its breaker.
type hook struct {
	url    string
	events map[string]bool // nil is all
	failed int             // consecutive failures
	paused time.Time       // end of the pause
}

// entry is an upload in the history.
type entry struct {
	at        time.Time
	body      payload
	requestID string
}

// payload has the fields of a webhook that the history has.
type payload struct {
	Event     string `json:"event"`
	Profile   string `json:"profile_username"`
	Platform  string `json:"platform"`
	MediaType string `json:"media_type"`
	JobID     string `json:"job_id"`
	Result    struct {
		Success   bool   `json:"success"`
		URL       string `json:"url"`
		PublishID string `json:"publish_id"`
		PostID    string `json:"post_id"`
		Error     string `json:"error"`
	} `json:"result"`
}

// New returns a simulator without webhooks.
func New(o Options) *Simulator {
	if o.Breaker == (Breaker{}) {
		o.Breaker = DefaultBreaker()
	}
	if o.Random == nil {
		o.Random = mathrand.New(mathrand.NewPCG(mathrand.Uint64(), mathrand.Uint64())) //nolint:gosec // samples, not secrets
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Simulator{
		opts: o, random: o.Random, profiles: map[string]*hook{}, http: &http.Client{},
		settings: settings{channels: map[string]bool{"webhook": false, "telegram": false}},
	}
}

// SetWebhook sets and enables the webhook of the account. With an empty secret the service
// makes a secret.
func (s *Simulator) SetWebhook(url string, secret config.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if secret != "" {
		s.settings.secret = secret
	}
	s.setAccount(url)
	s.settings.channels["webhook"] = true
}

// setAccount sets the URL of the account's webhook, and makes a secret with the first URL.
// The caller holds mu.
func (s *Simulator) setAccount(url string) {
	if url == "" {
		s.account = nil
		return
	}
	if s.account == nil || s.account.url != url {
		s.account = &hook{url: url, events: s.settings.events}
	}
	if s.settings.secret == "" {
		s.settings.secret = newSecret()
	}
}

func newSecret() config.Secret {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	return config.Secret("whsec_" + hex.EncodeToString(b[:]))
}

// Counts returns the current counters.
func (s *Simulator) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// Close closes the connections to webhooks.
func (s *Simulator) Close() { s.http.CloseIdleConnections() }

// Upload simulates the end of an upload: it adds the upload to the history, calls the
// webhooks of the account and of the profile, and returns after both calls.
func (s *Simulator) Upload(ctx context.Context, failed bool) error {
	s.mu.Lock()
	body, err := sample.Random(s.random, sample.UploadCompleted, failed, s.opts.Now())
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("making a webhook: %w", err)
	}
	return s.Send(ctx, body)
}

// Account simulates an event of a connected account. Account events have no history.
func (s *Simulator) Account(ctx context.Context, event sample.Event) error {
	s.mu.Lock()
	body, err := sample.Random(s.random, event, false, s.opts.Now())
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("making a webhook: %w", err)
	}
	return s.Send(ctx, body)
}

// Send sends a webhook with this body, and adds an upload to the history. A body that is
// not JSON is sent unchanged.
func (s *Simulator) Send(ctx context.Context, body []byte) error {
	var p payload
	_ = json.Unmarshal(body, &p) // an unreadable body has no profile and no history
	s.mu.Lock()
	s.counts.Events++
	if p.Event == string(sample.UploadCompleted) {
		s.history = append(s.history, entry{at: s.opts.Now(), body: p, requestID: uuid.NewString()})
	}
	var hooks []*hook
	if s.account != nil && s.settings.channels["webhook"] && wants(s.settings.events, p.Event) {
		hooks = append(hooks, s.account)
	}
	if h := s.profiles[p.Profile]; h != nil && wants(h.events, p.Event) {
		hooks = append(hooks, h)
	}
	s.mu.Unlock()
	var both sync.WaitGroup
	for _, h := range hooks {
		both.Go(func() { s.deliver(ctx, h, p.Event, body) })
	}
	both.Wait()
	return ctx.Err()
}

func wants(events map[string]bool, event string) bool {
	on, known := events[event]
	return len(events) == 0 || on || !known
}

// deliver posts one webhook, once.
func (s *Simulator) deliver(ctx context.Context, h *hook, event string, body []byte) {
	s.mu.Lock()
	if s.opts.Now().Before(h.paused) {
		s.counts.Dropped++
		s.mu.Unlock()
		return
	}
	url, secret := h.url, s.settings.secret
	s.mu.Unlock()
	err := s.post(ctx, url, secret, event, body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.counts.Delivered++
		h.failed = 0
		return
	}
	if ctx.Err() != nil {
		return // the simulator has closed the connection
	}
	s.counts.Failed++
	s.opts.Log.Debug("a webhook was not taken", zap.String("url", url), zap.Error(err))
	if h.failed++; h.failed >= s.opts.Breaker.Failures {
		h.failed = 0
		h.paused = s.opts.Now().Add(s.opts.Breaker.Pause)
		s.counts.Pauses++
		s.opts.Log.Warn("the webhook failed too often in a row: what happens in the pause is never sent",
			zap.String("url", url), zap.Duration("pause", s.opts.Breaker.Pause))
	}
}

func (s *Simulator) post(ctx context.Context, url string, secret config.Secret, event string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Breaker.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "Upload-Post-Webhooks/1.0")
	r.Header.Set(uploadpost.DeliveryHeader, uuid.NewString())
	if event != "" {
		r.Header.Set(uploadpost.EventHeader, event)
	}
	if secret != "" {
		if err := auth.UploadPost.Sign(r.Header, secret.Reveal(), "", s.opts.Now(), body); err != nil {
			return err
		}
	}
	resp, err := s.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}
