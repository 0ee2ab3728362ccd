package app

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/reconcile"
)

// configuration returns the configuration in effect, for the admin API.
func (a *App) configuration() (admin.Configuration, error) {
	p := a.plan.Load()
	text, err := p.YAML()
	return admin.Configuration{YAML: string(text), File: p.name, Began: a.began, Last: a.last.Load()}, err
}

// recordReload records the result of a reload.
func (a *App) recordReload(changed []string, err error) {
	last := &admin.LastReload{At: a.now().UTC(), Applied: err == nil, Changed: changed}
	if changed == nil {
		last.Changed = []string{}
	}
	if err != nil {
		last.Problem = err.Error()
	}
	a.last.Store(last)
}

// inspect returns the sources, for the admin API.
func (a *App) inspect() []admin.Source {
	p := a.plan.Load()
	all := make([]admin.Source, len(p.Sources))
	for i, s := range p.Sources {
		all[i] = admin.Source{Source: s.Name, Kind: s.Kind, Paths: s.Settings.Paths, Reconcile: a.reconcilers.status(s.Name)}
		if src := a.sources.of(s.Name); src != nil {
			all[i].AuthRequired = src.Proof().Required
		}
		if _, ok := fromAPI(s); ok {
			all[i].Secret = a.secrets.age(s.Name)
		} else if own, ok := s.Own.(uploadpost.Config); ok && own.Auth.Signature != nil {
			u := (*a.secretUse.Load())[s.Name]
			all[i].Secret = &admin.SecretAge{From: "configuration", Known: len(u.secrets) > 0, Since: &u.since, Rotated: u.rotated}
		}
	}
	return all
}

// secretUse are the configured signing secrets of a source, and since when this process uses
// them. Their real age is unknown.
type secretUse struct {
	secrets []config.Secret
	since   time.Time
	rotated bool // the secrets replaced others
}

// trackSecrets records the secrets of a plan, with the current time for changed secrets.
func (a *App) trackSecrets(p *Plan) {
	before := map[string]secretUse{}
	if was := a.secretUse.Load(); was != nil {
		before = *was
	}
	now := map[string]secretUse{}
	for _, s := range p.Sources {
		own, ok := s.Own.(uploadpost.Config)
		if !ok || own.Auth.Signature == nil {
			continue
		}
		u, known := before[s.Name]
		if secrets := own.Auth.Signature.Secrets; !known || !slices.Equal(secrets, u.secrets) {
			u = secretUse{secrets, a.now().UTC(), known}
		}
		now[s.Name] = u
	}
	a.secretUse.Store(&now)
}

// registration reads the webhook registration of a source from the sender's API.
func (a *App) registration(ctx context.Context, name string) (admin.Registration, error) {
	p := a.plan.Load()
	i := slices.IndexFunc(p.Sources, func(s source.Configured) bool { return s.Name == name })
	if i < 0 {
		return admin.Registration{}, fmt.Errorf("source %q: %w", name, admin.ErrNoSource)
	}
	apis, err := apisOf(p)
	if err != nil {
		return admin.Registration{}, err
	}
	if apis[name] == nil {
		return admin.Registration{}, fmt.Errorf("%w: source %q does not know its sender's API: set api.key", admin.ErrNoHistory, name)
	}
	now, err := apis[name].history.Notifications(ctx)
	if err != nil {
		return admin.Registration{}, err
	}
	r := admin.Registration{Channels: []string{}, Events: now.WebhookEvents.Names(), Secret: now.WebhookSecret != ""}
	if r.Events == nil {
		r.Events = []string{}
	}
	for _, channel := range slices.Sorted(maps.Keys(now.Channels)) {
		if now.Channels[channel] {
			r.Channels = append(r.Channels, channel)
		}
	}
	src := a.sources.of(name)
	r.URL, r.PathMatches = destination(now.WebhookURL, p.Sources[i].Settings.Paths, src != nil && src.Proof().PathToken)
	return r, nil
}

// destination returns a URL for display, and whether its path is a path of a source. A path
// token is as secret as a password.
func destination(to string, paths []string, token bool) (shown string, ours bool) {
	if to == "" {
		return "", false
	}
	u, err := url.Parse(to)
	if err != nil {
		return config.Secret(to).String(), false
	}
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	if token {
		u.Path, u.RawPath = path.Dir(u.Path), ""
	}
	// A proxy may add a prefix.
	ours = slices.ContainsFunc(paths, func(p string) bool { return strings.HasSuffix(u.Path, p) })
	shown = u.Redacted()
	if token {
		shown += "/***"
	}
	return shown, ours
}

// age returns the age of a secret from the sender's API.
func (s *secrets) age(name string) *admin.SecretAge {
	k := s.of(name)
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	age := &admin.SecretAge{From: "api", Known: k.last != "", Rotated: k.previous != ""}
	if age.Known {
		since := k.rotated.UTC()
		age.Since = &since
	}
	return age
}

// status returns the state of a source's comparisons, or nil.
func (g *reconcilers) status(name string) *admin.ReconcileStatus {
	g.mu.Lock()
	s := g.sources[name]
	g.mu.Unlock()
	if s == nil {
		return nil
	}
	c := &admin.ReconcileStatus{}
	if every := s.schedule.Interval; every > 0 {
		c.Every = config.FormatDuration(every)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Recovered = s.recovered
	if !s.at.IsZero() {
		at, report := s.at.UTC(), s.report
		c.Last, c.Report, c.Problem = &at, &report, s.problem
	}
	return c
}

// record records the result of a comparison.
func (s *reconcileJob) record(at time.Time, report reconcile.Report, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.report, s.problem = at, report, ""
	s.recovered += uint64(max(0, report.Recovered))
	if err != nil {
		s.problem = err.Error()
	}
}
