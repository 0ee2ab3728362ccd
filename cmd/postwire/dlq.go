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
		Short: "See, retry or drop what could not be delivered or understood",
		Long: `Dead letters are events that a sink refused for good; quarantined are requests
that no source understood, those with the same body once. Both wait in the
journal of a running relay, which these commands ask through its admin port.`,
		Args: cobra.NoArgs,
	}
	f.register(cmd)
	cmd.AddCommand(dlqListCommand(&f), dlqShowCommand(&f),
		dlqHandleCommand(&f, "retry", "Let entries enter the normal way again", "retried",
			`An event goes to the sink that refused it, with the same id. A quarantined
request is read again, which a newer version may understand.`),
		dlqHandleCommand(&f, "drop", "Remove entries for good", "dropped", "What is dropped cannot be brought back."))
	return cmd
}

// asideFlags choose entries.
type asideFlags struct{ kind, sink, source, reason, since string }

func (f *asideFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.kind, "kind", "", "only dead_letter, or only quarantine")
	p.StringVar(&f.sink, "sink", "", "only dead letters of this sink")
	p.StringVar(&f.source, "source", "", "only quarantined requests of this source")
	p.StringVar(&f.reason, "reason", "", "only with this reason, such as too_large")
	p.StringVar(&f.since, "since", "", "only set aside since then: 2h, or 2026-01-31T12:00:00Z")
}

func (f *asideFlags) set() map[string]string {
	set := map[string]string{"kind": f.kind, "sink": f.sink, "source": f.source, "reason": f.reason, "since": f.since}
	for name, value := range set {
		if value == "" {
			delete(set, name)
		}
	}
	return set
}

func dlqListCommand(a *adminFlags) *cobra.Command {
	var f asideFlags
	var out output
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what was set aside",
		Args:  cobra.NoArgs,
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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
			left := len(entries) > limit || query.Get("after") != ""
			entries = entries[:min(limit, len(entries))]
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), entries)
			}
			if len(entries) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "nothing is set aside")
				return err
			}
			err := table(cmd.OutOrStdout(), "ID OF REASON ATTEMPTS RECEIVED LAST EVENT ERROR", func(row func(...any)) error {
				for _, e := range entries {
					of, attempts, received := "sink "+e.Sink, strconv.Itoa(e.Attempts), ""
					if e.Kind == admin.KindQuarantine {
						of, attempts, received = "source "+e.Source, "", strconv.FormatUint(e.Count, 10)
					}
					row(e.ID, of, e.Reason, attempts, received, e.Last.Local().Format(time.DateTime), e.EventID, e.Error)
				}
				return nil
			})
			if left {
				fmt.Fprintf(cmd.ErrOrStderr(), "there are more; --limit is %d\n", limit)
			}
			return err
		}),
	}
	f.register(cmd)
	out.register(cmd, "table")
	cmd.Flags().IntVar(&limit, "limit", 1000, "most entries to list; 0 is all")
	return cmd
}

func dlqShowCommand(a *adminFlags) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show one entry whole: the event, or the request with its body",
		Args:  cobra.ExactArgs(1),
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
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
			return showAside(cmd, e)
		}),
	}
	out.register(cmd, "table")
	return cmd
}

func showAside(cmd *cobra.Command, e admin.DLQEntry) error {
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
		return printJSON(w, e.Event.RawMessage) // as it is: its numbers keep their digits
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
	var f asideFlags
	var all bool
	cmd := &cobra.Command{
		Use:   word + " [ID...]",
		Short: short,
		Long:  short + ". " + long + "\nName entries, or choose them by flags; --all takes every one.",
		Example: fmt.Sprintf(`  postwire dlq %[1]s 1234@kafka
  postwire dlq %[1]s --sink kafka --reason too_large --since 2h`, word),
		RunE: asking(a, func(cmd *cobra.Command, c *admin.Client, args []string) error {
			chosen := f.set()
			switch {
			case len(args) > 0 && (all || len(chosen) > 0):
				return fmt.Errorf("%w: name entries or choose them by flags, not both", errUsage)
			case len(args) == 0 && len(chosen) == 0 && !all:
				return fmt.Errorf("%w: name entries, choose some by flags such as --sink, or take --all", errUsage)
			}
			n, failed := 0, 0
			tell := func(h admin.ActionResult) {
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
				tell(h)
			}
			if len(args) == 0 {
				filter := map[string]any{"limit": 500}
				for name, value := range chosen {
					filter[name] = value
				}
				for more := true; more; {
					page, err := c.Handle(cmd.Context(), word, filter)
					if err != nil {
						return err
					}
					for _, h := range page.Entries {
						tell(h)
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
	cmd.Flags().BoolVar(&all, "all", false, "every entry there is")
	return cmd
}
