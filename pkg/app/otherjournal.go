package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/jetstream"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// otherTimeout bounds the questions to a cluster that the local engine does not need.
const otherTimeout = 10 * time.Second

// checkOtherJournal refuses a start that would leave undelivered events in the journal of
// the other engine, where nobody delivers them and lag does not count them. A journal that
// was migrated completely has none.
func checkOtherJournal(ctx context.Context, p *Plan, name string, log *zap.Logger) error {
	if p.Config.Journal.Engine == engineJetStream {
		return checkFolder(ctx, p)
	}
	if err := checkStore(p); err != nil {
		return err
	}
	if err := checkSpill(ctx, p); err != nil {
		return err
	}
	return checkStream(ctx, p, name, log)
}

// sinkNames returns the names of the sinks.
func (p *Plan) sinkNames() []string {
	var names []string
	for _, s := range p.Sinks {
		names = append(names, s.Name)
	}
	return names
}

// stranded is the error of a start beside undelivered events.
func (p *Plan) stranded(where string, sinks []string, from, to, hint string) error {
	migrate := fmt.Sprintf("run 'postwire journal migrate --from %s --to %s', or ", from, to)
	if p.Config.Journal.JetStream.Embedded.Enabled() {
		migrate = "" // no migration reads or writes an embedded cluster
	}
	return p.wrongEngine(fmt.Sprintf("is %s, and the journal in %s has events that are not delivered to %s", to, where, strings.Join(sinks, ", ")),
		fmt.Sprintf("%sset journal.engine: %s until every event is delivered; %s", migrate, from, hint))
}

// wrongEngine is an error of the configuration at journal.engine.
func (p *Plan) wrongEngine(what, hint string) error {
	return config.Merge(p.Config.Problem("journal.engine", what, hint))
}

// folderOptions returns the options of the folder of the local engine, to read it.
func (p *Plan) folderOptions() local.Options {
	return local.Options{Dir: p.Config.Journal.Dir, Window: p.Config.Dedupe.Window, FS: p.Disk, Clock: p.Clock}
}

// checkFolder refuses the engine jetstream beside undelivered events in journal.dir.
func checkFolder(ctx context.Context, p *Plan) error {
	pending, err := local.Pending(ctx, p.folderOptions(), p.sinkNames())
	if err != nil {
		return fmt.Errorf("journal.engine is %s, and journal.dir has a journal of the engine %s that cannot be checked for undelivered events: %w (if its events are not needed, move the folder away)", engineJetStream, engineLocal, err)
	}
	if len(pending) == 0 {
		return nil
	}
	return p.stranded(p.Config.Journal.Dir, pending, engineLocal, engineJetStream, "if the events are not needed, move the folder away")
}

// checkStore refuses the local engine beside the store of an embedded cluster, whose stream
// can only be read by the cluster.
func checkStore(p *Plan) error {
	dir := p.Config.Journal.JetStream.Embedded.Dir
	store, err := embedded.Inspect(dir)
	if err != nil || store == embedded.NoStore || store == embedded.NewStore {
		return err
	}
	return p.wrongEngine(fmt.Sprintf("is %s, and the folder %s is the store of an embedded cluster, whose stream may have undelivered events", engineLocal, dir),
		fmt.Sprintf("set journal.engine: %s; if the events are not needed, move the folder away", engineJetStream))
}

// checkSpill refuses the local engine beside events in the spill, which only the engine
// jetstream forwards.
func checkSpill(ctx context.Context, p *Plan) error {
	c := p.Config.Journal
	dir := c.Spill.Dir
	spill, err := local.Exists(local.Options{Dir: dir, FS: p.Disk})
	if err != nil || !spill {
		return err
	}
	spilled, err := jetstream.Spilled(ctx, dir, p.Config.Dedupe.Window)
	if err != nil {
		return fmt.Errorf("journal.engine is %s, and journal.spill.dir cannot be checked for events of the engine %s: %w (if its events are not needed, move the folder away)", engineLocal, engineJetStream, err)
	}
	if spilled > 0 {
		return p.wrongEngine(fmt.Sprintf("is %s, and the spill %s has %d events and requests that the cluster has not stored", engineLocal, dir, spilled),
			fmt.Sprintf("set journal.engine: %s until postwire_journal_spilled is 0; if the events are not needed, move the folder away", engineJetStream))
	}
	folder, err := local.Exists(p.folderOptions())
	if err == nil && !folder && c.JetStream.URL == "" {
		err = p.wrongEngine(fmt.Sprintf("is %s, there is no journal in %s, and the spill %s is of a relay with the engine %s, whose stream may have undelivered events", engineLocal, c.Dir, dir, engineJetStream),
			fmt.Sprintf("set journal.engine: %s; or name the cluster in journal.jetstream.url, so that the relay can check the stream; or remove the folder %s, to begin with an empty journal", engineJetStream, dir))
	}
	return err
}

// checkStream refuses the local engine beside undelivered events in the stream that
// journal.jetstream names. A cluster that does not answer, and a stream that relays use,
// keep no relay from its start.
func checkStream(ctx context.Context, p *Plan, name string, log *zap.Logger) (err error) {
	if p.Config.Journal.JetStream.URL == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, otherTimeout)
	defer cancel()
	opts := clusterOptions(p.Config, name, log, p.Clock)
	opts.Spill = nil // checkSpill
	src, err := jetstream.OpenSource(ctx, opts)
	switch {
	case errors.Is(err, journal.ErrNotFound), errors.Is(err, jetstream.ErrInUse):
		return nil
	case err != nil:
		log.Warn("the stream of journal.jetstream was not checked for undelivered events", zap.Error(err), zap.String("advice", "remove journal.jetstream.url if the engine jetstream is not used any more"))
		return nil
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	pending, err := transfer.Pending(ctx, src, p.sinkNames())
	if err != nil || len(pending) == 0 {
		return err
	}
	state, err := local.Migration(p.folderOptions())
	if err != nil {
		return err
	}
	migrated, err := transfer.Complete(ctx, src, state)
	if err != nil || migrated {
		return err
	}
	return p.stranded(src.Location(), pending, engineJetStream, engineLocal, "if the events are not needed, remove journal.jetstream.url")
}
