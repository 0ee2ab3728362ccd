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
		Short: "Remove the webhook at Upload-Post",
		Long:  "Disable the webhook at Upload-Post and remove the URL. Other enabled notification channels stay enabled.",
		Args:  cobra.NoArgs,
		RunE: withService(&service, func(cmd *cobra.Command, c *uploadpost.Client) error {
			if profile != "" {
				return unregisterProfile(cmd.Context(), cmd.OutOrStdout(), c, profile, dryRun)
			}
			return unregister(cmd.Context(), cmd.OutOrStdout(), c, dryRun)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&profile, "profile", "", "remove the webhook of this profile, instead of the account's webhook")
	f.BoolVar(&dryRun, "dry-run", false, "show the changes, and apply nothing")
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
		_, err := fmt.Fprintln(out, "no change applied (--dry-run)")
		return err
	}
	if err := c.SetNotifications(ctx, uploadpost.Change{Channels: want.Channels, WebhookURL: &none}); err != nil {
		return err
	}
	after, err := c.Notifications(ctx)
	if err != nil {
		return fmt.Errorf("verifying the settings: %w", err)
	}
	if after.Channels["webhook"] { // Upload-Post may keep the URL
		return fmt.Errorf("Upload-Post accepted the change, and the webhook is still enabled")
	}
	_, err = fmt.Fprintln(out, "unregistered: Upload-Post sends no more webhooks")
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
		_, err := fmt.Fprintln(out, "no change applied (--dry-run)")
		return err
	}
	if err := c.DeleteProfileWebhook(ctx, profile); err != nil {
		return err
	}
	after, err := c.ProfileWebhook(ctx, profile)
	if err != nil {
		return fmt.Errorf("verifying the settings: %w", err)
	}
	if after.WebhookURL != "" {
		return fmt.Errorf("Upload-Post accepted the change, and profile %s still has a webhook", profile)
	}
	_, err = fmt.Fprintf(out, "unregistered: Upload-Post sends webhooks of profile %s to the account's webhook only\n", profile)
	return err
}
