package kafkatest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Front is a listener with SASL in front of a broker without SASL. Like Apache
// Kafka, Front closes a connection that sends a request after the lifetime of
// its authentication, and a connection that sends another request than
// ApiVersions before the authentication.
//
// All connections to the broker must lead through Dial, because the metadata
// names the broker itself.
type Front struct {
	Addr       string
	Mechanisms []string // offered

	// Check checks the first message of a client. The client is refused with a
	// reason, or with a challenge that the client answers before the refusal.
	Check func(mechanism string, message []byte) (challenge []byte, reason string)

	mu       sync.Mutex
	lifetime time.Duration
	logins   int // successful authentications, with renewals
	renewed  int // successful authentications of a connection that had one
	expired  int // connections closed after the lifetime
	conns    int // accepted
	open     map[net.Conn]struct{}
	closed   bool
	serving  sync.WaitGroup
	listener net.Listener
	broker   string
}

// Counts are what a Front has seen.
type Counts struct{ Conns, Logins, Renewed, Expired int }

// StartFront starts a Front until the end of the test.
func StartFront(t testing.TB, b *Broker, f *Front) *Front {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.listener, f.Addr, f.broker, f.open = l, l.Addr().String(), b.Addr, map[net.Conn]struct{}{}
	f.serving.Go(f.serve)
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		f.closed = true
		for c := range f.open {
			_ = c.Close()
		}
		f.mu.Unlock()
		f.serving.Wait()
	})
	return f
}

// SetLifetime sets the lifetime of later authentications; 0 has no end.
func (f *Front) SetLifetime(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lifetime = d
}

// Counts returns what the front has seen.
func (f *Front) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Counts{f.conns, f.logins, f.renewed, f.expired}
}

// Dial connects to the front in place of the broker.
func (f *Front) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr == f.broker {
		addr = f.Addr
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func (f *Front) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.open[c] = struct{}{}
	return true
}

func (f *Front) serve() {
	for {
		client, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns++
		f.mu.Unlock()
		f.serving.Go(func() {
			defer client.Close()
			broker, err := net.Dial("tcp", f.broker)
			if err != nil {
				return
			}
			defer broker.Close()
			if f.keep(client) && f.keep(broker) {
				_ = f.exchange(client, broker)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.open, client)
			delete(f.open, broker)
		})
	}
}

var errClose = errors.New("the broker closes the connection")

// exchange serves one connection.
func (f *Front) exchange(client, broker net.Conn) error {
	var mechanism string
	var refused, ok bool
	var expires time.Time
	for {
		frame, err := readFrame(client)
		if err != nil {
			return err
		}
		if len(frame) < 10 {
			return errClose
		}
		key, version := kmsg.Key(binary.BigEndian.Uint16(frame)), int16(binary.BigEndian.Uint16(frame[2:]))
		switch {
		case key == kmsg.SASLHandshake:
			req := &kmsg.SASLHandshakeRequest{Version: version}
			if err := req.ReadFrom(body(frame)); err != nil {
				return err
			}
			resp := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
			resp.SupportedMechanisms = f.Mechanisms
			if mechanism = req.Mechanism; !slices.Contains(f.Mechanisms, mechanism) {
				mechanism, resp.ErrorCode = "", kerr.UnsupportedSaslMechanism.Code
			}
			err = answer(client, frame, resp)
		case key == kmsg.SASLAuthenticate && mechanism != "":
			req := &kmsg.SASLAuthenticateRequest{Version: version}
			if err := req.ReadFrom(body(frame)); err != nil {
				return err
			}
			resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
			var challenge []byte
			reason := "the client has answered the challenge"
			if !refused {
				challenge, reason = f.Check(mechanism, req.SASLAuthBytes)
			}
			switch {
			case challenge != nil:
				refused, resp.SASLAuthBytes = true, challenge
			case reason != "":
				resp.ErrorCode, resp.ErrorMessage = kerr.SaslAuthenticationFailed.Code, &reason
			default:
				f.mu.Lock()
				resp.SessionLifetimeMillis, expires = f.lifetime.Milliseconds(), time.Time{}
				if f.lifetime > 0 {
					expires = time.Now().Add(f.lifetime)
				}
				f.logins++
				if ok {
					f.renewed++
				}
				f.mu.Unlock()
				ok, mechanism = true, ""
			}
			err = answer(client, frame, resp)
			if resp.ErrorCode != 0 {
				return errClose
			}
		case key != kmsg.ApiVersions && !ok:
			return errClose
		case ok && !expires.IsZero() && time.Now().After(expires):
			f.mu.Lock()
			f.expired++
			f.mu.Unlock()
			return errClose
		default:
			err = pass(client, broker, frame)
		}
		if err != nil {
			return err
		}
	}
}

// body returns a request after its header, with the client's name.
func body(frame []byte) []byte {
	name := max(0, int(int16(binary.BigEndian.Uint16(frame[8:]))))
	return frame[min(len(frame), 10+name):]
}

// maxFrame limits a request and a response, in bytes.
const maxFrame = 64 << 20

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrame {
		return nil, errClose
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func writeFrame(w io.Writer, frame []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

func answer(client net.Conn, request []byte, resp kmsg.Response) error {
	return writeFrame(client, resp.AppendTo(slices.Clone(request[4:8])))
}

// pass gives a request to the broker and the response to the client.
func pass(client, broker net.Conn, frame []byte) error {
	if err := writeFrame(broker, frame); err != nil {
		return err
	}
	response, err := readFrame(broker)
	if err != nil {
		return err
	}
	return writeFrame(client, response)
}
