package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
	"github.com/postwire/postwire/pkg/uploadpost"
)

// serviceFlags say how the service's API is reached.
type serviceFlags struct{ url, keyFile string }

func (f *serviceFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.keyFile, "api-key-file", "", "file with the API key of the account (default $UPLOAD_POST_API_KEY)")
	p.StringVar(&f.url, "api-url", uploadpost.DefaultBaseURL, "where the API is")
}

func (f *serviceFlags) client() (*uploadpost.Client, error) {
	key, err := config.LookupSecret("UPLOAD_POST_API_KEY")
	if f.keyFile != "" {
		if key, err = config.ReadSecret(f.keyFile); err != nil {
			err = fmt.Errorf("--api-key-file: %w", err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if key == "" {
		return nil, fmt.Errorf("%w: the API key is missing; set UPLOAD_POST_API_KEY, or name a file by --api-key-file", errUsage)
	}
	c, err := uploadpost.New(uploadpost.Options{BaseURL: f.url, APIKey: key})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return c, nil
}

// calling is a command that calls the service's API.
func calling(f *serviceFlags, do func(cmd *cobra.Command, c *uploadpost.Client) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		return do(cmd, c)
	}
}

// secretFlags say where the signing secret goes. It is never printed.
type secretFlags struct{ file, manifest, name string }

func (f *secretFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.file, "secret-file", "", "write the signing secret to this file, for ${file:…} in the configuration")
	p.StringVar(&f.manifest, "secret-manifest", "", "write a Kubernetes Secret with it to this file")
	p.StringVar(&f.name, "secret-name", "postwire-upload-post", "name of the Kubernetes Secret")
}

// secretKey is the key in the Kubernetes Secret: the variable that examples name.
const secretKey = "UPLOAD_POST_WEBHOOK_SECRET" //nolint:gosec // the name of one

// write puts the secret where it is wanted, whole or not at all.
func (f *secretFlags) write(out io.Writer, secret config.Secret) error {
	if f.file == "" && f.manifest == "" {
		return nil
	}
	if secret == "" {
		return errors.New("the service tells no signing secret; it makes one when a webhook is saved for the first time")
	}
	if f.file != "" {
		if err := writeSecret(f.file, []byte(secret.Reveal()+"\n")); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "signing secret %s written to %s\n", shown(secret), f.file); err != nil {
			return err
		}
	}
	if f.manifest == "" {
		return nil
	}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": map[string]any{"name": f.name},
		"stringData": map[string]any{secretKey: secret.Reveal()},
	})
	if err != nil {
		return fmt.Errorf("writing the manifest: %w", err)
	}
	if err := writeSecret(f.manifest, text); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Secret %s with %s written to %s; apply it, and remove the file\n", f.name, shown(secret), f.manifest)
	return err
}

// writeSecret writes a file for its owner alone, in place of what has this name. The
// file it writes first is new and has a name that nobody can foresee, so that a link
// or a file that somebody else has put there is neither followed nor filled.
func writeSecret(path string, text []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the secret: %w", err)
		}
	}()
	next, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // O_EXCL, 0600
	if err != nil {
		return err
	}
	_, err = next.Write(text)
	if err = errors.Join(err, next.Sync(), next.Close()); err == nil {
		err = os.Rename(next.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(next.Name()))
	}
	return nil
}

// shown is enough of a secret to tell two apart.
func shown(secret config.Secret) string {
	text := secret.Reveal()
	if len(text) < 16 {
		return secret.String()
	}
	return text[:9] + "…"
}

// registration is what register does.
type registration struct {
	service  serviceFlags
	secret   secretFlags
	url      string
	events   []string
	telegram string
	profile  string
	dryRun   bool
	test     bool
	patience time.Duration // with the test
}

func registerCommand() *cobra.Command {
	var r registration
	var a adminFlags
	cmd := &cobra.Command{
		Use:   "register",
		Short: "Let Upload-Post send its webhooks to this relay",
		Long: `Shows what is set at the service, what will change, changes it, and reads it back.
Other channels that are on stay on.`,
		Example: `  postwire register --url https://relay.example.com/webhooks/upload-post --dry-run
  postwire register --url https://relay.example.com/webhooks/upload-post --secret-file webhook-secret --test
  postwire register --url https://relay.example.com/webhooks/upload-post --profile brightside_bakery`,
		Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error {
			if err := r.check(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		},
		RunE: calling(&r.service, func(cmd *cobra.Command, c *uploadpost.Client) error {
			var relay *admin.Client
			if r.test {
				var err error
				if relay, err = a.client(); err != nil {
					return err
				}
			}
			return r.run(cmd.Context(), cmd.OutOrStdout(), c, relay)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.url, "url", "", "where the relay takes webhooks, as the internet sees it")
	f.StringSliceVar(&r.events, "events", nil, "which events to send; all that are not named are turned off (default as it is)")
	f.StringVar(&r.telegram, "telegram-chat-id", "", "turn on the service's own Telegram messages, to this chat")
	f.StringVar(&r.profile, "profile", "", "set the webhook of this profile, beside the account's")
	f.BoolVar(&r.dryRun, "dry-run", false, "only show what would change")
	f.BoolVar(&r.test, "test", false, "ask the service for a test, and wait until the relay has seen it")
	f.DurationVar(&r.patience, "test-patience", 30*time.Second, "how long the test may take")
	r.service.register(cmd)
	r.secret.register(cmd)
	a.register(cmd)
	return cmd
}

func (r *registration) check() error {
	u, err := url.Parse(r.url)
	switch {
	case r.url == "":
		return errors.New("--url is missing: where does the relay take webhooks, as the internet sees it?")
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("--url: %s is not a URL such as https://relay.example.com/webhooks/upload-post", r.url)
	case r.profile != "" && r.telegram != "":
		return errors.New("--telegram-chat-id is the account's, and cannot stand beside --profile")
	case r.profile != "" && r.test:
		return errors.New("--test asks for a test of the account's webhook, and cannot stand beside --profile")
	}
	for _, name := range r.events {
		if !slices.Contains(sample.Events(), sample.Event(name)) {
			return fmt.Errorf("--events: there is no event %q; use some of %v", name, sample.Events())
		}
	}
	return nil
}

// wanted is the choice of events, nil where it stays as it is.
func (r *registration) wanted() uploadpost.Events {
	if len(r.events) == 0 {
		return nil
	}
	events := uploadpost.Events{}
	for _, name := range sample.Events() {
		events[string(name)] = slices.Contains(r.events, string(name))
	}
	return events
}

func (r *registration) run(ctx context.Context, out io.Writer, c *uploadpost.Client, relay *admin.Client) error {
	before, err := c.Notifications(ctx)
	if err != nil {
		return err
	}
	if r.profile != "" {
		return r.runProfile(ctx, out, c, before.WebhookSecret)
	}
	channels := maps.Clone(before.Channels)
	if channels == nil {
		channels = uploadpost.Channels{}
	}
	channels["webhook"] = true
	change := uploadpost.Change{Channels: channels, WebhookURL: &r.url, WebhookEvents: r.wanted()}
	if r.telegram != "" {
		channels["telegram"], change.TelegramChatID = true, &r.telegram
	}
	want := before
	want.Channels, want.WebhookURL = channels, r.url
	if change.WebhookEvents != nil {
		want.WebhookEvents = change.WebhookEvents
	}
	if r.telegram != "" {
		want.TelegramChatID = r.telegram
	}
	if err := compare(out, settingsOf(before), settingsOf(want)); err != nil {
		return err
	}
	if r.dryRun {
		_, err := fmt.Fprintln(out, "nothing was changed (--dry-run)")
		return err
	}
	if err := c.SetNotifications(ctx, change); err != nil {
		return err
	}
	after, err := c.Notifications(ctx)
	if err != nil {
		return fmt.Errorf("reading back what was set: %w", err)
	}
	if err := same(settingsOf(want), settingsOf(after)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "registered: webhooks go to %s\n", after.WebhookURL); err != nil {
		return err
	}
	if err := r.secret.write(out, after.WebhookSecret); err != nil {
		return err
	}
	if r.test {
		return r.tryOut(ctx, out, c, relay)
	}
	return nil
}

func (r *registration) runProfile(ctx context.Context, out io.Writer, c *uploadpost.Client, secret config.Secret) error {
	before, err := c.ProfileWebhook(ctx, r.profile)
	if err != nil {
		return err
	}
	want := uploadpost.ProfileWebhook{Profile: r.profile, WebhookURL: r.url, WebhookEvents: before.WebhookEvents}
	if events := r.wanted(); events != nil {
		want.WebhookEvents = events
	}
	if err := compare(out, profileSettings(before), profileSettings(want)); err != nil {
		return err
	}
	if r.dryRun {
		_, err := fmt.Fprintln(out, "nothing was changed (--dry-run)")
		return err
	}
	if err := c.SetProfileWebhook(ctx, want); err != nil {
		return err
	}
	after, err := c.ProfileWebhook(ctx, r.profile)
	if err != nil {
		return fmt.Errorf("reading back what was set: %w", err)
	}
	if err := same(profileSettings(want), profileSettings(after)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "registered: webhooks of profile %s go to %s\n", r.profile, after.WebhookURL); err != nil {
		return err
	}
	if secret == "" { // it was made just now
		settings, err := c.Notifications(ctx)
		if err != nil {
			return fmt.Errorf("reading the signing secret: %w", err)
		}
		secret = settings.WebhookSecret
	}
	return r.secret.write(out, secret)
}

// setting is one line of what is set.
type setting struct{ name, value string }

func settingsOf(n uploadpost.Notifications) []setting {
	s := []setting{{"webhook_url", n.WebhookURL}}
	for _, name := range slices.Sorted(maps.Keys(n.Channels)) {
		value := "off"
		if n.Channels[name] {
			value = "on"
		}
		s = append(s, setting{"channel " + name, value})
	}
	events := strings.Join(n.WebhookEvents.Names(), ", ")
	if events == "" {
		events = "all"
	}
	return append(s, setting{"webhook_events", events}, setting{"telegram_chat_id", n.TelegramChatID})
}

func profileSettings(w uploadpost.ProfileWebhook) []setting {
	return settingsOf(uploadpost.Notifications{WebhookURL: w.WebhookURL, WebhookEvents: w.WebhookEvents})[:2]
}

// compare prints what is set and what will be.
func compare(out io.Writer, before, after []setting) error {
	return table(out, "SETTING NOW THEN", func(row func(...any)) error {
		for _, a := range after {
			then := a.value
			was := valueOf(before, a.name)
			if was == then {
				then = "(as it is)"
			}
			row(a.name, was, then)
		}
		return nil
	})
}

func valueOf(settings []setting, name string) string {
	for _, s := range settings {
		if s.name == name {
			return s.value
		}
	}
	return ""
}

// same holds what was read back against what was set.
func same(want, got []setting) error {
	var wrong []string
	for _, w := range want {
		if value := valueOf(got, w.name); value != w.value {
			wrong = append(wrong, fmt.Sprintf("%s is %q, not %q", w.name, value, w.value))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("the service has taken the change and shows another: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// tryOut asks the service for a test and follows it to the relay.
func (r *registration) tryOut(ctx context.Context, out io.Writer, c *uploadpost.Client, relay *admin.Client) error {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	before, err := received(ctx, relay)
	if err != nil {
		return fmt.Errorf("asking the relay what it has received so far: %w", explain(err))
	}
	if err := c.TestNotifications(ctx); err != nil {
		return fmt.Errorf("the service does not send a test: %w", err)
	}
	if _, err := fmt.Fprintln(out, "the service says that it has sent a test; waiting for it"); err != nil {
		return err
	}
	hint := fmt.Sprintf("nothing has come to the relay: does %s lead to it, through every firewall and proxy?", r.url)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no test was taken within %v: %s", r.patience, hint)
		}
		now, err := received(ctx, relay)
		if err != nil {
			continue // it may be back in a moment; ctx ends this
		}
		// Others may come meanwhile: what was taken ends it, what was
		// refused may have been another's.
		for series, n := range now {
			if n <= before[series] {
				continue
			}
			outcome, source := series.outcome, series.source
			switch outcome {
			case "accepted", "duplicate", "quarantined":
				_, err := fmt.Fprintf(out, "the relay has it: source %s, %s\n", source, outcome)
				return err
			case "unauthenticated":
				hint = fmt.Sprintf("one came to source %s and was refused, because its signature does not fit. Does the configuration have the secret of this account? --secret-file writes it", source)
			case "not_found":
				hint = fmt.Sprintf("one came to a path where there is no source: is the path of %s among a source's paths?", r.url)
			default:
				hint = fmt.Sprintf("one came to source %s and was answered with outcome %s", source, outcome)
			}
		}
	}
}

// series is one of postwire_received_total.
type series struct{ source, outcome string }

// received is what the relay has received so far.
func received(ctx context.Context, relay *admin.Client) (map[series]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(relay.URL, "/")+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := relay.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", admin.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	counts := map[series]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var s series
		var n float64
		rest, ok := strings.CutPrefix(lines.Text(), "postwire_received_total{outcome=")
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(strings.NewReplacer(`,source=`, " ", "}", " ").Replace(rest), "%q %q %g", &s.outcome, &s.source, &n); err != nil {
			return nil, fmt.Errorf("reading the relay's metrics: %w", err)
		}
		counts[s] = n
	}
	return counts, nil
}
