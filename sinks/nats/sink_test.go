package nats

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cejs "github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broker is a NATS server inside the test.
type broker struct {
	opts   server.Options
	server *server.Server
}

func startBroker(t *testing.T, change func(*server.Options)) *broker {
	t.Helper()
	b := &broker{opts: server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, MaxPayload: 64 << 10}}
	if change != nil {
		change(&b.opts)
	}
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	return b
}

func (b *broker) start(t *testing.T) {
	t.Helper()
	opts := b.opts
	s, err := server.NewServer(&opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	b.server = s
	b.opts.Port = s.Addr().(*net.TCPAddr).Port // the same after a restart
}

func (b *broker) stop(*testing.T) {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", b.opts.Port) }

func (b *broker) connect(t *testing.T, opts ...nats.Option) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(b.url(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// messages reads the first n messages of a stream.
func messages(t *testing.T, js jetstream.JetStream, stream string, n int) []*nats.Msg {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var all []*nats.Msg
	for len(all) < n {
		m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(all), n, err)
		}
		all = append(all, &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()})
	}
	return all
}

// read takes a message apart as the binding says, by the letter: nothing but
// ce- headers is looked at in binary mode.
func read(t *testing.T, m *nats.Msg) cloudevents.Event {
	t.Helper()
	if strings.HasPrefix(m.Header.Get("content-type"), "application/cloudevents+json") {
		var e cloudevents.Event
		if err := e.UnmarshalJSON(m.Data); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := cloudevents.NewEvent(m.Header.Get("ce-specversion"))
	for name, values := range m.Header {
		attribute, ok := strings.CutPrefix(name, "ce-")
		if !ok {
			continue
		}
		value, err := url.PathUnescape(values[0])
		if err != nil || len(values) != 1 {
			t.Fatalf("header %s: %v, %v", name, values, err)
		}
		switch attribute {
		case "id":
			e.SetID(value)
		case "source":
			e.SetSource(value)
		case "type":
			e.SetType(value)
		case "subject":
			e.SetSubject(value)
		case "dataschema":
			e.SetDataSchema(value)
		case "datacontenttype":
			e.SetDataContentType(value)
		case "time":
			at, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				t.Fatal(err)
			}
			e.SetTime(at)
		case "specversion":
		default:
			e.SetExtension(attribute, value)
		}
	}
	e.DataEncoded = m.Data
	return e
}

func TestJetStream(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		b := startBroker(t, nil)
		return sinktest.Harness{
			Kind: Kind(),
			Config: func(mode string) string {
				return fmt.Sprintf(`url: %q, subject: "events.{platform}.{outcome}", stream: EVENTS, create: true, content_mode: %s`, b.url(), mode)
			},
			Read: func(t *testing.T, n int) []cloudevents.Event {
				var events []cloudevents.Event
				for _, m := range messages(t, b.connect(t), "EVENTS", n) {
					events = append(events, read(t, m))
				}
				return events
			},
			Oversize: 64 << 10, Stop: b.stop, Start: b.start, Network: true,
		}
	})
}

func TestCore(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		b := startBroker(t, nil)
		listener, err := nats.Connect(b.url(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(listener.Close)
		got := make(chan *nats.Msg, 10000)
		if _, err := listener.ChanSubscribe("events.>", got); err != nil {
			t.Fatal(err)
		}
		if err := listener.Flush(); err != nil {
			t.Fatal(err)
		}
		var all []cloudevents.Event
		return sinktest.Harness{
			Kind: Kind(),
			Config: func(mode string) string {
				return fmt.Sprintf(`url: %q, mode: core, subject: "events.{platform}.{outcome}", content_mode: %s`, b.url(), mode)
			},
			Read: func(t *testing.T, n int) []cloudevents.Event {
				for len(all) < n {
					select {
					case m := <-got:
						all = append(all, read(t, m))
					case <-time.After(10 * time.Second):
						t.Fatalf("%d of %d messages arrived", len(all), n)
					}
				}
				return all[:n]
			},
			Oversize: 64 << 10,
			// While the server is away its listeners are too: what is
			// published before they are back reaches nobody. So Stop and
			// lost connections are not for core NATS to get through.
		}
	})
}

// TestWireFormat holds the messages against golden files, and reads them with
// the SDK's own receiver.
func TestWireFormat(t *testing.T) {
	e := sinktest.Event("a/1", "café")
	for _, mode := range []string{sinks.Binary, sinks.Structured} {
		t.Run(mode, func(t *testing.T) {
			m, err := encode(t.Context(), e, mode, "events.instagram.success")
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			fmt.Fprintf(&text, "%s\n", m.Subject)
			var names []string
			for name := range m.Header {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				fmt.Fprintf(&text, "%s: %s\n", name, strings.Join(m.Header[name], ", "))
			}
			fmt.Fprintf(&text, "\n%s\n", m.Data)
			golden(t, "testdata/"+mode+".golden.txt", text.String())

			// The SDK's reader does not decode percent-encoding, so that
			// what is outside of ASCII is compared by the strict reader.
			ascii := sinktest.Event("a1", "key")
			ascii.CloudEvent.SetExtension(event.Profile, "plain")
			ascii.CloudEvent.SetSource("https://upload-post.com")
			if m, err = encode(t.Context(), ascii, mode, "s"); err != nil {
				t.Fatal(err)
			}
			got, err := binding.ToEvent(t.Context(), cejs.NewMessage(m))
			if err != nil {
				t.Fatalf("the SDK's receiver: %v", err)
			}
			want := ascii.CloudEvent
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Errorf("the SDK's receiver (-want +got):\n%s", diff)
			}
		})
	}
}

func golden(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites):\n%s", file, diff)
	}
}

func opened(t *testing.T, b *broker, block string) (sinks.Sink, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := sinktest.Opener(t, Kind(), fmt.Sprintf("url: %q, %s", b.url(), block))(ctx, sinktest.Env())
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

func TestRepeatIsDroppedByTheStream(t *testing.T) {
	b := startBroker(t, nil)
	s, err := opened(t, b, `subject: "e.{platform}", stream: S, create: true`)
	if err != nil {
		t.Fatal(err)
	}
	events := []event.Event{sinktest.Event("1", "k"), sinktest.Event("2", "k")}
	for range 3 {
		if err := s.Deliver(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := b.connect(t).Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 2 {
		t.Errorf("the stream holds %d messages, want 2", n)
	}
}

func TestStreamIsChecked(t *testing.T) {
	b := startBroker(t, nil)
	if _, err := opened(t, b, "subject: a.b, stream: S"); err == nil || !strings.Contains(err.Error(), "stream S does not exist: create it, or set create: true") {
		t.Errorf("without a stream: %v", err)
	}
	js := b.connect(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"other.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := opened(t, b, "subject: a.b, stream: S"); err == nil || !strings.Contains(err.Error(), "takes [other.>]") {
		t.Errorf("with a stream of other subjects: %v", err)
	}
}

// TestSubjectsThatNoStreamTakes: a subject of one event is refused; a stream
// that is gone is waited for.
func TestSubjectsThatNoStreamTakes(t *testing.T) {
	b := startBroker(t, nil)
	js := b.connect(t)
	stream := jetstream.StreamConfig{Name: "S", Subjects: []string{"e.instagram"}}
	if _, err := js.CreateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	s, err := opened(t, b, `subject: "e.{platform}", stream: S`)
	if err != nil {
		t.Fatal(err)
	}
	odd := sinktest.Event("odd", "k")
	odd.CloudEvent.SetExtension(event.Platform, "tik tok.*")
	err = s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k"), odd, sinktest.Event("2", "k")})
	each, ok := errors.AsType[sinks.BatchError](err)
	if !ok || each[0] != nil || each[2] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, refused := sinks.IsPermanent(each[1]); !refused || reason != sinks.ReasonNoDestination || !strings.Contains(each[1].Error(), "e.tik_tok__") {
		t.Errorf("a subject that the stream does not take: %v", each[1])
	}

	if err := js.DeleteStream(t.Context(), "S"); err != nil {
		t.Fatal(err)
	}
	err = s.Deliver(t.Context(), []event.Event{sinktest.Event("3", "k")})
	each, _ = errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || each[0] == nil {
		t.Fatalf("Deliver without a stream = %v", err)
	}
	if _, refused := sinks.IsPermanent(each[0]); refused || !strings.Contains(each[0].Error(), "stream S does not exist") {
		t.Errorf("without a stream: %v", each[0])
	}
	if _, err := js.CreateStream(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(t.Context(), []event.Event{sinktest.Event("3", "k")}); err != nil {
		t.Errorf("with the stream back: %v", err)
	}
}

func TestStreamsOwnLimit(t *testing.T) {
	b := startBroker(t, nil)
	if _, err := b.connect(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"e"}, MaxMsgSize: 2000}); err != nil {
		t.Fatal(err)
	}
	s, err := opened(t, b, "subject: e, stream: S")
	if err != nil {
		t.Fatal(err)
	}
	big := sinktest.Event("big", "k")
	big.CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("x", 3000) + `"`)
	err = s.Deliver(t.Context(), []event.Event{big, sinktest.Event("1", "k")})
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 2 || each[1] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, refused := sinks.IsPermanent(each[0]); !refused || reason != sinks.ReasonTooLarge {
		t.Errorf("over the stream's limit: %v", each[0])
	}
}

func TestLogin(t *testing.T) {
	b := startBroker(t, func(o *server.Options) { o.Username, o.Password = "relay", "s3cret" })
	if _, err := opened(t, b, "mode: core, subject: e, user: relay, password: s3cret"); err != nil {
		t.Errorf("with the right password: %v", err)
	}
	_, err := opened(t, b, "mode: core, subject: e, user: relay, password: wr0ng")
	if err == nil || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("with a wrong password: %v", err)
	}
	token := startBroker(t, func(o *server.Options) { o.Authorization = "t0ken" })
	if _, err := opened(t, token, "mode: core, subject: e, token: t0ken"); err != nil {
		t.Errorf("with the right token: %v", err)
	}
}

func TestConfigMistakes(t *testing.T) {
	for block, want := range map[string]string{
		"subject: events.*.x, stream: S":                                    "has a wildcard",
		"subject: events.>, stream: S":                                      "has a wildcard",
		`subject: "events.{nothing}", stream: S`:                            "{nothing} names no attribute",
		`subject: "events.{}", stream: S`:                                   "{} names no attribute",
		"subject: events..x, stream: S":                                     "empty token",
		"subject: .events, stream: S":                                       "empty token",
		`subject: "events. x", stream: S`:                                   "character that a subject may not have",
		"subject: $JS.x, stream: S":                                         "the server's own",
		"subject: events":                                                   "name the stream",
		"subject: events, stream: a.b":                                      "not a name for a stream",
		"stream: S":                                                         "subject",
		"subject: e, stream: S, window: 0":                                  "out of range",
		"subject: e, stream: S, mode: jetsream":                             "jetstream",
		"subject: e, stream: S, user: a, token: b":                          "several ways to log in",
		"subject: e, stream: S, content_mode: both":                         "binary",
		"subject: e, stream: S, batch: 0":                                   "1 to 10000",
		"subject: e, stream: S, tls: {enabled: true, cert_file: /none.pem}": "key_file",
		"subject: e, stream: S, retry: {initial: 1m, max: 1s}":              "shorter than retry.initial",
	} {
		if err := sinktest.Mistake(t, Kind(), block); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
}

func TestExample(t *testing.T) { sinktest.Example(t, Kind(), "example.yaml") }

func TestOverlap(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.*", "a.b", true}, {"a.*.c", "a.b.*", true}, {"a.>", "a.b.c", true},
		{"a", "a.>", false}, {"a.b", "a", false}, {">", "x.y", true}, {"*.x", "y.*", true}, {"a.*", "b.*", false},
	} {
		if got := overlap(tt.a, tt.b); got != tt.want {
			t.Errorf("overlap(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
}

func FuzzSafeToken(f *testing.F) {
	for _, s := range []string{"instagram", "a.b", "*", ">", "", "a b\r\n", "é✓", "\x00", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if token := safeToken(value); strings.ContainsAny(token, ".*> \t\r\n\x00") {
			t.Errorf("%q became %q", value, token)
		}
		if h := escape(value); strings.ContainsFunc(h, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q became the header %q", value, h)
		} else if back, err := url.PathUnescape(h); err != nil || back != value {
			t.Errorf("%q came back as %q, %v", value, back, err)
		}
	})
}
