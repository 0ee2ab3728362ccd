package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/journal/jetstream/embedded"
)

const secret = "a shared secret of three relays"

// relays returns the options of n relays.
func relays(t *testing.T, n int) []embedded.Options {
	t.Helper()
	var peers []string
	for range n {
		peers = append(peers, natstest.FreeAddr(t))
	}
	all := make([]embedded.Options, n)
	for i := range all {
		all[i] = embedded.Options{
			Name: fmt.Sprintf("relay-%d", i), Cluster: "test", Peers: peers, Listen: peers[i], Dir: filepath.Join(t.TempDir(), "store"),
			Stream: "postwire", Secret: secret, MaxBytes: 128 << 20,
		}
	}
	return all
}

func start(t *testing.T, o embedded.Options) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func startAll(t *testing.T, all []embedded.Options) []*embedded.Server {
	t.Helper()
	var servers []*embedded.Server
	for _, o := range all {
		servers = append(servers, start(t, o))
	}
	for _, s := range servers {
		complete(t, s)
	}
	return servers
}

// complete waits until the replicas of a server are complete.
func complete(t *testing.T, s *embedded.Server) {
	t.Helper()
	eventually(t, "the replicas are complete", func() error { return s.Check() })
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("timed out: %s: %v", what, err)
}

// connect connects the journal's user.
func connect(t *testing.T, s *embedded.Server) jetstream.JetStream {
	t.Helper()
	opts, err := s.Login().Options()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nats.Connect("", append(opts, nats.InProcessServer(s))...)
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

const messageBytes = 4 << 10

// createStream creates the journal's stream with some messages.
func createStream(t *testing.T, s *embedded.Server, replicas, messages int) {
	t.Helper()
	js := connect(t, s)
	eventually(t, "the stream is created", func() error {
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "postwire", Subjects: []string{"postwire.>"}, Replicas: replicas, MaxBytes: 16 << 20})
		return err
	})
	for i := range messages {
		if _, err := js.Publish(t.Context(), "postwire.event", bytes.Repeat([]byte{byte(i)}, messageBytes)); err != nil {
			t.Fatal(err)
		}
	}
}

func messages(t *testing.T, s *embedded.Server) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := connect(t, s).Stream(ctx, "postwire")
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

// stored returns the size of all files in a folder.
func stored(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // a file that is gone has no size
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// A server whose disk was lost gets all data from its peers, and says so only when it has
// the data.
func TestALostDiskHealsFromThePeers(t *testing.T) {
	all := relays(t, 3)
	servers := startAll(t, all)
	createStream(t, servers[0], 3, 200)
	for i, s := range servers {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(all[i].Dir); err != nil {
			t.Fatal(err)
		}
		servers[i] = start(t, all[i])
		complete(t, servers[i])
		if n := stored(t, all[i].Dir); n < 200*messageBytes {
			t.Errorf("relay %d says that its replica is complete with %d bytes", i, n)
		}
	}
	for _, s := range servers {
		if n := messages(t, s); n != 200 {
			t.Errorf("%d messages, want 200", n)
		}
	}
}

// Two servers that lost their disks do not outvote the third server, which has the data.
func TestTwoLostDisksDoNotOutvoteTheThird(t *testing.T) {
	all := relays(t, 3)
	servers := startAll(t, all)
	createStream(t, servers[0], 3, 200)
	for _, s := range servers {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range all[:2] {
		if err := os.RemoveAll(o.Dir); err != nil {
			t.Fatal(err)
		}
	}
	servers[0], servers[1] = start(t, all[0]), start(t, all[1])
	for end := time.Now().Add(12 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // longer than an election
		for _, s := range servers[:2] {
			if s.Check() == nil {
				t.Fatal("two servers with empty disks are a cluster")
			}
		}
	}
	servers[2] = start(t, all[2])
	for _, s := range servers {
		complete(t, s)
	}
	eventually(t, "all messages are there", func() error {
		if n := messages(t, servers[0]); n != 200 {
			return fmt.Errorf("%d messages, want 200", n)
		}
		return nil
	})
}

// A cluster grows by relays that start, and shrinks by Remove, which moves replicas away
// first. All data stays.
func TestGrowAndShrink(t *testing.T) {
	four := relays(t, 4)
	three := slices.Clone(four[:3])
	for i := range three {
		three[i].Peers = three[i].Peers[:3]
	}
	servers := startAll(t, three)
	createStream(t, servers[0], 3, 100)
	if err := servers[0].Remove(t.Context(), "relay-1"); !errors.Is(err, embedded.ErrRefused) {
		t.Errorf("removing one of three relays: %v", err)
	}
	servers = append(servers, start(t, four[3]))
	complete(t, servers[3])
	eventually(t, "the cluster has four relays", func() error {
		st, err := servers[0].Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Relays {
			if !p.Online || !p.Complete || p.Replica == (p.Name == "relay-3") {
				return fmt.Errorf("%+v", p)
			}
		}
		if len(st.Relays) != 4 || st.Quorum != 3 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if err := servers[0].Remove(t.Context(), "relay-9"); !errors.Is(err, embedded.ErrUnknownPeer) {
		t.Errorf("removing an unknown relay: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	eventually(t, "the relay is removed", func() error { return servers[1].Remove(ctx, "relay-1") }) // by the relay itself
	if err := servers[1].Close(); err != nil {
		t.Error(err)
	}
	// The server deletes its membership in the background, which a process that ends does not
	// wait for, either.
	eventually(t, "the membership is deleted", func() error {
		if _, err := os.Stat(filepath.Join(four[1].Dir, "jetstream", "$SYS", "_js_", "_meta_")); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	eventually(t, "three relays with replicas are left", func() error {
		st, err := servers[0].Status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Relays {
			if !p.Online || !p.Complete || !p.Replica || p.Name == "relay-1" {
				return fmt.Errorf("%+v", p)
			}
		}
		if len(st.Relays) != 3 || st.Quorum != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if n := messages(t, servers[3]); n != 100 {
		t.Errorf("%d messages, want 100", n)
	}
	// A removed relay may return, with its old store.
	servers[1] = start(t, four[1])
	complete(t, servers[1])
	for _, s := range servers[1:3] {
		if n := messages(t, s); n != 100 {
			t.Errorf("%d messages after the return, want 100", n)
		}
	}
}

// A single relay keeps its data over a restart.
func TestASingleRelayNeedsNoCluster(t *testing.T) {
	o := relays(t, 1)[0]
	o.Secret, o.Listen = "", ""
	s := start(t, o)
	complete(t, s)
	createStream(t, s, 1, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, o)
	complete(t, s)
	if n := messages(t, s); n != 10 {
		t.Errorf("%d messages, want 10", n)
	}
}

// A server alone is not complete, and its start does not wait for the peers.
func TestARelayWithoutPeersIsNotComplete(t *testing.T) {
	s := start(t, relays(t, 3)[0])
	if err := s.Check(); err == nil {
		t.Error("complete without a cluster")
	}
}

func TestARelayWithAnotherSecretIsRefused(t *testing.T) {
	all := relays(t, 3)
	for _, o := range all[:2] {
		start(t, o)
	}
	seen, lines := observer.New(zap.WarnLevel)
	stranger := all[2]
	stranger.Secret, stranger.Log = "another secret of nobody here", zap.New(seen)
	s := start(t, stranger)
	eventually(t, "the stranger is refused", func() error {
		if lines.Len() == 0 {
			return errors.New("nothing is logged")
		}
		return nil
	})
	if s.Check() == nil {
		t.Error("a relay with another secret is in the cluster")
	}
	for _, l := range lines.All() {
		if text := fmt.Sprint(l.Message, l.ContextMap()); strings.Contains(text, secret) || strings.Contains(text, stranger.Secret.Reveal()) {
			t.Errorf("a secret is logged: %s", text)
		}
	}
}

// The port for clients asks for a password that only the process knows.
func TestNobodyElseConnects(t *testing.T) {
	s := start(t, relays(t, 1)[0])
	var all sync.WaitGroup
	for _, login := range []nats.Option{nats.Name("nobody"), nats.UserInfo("journal", "guessed"), nats.UserInfo("operator", "")} {
		all.Go(func() {
			if c, err := nats.Connect("", nats.InProcessServer(s), login); err == nil {
				c.Close()
				t.Error("connected without the password")
			}
		})
	}
	all.Wait()
}

func TestStoresOfOthersAreRefused(t *testing.T) {
	written := func(change func(*embedded.Options)) embedded.Options {
		t.Helper()
		o := relays(t, 3)[0]
		was := o
		change(&was)
		s, err := embedded.Start(was)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return o
	}
	foreign := relays(t, 3)[0]
	if err := os.MkdirAll(filepath.Join(foreign.Dir, "jetstream", "$G", "streams"), 0o700); err != nil {
		t.Fatal(err)
	}
	alone := written(func(*embedded.Options) {})
	alone.Peers = alone.Peers[:1]
	left := relays(t, 1)[0]
	if s, err := embedded.Start(left); err != nil || s.Close() != nil || embedded.Leave(left.Dir) != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		opts embedded.Options
		want string
	}{
		"single relay":       {written(func(o *embedded.Options) { o.Peers = o.Peers[:1] }), "written by a single relay without a cluster"},
		"carried":            {left, "was carried into a cluster"},
		"cluster":            {alone, "cannot be used without the cluster"},
		"another relay":      {written(func(o *embedded.Options) { o.Name = "relay-7" }), "belongs to the relay relay-7"},
		"another cluster":    {written(func(o *embedded.Options) { o.Cluster = "other" }), "belongs to the cluster other"},
		"another NATS store": {foreign, "the store of another NATS server"},
	} {
		s, err := embedded.Start(c.opts)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A store says over restarts whether the relay has used the journal of the cluster.
func TestTheStoreRemembersTheJournal(t *testing.T) {
	alone, o := relays(t, 1)[0], relays(t, 3)[0]
	inspect := func(o embedded.Options, want embedded.Store) {
		t.Helper()
		if got, err := embedded.Inspect(o.Dir); err != nil || got != want {
			t.Errorf("the store is %d, %v; want %d", got, err, want)
		}
	}
	inspect(o, embedded.NoStore)
	s := start(t, o)
	if s.Carried() {
		t.Error("a new store has a journal")
	}
	inspect(o, embedded.NewStore)
	if err := s.SetCarried(); err != nil || s.Close() != nil {
		t.Fatal(err)
	}
	inspect(o, embedded.InUse)
	if s = start(t, o); !s.Carried() {
		t.Error("the store has forgotten its journal")
	}
	if s := start(t, alone); !s.Carried() || s.Close() != nil {
		t.Error("a single relay waits for a journal")
	}
	inspect(alone, embedded.Alone)
	if err := embedded.Leave(alone.Dir); err != nil {
		t.Fatal(err)
	}
	inspect(alone, embedded.LeftAlone)
}

func TestAFolderBelongsToOneProcess(t *testing.T) {
	o := relays(t, 1)[0]
	start(t, o)
	if s, err := embedded.Start(o); err == nil {
		_ = s.Close()
		t.Error("two servers use one folder")
	}
}

func TestAPortInUseIsAnError(t *testing.T) {
	o := relays(t, 3)[0]
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if s, err := embedded.Start(o); err == nil {
		_ = s.Close()
		t.Error("started on a port in use")
	} else if !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
}

// Certificates from files replace the derived certificates.
func TestCertificatesFromFiles(t *testing.T) {
	all := relays(t, 3)
	own, key := selfsigned.Certificate(t, t.TempDir(), "relay")
	for i := range all {
		all[i].TLS = config.PeerTLS{CertFile: own, KeyFile: key, CAFile: own}
	}
	startAll(t, all)
	o := relays(t, 3)[0]
	o.TLS = config.PeerTLS{CertFile: "missing.crt", KeyFile: "missing.key", CAFile: "missing.ca"}
	if s, err := embedded.Start(o); err == nil {
		_ = s.Close()
		t.Error("started without certificates")
	}
}
