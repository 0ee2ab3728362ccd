package main

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func dlqCommand() *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "List, show, retry or drop dead letters and quarantined requests",
		Long: `Manage the dead-letter queue of a running relay. A dead letter is an event that a
sink refused permanently. A quarantined request is an authenticated webhook that
its source could not convert to an event; requests of one source with equal bodies
are stored once.`,
		Args: cobra.NoArgs,
	}
	f.register(cmd)
	cmd.AddCommand(dlqListCommand(&f), dlqShowCommand(&f),
		dlqHandleCommand(&f, "retry", "Redeliver dead letters, and convert quarantined requests again", "retried",
			`A dead letter is delivered to its sink again, with an unchanged id. A quarantined
request is converted again by its source, for example after a change of the mapping.`),
		dlqHandleCommand(&f, "drop", "Remove entries permanently", "dropped", "The events of dropped entries are never delivered."))
	return cmd
}

// dlqFlags select entries of the dead-letter queue.
type dlqFlags struct{ kind, sink, source, reason, since string }

func (f *dlqFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.kind, "kind", "", "select only this kind of entry: dead_letter or quarantine")
	p.StringVar(&f.sink, "sink", "", "select only dead letters of this sink")
	p.StringVar(&f.source, "source", "", "select only quarantined requests of this source")
	p.StringVar(&f.reason, "reason", "", "select only entries with this reason, such as too_large")
	p.StringVar(&f.since, "since", "", "select only entries from this time on: an age such as 2h, or a time such as 2026-01-31T12:00:00Z")
}

func (f *dlqFlags) set() map[string]string {
	set := map[string]string{"kind": f.kind, "sink": f.sink, "source": f.source, "reason": f.reason, "since": f.since}
	for name, value := range set {
		if value == "" {
			delete(set, name)
		}
	}
	return set
}

func dlqListCommand(a *adminFlags) *cobra.Command {
	var f dlqFlags
	var out output
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List dead letters and quarantined requests",
		Args:  cobra.NoArgs,
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			if limit <= 0 {
				limit = math.MaxInt
			}
			query := url.Values{"limit": {"1000"}}
			for name, value := range f.set() {
				query.Set(name, value)
			}
			entries := []admin.DLQEntry{}
			for more := true; more && len(entries) < limit; {
				page, err := c.List(cmd.Context(), query)
				if err != nil {
					return err
				}
				entries = append(entries, page.Entries...)
				query.Set("after", page.Next)
				more = page.Next != ""
			}
			more := len(entries) > limit || query.Get("after") != ""
			entries = entries[:min(limit, len(entries))]
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), entries)
			}
			if len(entries) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "no dead letters and no quarantined requests")
				return err
			}
			err := table(cmd.OutOrStdout(), "ID SINK/SOURCE REASON ATTEMPTS RECEIVED LAST EVENT ERROR", func(row func(...any)) error {
				for _, e := range entries {
					of, attempts, received := "sink "+e.Sink, strconv.Itoa(e.Attempts), ""
					if e.Kind == admin.KindQuarantine {
						of, attempts, received = "source "+e.Source, "", strconv.FormatUint(e.Count, 10)
					}
					row(e.ID, of, e.Reason, attempts, received, e.Last.Local().Format(time.DateTime), e.EventID, e.Error)
				}
				return nil
			})
			if more {
				fmt.Fprintf(cmd.ErrOrStderr(), "more entries exist; --limit is %d\n", limit)
			}
			return err
		}),
	}
	f.register(cmd)
	out.register(cmd, "table")
	cmd.Flags().IntVar(&limit, "limit", 1000, "maximum number of entries to list; 0 for all")
	return cmd
}

func dlqShowCommand(a *adminFlags) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one entry with the event, or the request with its body",
		Args:  cobra.ExactArgs(1),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			if err := out.check("table"); err != nil {
				return err
			}
			e, err := c.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), e)
			}
			return showEntry(cmd, e)
		}),
	}
	out.register(cmd, "table")
	return cmd
}

func showEntry(cmd *cobra.Command, e admin.DLQEntry) error {
	w := cmd.OutOrStdout()
	err := table(w, "FIELD VALUE", func(row func(...any)) error {
		row("id", e.ID)
		if e.Kind == admin.KindDeadLetter {
			row("sink", e.Sink)
			row("event", e.EventID)
			row("type", e.EventType)
			row("attempts", e.Attempts)
		} else {
			row("source", e.Source)
			row("received", e.Count)
		}
		row("reason", e.Reason)
		row("error", e.Error)
		row("first", e.First.Local().Format(time.RFC3339))
		row("last", e.Last.Local().Format(time.RFC3339))
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(w)
	if e.Event != nil {
		return printJSON(w, e.Event.RawMessage) // unchanged, so that numbers keep the digits
	}
	if r := e.Request; r.Path != "" {
		target := r.Path
		if r.RawQuery != "" {
			target += "?" + r.RawQuery
		}
		fmt.Fprintf(w, "%s %s\n", oneLine(r.Method), oneLine(target))
	}
	for name, values := range e.Request.Header {
		for _, v := range values {
			fmt.Fprintf(w, "%s: %s\n", oneLine(name), oneLine(v))
		}
	}
	body := e.Request.Body
	if e.Request.BodyBase64 != "" {
		body = "(base64) " + e.Request.BodyBase64
	}
	_, err = fmt.Fprintf(w, "\n%s\n", body)
	return err
}

func dlqHandleCommand(a *adminFlags, word, short, done, long string) *cobra.Command {
	var f dlqFlags
	var all bool
	cmd := &cobra.Command{
		Use:   word + " [ID...]",
		Short: short,
		Long:  short + ". " + long + "\nName entries by ID, or select entries by flags; --all selects every entry.",
		Example: fmt.Sprintf(`  postwire dlq %[1]s 1234@kafka
  postwire dlq %[1]s --sink kafka --reason too_large --since 2h`, word),
		RunE: withAdmin(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			selected := f.set()
			switch {
			case len(args) > 0 && (all || len(selected) > 0):
				return fmt.Errorf("%w: name entries by ID or select entries by flags: IDs and flags exclude each other", errUsage)
			case len(args) == 0 && len(selected) == 0 && !all:
				return fmt.Errorf("%w: name entries by ID, select entries by flags such as --sink, or use --all", errUsage)
			}
			n, failed := 0, 0
			count := func(h admin.ActionResult) {
				if h.Done {
					n++
					return
				}
				failed++
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", h.ID, oneLine(h.Error))
			}
			for _, id := range args {
				do := c.Retry
				if word == "drop" {
					do = c.Drop
				}
				h, err := do(cmd.Context(), id)
				if r, ok := errors.AsType[*admin.RefusedError](err); ok && r.Status != 401 {
					h, err = admin.ActionResult{ID: id, Error: r.Detail}, nil
				}
				if err != nil {
					return err
				}
				count(h)
			}
			if len(args) == 0 {
				filter := map[string]any{"limit": 500}
				for name, value := range selected {
					filter[name] = value
				}
				for more := true; more; {
					page, err := c.Handle(cmd.Context(), word, filter)
					if err != nil {
						return err
					}
					for _, h := range page.Entries {
						count(h)
					}
					filter["after"], filter["until"] = page.Next, page.Until.Format(time.RFC3339Nano)
					more = page.Next != ""
				}
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%d %s\n", n, done); err != nil {
				return err
			}
			if failed > 0 {
				return fmt.Errorf("%d could not be %s", failed, done)
			}
			return nil
		}),
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "select every entry")
	return cmd
}
