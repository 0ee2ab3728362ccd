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
		Short: "Rotate the signing secret at Upload-Post without losing webhooks",
		Long: `Rotate the signing secret at Upload-Post. During the rotation, webhooks with the
present secret and webhooks with the new secret arrive, so the source needs the two
files:

  auth: {signature: {secrets: ["${file:webhook-secret}", "${file:webhook-secret-previous}"]}}

The command writes the present secret to the second file, requests a new secret, and
writes the new secret to the first file. A running relay reads changed files within
seconds. If a webhook arrives with the new secret earlier, the relay delays the answer
until the relay has read the new secret.`,
		Example: "  postwire rotate-secret --secret-file webhook-secret --previous-file webhook-secret-previous",
		Args:    cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if secret.file == "" && secret.manifest == "" {
				return fmt.Errorf("%w: set a destination for the new secret: --secret-file or --secret-manifest", errUsage)
			}
			if secret.file != "" && (previous == "" || previous == secret.file) {
				return fmt.Errorf("%w: set --previous-file to a second file: webhooks with the present secret may still arrive", errUsage)
			}
			return nil
		},
		RunE: withService(&service, func(cmd *cobra.Command, c *uploadpost.Client) error {
			return rotateSecret(cmd.Context(), cmd.OutOrStdout(), c, secret, previous)
		}),
	}
	cmd.Flags().StringVar(&previous, "previous-file", "", "write the present secret to this file before the rotation")
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
		return errors.New("Upload-Post has no signing secret yet, and creates the secret with the first registered webhook: see 'postwire register'")
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
		return errors.New("Upload-Post confirmed the rotation, and still returns the previous secret")
	}
	if err := files.write(out, next); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "rotated; remove the previous secret after some minutes, when every webhook signed with the previous secret has arrived")
	return err
}

// rotated requests a new secret, and returns it. Webhooks signed with an unread secret
// would be lost: after an ambiguous answer, rotated reads the settings, and if the
// secret is unchanged, requests a new secret again.
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
			return "", fmt.Errorf("%w\nThe rotation may have taken effect: 'postwire register' with --secret-file writes the secret in use", err)
		case settings.WebhookSecret != before:
			return settings.WebhookSecret, nil
		case attempt == 3 || answered && refused.Status < 500:
			return "", fmt.Errorf("%w\nThe secret is unchanged: Upload-Post still returns the present secret", err)
		}
	}
}
