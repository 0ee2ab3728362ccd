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

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

// lookEvery is how often the files are looked at: often enough for a rotation,
// and Kubernetes takes longer to swap a mounted secret.
const lookEvery = time.Second

// follow takes over what changes in the files that the configuration names by
// ${file:…}, until ctx is done: secrets are rotated without a restart. The text
// of the configuration stays the one of the start.
func (a *App) follow(ctx context.Context) {
	files := a.plan.Load().Config.Files()
	if len(files) == 0 {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-a.look:
		case <-ctx.Done():
			return
		}
		now := config.Stamp(files...)
		if now == a.stamp {
			continue
		}
		a.stamp = now
		if err := a.reload(); err != nil {
			a.reloads.With(prometheus.Labels{"outcome": "refused"}).Inc()
			a.applied.Set(0)
			a.log.Error("a file that the configuration names has changed, and the configuration is not right with it; what was read before stays in effect", zap.Error(err))
			continue
		}
		a.reloads.With(prometheus.Labels{"outcome": "applied"}).Inc()
		a.applied.Set(1)
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
		src, err := a.secrets.open(p, s)
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

// reload reads the files again and takes over what sources and sinks know of
// them. It takes over all of it or nothing.
func (a *App) reload() error {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	old := a.plan.Load()
	next, err := old.again()
	if err != nil {
		return err
	}
	sources := make([]source.Source, len(next.Sources))
	for i, s := range next.Sources {
		if sources[i], err = a.secrets.open(next, s); err != nil {
			return fmt.Errorf("source %s: %w", s.Name, err)
		}
	}
	changed := []string{}
	for i, s := range next.Sources {
		if reflect.DeepEqual(s.Own, old.Sources[i].Own) {
			continue
		}
		changed = append(changed, "source "+s.Name)
		if err := a.ingress.Replace(s.Name, sources[i]); err != nil {
			return err
		}
		a.understand.set(s.Name, sources[i])
		if err := a.gaps.replace(s); err != nil {
			return err
		}
	}
	for i, s := range next.Sinks {
		if reflect.DeepEqual(s.Own, old.Sinks[i].Own) && reflect.DeepEqual(s.Settings.Redact, old.Sinks[i].Settings.Redact) {
			continue
		}
		changed = append(changed, "sink "+s.Name)
		if err := a.relay.Reopen(s); err != nil {
			return err
		}
	}
	if next.Config.Admin.Token != old.Config.Admin.Token {
		changed = append(changed, "admin.token")
	}
	a.plan.Store(next)
	a.log.Info("files that the configuration names have changed", zap.Strings("taken_over", changed))
	if rest := old.restarts(next); len(rest) > 0 {
		a.log.Warn("some of what has changed takes effect at the next start only", zap.Strings("keys", rest))
	}
	return nil
}

// restarts names what differs between two plans and is not taken over.
func (p *Plan) restarts(next *Plan) (keys []string) {
	was, is := *p.Config, *next.Config
	was.Admin.Token, is.Admin.Token = "", ""
	for _, part := range []struct {
		key     string
		was, is any
	}{
		{"server", was.Server, is.Server},
		{"admin", was.Admin, is.Admin},
		{"log", was.Log, is.Log},
		{"telemetry", was.Telemetry, is.Telemetry},
		{"journal", was.Journal, is.Journal},
		{"dedupe", was.Dedupe, is.Dedupe},
		{"schemas", was.Schemas, is.Schemas},
	} {
		if !reflect.DeepEqual(part.was, part.is) {
			keys = append(keys, part.key)
		}
	}
	for i, s := range next.Sources {
		if !reflect.DeepEqual(s.Settings, p.Sources[i].Settings) {
			keys = append(keys, "source "+s.Name)
		}
	}
	for i, s := range next.Sinks {
		was := p.Sinks[i].Settings
		was.Redact = s.Settings.Redact
		if !reflect.DeepEqual(s.Settings, was) {
			keys = append(keys, "sink "+s.Name)
		}
	}
	return keys
}

// again is the same configuration with what its files hold now. Names and kinds
// do not come out of files: they are told apart by place.
func (p *Plan) again() (*Plan, error) {
	next, err := Parse(p.name, p.text, p.env)
	if err != nil {
		return nil, err
	}
	next.Disk, next.Clock = p.Disk, p.Clock
	if !slices.Equal(p.names(), next.names()) {
		return nil, errors.New("sources and sinks have other names or types now; that takes a restart")
	}
	return next, nil
}

func (p *Plan) names() (names []string) {
	for _, b := range slices.Concat(p.Config.Sources, p.Config.Sinks) {
		names = append(names, strings.Join([]string{b.Name, b.Type}, " "))
	}
	return names
}
