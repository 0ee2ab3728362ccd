package app

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
	"github.com/postwire/postwire/pkg/relay"
)

const engineLocal = "local"

// Engines are the names of the journal engines.
func Engines() []string { return []string{engineLocal, engineJetStream} }

// Migrate migrates the journal between the engines, independently of the configured engine.
// It may run again after an error.
func Migrate(ctx context.Context, p *Plan, to string, log *zap.Logger, progress func(what string, done, total uint64)) (r transfer.Report, err error) {
	if err := checkMigration(p.Config); err != nil {
		return r, err
	}
	name, err := processName(*p.Config)
	if err != nil {
		return r, err
	}
	cluster := clusterOptions(p.Config, name, log, p.Clock)
	folder := local.Options{
		Dir: p.Config.Journal.Dir, Window: p.Config.Dedupe.Window, Retention: p.Config.Journal.Retention,
		MinFree: uint64(p.Config.Journal.MinFreeBytes), Name: name, Log: log, FS: p.Disk, Clock: p.Clock,
	}
	var src transfer.Source
	var dst transfer.Target
	location := "" // of the new journal
	if to == engineJetStream {
		if src, err = local.OpenSource(folder); err == nil {
			dst, err = jetstream.OpenTarget(ctx, cluster)
		}
	} else {
		if src, err = jetstream.OpenSource(ctx, cluster); err == nil {
			dst, err = local.OpenTarget(folder)
		}
	}
	if src != nil {
		defer func() {
			err = errors.Join(err, src.Close()) // unlocks the folder
			if err == nil && to == engineJetStream {
				err = local.MarkMigrated(folder, location)
			}
		}()
	}
	if err != nil {
		return r, err
	}
	location = dst.Location()
	defer func() { err = errors.Join(err, dst.Close()) }()
	return transfer.Run(ctx, src, dst, transfer.Options{MoveEntry: relay.MoveEntry, Progress: progress})
}

// checkMigration reports missing or invalid settings of the two engines.
func checkMigration(c *config.Config) error {
	var errs []error
	switch {
	case c.Journal.JetStream.Embedded.Enabled():
		errs = append(errs, c.Problem("journal.jetstream.embedded", "is no source and no target of a migration: the cluster runs only inside the relays", "deliver all events with the old configuration, then start the cluster with an empty journal"))
	case c.Journal.JetStream.URL == "":
		errs = append(errs, c.Problem("journal.jetstream.url", "is not set", "name the servers of the cluster, such as nats://a:4222,nats://b:4222"))
	}
	for _, i := range checkCluster(c.Journal.JetStream) {
		errs = append(errs, c.Problem("journal.jetstream."+i.Key, i.What, i.Hint))
	}
	return config.Merge(errs...)
}
