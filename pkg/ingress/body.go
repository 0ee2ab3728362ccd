package ingress

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
)

var (
	errTooLarge = errors.New("body is too large")
	errEncoding = errors.New("the body's Content-Encoding is not gzip, or does not fit the body")
)

// freeBytes of a body are part of connectionBytes and streamBytes, and are not counted
// again.
const freeBytes = 4 << 10

// bodyReader reads the body of one request within a size limit and the memory of the
// pool. The reader takes memory as bytes arrive and not by Content-Length: a sender that
// announces a large body and sends little gets little.
type bodyReader struct {
	pool    *pool
	request *allocation
	limit   int64 // bytes, before and after decompression

	body   []byte
	memory int64 // bytes taken from the pool for body
}

// read reads the whole body and decompresses a gzip body; the header then has no
// Content-Encoding. Decompression begins after the whole body has arrived, so that a
// stalled sender holds no more than the bytes it sent.
func (in *bodyReader) read(hr *http.Request) error {
	if hr.ContentLength > in.limit {
		return errTooLarge
	}
	compressed, err := isCompressed(hr.Header)
	if err != nil {
		return err
	}
	if err := in.fill(hr.Body, hr.ContentLength); err != nil || !compressed {
		return err
	}
	if err := in.inflate(); err != nil {
		return err
	}
	hr.Header.Del("Content-Encoding")
	hr.Header.Del("Content-Length")
	return nil
}

// inflate replaces the compressed body by the decompressed body.
func (in *bodyReader) inflate() error {
	packed := bodyReader{body: in.body, memory: in.memory}
	in.body, in.memory = nil, 0
	zip := gzipReaders.Get().(*gzip.Reader)
	defer func() {
		_ = zip.Reset(strings.NewReader("")) // drops the reference to the body
		gzipReaders.Put(zip)
	}()
	err := zip.Reset(bytes.NewReader(packed.body))
	if err == nil {
		err = in.fill(zip, int64(len(packed.body)))
	}
	in.pool.shrink(in.request, packed.memory)
	switch {
	case errors.Is(err, errTooLarge), errors.Is(err, errExhausted):
		return err
	case err != nil:
		return errEncoding
	}
	return nil
}

// gzipReaders are unused gzip readers. Each has a window of 32 KiB.
var gzipReaders = sync.Pool{New: func() any { return new(gzip.Reader) }}

// isCompressed reports whether the body is compressed with gzip.
func isCompressed(h http.Header) (bool, error) {
	switch values := h["Content-Encoding"]; {
	case len(values) == 0:
		return false, nil
	case len(values) == 1:
		switch strings.ToLower(strings.TrimSpace(values[0])) {
		case "", "identity":
			return false, nil
		case "gzip", "x-gzip": // RFC 9110, section 8.4.1.3
			return true, nil
		}
	}
	return false, errEncoding
}

// fill reads from until EOF. The hint is the expected size.
func (in *bodyReader) fill(from io.Reader, hint int64) error {
	in.body = make([]byte, 0, min(max(hint, 511)+1, freeBytes))
	for {
		n, err := from.Read(in.body[len(in.body):cap(in.body)])
		in.body = in.body[:len(in.body)+n]
		if int64(len(in.body)) > in.limit {
			return errTooLarge
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the body: %w", err)
		}
		if len(in.body) < cap(in.body) {
			continue
		}
		// Double the buffer, up to the expected size.
		want := 2 * int64(cap(in.body))
		if hint >= int64(len(in.body)) {
			want = min(want, hint+1)
		}
		if more := max(0, want-freeBytes) - in.memory; more > 0 {
			if err := in.pool.grow(in.request, more); err != nil {
				return err
			}
			in.memory += more
		}
		in.body = slices.Grow(in.body, int(want)-len(in.body))
	}
}

func bodyOutcome(err error) answer {
	switch {
	case errors.Is(err, errTooLarge):
		return refuse(outcomeTooLarge)
	case errors.Is(err, errEncoding):
		return refuse(outcomeEncoding)
	case errors.Is(err, errExhausted), errors.Is(err, errSourceQuota):
		return refuse(outcomeOverloaded)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(outcomeTooSlow)
	}
	return refuse(outcomeAborted)
}
