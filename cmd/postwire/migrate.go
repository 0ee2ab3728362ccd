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
		Short: "Carry the journal from one engine to the other",
		Long: `Carry a journal from the folder of one machine into a NATS JetStream cluster, or
back: the events that are stored, delivered or not; the identity keys inside the
dedupe window, with the time at which each was seen first; the places of sinks
and of replays; dead letters, and quarantined requests.

The configuration has the settings of both engines, journal.dir and
journal.jetstream, whatever journal.engine says. All relays that use the journal
must be stopped. Nothing is removed from where it comes from. Where it goes to
must be empty, or hold what an earlier run has carried: after a failure, however
hard, run it again. Until it is done no relay starts on what is there.`,
		Example: `  postwire journal migrate --from pebble --to jetstream -c postwire.yaml
  postwire journal migrate --from jetstream --to pebble -c postwire.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			engines := app.Engines()
			if !slices.Contains(engines, from) || !slices.Contains(engines, to) || from == to {
				return fmt.Errorf("%w: --from %q --to %q: one is to be %s", errUsage, from, to, strings.Join(engines, ", and the other "))
			}
			plan, err := app.Load(config)
			if err != nil {
				return err
			}
			progress := newProgress(cmd.ErrOrStderr())
			report, err := app.Migrate(cmd.Context(), plan, to, zap.NewNop(), progress.tell)
			progress.end()
			if cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted; it goes on when it is run again: %w", err)
			}
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), report)
			}
			return tellMigration(cmd.OutOrStdout(), report, from, to)
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().StringVar(&from, "from", "", "engine that has the journal: pebble or jetstream")
	cmd.Flags().StringVar(&to, "to", "", "engine that is to have it: the other one")
	out.register(cmd, "text")
	return cmd
}

// progress shows how far a migration is: as a bar, or where nobody looks on, now
// and then as a line.
type progress struct {
	w    io.Writer
	bar  *progressbar.ProgressBar // nil where there is no terminal
	what string
	told time.Time
}

const tellEvery = 10 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, told: time.Now()}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		p.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	}
	return p
}

func (p *progress) tell(what string, done, total uint64) {
	switch {
	case p.bar != nil:
		if p.what != what {
			p.what = what
			p.bar.Reset()
			p.bar.Describe(what)
			p.bar.ChangeMax64(-1) // how many keys there are is not known before
			if total > 0 {
				p.bar.ChangeMax64(int64(total))
			}
		}
		_ = p.bar.Set64(int64(done)) // only a picture
	case time.Since(p.told) > tellEvery:
		p.told = time.Now()
		of := ""
		if total > 0 {
			of = fmt.Sprintf(" of %d", total)
		}
		fmt.Fprintf(p.w, "%s: %d%s\n", what, done, of)
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear() // only a picture
	}
}

// tellMigration says what was carried, and what the operator does next.
func tellMigration(w io.Writer, r transfer.Report, from, to string) error {
	if r.Before {
		fmt.Fprintln(w, "all was carried before; nothing was done now")
	}
	err := table(w, "WHAT COUNT", func(row func(...any)) error {
		row("events", r.Events)
		row("identity keys", r.Keys)
		row("dead letters", r.Dead)
		row("given up", r.Discarded)
		row("quarantined", r.Quarantined)
		row("notes", r.Values)
		for _, c := range r.Cursors {
			row("place of "+oneLine(c.Name), c.Committed)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "not carried: %s\n", oneLine(m))
	}
	_, err = fmt.Fprintf(w, `next: set journal.engine: %s, and start the relays
the journal of the engine %s is as it was; keep it until the relays have run well, and do not start a relay on it: it would deliver again
`, to, from)
	return err
}
