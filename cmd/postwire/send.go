package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

// sender posts sample webhooks.
type sender struct {
	url                  string
	count, parallel      int
	perSecond            float64
	duplicates, failures float64
	event, secret        string

	source   string        // source of the configuration that has the secret
	insecure bool          // does not verify the certificate of the relay
	wait     time.Duration // time for the delivery to every sink; 0 does not wait
	admin    adminFlags

	client *http.Client
	random *rand.Rand
}

func sendCommand() *cobra.Command {
	s := &sender{client: &http.Client{Timeout: 15 * time.Second}, random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))} //nolint:gosec // sample data
	cmd := &cobra.Command{
		Use:   "send",
		Short: "Post sample webhooks to a relay",
		Long: `Post sample webhooks of Upload-Post to a relay, signed if a secret is set.

Without --count, --event and --failures, the command posts Upload-Post's documented
example, so that every webhook has an equal event. With any of these flags, the
command posts random events.

With --wait the command ends when every sink has the event, and fails if a sink
refuses the event or cannot deliver in time. The command asks the admin port of the
relay, so it needs the URL and the token, or -c with the configuration of the relay.`,
		Example: `  postwire send
  postwire send --count 1000 --rate 200 --duplicates 0.1 --failures 0.05
  postwire send --event social_account_disconnected --secret "$UPLOAD_POST_WEBHOOK_SECRET"
  postwire send -c postwire.yaml --source upload-post --wait 30s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			f := cmd.Flags()
			random := f.Changed("count") || f.Changed("event") || f.Changed("failures")
			if s.source != "" {
				var err error
				if s.secret, err = secretOf(s.admin.config, s.source); err != nil {
					return err
				}
			}
			if s.insecure {
				t := http.DefaultTransport.(*http.Transport).Clone()
				t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the user asks for it, to test a relay by another name
				s.client.Transport = t
			}
			if s.wait == 0 {
				_, err := s.run(cmd.Context(), random, cmd.OutOrStdout())
				return err
			}
			return withAdmin(&s.admin, func(cmd *cobra.Command, c *admin.Client, _ []string) error {
				id, err := s.run(cmd.Context(), random, cmd.OutOrStdout())
				if err != nil {
					return err
				}
				return waitDelivered(cmd.Context(), c, id, s.wait, cmd.OutOrStdout())
			})(cmd, nil)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.url, "url", "http://127.0.0.1:8080/webhooks/upload-post", "URL of the relay for webhooks")
	f.IntVar(&s.count, "count", 1, "number of webhooks")
	f.Float64Var(&s.perSecond, "rate", 0, "webhooks per second; 0 for no limit")
	f.IntVar(&s.parallel, "parallel", 8, "maximum number of concurrent requests")
	f.Float64Var(&s.duplicates, "duplicates", 0, "share of webhooks that repeat an earlier event, 0 to 1")
	f.Float64Var(&s.failures, "failures", 0, "share of failed uploads, 0 to 1")
	f.StringVar(&s.event, "event", string(sample.UploadCompleted), "name of the event")
	f.StringVar(&s.secret, "secret", os.Getenv("UPLOAD_POST_WEBHOOK_SECRET"), "sign with this secret (default $UPLOAD_POST_WEBHOOK_SECRET)")
	f.Lookup("secret").DefValue = "" // the help must not show the secret
	f.StringVar(&s.source, "source", "", "sign with the first secret of this source in the configuration of -c")
	f.BoolVar(&s.insecure, "insecure-skip-verify", false, "do not verify the certificate of the relay's webhook port")
	f.DurationVar(&s.wait, "wait", 0, "wait at most this time until every sink has the event; 0 does not wait")
	s.admin.register(cmd)
	return cmd
}

func (s *sender) check() error {
	what, hint := config.Stray(s.secret)
	switch {
	case what != "":
		return fmt.Errorf("--secret %s; %s", what, hint)
	case s.source != "" && s.admin.config == "":
		return errors.New("--source: name the configuration of the relay with -c")
	case s.wait < 0:
		return errors.New("--wait: use 0 or more")
	case s.wait > 0 && s.count != 1:
		return errors.New("--wait: use it without --count, for one webhook")
	case s.count < 1:
		return errors.New("--count: use 1 or more")
	case s.parallel < 1:
		return errors.New("--parallel: use 1 or more")
	case s.perSecond < 0:
		return errors.New("--rate: use 0 or more")
	case s.duplicates < 0 || s.duplicates > 1:
		return errors.New("--duplicates: use a share from 0 to 1")
	case s.failures < 0 || s.failures > 1:
		return errors.New("--failures: use a share from 0 to 1")
	case !slices.Contains(sample.Events(), sample.Event(s.event)):
		return fmt.Errorf("--event: there is no event %q; use one of %v", s.event, sample.Events())
	}
	return nil
}

// delivery is the body of a webhook, or the error of creating the body.
type delivery struct {
	body []byte
	err  error
}

// deliveries creates the bodies, including duplicates.
func (s *sender) deliveries(ctx context.Context, random bool) <-chan delivery {
	deliveries := make(chan delivery)
	limit := rate.Inf
	if s.perSecond > 0 {
		limit = rate.Limit(s.perSecond)
	}
	limiter := rate.NewLimiter(limit, 1)
	go func() {
		defer close(deliveries)
		var recent [][]byte // candidates for duplicates
		for range s.count {
			body := sample.Example()
			var err error
			switch {
			case len(recent) > 0 && s.random.Float64() < s.duplicates:
				body = recent[s.random.IntN(len(recent))]
			case random:
				body, err = sample.Random(s.random, sample.Event(s.event), s.random.Float64() < s.failures, time.Now())
				fallthrough
			default:
				if recent = append(recent, body); len(recent) > 100 {
					recent = recent[1:]
				}
			}
			if limiter.Wait(ctx) != nil {
				return
			}
			select {
			case deliveries <- delivery{body, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return deliveries
}

// run posts every webhook, and returns the ID of the last event. An answer other than 2xx is
// an error.
func (s *sender) run(ctx context.Context, random bool, out io.Writer) (id string, err error) {
	bar := progressbar.NewOptions(s.count,
		progressbar.OptionSetDescription("sending"), progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowCount(),
		progressbar.OptionShowIts(), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(),
		progressbar.OptionSetVisibility(s.count > 1 && term.IsTerminal(int(os.Stderr.Fd()))))
	var mu sync.Mutex
	answers := map[string]int{}
	var failed error
	begin := time.Now()
	deliveries := s.deliveries(ctx, random)
	var workers sync.WaitGroup
	for range min(s.parallel, s.count) {
		workers.Go(func() {
			for d := range deliveries {
				answer, event, err := "not created", "", d.err
				if err == nil {
					answer, event, err = s.post(ctx, d.body)
				}
				mu.Lock()
				id = event
				answers[answer]++
				if err != nil && failed == nil {
					failed = err
				}
				mu.Unlock()
				_ = bar.Add(1) // an error affects the display only
			}
		})
	}
	workers.Wait()
	_ = bar.Finish()
	elapsed := time.Since(begin)
	for _, answer := range slices.Sorted(maps.Keys(answers)) {
		if _, err := fmt.Fprintf(out, "%7d  %s\n", answers[answer], answer); err != nil {
			return "", err
		}
	}
	if s.count > 1 {
		if _, err := fmt.Fprintf(out, "%7d  webhooks in %s\n", s.count, elapsed.Round(time.Millisecond)); err != nil {
			return "", err
		}
	}
	if failed != nil {
		return "", fmt.Errorf("some webhooks were not accepted: %w", failed)
	}
	return id, ctx.Err()
}

// post posts one webhook, and returns a short form of the answer and the ID of the event.
func (s *sender) post(ctx context.Context, body []byte) (short, id string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return "not sent", "", fmt.Errorf("%w: --url: %w", errUsage, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Upload-Post-Webhooks/1.0")
	req.Header.Set(uploadpost.EventHeader, s.event)
	req.Header.Set(uploadpost.DeliveryHeader, uuid.NewString())
	if s.secret != "" {
		if err := auth.UploadPost.Sign(req.Header, s.secret, "", time.Now(), body); err != nil {
			return "not sent", "", fmt.Errorf("%w: --secret: %w", errUsage, err)
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return "no answer", "", fmt.Errorf("posting to %s: %w", s.url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "no answer", "", fmt.Errorf("reading the answer of %s: %w", s.url, err)
	}
	answer := resp.Status
	var accepted struct{ Status, ID string }
	if resp.StatusCode < 300 {
		if err := json.Unmarshal(text, &accepted); err != nil {
			return answer, "", fmt.Errorf("reading the answer of %s: %w", s.url, err)
		}
	}
	if s.count == 1 {
		answer += " " + strings.TrimSpace(string(text))
	} else if resp.StatusCode < 300 {
		answer += " " + accepted.Status
	}
	if resp.StatusCode >= 300 {
		return answer, "", fmt.Errorf("%s answered %s", s.url, resp.Status)
	}
	return answer, accepted.ID, nil
}

// secretOf returns the first secret of a source for which send makes samples; "" for a
// source with auth none.
func secretOf(path, name string) (string, error) {
	plan, err := app.Load(path)
	if err != nil {
		return "", err
	}
	for _, s := range plan.Sources {
		own, ok := s.Own.(uploadpost.Config)
		switch {
		case s.Name != name:
		case !ok:
			return "", fmt.Errorf("%w: --source: %s is of type %s, and the samples are of Upload-Post", errUsage, name, s.Kind)
		case own.Auth.None:
			return "", nil
		case own.Auth.Signature == nil || len(own.Auth.Signature.Secrets) == 0:
			return "", fmt.Errorf("%w: --source: %s has no secret for signatures in %s", errUsage, name, path)
		default:
			return own.Auth.Signature.Secrets[0].Reveal(), nil
		}
	}
	return "", fmt.Errorf("%w: --source: there is no source %s in %s", errUsage, name, path)
}
