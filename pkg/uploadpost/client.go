// Package uploadpost is a client of Upload-Post's API: notification settings and upload
// history. The client follows the documentation, and accepts the variants in which the
// service answers at times: two hosts, two shapes of a field, several names of a list.
package uploadpost

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/sleep"
)

// DefaultBaseURL is the URL of the API. The documented host, app.upload-post.com, answers
// 405 at times.
const DefaultBaseURL = "https://api.upload-post.com/api"

const (
	defaultTimeout  = 30 * time.Second
	defaultAttempts = 5
	longestWait     = 2 * time.Minute // longest wait that the service may ask for
	maxAnswer       = 16 << 20        // bytes
)

// Options of a Client. APIKey is needed.
type Options struct {
	BaseURL   string            // empty is DefaultBaseURL
	APIKey    config.Secret     // key from the dashboard of the service
	Transport http.RoundTripper // nil is a default transport
	Timeout   time.Duration     // of one request; 0 is 30 seconds
	Attempts  int               // of one call; 0 is 5

	Now  func() time.Time                                 // nil is time.Now
	Wait func(ctx context.Context, d time.Duration) error // nil sleeps
}

// Client calls the API. The methods may be called concurrently. A method retries after 429
// and 5xx, with back-off and after the delay that the service asks for, and not after other
// answers. Errors do not contain the key. If the service has answered, the error is an
// *Error.
type Client struct {
	opts Options
	base string
	http *http.Client
}

// New returns a client.
func New(o Options) (*Client, error) {
	if o.BaseURL == "" {
		o.BaseURL = DefaultBaseURL
	}
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, errors.New("the base URL of the API is not a URL such as " + DefaultBaseURL)
	}
	if strings.TrimSpace(o.APIKey.Reveal()) == "" {
		return nil, errors.New("the API key is empty")
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Attempts == 0 {
		o.Attempts = defaultAttempts
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == nil {
		o.Wait = sleep.For
	}
	return &Client{opts: o, base: strings.TrimRight(o.BaseURL, "/"), http: &http.Client{
		Transport: o.Transport, Timeout: o.Timeout,
		// A redirect would send the key to another server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Error is an error answer of the service.
type Error struct {
	Status int    // HTTP status
	What   string // description with advice
}

func (e *Error) Error() string { return e.What }

// repeats reports whether a call may be repeated if its outcome is unknown.
type repeats bool

const (
	once   repeats = false
	freely repeats = true
)

// call makes a call and decodes the answer into out.
func (c *Client) call(ctx context.Context, r repeats, method, path string, query url.Values, body, out any) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, 30*time.Second
	for attempt := 1; ; attempt++ {
		asked, err := c.try(ctx, method, path, query, body, out)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s %s: %w", method, path, err)
		refused, answered := errors.AsType[*Error](err)
		again := answered && (refused.Status == http.StatusTooManyRequests || refused.Status >= 500 && bool(r)) ||
			!answered && bool(r)
		if !again || attempt == c.opts.Attempts || ctx.Err() != nil {
			return err
		}
		if asked > longestWait {
			return fmt.Errorf("%w; it asks to come again in %v", err, asked.Round(time.Second))
		}
		if waited := c.opts.Wait(ctx, max(asked, pause.NextBackOff())); waited != nil {
			return err
		}
	}
}

// try makes one request. With an error it also returns the delay that the service asks for.
func (c *Client) try(ctx context.Context, method, path string, query url.Values, body, out any) (time.Duration, error) {
	target := c.base + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, fmt.Errorf("encoding the request: %w", err)
		}
		sent = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, sent)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Apikey "+c.opts.APIKey.Reveal())
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "Postwire")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // the caller adds the rest
		}
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return 0, fmt.Errorf("reading the answer: %w", err)
	}
	if len(text) > maxAnswer {
		return 0, fmt.Errorf("the answer has more than %d MiB", maxAnswer>>20)
	}
	if resp.StatusCode/100 != 2 || !isJSON(resp) {
		return c.asked(resp.Header), explain(resp, text, c.base)
	}
	if out == nil {
		return 0, nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return 0, &Error{resp.StatusCode, "the answer is not what was expected of this API: " + jsonFault(err)}
	}
	return 0, nil
}

// jsonFault describes a JSON error without quoting the JSON.
func jsonFault(err error) string {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("%s is of type %s", cmp.Or(e.Field, "it"), e.Value)
	}
	if errors.Is(err, errNoList) {
		return err.Error()
	}
	return "it is not JSON"
}

func isJSON(resp *http.Response) bool {
	media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return err == nil && (media == "application/json" || strings.HasSuffix(media, "+json"))
}

// asked returns the delay that the service asks for, or 0.
func (c *Client) asked(h http.Header) time.Duration {
	now := c.opts.Now()
	if text := h.Get("Retry-After"); text != "" {
		if seconds, err := strconv.ParseFloat(text, 64); err == nil {
			return max(0, time.Duration(seconds*float64(time.Second)))
		}
		if at, err := http.ParseTime(text); err == nil {
			return max(0, at.Sub(now))
		}
	}
	// The value is a time in Unix seconds, or seconds from now.
	if seconds, err := strconv.ParseFloat(h.Get("X-RateLimit-Reset"), 64); err == nil && seconds > 0 {
		if seconds > 1e9 {
			return max(0, time.Unix(int64(seconds), 0).Sub(now))
		}
		return time.Duration(seconds * float64(time.Second))
	}
	return 0
}

// explain describes an answer in words.
func explain(resp *http.Response, text []byte, base string) *Error {
	status := resp.StatusCode
	said := ""
	if isJSON(resp) {
		var m struct{ Message, Detail, Error any }
		if json.Unmarshal(text, &m) == nil {
			for _, v := range []any{m.Message, m.Detail, m.Error} {
				if s, ok := v.(string); ok && s != "" {
					if len(s) > 300 {
						s = strings.ToValidUTF8(s[:300], "") + "…"
					}
					said = ": " + s
					break
				}
			}
		}
	}
	web := !isJSON(resp) && strings.Contains(strings.ToLower(string(text[:min(len(text), 512)])), "<html")
	const other = "; the API is at " + DefaultBaseURL + ", and the base URL in use is "
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return &Error{status, fmt.Sprintf("answered %d%s; is the API key right, and may it do that?", status, said)}
	case status == http.StatusMethodNotAllowed:
		return &Error{status, fmt.Sprintf("answered 405, as the documented host does at times%s%s", other, base)}
	case status/100 == 3:
		return &Error{status, fmt.Sprintf("answered %d, a redirect, which is not followed with the API key%s%s", status, other, base)}
	case web:
		return &Error{status, fmt.Sprintf("answered %d with a web page in place of JSON%s%s", status, other, base)}
	case status/100 == 2:
		return &Error{status, fmt.Sprintf("answered %d with something that is not JSON%s%s", status, other, base)}
	case status == http.StatusNotFound:
		return &Error{status, fmt.Sprintf("answered 404%s%s%s", said, other, base)}
	case status == http.StatusTooManyRequests:
		return &Error{status, "answered 429: too many requests" + said}
	}
	return &Error{status, fmt.Sprintf("answered %d%s", status, said)}
}
