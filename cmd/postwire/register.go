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

// serviceFlags are address and key of Upload-Post's API.
type serviceFlags struct{ url, keyFile string }

func (f *serviceFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.keyFile, "api-key-file", "", "file with the API key of the Upload-Post account (default $UPLOAD_POST_API_KEY)")
	p.StringVar(&f.url, "api-url", uploadpost.DefaultBaseURL, "base URL of Upload-Post's API")
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
		return nil, fmt.Errorf("%w: the API key is missing: set UPLOAD_POST_API_KEY, or name a file by --api-key-file", errUsage)
	}
	c, err := uploadpost.New(uploadpost.Options{BaseURL: f.url, APIKey: key})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return c, nil
}

// withService is the RunE of a command that calls Upload-Post's API.
func withService(f *serviceFlags, do func(cmd *cobra.Command, c *uploadpost.Client) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		return do(cmd, c)
	}
}

// secretFlags are the destinations of the signing secret. No command prints the secret.
type secretFlags struct{ file, manifest, name string }

func (f *secretFlags) register(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.file, "secret-file", "", "write the signing secret to this file, for ${file:…} in the configuration")
	p.StringVar(&f.manifest, "secret-manifest", "", "write a Kubernetes Secret with the signing secret to this file")
	p.StringVar(&f.name, "secret-name", "postwire-upload-post", "name of the Kubernetes Secret")
}

// secretKey is the key in the Kubernetes Secret, and the environment variable of the examples.
const secretKey = "UPLOAD_POST_WEBHOOK_SECRET" //nolint:gosec // a name, not a secret

// write writes the secret to the files of the flags. A file is complete, or unchanged.
func (f *secretFlags) write(out io.Writer, secret config.Secret) error {
	if f.file == "" && f.manifest == "" {
		return nil
	}
	if secret == "" {
		return errors.New("Upload-Post returned no signing secret; Upload-Post creates the secret with the first registered webhook")
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
	_, err = fmt.Fprintf(out, "Secret %s with %s written to %s; apply the manifest, then remove the file\n", f.name, shown(secret), f.manifest)
	return err
}

// writeSecret writes a file with mode 0600, and replaces an existing file or link. The
// text goes to a new file with an unpredictable name first, and then the new file is
// renamed, so that no link of another user is followed, and no file of another user is
// filled.
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

// shown is a prefix of a secret, long enough to distinguish two secrets.
func shown(secret config.Secret) string {
	text := secret.Reveal()
	if len(text) < 16 {
		return secret.String()
	}
	return text[:9] + "…"
}

// registration holds the flags of register.
type registration struct {
	service  serviceFlags
	secret   secretFlags
	url      string
	events   []string
	telegram string
	profile  string
	dryRun   bool
	test     bool
	timeout  time.Duration // of the test
}

func registerCommand() *cobra.Command {
	var r registration
	var a adminFlags
	cmd := &cobra.Command{
		Use:   "register",
		Short: "Register the relay's URL as a webhook at Upload-Post",
		Long: `Show the present settings at Upload-Post and the changes, apply the changes, and
verify the result. Other enabled notification channels stay enabled.`,
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
		RunE: withService(&r.service, func(cmd *cobra.Command, c *uploadpost.Client) error {
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
	f.StringVar(&r.url, "url", "", "public URL of the relay for webhooks")
	f.StringSliceVar(&r.events, "events", nil, "events to enable; every other event is disabled (default unchanged)")
	f.StringVar(&r.telegram, "telegram-chat-id", "", "enable Upload-Post's own Telegram messages, to this chat")
	f.StringVar(&r.profile, "profile", "", "register the webhook of this profile, in addition to the account's webhook")
	f.BoolVar(&r.dryRun, "dry-run", false, "show the changes, and apply nothing")
	f.BoolVar(&r.test, "test", false, "request a test notification from Upload-Post, and wait until the relay has received the notification")
	f.DurationVar(&r.timeout, "test-timeout", 30*time.Second, "maximum time until the relay receives the test notification")
	r.service.register(cmd)
	r.secret.register(cmd)
	a.register(cmd)
	return cmd
}

func (r *registration) check() error {
	u, err := url.Parse(r.url)
	switch {
	case r.url == "":
		return errors.New("--url is missing: set the public URL of the relay for webhooks")
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return fmt.Errorf("--url: %s is not a URL such as https://relay.example.com/webhooks/upload-post", r.url)
	case r.profile != "" && r.telegram != "":
		return errors.New("--telegram-chat-id is a setting of the account: use --telegram-chat-id without --profile")
	case r.profile != "" && r.test:
		return errors.New("--test tests the webhook of the account: use --test without --profile")
	}
	for _, name := range r.events {
		if !slices.Contains(sample.Events(), sample.Event(name)) {
			return fmt.Errorf("--events: there is no event %q; use events of %v", name, sample.Events())
		}
	}
	return nil
}

// wanted returns the events to enable, or nil for no change.
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
		_, err := fmt.Fprintln(out, "no change applied (--dry-run)")
		return err
	}
	if err := c.SetNotifications(ctx, change); err != nil {
		return err
	}
	after, err := c.Notifications(ctx)
	if err != nil {
		return fmt.Errorf("verifying the settings: %w", err)
	}
	if err := same(settingsOf(want), settingsOf(after)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "registered: Upload-Post sends webhooks to %s\n", after.WebhookURL); err != nil {
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
		_, err := fmt.Fprintln(out, "no change applied (--dry-run)")
		return err
	}
	if err := c.SetProfileWebhook(ctx, want); err != nil {
		return err
	}
	after, err := c.ProfileWebhook(ctx, r.profile)
	if err != nil {
		return fmt.Errorf("verifying the settings: %w", err)
	}
	if err := same(profileSettings(want), profileSettings(after)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "registered: Upload-Post sends webhooks of profile %s to %s\n", r.profile, after.WebhookURL); err != nil {
		return err
	}
	if secret == "" { // Upload-Post has created the secret with this change
		settings, err := c.Notifications(ctx)
		if err != nil {
			return fmt.Errorf("reading the signing secret: %w", err)
		}
		secret = settings.WebhookSecret
	}
	return r.secret.write(out, secret)
}

// setting is a setting at Upload-Post, by name and value.
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

// compare prints present and future settings.
func compare(out io.Writer, before, after []setting) error {
	return table(out, "SETTING PRESENT NEW", func(row func(...any)) error {
		for _, a := range after {
			next := a.value
			present := valueOf(before, a.name)
			if present == next {
				next = "(unchanged)"
			}
			row(a.name, present, next)
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

// same returns an error if the settings at Upload-Post differ from the wanted settings.
func same(want, got []setting) error {
	var wrong []string
	for _, w := range want {
		if value := valueOf(got, w.name); value != w.value {
			wrong = append(wrong, fmt.Sprintf("%s is %q, not %q", w.name, value, w.value))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("Upload-Post accepted the change, and returned different settings: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// tryOut requests a test notification, and waits until the relay has received it.
func (r *registration) tryOut(ctx context.Context, out io.Writer, c *uploadpost.Client, relay *admin.Client) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	before, err := received(ctx, relay)
	if err != nil {
		return fmt.Errorf("reading the relay's metrics: %w", explain(err))
	}
	if err := c.TestNotifications(ctx); err != nil {
		return fmt.Errorf("Upload-Post sent no test notification: %w", err)
	}
	if _, err := fmt.Fprintln(out, "Upload-Post has sent a test notification; waiting for the relay"); err != nil {
		return err
	}
	hint := fmt.Sprintf("the relay received no request: does %s reach the relay through every firewall and proxy?", r.url)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the relay accepted no test notification within %v: %s", r.timeout, hint)
		}
		counts, err := received(ctx, relay)
		if err != nil {
			continue // the relay may return; ctx limits the time
		}
		// Other requests may arrive, too: an accepted request ends the test, a refused
		// request only changes the hint.
		for series, n := range counts {
			if n <= before[series] {
				continue
			}
			outcome, source := series.outcome, series.source
			switch outcome {
			case "accepted", "duplicate", "quarantined":
				_, err := fmt.Fprintf(out, "the relay received the test notification: source %s, %s\n", source, outcome)
				return err
			case "unauthenticated":
				hint = fmt.Sprintf("source %s refused a request with a wrong signature. Does the configuration have the secret of this account? --secret-file writes the secret", source)
			case "not_found":
				hint = fmt.Sprintf("a request arrived at a path without a source: is the path of %s in the paths of a source?", r.url)
			default:
				hint = fmt.Sprintf("source %s answered a request with outcome %s", source, outcome)
			}
		}
	}
}

// series identifies a time series of postwire_received_total.
type series struct{ source, outcome string }

// received returns the number of received requests by source and outcome.
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
