package ingress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postwire/postwire/config"
)

// FuzzRawRequest writes bytes to a connection of the server: each answer is one of
// HTTP's and of the table of answers, nothing panics, and at the end nothing is held.
func FuzzRawRequest(f *testing.F) {
	c := config.Default().Server
	c.ReadHeaderTimeout, c.ReadTimeout, c.MaxBodyBytes, c.MaxHeaderBytes = time.Second, time.Second, 4096, 4096
	for _, seed := range []string{
		"POST /open HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"POST /signed HTTP/1.1\r\nHost: x\r\nX-Upload-Post-Signature: v1=00\r\nX-Upload-Post-Timestamp: 1\r\nContent-Length: 2\r\n\r\n{}",
		"POST /open HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /open HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
		"OPTIONS /open HTTP/1.0\r\nWebHook-Request-Origin: x\r\n\r\n",
		"POST http://x/slow/%2F?a=%zz HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 1.2.3.4, \"[::1]\r\n\r\n",
		"POST /open HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"POST /open HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 300) + "\r\n",
	} {
		f.Add([]byte(seed))
	}
	w := serve(f, c, nil)
	f.Fuzz(func(t *testing.T, sent []byte) {
		if bytes.Contains(sent, []byte("defect")) {
			return // a source of the tests that panics
		}
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(sent); err != nil {
			return // it has had enough
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		answers := bufio.NewReader(conn)
		for {
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
					t.Fatal("the server does not end the connection")
				}
				break
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusInternalServerError {
				t.Errorf("answered %s", resp.Status)
			}
		}
		for source := range map[string]bool{"signed": true, "open": true, "listed": true, "slow": true, "": true} {
			if n := testutil.ToFloat64(w.metrics.requests.WithLabelValues(source, string(outcomePanic))); n != 0 {
				t.Fatalf("%v requests of %q panicked", n, source)
			}
		}
		_ = conn.Close()
		for end := time.Now().Add(10 * time.Second); w.server.memory.inUse() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d bytes are held for nobody", w.server.memory.inUse())
			}
		}
	})
}
