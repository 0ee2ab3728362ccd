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

// Client asks the API of a running relay. Its methods may be called
// concurrently.
type Client struct {
	URL   string // of the admin port, such as http://127.0.0.1:9090
	Token string // admin.token; empty shows none
	HTTP  *http.Client
}

// List returns a page of what was set aside. The query holds the filter and
// the paging of the operation list-dlq.
func (c *Client) List(ctx context.Context, query url.Values) (page DLQPage, err error) {
	return page, c.ask(ctx, http.MethodGet, "/dlq?"+query.Encode(), nil, &page)
}

// Show returns one entry whole.
func (c *Client) Show(ctx context.Context, id string) (e DLQEntry, err error) {
	return e, c.ask(ctx, http.MethodGet, "/dlq/"+url.PathEscape(id), nil, &e)
}

// Retry lets one entry enter the normal way again.
func (c *Client) Retry(ctx context.Context, id string) (h ActionResult, err error) {
	return h, c.ask(ctx, http.MethodPost, "/dlq/"+url.PathEscape(id)+"/retry", nil, &h)
}

// Drop removes one entry for good.
func (c *Client) Drop(ctx context.Context, id string) (h ActionResult, err error) {
	return h, c.ask(ctx, http.MethodDelete, "/dlq/"+url.PathEscape(id), nil, &h)
}

// Handle does the same, "retry" or "drop", for a page of entries. The filter is
// as for List.
func (c *Client) Handle(ctx context.Context, what string, filter map[string]any) (page ActionPage, err error) {
	return page, c.ask(ctx, http.MethodPost, "/dlq-"+what, filter, &page)
}

// Count says how much the same filter means.
func (c *Client) Count(ctx context.Context, query url.Values) (count DLQCount, err error) {
	return count, c.ask(ctx, http.MethodGet, "/dlq-count?"+query.Encode(), nil, &count)
}

// StartReplay starts a replay, or plans one.
func (c *Client) StartReplay(ctx context.Context, r ReplayRequest) (re relay.Replay, err error) {
	return re, c.ask(ctx, http.MethodPost, "/replays", r, &re)
}

// Replays returns all there are, the newest first.
func (c *Client) Replays(ctx context.Context) ([]relay.Replay, error) {
	var all struct{ Replays []relay.Replay }
	err := c.ask(ctx, http.MethodGet, "/replays", nil, &all)
	return all.Replays, err
}

// Replay returns one.
func (c *Client) Replay(ctx context.Context, id string) (re relay.Replay, err error) {
	return re, c.ask(ctx, http.MethodGet, "/replays/"+url.PathEscape(id), nil, &re)
}

// SteerReplay stops or continues a replay: what is "stop" or "continue".
func (c *Client) SteerReplay(ctx context.Context, id, what string) (re relay.Replay, err error) {
	return re, c.ask(ctx, http.MethodPost, "/replays/"+url.PathEscape(id)+"/"+what, nil, &re)
}

// ask sends a request and reads its answer.
func (c *Client) ask(ctx context.Context, method, path string, body, answer any) error {
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

// ErrUnreachable is wrapped where no relay answers.
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
		return nil, fmt.Errorf("asking the admin API at %s: %w: %w", c.URL, ErrUnreachable, err)
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
	if strings.Contains(string(text), "HTTP request to an HTTPS server") { // as net/http says it
		return nil, fmt.Errorf("asking the admin API at %s: the port speaks HTTPS: use https://", c.URL)
	}
	if err != nil || p.Status == 0 {
		return nil, fmt.Errorf("asking the admin API at %s: it answers %s; is this the admin port of a relay?", c.URL, resp.Status)
	}
	lines := []string{p.Detail}
	for _, e := range p.Errors {
		lines = append(lines, e.Error())
	}
	return nil, &RefusedError{Status: p.Status, Detail: strings.Join(lines, "\n  ")}
}

// RefusedError is an answer of the API that is an error.
type RefusedError struct {
	Status int
	Detail string
}

func (r *RefusedError) Error() string { return r.Detail }
