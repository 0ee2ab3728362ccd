package test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// TestHostileHeaderMemory: headers of many small fields take far more memory than they have bytes.
func TestHostileHeaderMemory(t *testing.T) {
	files(t)
	for _, tt := range []struct {
		name      string
		field     func(i int) string
		perSecond int
	}{
		{"1500 connections with 60 KiB of tiny header values that do not end", func(int) string { return "X-1: a\r\n" }, 200},
		// Each name takes an entry of a map, and so much of the processor.
		{"1500 connections with 60 KiB of distinct header names that do not end", func(i int) string { return fmt.Sprintf("%x:\n", i) }, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var fields strings.Builder
			for i := 0; fields.Len() < 60<<10; i++ {
				fields.WriteString(tt.field(i))
			}
			b := besiege(t, "")
			b.withstands(t, tt.name, func(ctx context.Context) {
				attackers(ctx, 1500, tt.perSecond, func(ctx context.Context, i int) {
					untilClosed(open(ctx, b.addr, i, "POST /attacked HTTP/1.1\r\nHost: x\r\n"+fields.String()))
				})
			})
		})
	}
}

// TestHostileStreams: streams of HTTP/2 whose headers are one byte a field on the
// wire, whose bodies do not come, and whose answers are not read.
func TestHostileStreams(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "relay")
	server := fmt.Sprintf("server: {listen: \"${INGRESS}\", shutdown_delay: 0s, tls: {cert_file: %q, key_file: %q}}\n", cert, key)
	var first, tiny bytes.Buffer
	encoder := hpack.NewEncoder(&first)
	request := func(path string) []hpack.HeaderField {
		return []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: path}}
	}
	for _, f := range append(request("/attacked"), hpack.HeaderField{Name: "x", Value: "y"}) {
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	encoded := first.Len()
	for _, f := range request("/attacked") { // now in the table
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	tiny.Write(first.Bytes()[encoded:])
	first.Truncate(encoded)
	indexed := tiny.Len()
	for range 1800 {
		if err := encoder.WriteField(hpack.HeaderField{Name: "x", Value: "y"}); err != nil {
			t.Fatal(err)
		}
	}
	tiny.Write(first.Bytes()[encoded:])
	block := tiny.Bytes()
	for _, tt := range []struct {
		name  string
		block []byte // of each stream but the first
		end   bool
	}{
		{"60 connections of 240 streams with 1800 indexed header values", block, false},
		{"60 connections of streams whose bodies do not come", block[:indexed], false},
		{"60 connections of streams whose answers are not read", block[:indexed], true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := besiege(t, server)
			b.withstands(t, tt.name, func(ctx context.Context) {
				attackers(ctx, 60, 30, func(ctx context.Context, i int) {
					raw := open(ctx, b.addr, i, "")
					if raw == nil {
						return
					}
					defer raw.Close()
					conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
					if err := conn.HandshakeContext(ctx); err != nil {
						return
					}
					out := bufio.NewWriter(conn)
					_, _ = out.WriteString(http2.ClientPreface)
					f := http2.NewFramer(out, conn)
					settings := []http2.Setting{}
					if tt.end {
						settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
					}
					_ = f.WriteSettings(settings...)
					for stream := range 240 {
						text := tt.block
						if stream == 0 {
							text = first.Bytes()
						}
						if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*stream + 1), BlockFragment: text, EndHeaders: true, EndStream: tt.end}); err != nil {
							return
						}
					}
					_ = out.Flush()
					untilClosed(conn)
				})
			})
		})
	}
}

// TestHostileAdminHeaders: large headers on the admin port.
func TestHostileAdminHeaders(t *testing.T) {
	b := besiege(t, "")
	large := "GET /api/v1/status HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-1: a\r\n", 1<<17)
	b.withstands(t, "80 headers of 1 MiB on the admin port", func(ctx context.Context) {
		attackers(ctx, 80, 80, func(ctx context.Context, i int) { untilClosed(open(ctx, b.admin, i, large)) })
	})
}

// TestHostileDescriptors: clients that never read, and idle ones, where the process
// may open 2048 files.
func TestHostileDescriptors(t *testing.T) {
	files(t)
	under := []string{"sh", "-c", `ulimit -n 2048 && exec "$0" "$@"`}
	for _, tt := range []struct {
		name   string
		attack func(b *besieged) func(ctx context.Context, i int)
	}{
		{"2500 clients of the admin port that ask for metrics and never read, at 2048 open files", func(b *besieged) func(ctx context.Context, i int) {
			return func(ctx context.Context, i int) {
				conn := open(ctx, b.admin, i, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200))
				if conn != nil {
					<-ctx.Done()
				}
			}
		}},
		{"2500 idle connections, at 2048 open files", func(b *besieged) func(ctx context.Context, i int) {
			return func(ctx context.Context, i int) {
				untilClosed(open(ctx, b.addr, i, "OPTIONS /open HTTP/1.1\r\nHost: x\r\n\r\n"))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := besiege(t, "", under...)
			b.withstands(t, tt.name, func(ctx context.Context) { attackers(ctx, 2500, 1000, tt.attack(b)) })
		})
	}
}

// slowly is a body that is announced and does not come.
const slowly = "POST /attacked HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"

// TestHostileSlowBodies: more connections than there may be, each with a body that
// does not come.
func TestHostileSlowBodies(t *testing.T) {
	n := min(10400, files(t)-1000)
	for _, tt := range []struct {
		name string
		from func(i int) int
	}{
		{fmt.Sprintf("%d connections with bodies that do not come, of many addresses", n), func(i int) int { return i % 1000 }},
		{fmt.Sprintf("%d connections with bodies that do not come, of the honest sender's address", n), func(int) int { return -1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := besiege(t, "")
			b.withstands(t, tt.name, func(ctx context.Context) {
				attackers(ctx, n, 2000, func(ctx context.Context, i int) { untilClosed(open(ctx, b.addr, tt.from(i), slowly)) })
			})
		})
	}
}

// TestHostileBehindAProxy: attackers and the honest sender come through one trusted
// proxy, whose connections are neither's.
func TestHostileBehindAProxy(t *testing.T) {
	files(t)
	b := besiege(t, "server: {listen: \"${INGRESS}\", shutdown_delay: 0s, trusted_proxies: [127.0.0.1/32]}\n")
	b.header = http.Header{"X-Forwarded-For": {"203.0.113.9"}}
	large := strings.Repeat(" ", 900<<10)
	b.withstands(t, "1500 connections of a trusted proxy with bodies of 1 MB that do not end, of 10 addresses; the honest sender uses the same proxy and source", func(ctx context.Context) {
		attackers(ctx, 1500, 100, func(ctx context.Context, i int) {
			untilClosed(open(ctx, b.addr, -1, fmt.Sprintf("POST /honest HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.%d\r\nContent-Length: 1000000\r\n\r\n%s", i%10, large)))
		})
	})
}

// TestHostileStalledGzip: compressed bodies of which a little comes, which holds a lot.
func TestHostileStalledGzip(t *testing.T) {
	files(t)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := io.Copy(w, io.LimitReader(&loop{text: " "}, 1000<<10)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	b := besiege(t, "")
	b.size = 20 << 10
	b.withstands(t, "1000 stalled gzip bodies of 1 KB that hold 1 MB, to the honest sender's source", func(ctx context.Context) {
		attackers(ctx, 1000, 500, func(ctx context.Context, i int) {
			untilClosed(open(ctx, b.addr, i%50, fmt.Sprintf("POST /honest HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", packed.Len()+100, packed.Bytes())))
		})
	})
}

// TestHostileFloodOfLargeBodies: bodies of the largest size to a source without auth,
// all of which are stored.
func TestHostileFloodOfLargeBodies(t *testing.T) {
	b := besiege(t, "")
	filler := strings.Repeat("x", 1000<<10)
	b.withstands(t, "200 senders of 1 MB each to a source without auth, 20 MB a second", func(ctx context.Context) {
		attackers(ctx, 200, 20, func(ctx context.Context, i int) {
			body := fmt.Sprintf(`{"event":"upload_completed","platform":"x","caption":%q,"result":{"success":true,"publish_id":"%d-%d"}}`, filler, i, time.Now().UnixNano())
			untilClosed(open(ctx, b.addr, i%20, fmt.Sprintf("POST /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)))
		})
	})
}

// forged is a webhook that is signed with a secret of the attacker's own.
func forged(t *testing.T) string {
	t.Helper()
	body := upload(3, 3)
	h := http.Header{}
	if err := auth.UploadPost.Sign(h, "whsec_of_a_forger_0123", "", time.Now(), body); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "POST /honest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", len(body))
	if err := h.Write(&text); err != nil {
		t.Fatal(err)
	}
	return text.String() + "\r\n" + string(body)
}

// TestHostileForgersOfAPISecrets: wrong signatures all the time, while the service
// signs with new secrets: the honest sender waits for the relay to read them.
func TestHostileForgersOfAPISecrets(t *testing.T) {
	files(t)
	service := simulator.New(simulator.Options{APIKey: "key", Random: rand.New(rand.NewPCG(21, 22))})
	defer service.Close()
	api := httptest.NewServer(service.Handler())
	defer api.Close()
	service.SetWebhook("http://127.0.0.1:1/", "") // so that there is a secret
	owner, err := uploadpost.New(uploadpost.Options{BaseURL: api.URL + "/api", APIKey: "key"})
	if err != nil {
		t.Fatal(err)
	}
	now := func() string {
		settings, err := owner.Notifications(t.Context())
		if err != nil {
			t.Error(err)
		}
		return settings.WebhookSecret.Reveal()
	}
	b := besiege(t, fmt.Sprintf("sources:\n  - {name: honest, type: uploadpost, paths: [/honest], auth: {signature: {from_api: true}}, api: {key: key, url: %q}}\n", api.URL+"/api"))
	b.secret, b.during, b.patience = now, pick(8*time.Second, 16*time.Second), 9*time.Second
	text := forged(t)
	b.withstands(t, "20 forged signatures a second, while the sender's secret is rotated (\\*)", func(ctx context.Context) {
		go func() {
			for range pick(1, 3) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(4 * time.Second):
				}
				if _, err := owner.RotateSecret(ctx); err != nil {
					t.Error(err)
				}
			}
		}()
		attackers(ctx, 400, 20, func(ctx context.Context, _ int) { untilClosed(open(ctx, b.addr, -1, text)) })
	})
}

// TestHostileForgersOfFileSecrets: many forgers wait for newer secrets beside the
// honest sender, whose secret is written to its file a moment later.
func TestHostileForgersOfFileSecrets(t *testing.T) {
	files(t)
	file := filepath.Join(t.TempDir(), "secret")
	current := "whsec_of_an_old_one_0"
	write := func() {
		if err := os.WriteFile(file+".new", []byte(current), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Error(err)
		}
	}
	write()
	b := besiege(t, fmt.Sprintf("sources:\n  - {name: honest, type: uploadpost, paths: [/honest], auth: {signature: {secrets: [\"${file:%s}\"]}}}\n", file))
	sent := 0
	b.secret = func() string { // each tenth is signed with a secret that is not written yet
		if sent++; sent%10 == 0 {
			current = fmt.Sprintf("whsec_of_a_new_one_%d", sent)
			time.AfterFunc(500*time.Millisecond, write)
		}
		return current
	}
	b.patience = 4 * time.Second
	text := forged(t)
	b.withstands(t, "1500 forgers, while the sender's secret is written to its file half a second late (\\*)", func(ctx context.Context) {
		attackers(ctx, 1500, 500, func(ctx context.Context, _ int) { untilClosed(open(ctx, b.addr, -1, text)) })
	})
}

// TestHostileConnectionAge: connections end at their greatest age, and of the requests
// on them none is cut.
func TestHostileConnectionAge(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "relay")
	b := besiege(t, fmt.Sprintf("server: {listen: \"${INGRESS}\", shutdown_delay: 0s, max_connection_age: 1s, tls: {cert_file: %q, key_file: %q}}\n", cert, key))
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: protocol == "HTTP/2.0"}
		sender := &http.Client{Timeout: 10 * time.Second, Transport: transport}
		began := time.Now()
		each(4, func(worker int) {
			for i := range pick(250, 2500) {
				body := upload(20+worker+len(protocol), i)
				req, err := http.NewRequest(http.MethodPost, "https://"+b.addr+"/honest", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				if err := auth.UploadPost.Sign(req.Header, secret, "", time.Now(), body); err != nil {
					t.Error(err)
					return
				}
				resp, err := sender.Do(req)
				if err != nil {
					t.Errorf("%s: a request was cut: %v", protocol, err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode >= 300 || resp.Proto != protocol {
					t.Errorf("answered %s by %s", resp.Status, resp.Proto)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
		transport.CloseIdleConnections()
		t.Logf("%s: %d requests in %v", protocol, pick(1000, 10000), time.Since(began))
	}
}

// TestHostileTails: tails that are never read, while events arrive.
func TestHostileTails(t *testing.T) {
	files(t)
	b := besiege(t, "admin: {listen: \"${ADMIN}\", token: operator-0123456789, viewer_token: viewer-0123456789}\n")
	b.withstands(t, "400 tails of a viewer that never reads", func(ctx context.Context) {
		attackers(ctx, 400, 200, func(ctx context.Context, i int) {
			if conn := open(ctx, b.admin, i, "GET /api/v1/events/tail HTTP/1.1\r\nHost: "+b.admin+"\r\nAuthorization: Bearer viewer-0123456789\r\n\r\n"); conn != nil {
				<-ctx.Done()
			}
		})
	})
}

// TestHostileSearches: searches with filters that cost as much as filters may.
func TestHostileSearches(t *testing.T) {
	files(t)
	b := besiege(t, "admin: {listen: \"${ADMIN}\", token: operator-0123456789, viewer_token: viewer-0123456789}\n")
	filter := "type.contains('x')" + strings.Repeat(" || type.contains('y')", 90)
	b.withstands(t, "50 searches at once of a viewer with filters of 2 KB, who hangs up", func(ctx context.Context) {
		attackers(ctx, 50, 100, func(ctx context.Context, i int) {
			ctx, hangUp := context.WithTimeout(ctx, 200*time.Millisecond)
			defer hangUp()
			untilClosed(open(ctx, b.admin, i, "GET /api/v1/events?limit=1000&filter="+url.QueryEscape(filter)+" HTTP/1.1\r\nHost: "+b.admin+"\r\nAuthorization: Bearer viewer-0123456789\r\n\r\n"))
		})
	})
}

// TestHostileSignIns: wrong tokens as fast as they are answered.
func TestHostileSignIns(t *testing.T) {
	files(t)
	b := besiege(t, "admin: {listen: \"${ADMIN}\", token: operator-0123456789}\n")
	b.withstands(t, "200 callers of the admin API that guess tokens", func(ctx context.Context) {
		attackers(ctx, 200, 1000, func(ctx context.Context, i int) {
			untilClosed(open(ctx, b.admin, i%20, "GET /api/v1/status HTTP/1.1\r\nHost: "+b.admin+"\r\nConnection: close\r\nAuthorization: Bearer guess-"+fmt.Sprint(i)+"\r\n\r\n"))
		})
	})
}

// captured is a signed webhook of GitHub that nobody understands, of about 1 MB.
func captured(t *testing.T, n int) string {
	t.Helper()
	body := fmt.Sprintf("%d %s", n, strings.Repeat("x", 1000<<10))
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(body))
	return fmt.Sprintf("POST /github HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: %d\r\nX-Hub-Signature-256: sha256=%x\r\nContent-Length: %d\r\n\r\n%s",
		n, mac.Sum(nil), len(body), body)
}

// TestHostileQuarantine: one captured webhook again and again, and many of them, where
// the journal has little room.
func TestHostileQuarantine(t *testing.T) {
	for _, tt := range []struct {
		name     string
		distinct int
	}{
		{"one captured signed webhook of 1 MB that is no event, 50 times a second, journal.max_bytes 256MiB", 1},
		{"1000 signed webhooks of 1 MB that are no events, 50 a second, journal.max_bytes 256MiB", 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := besiege(t, fmt.Sprintf("journal: {dir: %q, min_free_bytes: 0, max_bytes: 256MiB}\n", filepath.Join(t.TempDir(), "journal")))
			var sent atomic.Int64
			b.withstands(t, tt.name, func(ctx context.Context) {
				attackers(ctx, 20, 50, func(ctx context.Context, i int) {
					untilClosed(open(ctx, b.addr, i, captured(t, int(sent.Add(1))%tt.distinct)))
				})
			})
			if sent.Load() < 50 {
				t.Errorf("%d webhooks were sent", sent.Load())
			}
		})
	}
}

// TestHostileLists: lists of quarantined requests of 1 MB, by a viewer.
func TestHostileLists(t *testing.T) {
	files(t)
	b := besiege(t, "admin: {listen: \"${ADMIN}\", token: operator-0123456789, viewer_token: viewer-0123456789}\n")
	each(5, func(worker int) {
		for i := range 50 {
			untilClosed(open(t.Context(), b.addr, worker, captured(t, 50*worker+i)))
		}
	})
	if got := b.metric(t, `postwire_received_total{outcome="quarantined",source="github"}`); got != "250" {
		t.Fatalf("%s requests are quarantined", got)
	}
	b.withstands(t, "30 lists at once of 250 quarantined requests of 1 MB, by a viewer", func(ctx context.Context) {
		attackers(ctx, 30, 200, func(ctx context.Context, i int) {
			untilClosed(open(ctx, b.admin, i, "GET /api/v1/dlq?limit=1000 HTTP/1.1\r\nHost: "+b.admin+"\r\nConnection: close\r\nAuthorization: Bearer viewer-0123456789\r\n\r\n"))
		})
	})
}
