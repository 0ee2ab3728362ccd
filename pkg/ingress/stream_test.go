package ingress

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
)

// TestAnswersThatAreNotTaken: while a sender does not take the answer to a request over
// HTTP/2, its stream is counted, a body that was not read is given up, and the connection
// may be closed, also where the request was verified.
func TestAnswersThatAreNotTaken(t *testing.T) {
	const streams = 8
	for _, path := range []string{"/nowhere", "/signed"} {
		t.Run(path, func(t *testing.T) {
			c := config.Default().Server
			c.TLS.CertFile, c.TLS.KeyFile = selfsigned.Certificate(t, t.TempDir(), "hooks")
			w := serve(t, c, nil)
			conn, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "http://"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			out := bufio.NewWriter(conn)
			_, _ = out.WriteString(http2.ClientPreface)
			f := http2.NewFramer(out, conn)
			if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
				t.Fatal(err)
			}
			body := make([]byte, 10<<10) // nobody understands it
			header := http.Header{}
			sign(t, header, secret, body)
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			for i := range streams {
				block.Reset()
				fields := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: path}}
				for name := range header {
					fields = append(fields, hpack.HeaderField{Name: strings.ToLower(name), Value: header.Get(name)})
				}
				for _, h := range fields {
					if err := encoder.WriteField(h); err != nil {
						t.Fatal(err)
					}
				}
				id := uint32(2*i + 1)
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
					t.Fatal(err)
				}
				if err := f.WriteData(id, true, body); err != nil {
					t.Fatal(err)
				}
			}
			if err := out.Flush(); err != nil {
				t.Fatal(err)
			}
			answers := 0
			for path == "/signed" && answers < streams || answers == 0 { // the first refusal ends what is to come
				frame, err := f.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if frame.Header().Type == http2.FrameHeaders {
					answers++
				}
			}
			// The headers of the answers are here; their bodies are not taken.
			p := w.server.pool
			p.mu.Lock()
			defer p.mu.Unlock()
			if got, least := p.memory.inUse(), p.connBytes+http2Bytes+int64(answers)*streamBytes; got < least || got > least+streams*(streamBytes+1<<10) {
				t.Errorf("%d bytes are counted for %d answers that are not taken, want %d", got, answers, least)
			}
			own := cmp.Or(p.queues[stranger].first, p.queues[neighbor].first, p.queues[authenticated].first)
			if own == nil || own.writer != nil {
				t.Fatal("the connection cannot be closed to make room")
			}
			p.evict(own)
			p.mu.Unlock()
			defer p.mu.Lock()
			for until := time.Now().Add(5 * time.Second); p.memory.inUse() > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("%d bytes are counted after the connection was closed", p.memory.inUse())
				}
			}
		})
	}
}
