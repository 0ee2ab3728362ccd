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
		Short: "Follow events and delivery status",
		Example: `  postwire tail
  postwire tail --from 10m --filter 'outcome == "failure"' -o json`,
		Args: cobra.NoArgs,
		RunE: withAdmin(&a, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
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
				fmt.Fprintf(cmd.ErrOrStderr(), "postwire: %v; reconnecting\n", err)
			})
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}),
	}
	a.register(cmd)
	cmd.Flags().StringVar(&filter, "filter", "", "select events by this CEL expression over attributes")
	cmd.Flags().StringVar(&src, "source", "", "select only events of this source")
	cmd.Flags().StringVar(&from, "from", "", "start with events accepted at this time: an age such as 10m, or a time such as 2026-01-31T12:00:00Z (default now)")
	cmd.Flags().BoolVar(&data, "data", false, "include the data of events, which may be personal; needs -o json")
	out.register(cmd, "short")
	return cmd
}

// showMessage prints a message of a tail as one line of JSON.
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

// showShort prints a message of a tail as one line of text.
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
		deliveries := make([]string, len(s.Deliveries))
		for i, f := range s.Deliveries {
			deliveries[i] = statusText(f)
		}
		_, err := fmt.Fprintf(w, "%s  #%d  %s  %s\n", s.Accepted.Local().Format(clock), s.Seq, oneLine(e.ID), strings.Join(deliveries, "  "))
		return err
	case "status":
		var b admin.StatusChanged
		if err := json.Unmarshal(m.Data, &b); err != nil {
			return err
		}
		after := time.Duration(b.After * float64(time.Second)).Round(100 * time.Microsecond)
		_, err := fmt.Fprintf(w, "%s  #%d  %s  %s after %v\n", b.At.Local().Format(clock), b.Seq, oneLine(b.ID), statusText(b.DeliveryStatus), after)
		return err
	}
	return nil
}

func statusText(f relay.DeliveryStatus) string {
	text := oneLine(f.Sink) + ":" + oneLine(string(f.State))
	if f.Reason != "" {
		text += " (" + oneLine(f.Reason) + ")"
	}
	if f.Error != "" {
		text += " " + oneLine(f.Error)
	}
	return text
}
