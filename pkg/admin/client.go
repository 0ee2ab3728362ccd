package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/postwire/postwire/pkg/relay"
)

// Client calls the admin API of a running relay. Methods may be called concurrently.
type Client struct {
	URL   string // of the admin port, such as http://127.0.0.1:9090
	Token string // bearer token; empty for no token
	HTTP  *http.Client
}

// List returns a page of dead letters and quarantined requests. The query has the
// parameters of the operation list-dlq.
func (c *Client) List(ctx context.Context, query url.Values) (page DLQPage, err error) {
	return page, c.call(ctx, http.MethodGet, "/dlq?"+query.Encode(), nil, &page)
}

// Show returns one entry with the event or the request.
func (c *Client) Show(ctx context.Context, id string) (e DLQEntry, err error) {
	return e, c.call(ctx, http.MethodGet, "/dlq/"+url.PathEscape(id), nil, &e)
}

// Retry redelivers one dead letter, or converts one quarantined request again.
func (c *Client) Retry(ctx context.Context, id string) (h ActionResult, err error) {
	return h, c.call(ctx, http.MethodPost, "/dlq/"+url.PathEscape(id)+"/retry", nil, &h)
}

// Drop removes one entry permanently.
func (c *Client) Drop(ctx context.Context, id string) (h ActionResult, err error) {
	return h, c.call(ctx, http.MethodDelete, "/dlq/"+url.PathEscape(id), nil, &h)
}

// Handle retries or drops a page of entries: action is "retry" or "drop". The filter
// has the parameters of List.
func (c *Client) Handle(ctx context.Context, action string, filter map[string]any) (page ActionPage, err error) {
	return page, c.call(ctx, http.MethodPost, "/dlq-"+action, filter, &page)
}

// Count returns the number of entries by reason. The query has the parameters of List.
func (c *Client) Count(ctx context.Context, query url.Values) (count DLQCount, err error) {
	return count, c.call(ctx, http.MethodGet, "/dlq-count?"+query.Encode(), nil, &count)
}

// StartReplay starts a replay, or counts the events of a dry run.
func (c *Client) StartReplay(ctx context.Context, r ReplayRequest) (re relay.Replay, err error) {
	return re, c.call(ctx, http.MethodPost, "/replays", r, &re)
}

// Replays returns every replay, newest first.
func (c *Client) Replays(ctx context.Context) ([]relay.Replay, error) {
	var all struct{ Replays []relay.Replay }
	err := c.call(ctx, http.MethodGet, "/replays", nil, &all)
	return all.Replays, err
}

// Replay returns one replay by ID.
func (c *Client) Replay(ctx context.Context, id string) (re relay.Replay, err error) {
	return re, c.call(ctx, http.MethodGet, "/replays/"+url.PathEscape(id), nil, &re)
}

// SteerReplay stops or continues a replay: action is "stop" or "continue".
func (c *Client) SteerReplay(ctx context.Context, id, action string) (re relay.Replay, err error) {
	return re, c.call(ctx, http.MethodPost, "/replays/"+url.PathEscape(id)+"/"+action, nil, &re)
}

// call sends a request and decodes the answer.
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("reading the relay's answer: %w", err)
	}
	return nil
}

// ErrUnreachable is wrapped by errors of requests without an answer.
var ErrUnreachable = errors.New("no relay answers there")

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.URL, "/")+BasePath+path, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return nil, fmt.Errorf("calling the admin API at %s: %w: %w", c.URL, ErrUnreachable, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p huma.ErrorModel
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if strings.Contains(string(text), "HTTP request to an HTTPS server") { // text of net/http
		return nil, fmt.Errorf("calling the admin API at %s: the port requires HTTPS: use https://", c.URL)
	}
	if err != nil || p.Status == 0 {
		return nil, fmt.Errorf("calling the admin API at %s: unexpected answer %s; is this the admin port of a relay?", c.URL, resp.Status)
	}
	lines := []string{p.Detail}
	for _, e := range p.Errors {
		lines = append(lines, e.Error())
	}
	return nil, &RefusedError{Status: p.Status, Detail: strings.Join(lines, "\n  ")}
}

// RefusedError is an error answer of the API.
type RefusedError struct {
	Status int
	Detail string
}

func (r *RefusedError) Error() string { return r.Detail }
