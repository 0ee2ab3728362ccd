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

// lookEvery is how often the files are looked at: often enough for a rotation,
// and Kubernetes takes longer to swap what it mounts.
const lookEvery = time.Second

// stamps change when files do.
type stamps struct {
	text  string // the configuration's own
	named string // those that it names by ${file:…}
}

func stampsOf(p *Plan) (s stamps) {
	if p.file {
		s.text = config.Stamp(p.name)
	}
	s.named = config.Stamp(p.Config.Files()...)
	return s
}

// follow takes over what changes in the configuration and in the files that it
// names by ${file:…}, until ctx is done. A secret is read at once, because a
// sender may use it already. The configuration itself is let settle first: half
// of it, as an editor may have written it by now, may be right and mean
// something else.
func (a *App) follow(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	a.reloading.Lock()
	last := a.stamp.text
	a.reloading.Unlock()
	for {
		due := false
		select {
		case <-tick.C:
			due = true
		case <-a.look:
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
			_, _ = a.reload(ctx, text) // it has said what is wrong
		}
	}
}

// doubtFor is how long a webhook is held that is signed with an unknown secret:
// whoever rotates secrets writes the new one as soon as it is known.
const doubtFor = 3 * time.Second

// doubt looks for newer secrets of a source at once. It is a Doubt of the
// ingress.
func (a *App) doubt(name string) time.Duration {
	hold := a.secrets.doubt(name)
	if len(a.plan.Load().Config.Files()) == 0 {
		return hold
	}
	select {
	case a.look <- struct{}{}:
	default: // it is about to be done
	}
	return max(hold, doubtFor)
}

// renew lets a source have the secrets that are known by now.
func (a *App) renew(name string) {
	a.renewing.Lock() // what is read from files may change at the same moment
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
		a.understand.set(name, src)
	}
}

// routes opens the sources of a plan with the secrets that are known by now.
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

// Reload reads the configuration and the files that it names again, and takes
// over what of it can change while the relay runs, all of it or nothing. It
// returns what has changed. Its error is a config.Problems where the
// configuration is not right, or has a change that takes a restart; what was in
// effect goes on then.
func (a *App) Reload(ctx context.Context) (changed []string, err error) { return a.reload(ctx, true) }

func (a *App) reload(ctx context.Context, text bool) (changed []string, err error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	old := a.plan.Load()
	now := stampsOf(old) // of this attempt, before it reads them
	if !text {
		now.text = a.stamp.text
	}
	a.stamp = now
	next, changed, err := a.takeOver(ctx, old, text)
	a.told(changed, err)
	if text {
		a.refused = err != nil
	}
	if err != nil {
		a.reloads.With(prometheus.Labels{"outcome": "refused"}).Inc()
		a.applied.Set(0)
		a.log.Error("the configuration, or a file that it names, has changed, and is refused; what was read before stays in effect", zap.Error(err))
		return nil, err
	}
	a.stamp.named = next.Config.Stamp() // it may name others
	a.reloads.With(prometheus.Labels{"outcome": "applied"}).Inc()
	if !a.refused { // a secret may be taken over while the text is not right
		a.applied.Set(1)
	}
	a.log.Info("the configuration was read again", zap.Strings("changed", changed))
	return changed, nil
}

// takeOver puts a plan into effect in place of the old one. What may fail comes
// first, the sinks are the last of it.
func (a *App) takeOver(ctx context.Context, old *Plan, text bool) (next *Plan, changed []string, err error) {
	if next, err = old.again(text); err != nil {
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
	a.secrets.exchange(apis)
	routes, err := a.routes(next) // once more: secrets may have become known
	if err == nil {
		err = a.ingress.SetRoutes(routes)
	}
	if err != nil { // it has been right a moment ago
		return nil, nil, errors.Join(err, a.relay.SetSinks(ctx, old.Sinks))
	}
	a.understand.exchange(routes)
	a.mismatches.forget(routes)
	a.gaps.exchange(apis, a.understand)
	if next.Config.Log.Level != old.Config.Log.Level {
		a.log.level.SetLevel(level)
	}
	a.plan.Store(next)
	a.credentials.Replace(credentials(next)...)
	a.use(next)
	if len(later) > 0 {
		a.log.Warn("some of what has changed takes effect at the next start only", zap.Strings("keys", later))
	}
	return next, changed, nil
}

// changes names what differs between two plans and is taken over.
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
	told := map[string]bool{}
	for _, name := range names {
		before, had := was[name]
		after, has := is[name]
		switch {
		case told[name]:
		case !has:
			changed = append(changed, name+" removed")
		case !had:
			changed = append(changed, name+" added")
		case !reflect.DeepEqual(before, after):
			changed = append(changed, name)
		}
		told[name] = true
	}
	return changed
}

// credentials are the tokens of a plan by which callers of the admin API are known.
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

// restarts says what differs between two plans and cannot change while the relay
// runs. Of secrets among it, which come out of files that are rotated, it
// returns the keys in later: the relay goes on with those that it has.
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

// differences tells of the keys of a document, by the tags of its structs, whose
// values differ, and whether they are secrets.
func differences(prefix string, was, is reflect.Value, tell func(key string, secret bool)) {
	for i := range was.NumField() {
		field := was.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if !field.IsExported() || name == "" {
			continue
		}
		key := strings.TrimPrefix(prefix+"."+name, ".")
		if field.Type.Kind() == reflect.Struct {
			differences(key, was.Field(i), is.Field(i), tell)
			continue
		}
		if !reflect.DeepEqual(was.Field(i).Interface(), is.Field(i).Interface()) {
			secret := reflect.TypeFor[config.Secret]()
			tell(key, field.Type == secret || field.Type.Kind() == reflect.Map && field.Type.Elem() == secret)
		}
	}
}

// again is the configuration as its file is now, or with the text that it had,
// and with what the files that it names hold now.
func (p *Plan) again(text bool) (next *Plan, err error) {
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
