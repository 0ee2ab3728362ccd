package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/journal/local"
)

func journalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Check, repair or migrate the journal of a stopped relay",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(journalCheckCommand(), journalRepairCommand(), journalMigrateCommand())
	return cmd
}

// journalFlags locate the journal.
type journalFlags struct{ config, dir string }

func (f *journalFlags) register(cmd *cobra.Command) {
	configFlag(cmd, &f.config)
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder of the journal, instead of journal.dir of the configuration")
}

func (f *journalFlags) options() (local.Options, error) {
	if f.dir != "" {
		return local.Options{Dir: f.dir}, nil
	}
	plan, err := app.Load(f.config)
	if err != nil {
		return local.Options{}, err
	}
	if j := plan.Config.Journal; j.Engine != "local" {
		return local.Options{}, fmt.Errorf("%w: journal.engine is %s: the NATS servers check the journal in the cluster; to check the spill of this relay, use --dir %s", errUsage, j.Engine, j.Spill.Dir)
	}
	return local.Options{Dir: plan.Config.Journal.Dir}, nil
}

func journalCheckCommand() *cobra.Command {
	var f journalFlags
	var out output
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Verify every checksum and every record of the journal, and find missing events",
		Long: `Verify every checksum and every record of a journal, and find missing events. The
command reads all files and changes nothing. The relay must be stopped. The exit
code is 1 if the journal is damaged.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			found, err := local.Inspect(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if out == "json" {
				err = printJSON(cmd.OutOrStdout(), found)
			} else {
				err = printContents(cmd.OutOrStdout(), found)
			}
			if !found.Sound() {
				err = errors.Join(err, errors.New("the journal is damaged; 'postwire journal repair' saves the readable events"))
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
		Short: "Repair a damaged journal, and report lost events",
		Long: `Build a valid journal from the readable parts of a damaged journal, and report the
lost events. A journal without damage is not changed. The damaged files are kept in a
folder inside the journal's folder. The relay must be stopped. The disk needs free
space for the index and for the damaged segments. To continue an interrupted repair,
run the command again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			// A repair is short, and an interrupted repair is useless: do not cancel.
			done, err := local.Repair(context.WithoutCancel(cmd.Context()), opts)
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), done)
			}
			if err := printContents(cmd.OutOrStdout(), done.Contents); err != nil {
				return err
			}
			if done.Kept == "" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "the journal is not damaged; nothing was changed")
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "repaired; the damaged files are kept in %s\n", done.Kept)
			return err
		},
	}
	f.register(cmd)
	out.register(cmd, "text")
	return cmd
}

// printContents prints the contents and the losses of a journal.
func printContents(w io.Writer, c local.Contents) error {
	err := table(w, "ITEM COUNT DETAIL", func(row func(...any)) error {
		row("events", c.Events, fmt.Sprintf("seq %d to %d", c.Oldest, c.Last))
		lost := 0
		var where []string
		for _, l := range c.Lost {
			lost += l.Len()
			where = append(where, fmt.Sprintf("%d-%d", l.From, l.To))
		}
		row("lost events", lost, strings.Join(where, ", "))
		row("dead letters", c.Dead, "")
		row("quarantined requests", c.Quarantined, "")
		row("bytes read", c.Bytes, "")
		for _, p := range c.Positions {
			row("sink "+p.Name, p.Pending, fmt.Sprintf("pending; next event %d; lost before delivery: %d", p.Committed+1, p.Lost))
		}
		return nil
	})
	for _, d := range c.Damage {
		fmt.Fprintf(w, "unreadable: %s\n", oneLine(d.String()))
	}
	return err
}
