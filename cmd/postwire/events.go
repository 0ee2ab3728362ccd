package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
)

func eventsCommand() *cobra.Command {
	var a adminFlags
	var out output
	var limit int
	var before uint64
	query := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Search stored events, newest first",
		Long: `Search the stored events of a running relay, newest first, and show the delivery
status at every sink. Use this command to try a filter for a sink. One request
examines a bounded number of events; the last line of the output shows how to
continue.`,
		Example: `  postwire events --filter 'outcome == "failure"'
  postwire events --source shop --from 2h --limit 10 -o json`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("short"); err != nil {
				return err
			}
			values := url.Values{"limit": {strconv.Itoa(limit)}}
			for name, value := range query {
				if *value != "" {
					values.Set(name, *value)
				}
			}
			if before > 0 {
				values.Set("before", strconv.FormatUint(before, 10))
			}
			found, err := c.Search(cmd.Context(), values)
			if err != nil {
				return err
			}
			if out == "json" {
				return printJSON(cmd.OutOrStdout(), found)
			}
			return showFound(cmd, found)
		}),
	}
	a.register(cmd)
	f := cmd.Flags()
	for _, p := range []struct{ name, doc string }{
		{"filter", "select events by this CEL expression over attributes"},
		{"source", "select only events of this source"},
		{"id", "select only events with this text in the id"},
		{"type", "select only events of this type; a type may omit its prefix up to a dot"},
		{"from", "select only events accepted from this time on: an age such as 2h, or a time such as 2026-01-31T12:00:00Z"},
		{"to", "select only events accepted before this time: an age such as 1h, or a time such as 2026-01-31T13:00:00Z"},
	} {
		query[p.name] = f.String(p.name, "", p.doc)
	}
	f.IntVar(&limit, "limit", 50, "maximum number of events to show, 1 to 200")
	f.Uint64Var(&before, "before", 0, "select only events before this sequence, to continue a search")
	out.register(cmd, "short")
	return cmd
}

func showFound(cmd *cobra.Command, found admin.SearchResult) error {
	w := cmd.OutOrStdout()
	for _, s := range found.Events {
		var e struct{ ID, Type string }
		if err := json.Unmarshal(s.Event.RawMessage, &e); err != nil {
			return err
		}
		states := make([]string, len(s.Deliveries))
		for i, f := range s.Deliveries {
			states[i] = statusText(f)
		}
		if _, err := fmt.Fprintf(w, "%s  #%d  %s  %s  %s\n", s.Accepted.Local().Format(time.DateTime), s.Seq, oneLine(e.Type), oneLine(e.ID), strings.Join(states, "  ")); err != nil {
			return err
		}
	}
	text := fmt.Sprintf("%d events match; %d events examined", len(found.Events), found.Scanned)
	if found.Next > 0 {
		text += fmt.Sprintf("; continue with --before %d", found.Next)
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
