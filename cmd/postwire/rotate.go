package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/uploadpost"
)

func rotateSecretCommand() *cobra.Command {
	var service serviceFlags
	var secret secretFlags
	var previous string
	cmd := &cobra.Command{
		Use:   "rotate-secret",
		Short: "Let Upload-Post sign with a new secret, and lose no webhook",
		Long: `The relay must know both secrets while webhooks of both are on their way:

  auth: {signature: {secrets: ["${file:webhook-secret}", "${file:webhook-secret-previous}"]}}

The present secret is written to the second file, then the service makes a new one,
which is written to the first. A running relay takes both over by itself; a webhook
that is signed with the new secret before the relay has read it is held for that long.`,
		Example: "  postwire rotate-secret --secret-file webhook-secret --previous-file webhook-secret-previous",
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if secret.file == "" && secret.manifest == "" {
				return fmt.Errorf("%w: the new secret must go somewhere: name --secret-file or --secret-manifest", errUsage)
			}
			if secret.file != "" && (previous == "" || previous == secret.file) {
				return fmt.Errorf("%w: --previous-file is missing: webhooks that are signed with the present secret are on their way", errUsage)
			}
			return nil
		},
		RunE: calling(&service, func(cmd *cobra.Command, c *uploadpost.Client) error {
			return rotateSecret(cmd.Context(), cmd.OutOrStdout(), c, secret, previous)
		}),
	}
	cmd.Flags().StringVar(&previous, "previous-file", "", "write the present secret to this file first")
	service.register(cmd)
	secret.register(cmd)
	return cmd
}

func rotateSecret(ctx context.Context, out io.Writer, c *uploadpost.Client, files secretFlags, previous string) error {
	before, err := c.Notifications(ctx)
	if err != nil {
		return err
	}
	if before.WebhookSecret == "" {
		return errors.New("the service has no signing secret yet; it makes one when a webhook is saved: see 'postwire register'")
	}
	if previous != "" {
		if err := writeSecret(previous, []byte(before.WebhookSecret.Reveal()+"\n")); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "present secret %s written to %s\n", shown(before.WebhookSecret), previous); err != nil {
			return err
		}
	}
	next, err := rotated(ctx, c, before.WebhookSecret)
	if err != nil {
		return err
	}
	if next == before.WebhookSecret {
		return errors.New("the service says that it has made a new secret, and shows the old one")
	}
	if err := files.write(out, next); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "rotated; the previous secret can go when no webhook signed with it is on its way any more, after some minutes")
	return err
}

// rotated lets the service make a secret in place of another, and returns it. A
// secret that nobody has read costs webhooks: where an answer leaves open whether
// there is a new one, the settings tell, and where there is none it is asked for
// again.
func rotated(ctx context.Context, c *uploadpost.Client, before config.Secret) (config.Secret, error) {
	for attempt := 1; ; attempt++ {
		next, err := c.RotateSecret(ctx)
		if err == nil {
			return next, nil
		}
		settings, unread := c.Notifications(ctx)
		refused, answered := errors.AsType[*uploadpost.Error](err)
		switch {
		case unread != nil || settings.WebhookSecret == "":
			return "", fmt.Errorf("%w\nIt may have taken effect: 'postwire register' with --secret-file writes the secret that is in use", err)
		case settings.WebhookSecret != before:
			return settings.WebhookSecret, nil
		case attempt == 3 || answered && refused.Status < 500:
			return "", fmt.Errorf("%w\nNo other secret is in use: the service still shows the present one", err)
		}
	}
}
