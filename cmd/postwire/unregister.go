package main

import (
	"context"
	"fmt"
	"io"
	"maps"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/pkg/uploadpost"
)

func unregisterCommand() *cobra.Command {
	var service serviceFlags
	var profile string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "unregister",
		Short: "Let Upload-Post send no more webhooks",
		Long:  "Turns the webhook off and removes its URL. Other channels that are on stay on.",
		Args:  cobra.NoArgs,
		RunE: calling(&service, func(cmd *cobra.Command, c *uploadpost.Client) error {
			if profile != "" {
				return unregisterProfile(cmd.Context(), cmd.OutOrStdout(), c, profile, dryRun)
			}
			return unregister(cmd.Context(), cmd.OutOrStdout(), c, dryRun)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&profile, "profile", "", "remove the webhook of this profile, and not the account's")
	f.BoolVar(&dryRun, "dry-run", false, "only show what would change")
	service.register(cmd)
	return cmd
}

func unregister(ctx context.Context, out io.Writer, c *uploadpost.Client, dryRun bool) error {
	before, err := c.Notifications(ctx)
	if err != nil {
		return err
	}
	want, none := before, ""
	want.Channels, want.WebhookURL = maps.Clone(before.Channels), none
	if want.Channels == nil {
		want.Channels = uploadpost.Channels{}
	}
	want.Channels["webhook"] = false
	if err := compare(out, settingsOf(before), settingsOf(want)); err != nil {
		return err
	}
	if dryRun {
		_, err := fmt.Fprintln(out, "nothing was changed (--dry-run)")
		return err
	}
	if err := c.SetNotifications(ctx, uploadpost.Change{Channels: want.Channels, WebhookURL: &none}); err != nil {
		return err
	}
	after, err := c.Notifications(ctx)
	if err != nil {
		return fmt.Errorf("reading back what was set: %w", err)
	}
	if after.Channels["webhook"] { // the URL alone may be kept
		return fmt.Errorf("the service has taken the change, and the webhook is still on")
	}
	_, err = fmt.Fprintln(out, "unregistered: no more webhooks are sent")
	return err
}

func unregisterProfile(ctx context.Context, out io.Writer, c *uploadpost.Client, profile string, dryRun bool) error {
	before, err := c.ProfileWebhook(ctx, profile)
	if err != nil {
		return err
	}
	if err := compare(out, profileSettings(before), profileSettings(uploadpost.ProfileWebhook{})); err != nil {
		return err
	}
	if dryRun {
		_, err := fmt.Fprintln(out, "nothing was changed (--dry-run)")
		return err
	}
	if err := c.DeleteProfileWebhook(ctx, profile); err != nil {
		return err
	}
	after, err := c.ProfileWebhook(ctx, profile)
	if err != nil {
		return fmt.Errorf("reading back what was set: %w", err)
	}
	if after.WebhookURL != "" {
		return fmt.Errorf("the service has taken the change, and profile %s still has a webhook", profile)
	}
	_, err = fmt.Fprintf(out, "unregistered: no more webhooks of profile %s are sent, but by the account's webhook\n", profile)
	return err
}
