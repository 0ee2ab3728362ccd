package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

func journalMigrateCommand() *cobra.Command {
	var config, from, to string
	var out output
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the journal to the other engine",
		Long: `Migrate a journal from the folder of one machine to a NATS JetStream cluster, or
back: stored events, delivered or not; identity keys inside the dedupe window, with
the time of the first arrival; cursors of sinks and positions of replays; dead
letters; quarantined requests.

The configuration needs the settings of the local engine (journal.dir) and of the
jetstream engine (journal.jetstream), whatever journal.engine is. Stop every relay of
the journal first. The command does not change the source journal. The target must be
empty, or contain the events of an earlier run: after a failure, run the command
again. No relay starts on the target before the migration is complete.`,
		Example: `  postwire journal migrate --from local --to jetstream -c postwire.yaml
  postwire journal migrate --from jetstream --to local -c postwire.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			engines := app.Engines()
			if !slices.Contains(engines, from) || !slices.Contains(engines, to) || from == to {
				return fmt.Errorf("%w: --from %q --to %q: use two different engines of %s", errUsage, from, to, strings.Join(engines, " and "))
			}
			plan, err := app.Load(config)
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			report, err := app.Migrate(cmd.Context(), plan, to, zap.NewNop(), progress.update)
			progress.end()
			if cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted; to continue the migration, run the command again: %w", err)
			}
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), report)
			}
			return printMigration(cmd.OutOrStdout(), report, from, to)
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().StringVar(&from, "from", "", "engine of the source journal: local or jetstream")
	cmd.Flags().StringVar(&to, "to", "", "engine of the target journal: local or jetstream")
	out.register(cmd, "text")
	return cmd
}

// progress shows the progress of a migration: on a terminal as a bar, otherwise as a
// line every printInterval.
type progress struct {
	w    io.Writer
	bar  *progressbar.ProgressBar // nil without a terminal
	item string
	last time.Time // of the last line
}

const printInterval = 10 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, last: time.Now()}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return p
}

func (p *progress) update(item string, done, total uint64) {
	switch {
	case p.bar != nil:
		if p.item != item {
			p.item = item
			p.bar.Reset()
			p.bar.Describe(item)
			p.bar.ChangeMax64(-1) // the number of keys is not known in advance
			if total > 0 {
				p.bar.ChangeMax64(int64(total))
			}
		}
		_ = p.bar.Set64(int64(done)) // an error affects the display only
	case time.Since(p.last) > printInterval:
		p.last = time.Now()
		of := ""
		if total > 0 {
			of = fmt.Sprintf(" of %d", total)
		}
		fmt.Fprintf(p.w, "%s: %d%s\n", item, done, of)
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear() // an error affects the display only
	}
}

// printMigration prints the result of a migration, and the next step.
func printMigration(w io.Writer, r transfer.Report, from, to string) error {
	if r.Before {
		fmt.Fprintln(w, "the journal was migrated before; this run migrated nothing")
	}
	err := table(w, "ITEM COUNT", func(row func(...any)) error {
		row("events", r.Events)
		row("identity keys", r.Keys)
		row("dead letters", r.Dead)
		row("discarded events", r.Discarded)
		row("quarantined requests", r.Quarantined)
		row("other values", r.Values)
		for _, c := range r.Cursors {
			row("cursor of "+oneLine(c.Name), c.Committed)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "not migrated: %s\n", oneLine(m))
	}
	_, err = fmt.Fprintf(w, `next: set journal.engine: %s, and start the relays
the journal of the engine %s is unchanged: keep this journal until the relays run well, and start no relay on this journal: the relay would deliver events again
`, to, from)
	return err
}
