package app

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/ingress"
)

// pollInterval is the interval between two checks of the files: short enough for a rotation;
// Kubernetes takes longer to swap mounted files.
const pollInterval = time.Second

// stamps change with the files.
type stamps struct {
	text  string // stamp of the configuration file
	named string // stamp of the files in ${file:…}
}

func stampsOf(p *Plan) (s stamps) {
	if p.file {
		s.text = config.Stamp(p.name)
	}
	s.named = config.Stamp(p.Config.Files()...)
	return s
}

// follow applies changes of the configuration file and of the files in ${file:…}, until ctx
// is done. A changed secret is applied at once, because a sender may use it already. A
// changed configuration is applied after it has settled: an editor may have written half of
// it, which may be valid and mean something else.
func (a *App) follow(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	a.reloading.Lock()
	last := a.stamp.text
	a.reloading.Unlock()
	for {
		due := false
		select {
		case <-tick.C:
			due = true
		case <-a.checkFiles:
		case <-ctx.Done():
			return
		}
		now := stampsOf(a.plan.Load())
		a.reloading.Lock()
		known := a.stamp
		a.reloading.Unlock()
		text := due && now.text != known.text && now.text == last
		if due {
			last = now.text
		}
		if text || now.named != known.named {
			_, _ = a.reload(ctx, text) // reload has logged the error
		}
	}
}

// unknownSecretHold is how long the ingress holds a webhook with an unknown secret: a rotation
// writes the new secret as soon as it is known.
const unknownSecretHold = 3 * time.Second

// requestRefresh requests a check for newer secrets of a source. It is the ingress's
// OnUnknownSecret.
func (a *App) requestRefresh(name string) time.Duration {
	hold := a.secrets.requestRead(name)
	if len(a.plan.Load().Config.Files()) == 0 {
		return hold
	}
	select {
	case a.checkFiles <- struct{}{}:
	default: // already requested
	}
	return max(hold, unknownSecretHold)
}

// renew opens a source with the current secrets.
func (a *App) renew(name string) {
	a.renewing.Lock() // the files may change at the same moment
	defer a.renewing.Unlock()
	p := a.plan.Load()
	for _, s := range p.Sources {
		if s.Name != name {
			continue
		}
		src, err := a.open(p, s)
		if err == nil {
			err = a.ingress.Replace(name, src)
		}
		if err != nil {
			a.log.Error("a source cannot be opened with its new secret; the one before it stays in effect", zap.String("source", name), zap.Error(err))
			return
		}
		a.sources.set(name, src)
	}
}

// routes opens the sources of a plan with the current secrets.
func (a *App) routes(p *Plan) ([]ingress.Route, error) {
	routes := make([]ingress.Route, len(p.Sources))
	for i, s := range p.Sources {
		src, err := a.open(p, s)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", s.Name, err)
		}
		routes[i] = ingress.Route{Name: s.Name, Source: src, Settings: s.Settings}
	}
	return routes, nil
}

// Reload reads the configuration and its files again, and applies the changes that need no
// restart, all or nothing. It returns the changes. The error is a config.Problems if the
// configuration is invalid or has a change that needs a restart; the old configuration then
// stays in effect.
func (a *App) Reload(ctx context.Context) (changed []string, err error) { return a.reload(ctx, true) }

func (a *App) reload(ctx context.Context, text bool) (changed []string, err error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	old := a.plan.Load()
	now := stampsOf(old) // before the files are read
	if !text {
		now.text = a.stamp.text
	}
	a.stamp = now
	next, changed, err := a.apply(ctx, old, text)
	a.recordReload(changed, err)
	if text {
		a.refused = err != nil
	}
	if err != nil {
		a.reloads.With(prometheus.Labels{"outcome": "refused"}).Inc()
		a.applied.Set(0)
		a.log.Error("the configuration, or a file that it names, has changed, and is refused; what was read before stays in effect", zap.Error(err))
		return nil, err
	}
	a.stamp.named = next.Config.Stamp() // the new configuration may name other files
	a.reloads.With(prometheus.Labels{"outcome": "applied"}).Inc()
	if !a.refused { // a secret may be applied while the text is invalid
		a.applied.Set(1)
	}
	a.log.Info("the configuration was read again", zap.Strings("changed", changed))
	return changed, nil
}

// apply applies a plan. Steps that can fail come first, the sinks come last.
func (a *App) apply(ctx context.Context, old *Plan, text bool) (next *Plan, changed []string, err error) {
	if next, err = old.reparse(text); err != nil {
		return nil, nil, err
	}
	restart, later := old.restarts(next)
	if len(restart) > 0 {
		return nil, nil, restart
	}
	level, err := zapcore.ParseLevel(next.Config.Log.Level)
	if err != nil {
		return nil, nil, fmt.Errorf("log.level: %w", err)
	}
	apis, err := apisOf(next)
	if err != nil {
		return nil, nil, err
	}
	if _, err := a.routes(next); err != nil {
		return nil, nil, err
	}
	changed = old.changes(next)
	if err := a.relay.SetSinks(ctx, next.Sinks); err != nil {
		return nil, nil, err
	}

	a.renewing.Lock()
	defer a.renewing.Unlock()
	a.secrets.setSources(apis)
	routes, err := a.routes(next) // again, because secrets may have changed
	if err == nil {
		err = a.ingress.SetRoutes(routes)
	}
	if err != nil { // impossible: checked before
		return nil, nil, errors.Join(err, a.relay.SetSinks(ctx, old.Sinks))
	}
	a.sources.replace(routes)
	a.mismatches.setSources(routes)
	a.reconcilers.setSources(apis, a.sources)
	if next.Config.Log.Level != old.Config.Log.Level {
		a.log.level.SetLevel(level)
	}
	a.plan.Store(next)
	a.credentials.Replace(credentials(next)...)
	a.trackSecrets(next)
	if len(later) > 0 {
		a.log.Warn("some of what has changed takes effect at the next start only", zap.Strings("keys", later))
	}
	return next, changed, nil
}

// changes returns the differences of two plans that are applied.
func (p *Plan) changes(next *Plan) []string {
	changed := []string{}
	if p.Config.Log.Level != next.Config.Log.Level {
		changed = append(changed, "log.level")
	}
	if p.Config.Admin.Token != next.Config.Admin.Token {
		changed = append(changed, "admin.token")
	}
	if p.Config.Admin.ViewerToken != next.Config.Admin.ViewerToken {
		changed = append(changed, "admin.viewer_token")
	}
	if !slices.Equal(p.Config.Admin.Tokens, next.Config.Admin.Tokens) {
		changed = append(changed, "admin.tokens")
	}
	if p.Config.Schemas != next.Config.Schemas {
		changed = append(changed, "schemas")
	}
	type block struct {
		kind          string
		settings, own any
	}
	was, is := map[string]block{}, map[string]block{}
	var names []string
	for _, s := range p.Sources {
		was["source "+s.Name] = block{s.Kind, s.Settings, s.Own}
		names = append(names, "source "+s.Name)
	}
	for _, s := range p.Sinks {
		was["sink "+s.Name] = block{s.Kind, s.Settings, s.Own}
		names = append(names, "sink "+s.Name)
	}
	for _, s := range next.Sources {
		is["source "+s.Name] = block{s.Kind, s.Settings, s.Own}
		names = append(names, "source "+s.Name)
	}
	for _, s := range next.Sinks {
		is["sink "+s.Name] = block{s.Kind, s.Settings, s.Own}
		names = append(names, "sink "+s.Name)
	}
	reported := map[string]bool{}
	for _, name := range names {
		before, had := was[name]
		after, has := is[name]
		switch {
		case reported[name]:
		case !has:
			changed = append(changed, name+" removed")
		case !had:
			changed = append(changed, name+" added")
		case !reflect.DeepEqual(before, after):
			changed = append(changed, name)
		}
		reported[name] = true
	}
	return changed
}

// credentials returns the tokens of a plan for the admin API.
func credentials(p *Plan) (all []admin.Credential) {
	for _, t := range p.Config.Admin.Credentials() {
		role := admin.Viewer
		if t.Role == config.RoleOperator {
			role = admin.Operator
		}
		all = append(all, admin.Credential{Name: t.Name, Role: role, Token: t.Token})
	}
	return all
}

// restarts returns the differences of two plans that need a restart. For secrets among
// them, which are from rotated files, it returns the keys in later: the relay keeps the old
// secrets.
func (p *Plan) restarts(next *Plan) (restart config.Problems, later []string) {
	was, is := *p.Config, *next.Config
	was.Admin.Token, is.Admin.Token = "", ""
	was.Admin.ViewerToken, is.Admin.ViewerToken = "", ""
	was.Admin.Tokens, is.Admin.Tokens = nil, nil
	was.Log.Level, is.Log.Level = "", ""
	was.Schemas, is.Schemas = config.Schemas{}, config.Schemas{}
	was.Sources, is.Sources, was.Sinks, is.Sinks = nil, nil, nil, nil
	differences("", reflect.ValueOf(was), reflect.ValueOf(is), func(key string, secret bool) {
		if secret {
			later = append(later, key)
			return
		}
		restart = append(restart, next.Config.Problem(key, "has changed, and takes a restart", "restart the process, or set it back to what it was"))
	})
	return restart, later
}

// differences yields the keys of a document, by the tags of its structs, whose values
// differ, and whether the values are secrets.
func differences(prefix string, was, is reflect.Value, yield func(key string, secret bool)) {
	for i := range was.NumField() {
		field := was.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if !field.IsExported() || name == "" {
			continue
		}
		key := strings.TrimPrefix(prefix+"."+name, ".")
		if field.Type.Kind() == reflect.Struct {
			differences(key, was.Field(i), is.Field(i), yield)
			continue
		}
		if !reflect.DeepEqual(was.Field(i).Interface(), is.Field(i).Interface()) {
			secret := reflect.TypeFor[config.Secret]()
			yield(key, field.Type == secret || field.Type.Kind() == reflect.Map && field.Type.Elem() == secret)
		}
	}
}

// reparse parses the current file, or its old text, with the current contents of the files
// that it names.
func (p *Plan) reparse(text bool) (next *Plan, err error) {
	now := p.text
	if p.file && text {
		if now, err = config.Read(p.name); err != nil {
			return nil, err
		}
	}
	if next, err = Parse(p.name, now, p.env); err != nil {
		return nil, err
	}
	next.Disk, next.Clock, next.file = p.Disk, p.Clock, p.file
	p.scrub.Add(next.Config.Secrets()...)
	next.scrub = p.scrub
	return next, nil
}
