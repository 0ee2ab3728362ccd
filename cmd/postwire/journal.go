package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/journal/pebble"
)

func journalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Verify, repair or move the journal of a relay that is stopped",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(journalCheckCommand(), journalRepairCommand(), journalMigrateCommand())
	return cmd
}

// journalFlags say where the journal is.
type journalFlags struct{ config, dir string }

func (f *journalFlags) register(cmd *cobra.Command) {
	configFlag(cmd, &f.config)
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the journal, instead of journal.dir of the configuration")
}

func (f *journalFlags) options() (pebble.Options, error) {
	if f.dir != "" {
		return pebble.Options{Dir: f.dir}, nil
	}
	plan, err := app.Load(f.config)
	if err != nil {
		return pebble.Options{}, err
	}
	if j := plan.Config.Journal; j.Engine != "pebble" {
		return pebble.Options{}, fmt.Errorf("%w: journal.engine is %s: what is in the cluster is its servers' to check; the events that this relay keeps while they are away are checked with --dir %s", errUsage, j.Engine, j.Spill.Dir)
	}
	return pebble.Options{Dir: plan.Config.Journal.Dir}, nil
}

func journalCheckCommand() *cobra.Command {
	var f journalFlags
	var out output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Verify every checksum and every record, and that no event is missing",
		Long: `Verify every checksum and every record of a journal, and that no event is
missing. Nothing is changed. The relay must be stopped. The exit code is 1 when
something is wrong.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			found, err := pebble.Inspect(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if out == "json" {
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				err = tellContents(cmd.OutOrStdout(), found)
			}
			if len(found.Damage) > 0 || len(found.Lost) > 0 {
				err = errors.Join(err, errors.New("the journal is damaged; 'postwire journal repair' saves what can be read"))
			}
			return err
		},
	}
	f.register(cmd)
	out.register(cmd, "text")
	return cmd
}

func journalRepairCommand() *cobra.Command {
	var f journalFlags
	var out output
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Save what can be read of a damaged journal, and say what is lost",
		Long: `Make a journal that opens out of whatever can be read of a damaged one, and say
what is lost. The damaged files are kept in a folder inside the journal's. The
relay must be stopped, and the disk needs as much free space as the journal
takes. An interrupted repair goes on when it is run again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			// Half of it is worth nothing, and it does not take long.
			done, err := pebble.Repair(context.WithoutCancel(cmd.Context()), opts)
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), done)
			}
			if err := tellContents(cmd.OutOrStdout(), done.Contents); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "repaired; what was there before is kept in %s\n", done.Kept)
			return err
		},
	}
	f.register(cmd)
	out.register(cmd, "text")
	return cmd
}

// tellContents says what a journal holds, and what it lacks.
func tellContents(w io.Writer, c pebble.Contents) error {
	err := table(w, "WHAT COUNT WHERE", func(row func(...any)) error {
		row("events", c.Events, fmt.Sprintf("from %d through %d", c.Oldest, c.Last))
		lost := 0
		var where []string
		for _, l := range c.Lost {
			lost += l.Len()
			where = append(where, fmt.Sprintf("%d-%d", l.From, l.To))
		}
		row("lost events", lost, strings.Join(where, ", "))
		row("dead letters", c.Dead, "")
		row("quarantined", c.Quarantined, "")
		for _, p := range c.Positions {
			row(p.Name, p.Waiting, fmt.Sprintf("waiting behind %d; %d of the lost were never given to it", p.Committed, p.Lost))
		}
		return nil
	})
	for _, d := range c.Damage {
		fmt.Fprintf(w, "cannot be read: %s\n", oneLine(d.String()))
	}
	return err
}
