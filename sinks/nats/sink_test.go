package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

func modes() []string { return []string{sinks.Binary, sinks.Structured} }

func TestJetStream(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: modes(), TooLarge: 1 << 20, DropsRepeats: true,
		Start: func(t *testing.T) sinktest.Broker {
			b := start(t)
			return sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(),
				Config: fmt.Sprintf("url: %s\nsubject: events.{platform}.{outcome}\nstream: EVENTS\ncreate: true", b.URL()),
				Away:   func(t *testing.T) { b.Stop(t) },
				Back:   func(t *testing.T) { b.Restart(t) },
				Read: func(t *testing.T) []sinktest.Message {
					return messages(t, b.Messages(t, b.Connect(t), "EVENTS"))
				},
			}
		},
	})
}

func TestCore(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: modes(), TooLarge: 1 << 20,
		Lacks: map[string]string{"the wire form is as agreed": "it is that of JetStream without Nats- headers, which TestCoreWire holds"},
		Start: func(t *testing.T) sinktest.Broker {
			b := start(t)
			l := b.listen(t, "events.>")
			return sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(),
				Config: fmt.Sprintf("url: %s\nsubject: events.{platform}.{outcome}\nmode: core", b.URL()),
				// Who does not listen while the server restarts gets nothing
				// by design, so it is the way to the server that fails.
				Read: func(t *testing.T) []sinktest.Message { return messages(t, l.read(t)) },
			}
		},
	})
}

func TestCoreWire(t *testing.T) {
	for _, mode := range modes() {
		b := start(t)
		l := b.listen(t, ">")
		mustDeliver(t, b.open(t, "subject: events.{platform}.{outcome}\nmode: core\ncontent_mode: "+mode), sinktest.Events(3, 1))
		var got strings.Builder
		for i, m := range l.read(t) {
			for name := range m.Header {
				if strings.HasPrefix(name, "Nats-") {
					t.Errorf("there is a header %s", name)
				}
			}
			m.Header["Nats-Expected-Stream"] = []string{"EVENTS"}
			m.Header["Nats-Msg-Id"] = []string{sinktest.Events(3, 1)[i].MessageID}
			got.WriteString(wire(m) + "\n")
		}
		want, err := os.ReadFile(filepath.Join("testdata", mode+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Error(diff)
		}
	}
}

// open opens a sink of the broker with further keys.
func (b *broker) open(t testing.TB, block string) sinks.Sink {
	t.Helper()
	s, err := b.tryOpen(t, block, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *broker) tryOpen(t testing.TB, block string, log *zap.Logger) (sinks.Sink, error) {
	t.Helper()
	p, err := sinktest.TryConfigure(Kind(), "url: "+b.URL()+"\n"+block)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := p.Open(ctx, sinks.Env{Name: "test", Log: log})
	if err == nil {
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s, err
}

func mustDeliver(t testing.TB, s sinks.Sink, events []event.Event) {
	t.Helper()
	if err := try(t, s, events); err != nil {
		t.Fatal(err)
	}
}

func try(t testing.TB, s sinks.Sink, events []event.Event) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return s.Deliver(ctx, events)
}

// TestTheMessageIDIsThatOfTheStoredEvent: events that share source and id are
// stored in the stream each, and a repeat of one of them is not, and is told.
func TestTheMessageIDIsThatOfTheStoredEvent(t *testing.T) {
	b := start(t)
	js := b.Connect(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}}); err != nil {
		t.Fatal(err)
	}
	p, err := sinktest.TryConfigure(Kind(), "url: "+b.URL()+"\nsubject: events.x\nstream: EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	s, err := p.Open(t.Context(), sinks.Env{Name: "test", Duplicate: func(e event.Event) { told = append(told, e.MessageID) }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	events := sinktest.Events(3, 3)
	for i := range events {
		events[i].CloudEvent.SetID("A-1")
	}
	mustDeliver(t, s, events)
	if got := len(b.Messages(t, js, "EVENTS")); got != 3 || len(told) > 0 {
		t.Errorf("of 3 events with one id %d are stored, and %q are told to be duplicates", got, told)
	}
	mustDeliver(t, s, events[1:2])
	if got := len(b.Messages(t, js, "EVENTS")); got != 3 || !slices.Equal(told, []string{events[1].MessageID}) {
		t.Errorf("after a repeat %d are stored, and %q are told to be duplicates", got, told)
	}
}

func TestTheStreamIsLookedUpAndCreated(t *testing.T) {
	b := start(t)
	js := b.Connect(t)
	const block = "subject: events.{platform}.x.{outcome}-{mediatype}\nstream: EVENTS\n"
	_, err := b.tryOpen(t, block, zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "stream EVENTS does not exist; create it, or set create: true") {
		t.Errorf("opening without the stream: %v", err)
	}
	if _, refused := sinks.IsPermanent(err); refused {
		t.Error("a missing stream is taken for final")
	}
	b.open(t, block+"create: true")
	stream, err := js.Stream(t.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	c := stream.CachedInfo().Config
	if diff := cmp.Diff([]string{"events.*.x.*"}, c.Subjects); diff != "" || c.Storage != jetstream.FileStorage {
		t.Errorf("the stream has storage %v, subjects %s", c.Storage, diff)
	}
	b.open(t, block+"create: true")
	b.open(t, block)
	_, err = b.tryOpen(t, "subject: other.{platform}\nstream: EVENTS", zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "takes [events.*.x.*] and so no subject like other.{platform}") {
		t.Errorf("opening with other subjects: %v", err)
	}
}

func TestAStreamThatVanishesIsWaitedForOrCreatedAgain(t *testing.T) {
	for _, create := range []bool{false, true} {
		t.Run(fmt.Sprintf("create %v", create), func(t *testing.T) {
			b := start(t)
			js := b.Connect(t)
			config := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*"}}
			if _, err := js.CreateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			s := b.open(t, fmt.Sprintf("subject: events.{mediatype}\nstream: EVENTS\ncreate: %v", create))
			events := sinktest.Events(10, 2)
			mustDeliver(t, s, events)
			if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
				t.Fatal(err)
			}
			err := try(t, s, events)
			if got := sinktest.Outcomes(err, 10); slices.ContainsFunc(got, func(s string) bool { return s != "" && s != "again" }) {
				t.Fatalf("events are refused for good: %v", got)
			}
			if !create {
				if !strings.Contains(err.Error(), "does not exist; create it, or set create: true") {
					t.Errorf("the error does not say what to do: %v", err)
				}
				if _, err := js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			for left := events; len(left) > 0; {
				left = sinktest.Attempt(t.Context(), t, s, left)
			}
			if got := b.Messages(t, js, "EVENTS"); len(got) != 10 {
				t.Errorf("%d messages are stored", len(got))
			}
		})
	}
}

func TestSubjectsThatTheStreamDoesNotTake(t *testing.T) {
	b := start(t)
	js := b.Connect(t)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.instagram.*"}})
	if err != nil {
		t.Fatal(err)
	}
	events := sinktest.Events(4, 1) // of instagram, tiktok, you.tube, x>*
	s := b.open(t, "subject: events.{platform}.{outcome}\nstream: EVENTS")
	want := []string{"", "no_destination", "no_destination", "no_destination"}
	if diff := cmp.Diff(want, sinktest.Outcomes(try(t, s, events), 4)); diff != "" {
		t.Error("no stream takes it: " + diff)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"events.tiktok.*"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, sinktest.Outcomes(try(t, s, events), 4)); diff != "" {
		t.Error("another stream takes it: " + diff)
	}
	if got := b.Messages(t, js, "OTHER"); len(got) != 0 {
		t.Errorf("the other stream stored %d", len(got))
	}

	static := b.open(t, "subject: events.instagram.all\nstream: EVENTS")
	mustDeliver(t, static, events)
	_, err = js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"nothing"}})
	if err != nil {
		t.Fatal(err)
	}
	err = try(t, static, events)
	if diff := cmp.Diff([]string{"again", "again", "again", "again"}, sinktest.Outcomes(err, 4)); diff != "" {
		t.Error("where all events go to one subject: " + diff)
	}
}

func TestLimitsOfTheStream(t *testing.T) {
	b := start(t)
	_, err := b.Connect(t).CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*"}, MaxMsgSize: 4000})
	if err != nil {
		t.Fatal(err)
	}
	s := b.open(t, "subject: events.{outcome}\nstream: EVENTS")
	events := sinktest.Events(5, 1)
	if err := events[1].CloudEvent.SetData("application/json", []byte(`"`+strings.Repeat("x", 4000)+`"`)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", "too_large", "", "", ""}, sinktest.Outcomes(try(t, s, events), 5)); diff != "" {
		t.Error("max_msg_size: " + diff)
	}
	b = start(t)
	s = b.open(t, "subject: events.{outcome}\nstream: EVENTS\ncreate: true")
	events = sinktest.Events(5, 1)
	events[1].CloudEvent.SetExtension(event.Profile, strings.Repeat("x", 70_000))
	if diff := cmp.Diff([]string{"", "too_large", "", "", ""}, sinktest.Outcomes(try(t, s, events), 5)); diff != "" {
		t.Error("headers: " + diff)
	}
	events = sinktest.Events(5, 1)
	events[1].CloudEvent.SetExtension(event.Outcome, strings.Repeat("x", 5000))
	if diff := cmp.Diff([]string{"", "invalid", "", "", ""}, sinktest.Outcomes(try(t, s, events), 5)); diff != "" {
		t.Error("subject: " + diff)
	}
}

// TestASubjectThatIsFull: the other subjects of the batch arrive. An event that is
// held back behind a full subject says nothing about the event's own subject.
func TestASubjectThatIsFull(t *testing.T) {
	b := start(t)
	_, err := b.Connect(t).CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "EVENTS", Subjects: []string{"events.*"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true, MaxMsgs: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := b.open(t, "subject: events.{platform}\nstream: EVENTS")
	events := sinktest.Events(7, 1) // 0 and 5 are of instagram, 1 and 6 of tiktok
	for i := range events {
		events[i].CloudEvent.SetExtension(event.PartitionKey, fmt.Sprint(i%5))
	}
	events[6].CloudEvent.SetExtension(event.PartitionKey, "0") // behind event 5
	err = try(t, s, events)
	if diff := cmp.Diff([]string{"", "", "", "", "", "again", "again"}, sinktest.Outcomes(err, 7)); diff != "" {
		t.Fatal(diff)
	}
	each, _ := errors.AsType[sinks.BatchError](err)
	if !sinks.IsAtDestination(each[5]) || sinks.Wait(each[5]) != 0 {
		t.Errorf("the full subject: %v", each[5])
	}
	if !strings.Contains(each[5].Error(), "max_msgs_per_subject messages, and stream EVENTS has discard_new_per_subject; consume or purge") {
		t.Errorf("the full subject: %v", each[5])
	}
	if sinks.IsAtDestination(each[6]) {
		t.Errorf("another subject: %v", each[6])
	}
}

// TestAStreamThatIsFull slows the sink, and the error names the limit.
func TestAStreamThatIsFull(t *testing.T) {
	for limit, change := range map[string]func(*jetstream.StreamConfig){
		"max_msgs":  func(c *jetstream.StreamConfig) { c.MaxMsgs = 3 },
		"max_bytes": func(c *jetstream.StreamConfig) { c.MaxBytes = 100 },
	} {
		t.Run(limit, func(t *testing.T) {
			b := start(t)
			stream := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*"}, Discard: jetstream.DiscardNew}
			change(&stream)
			if _, err := b.Connect(t).CreateStream(t.Context(), stream); err != nil {
				t.Fatal(err)
			}
			err := try(t, b.open(t, "subject: events.{platform}\nstream: EVENTS"), sinktest.Events(5, 5))
			each, _ := errors.AsType[sinks.BatchError](err)
			if len(each) != 5 || sinks.Wait(each[3]) != streamWait || sinks.Wait(each[4]) != streamWait || sinks.IsAtDestination(each[4]) {
				t.Fatalf("Deliver = %v", err)
			}
			if text := each[4].Error(); !strings.Contains(text, "stream EVENTS has "+limit) || !strings.Contains(text, "raise the limit") {
				t.Errorf("the error is %q", text)
			}
		})
	}
}

// TestALostConnection is a failure of the whole sink.
func TestALostConnection(t *testing.T) {
	b := start(t)
	s := b.open(t, "subject: events.{platform}\nstream: EVENTS\ncreate: true")
	b.Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := s.Deliver(ctx, sinktest.Events(10, 2))
	if _, each := errors.AsType[sinks.BatchError](err); err == nil || each {
		t.Errorf("Deliver = %v", err)
	}
	b.Restart(t)
}

// rights lets the user publish to all but tiktok, and look nothing up.
func rights(o *server.Options) {
	o.Users = []*server.User{
		{Username: "relay", Password: "relay-secret", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{"events.*"}, Deny: []string{"events.tiktok"}},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}},
		{Username: "admin", Password: "admin"},
	}
}

func TestSubjectsThatAreForbidden(t *testing.T) {
	b := start(t, rights)
	_, err := b.Connect(t, nats.UserInfo("admin", "admin")).CreateStream(t.Context(), jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.*"}})
	if err != nil {
		t.Fatal(err)
	}
	const login = "user: relay\npassword: relay-secret\n"
	for _, mode := range []string{"mode: core", "stream: EVENTS"} {
		begin := time.Now()
		s := b.open(t, login+"subject: events.{platform}\n"+mode)
		events := sinktest.Events(10, 1)
		want := []string{"", "unauthorized", "", "", "", "", "unauthorized", "", "", ""}
		// Until the server has taken a message, what it forbids may be the credentials.
		for i, first := range sinktest.Outcomes(try(t, s, events), 10) {
			if first != want[i] && (want[i] != "unauthorized" || first != "again") {
				t.Errorf("%s: event %d became %q first", mode, i, first)
			}
		}
		if diff := cmp.Diff(want, sinktest.Outcomes(try(t, s, events), 10)); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
		none := b.open(t, login+"subject: forbidden.{platform}\n"+strings.Replace(mode, "stream: EVENTS", "mode: core", 1))
		for i, each := range sinktest.Outcomes(try(t, none, events), 10) {
			if each != "again" {
				t.Errorf("%s: where nothing may be published, event %d became %q", mode, i, each)
			}
		}
		static := b.open(t, login+"subject: events.tiktok\n"+mode)
		if got := sinktest.Outcomes(try(t, static, events[:1]), 1); got[0] != "again" {
			t.Errorf("%s: where all events go to one subject: %v", mode, got)
		}
		if took := time.Since(begin); took > ackTimeout {
			t.Errorf("%s took %v: refusals were not heard", mode, took)
		}
	}
}

func TestLogin(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "user.nk")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name         string
		server       func(*server.Options)
		block, wrong string
	}{
		{"user", func(o *server.Options) { o.Username, o.Password = "u", "s3cret" }, "user: u\npassword: s3cret", "user: u\npassword: hunter2"},
		{"token", func(o *server.Options) { o.Authorization = "s3cret" }, "token: s3cret", "token: hunter2"},
		{"nkey", func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }, "nkey_file: " + file, "user: u\npassword: hunter2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, test.server)
			s := b.open(t, test.block+"\nsubject: a.{platform}\nmode: core")
			mustDeliver(t, s, sinktest.Events(3, 1))
			_, err := b.tryOpen(t, test.wrong+"\nsubject: a.{platform}\nmode: core", zap.NewNop())
			if err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("wrong credentials: %v", err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	clientCert, clientKey := selfsigned.Certificate(t, t.TempDir(), "client")
	b := start(t, func(o *server.Options) {
		o.TLS, o.TLSVerify, o.TLSConfig = true, true, selfsigned.Mutual(t, cert, key, clientCert)
	})
	const block = "subject: a.{platform}\nmode: core\ntls: {enabled: true"
	s := b.open(t, fmt.Sprintf(block+", ca_file: %q, cert_file: %q, key_file: %q}", cert, clientCert, clientKey))
	mustDeliver(t, s, sinktest.Events(3, 1))
	if _, err := b.tryOpen(t, fmt.Sprintf(block+", ca_file: %q}", cert), zap.NewNop()); err == nil {
		t.Error("a client without a certificate was served")
	}
	if _, err := b.tryOpen(t, fmt.Sprintf(block+", cert_file: %q, key_file: %q}", clientCert, clientKey), zap.NewNop()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of an unknown authority: %v", err)
	}
}

// TestHandshakeFirst: a server may begin with TLS instead of its first line.
func TestHandshakeFirst(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(o *server.Options) {
		o.TLS, o.TLSHandshakeFirst, o.TLSConfig = true, true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	})
	block := fmt.Sprintf("subject: a.{platform}\nmode: core\ntls: {enabled: true, ca_file: %q", cert)
	mustDeliver(t, b.open(t, block+", handshake_first: true}"), sinktest.Events(3, 1))
	if _, err := b.tryOpen(t, block+"}", zap.NewNop()); err == nil {
		t.Error("a client that waits for the first line was served")
	}
}

// TestWebSocket: url may be a WebSocket of the server, with and without TLS.
func TestWebSocket(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for scheme, ws := range map[string]server.WebsocketOpts{
		"ws":  {NoTLS: true},
		"wss": {TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}},
	} {
		t.Run(scheme, func(t *testing.T) {
			at := natstest.FreeAddr(t)
			host, port, err := net.SplitHostPort(at)
			if err != nil {
				t.Fatal(err)
			}
			ws.Host = host
			if ws.Port, err = strconv.Atoi(port); err != nil {
				t.Fatal(err)
			}
			b := start(t, func(o *server.Options) { o.Websocket = ws })
			block := "url: " + scheme + "://" + at + "\nsubject: events.{platform}\nstream: EVENTS\ncreate: true\n"
			if scheme == "wss" {
				block += fmt.Sprintf("tls: {enabled: true, ca_file: %q}\n", cert)
			}
			p, err := sinktest.TryConfigure(Kind(), block)
			if err != nil {
				t.Fatal(err)
			}
			s, err := p.Open(t.Context(), sinks.Env{Name: "test", Log: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			mustDeliver(t, s, sinktest.Events(3, 1))
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if n := len(b.Messages(t, b.Connect(t), "EVENTS")); n != 3 {
				t.Errorf("the stream has %d messages, want 3", n)
			}
		})
	}
}

// TestCredentialsFile: a server that trusts an operator lets in whom one of the
// operator's accounts vouches for.
func TestCredentialsFile(t *testing.T) {
	pair := func(create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
		k, err := create()
		if err != nil {
			t.Fatal(err)
		}
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return k, public
	}
	operator, operatorKey := pair(nkeys.CreateOperator)
	account, accountKey := pair(nkeys.CreateAccount)
	user, userKey := pair(nkeys.CreateUser)
	vouched, err := jwt.NewAccountClaims(accountKey).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(o *server.Options) {
		resolver := &server.MemAccResolver{}
		if err := resolver.Store(accountKey, vouched); err != nil {
			t.Fatal(err)
		}
		o.JetStream, o.TrustedKeys, o.AccountResolver = false, []string{operatorKey}, resolver
	})
	token, err := jwt.NewUserClaims(userKey).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "user.creds")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	const block = "subject: a.{platform}\nmode: core"
	mustDeliver(t, b.open(t, block+"\ncredentials_file: "+file), sinktest.Events(3, 1))
	if _, err := b.tryOpen(t, block, zap.NewNop()); err == nil {
		t.Error("a user without credentials was let in")
	}
}

// The client takes some things that a server says for final; the sink does not.
func TestAConnectionThatTheServerEndsIsMadeAgain(t *testing.T) {
	b := start(t)
	s := b.open(t, "subject: events.{platform}\nstream: EVENTS\ncreate: true")
	events := sinktest.Events(20, 3)
	mustDeliver(t, s, events[:10])
	s.(*Sink).session.conn.Close()
	for left := events[10:]; len(left) > 0; {
		left = sinktest.Attempt(t.Context(), t, s, left)
	}
	if got := b.Messages(t, b.Connect(t), "EVENTS"); len(got) != 20 {
		t.Errorf("%d messages are stored", len(got))
	}
}

func TestLogAndErrorsKeepPasswords(t *testing.T) {
	core, seen := observer.New(zapcore.DebugLevel)
	b := start(t, func(o *server.Options) { o.Username, o.Password = "u", "s3cret" })
	url := strings.Replace(b.URL(), "nats://", "nats://u:s3cret@", 1)
	p, err := sinktest.TryConfigure(Kind(), "url: "+url+"\nsubject: a.{platform}\nmode: core")
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Open(t.Context(), sinks.Env{Name: "test", Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	b.Stop(t)
	sinktest.Until(t, "the loss is logged", func() bool { return seen.FilterMessageSnippet("disconnected").Len() > 0 })
	b.Restart(t)
	sinktest.Until(t, "the return is logged", func() bool { return seen.FilterMessageSnippet("reconnected").Len() > 0 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	b.Stop(t)
	_, err = p.Open(t.Context(), sinks.Env{Name: "test", Log: zap.New(core)})
	text := fmt.Sprint(err)
	for _, entry := range seen.All() {
		text += fmt.Sprint(entry.Message, entry.ContextMap())
	}
	if err == nil || strings.Contains(text, "s3cret") {
		t.Error("the password is shown, or there is no error: ", text)
	}
	for _, bad := range []string{"nats://u:s3c#ret@a:4222", "nats://u:s3c ret@[::1:4222"} {
		if got := config.URL(bad).String(); strings.Contains(got, "s3c") {
			t.Errorf("redact gives %s", got)
		}
		if _, err := sinktest.TryConfigure(Kind(), "url: \""+bad+"\"\nsubject: a\nmode: core"); err == nil || strings.Contains(err.Error(), "s3c") {
			t.Errorf("validating gives %v", err)
		}
	}
}

func TestHeadersCannotBeInjected(t *testing.T) {
	b := start(t)
	s := b.open(t, "subject: events.{platform}\nstream: EVENTS\ncreate: true")
	events := sinktest.Events(1, 1)
	e := &events[0].CloudEvent
	const evil = "a\r\nce-evil: yes\r\n\r\nPUB x 1"
	e.SetID(evil)
	e.SetSubject(evil)
	e.SetExtension(event.Platform, evil)
	e.SetExtension(event.Profile, "\x00\x7f"+evil)
	e.SetDataContentType(evil)
	mustDeliver(t, s, events)
	all := b.Messages(t, b.Connect(t), "EVENTS")
	if len(all) != 1 || len(all[0].Header["ce-evil"]) != 0 || strings.ContainsAny(wireHeaders(all[0]), "\r\n") {
		t.Errorf("got %+v", all)
	}
	if all[0].Subject != "events.a__ce-evil:_yes____PUB_x_1" {
		t.Errorf("the subject is %q", all[0].Subject)
	}
	seen, err := readStrict(all[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := sinktest.Diff(events[0], seen, false); diff != "" {
		t.Error(diff)
	}
}

func wireHeaders(m *nats.Msg) (all string) {
	for name, values := range m.Header {
		all += name + strings.Join(values, "")
	}
	return all
}
