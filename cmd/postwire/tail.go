package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/relay"
)

func tailCommand() *cobra.Command {
	var a adminFlags
	var out output
	var filter, src, from string
	var data bool
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow events and what becomes of them at each sink",
		Example: `  postwire tail
  postwire tail --from 10m --filter 'outcome == "failure"' -o json`,
		Args: cobra.NoArgs,
		RunE: asking(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
			if err := out.check("short"); err != nil {
				return err
			}
			query := url.Values{}
			for name, value := range map[string]string{"filter": filter, "source": src, "from": from} {
				if value != "" {
					query.Set(name, value)
				}
			}
			if data {
				query.Set("data", "true")
			}
			show := showShort
			if out == "json" {
				show = showMessage
			}
			err := c.Follow(cmd.Context(), query, func(m admin.Message) error { return show(cmd.OutOrStdout(), m) }, func(err error) {
				fmt.Fprintf(cmd.ErrOrStderr(), "postwire: %v; following further when the relay answers\n", err)
			})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}),
	}
	a.register(cmd)
	cmd.Flags().StringVar(&filter, "filter", "", "CEL expression over the attributes that selects the events")
	cmd.Flags().StringVar(&src, "source", "", "only events that the source of this name took in")
	cmd.Flags().StringVar(&from, "from", "", "begin with events accepted then: 10m, or 2026-01-31T12:00:00Z (default now)")
	cmd.Flags().BoolVar(&data, "data", false, "show the events' data too, which is personal; with -o json")
	out.register(cmd, "short")
	return cmd
}

// showMessage prints a message as one line of JSON.
func showMessage(w io.Writer, m admin.Message) error {
	if m.Name == "heartbeat" {
		return nil
	}
	line, err := json.Marshal(map[string]json.RawMessage{m.Name: m.Data})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", line)
	return err
}

// showShort prints a message for a person.
func showShort(w io.Writer, m admin.Message) error {
	const clock = "15:04:05.000"
	switch m.Name {
	case "event":
		var s admin.EventView
		if err := json.Unmarshal(m.Data, &s); err != nil {
			return err
		}
		var e struct{ ID string }
		if err := json.Unmarshal(s.Event.RawMessage, &e); err != nil {
			return err
		}
		fates := make([]string, len(s.Deliveries))
		for i, f := range s.Deliveries {
			fates[i] = fateText(f)
		}
		_, err := fmt.Fprintf(w, "%s  #%d  %s  %s\n", s.Accepted.Local().Format(clock), s.Seq, oneLine(e.ID), strings.Join(fates, "  "))
		return err
	case "status":
		var b admin.StatusChanged
		if err := json.Unmarshal(m.Data, &b); err != nil {
			return err
		}
		after := time.Duration(b.After * float64(time.Second)).Round(100 * time.Microsecond)
		_, err := fmt.Fprintf(w, "%s  #%d  %s  %s after %v\n", b.At.Local().Format(clock), b.Seq, oneLine(b.ID), fateText(b.DeliveryStatus), after)
		return err
	}
	return nil
}

func fateText(f relay.DeliveryStatus) string {
	text := oneLine(f.Sink) + ":" + oneLine(string(f.State))
	if f.Reason != "" {
		text += " (" + oneLine(f.Reason) + ")"
	}
	if f.Error != "" {
		text += " " + oneLine(f.Error)
	}
	return text
}
