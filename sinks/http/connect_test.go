package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	nethttp "net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// counting dials, and counts.
func counting(n *atomic.Int32) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}

func TestPublic(t *testing.T) {
	for _, text := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:7f00:1",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.1.2.3", "64:ff9b:1::808:808",
		"2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
		"fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fd00::1%eth0", "::1%lo", "fec0::1", "ff02::1", "100::1",
	} {
		if a := netip.MustParseAddr(text); public(a) {
			t.Errorf("%s counts as public", text)
		}
	}
	for _, text := range []string{
		"1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1", "169.253.0.1", "172.15.0.1", "172.32.0.1", "192.167.0.1", "223.255.255.255",
		"2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
	} {
		if a := netip.MustParseAddr(text); !public(a) {
			t.Errorf("%s counts as private", text)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address counts as public")
	}
}

func TestPrivateAddressesAreRefused(t *testing.T) {
	r := start(t, nil)
	_, port, err := net.SplitHostPort(r.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	url := "url: http://localhost:" + port
	s, err := tryOpen(t, url, sinks.Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(t, s, numbered(1)); err != nil {
		t.Error(err)
	}
	var dialled atomic.Int32
	_, err = tryOpen(t, url+"\nrefuse_private_addresses: true", sinks.Env{Dial: counting(&dialled)})
	if !errors.Is(err, errPrivate) || !strings.Contains(err.Error(), "localhost has only private addresses") {
		t.Errorf("got %v", err)
	}
	if _, refused := sinks.IsPermanent(err); refused || dialled.Load() != 0 {
		t.Errorf("refused for good: %v, dialled %d times", refused, dialled.Load())
	}
	if n := len(r.all()); n != 1 {
		t.Errorf("%d requests came", n)
	}
}

func TestALiteralPrivateAddressIsAnErrorOfTheConfiguration(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "169.254.169.254:80", "[::1]:8080", "[::ffff:10.0.0.1]"} {
		_, err := sinktest.TryConfigure(Kind(), "url: http://"+host+"/\nrefuse_private_addresses: true")
		if err == nil || !strings.Contains(err.Error(), "which refuse_private_addresses forbids") {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestANameThatLeadsElsewhereAMomentLater: what is dialled is what was checked.
func TestANameThatLeadsElsewhereAMomentLater(t *testing.T) {
	found := [][]netip.Addr{
		{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:8.8.8.8"), netip.MustParseAddr("2606:4700::1111")},
		{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("169.254.169.254")},
		{},
	}
	var dialled []string
	errRefused := errors.New("refused, says the test")
	g := guard{
		lookup: func(_ context.Context, _, host string) ([]netip.Addr, error) {
			if host != "rebinding.example" {
				t.Errorf("%s is looked up", host)
			}
			next := found[0]
			found = found[1:]
			return next, nil
		},
		dial: func(_ context.Context, _, addr string) (net.Conn, error) {
			dialled = append(dialled, addr)
			return nil, errRefused
		},
	}
	_, err := g.Dial(t.Context(), "tcp", "rebinding.example:443")
	if !errors.Is(err, errRefused) || errors.Is(err, errPrivate) {
		t.Errorf("the first time: %v", err)
	}
	for range 2 {
		if _, err := g.Dial(t.Context(), "tcp", "rebinding.example:443"); !errors.Is(err, errPrivate) {
			t.Errorf("later: %v", err)
		}
	}
	if diff := cmp.Diff([]string{"8.8.8.8:443", "[2606:4700::1111]:443"}, dialled); diff != "" {
		t.Error(diff)
	}
}

// TestDiallingEndsWithTheSink: the transport goes on dialling for whoever may
// come next.
func TestDiallingEndsWithTheSink(t *testing.T) {
	r := start(t, nil)
	var dialled atomic.Int32
	began, ended := make(chan struct{}), make(chan struct{})
	s, err := tryOpen(t, "url: "+r.URL, sinks.Env{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialled.Add(1) == 1 {
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		close(began)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Deliver(t.Context(), numbered(1)) }()
	<-began
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("deliver reports success")
	}
	select {
	case <-ended:
	case <-time.After(dialTimeout / 2):
		t.Error("it is still being dialled")
	}
}

// TestConnectionsEndWithTheSink: also those that are in use at that moment.
func TestConnectionsEndWithTheSink(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		asked, release := make(chan struct{}, 10), make(chan struct{})
		answer := func(nethttp.ResponseWriter, request) int {
			asked <- struct{}{}
			<-release
			return nethttp.StatusOK
		}
		var r *receiver
		block := ""
		if proto == "HTTP/1.1" {
			r = start(t, answer)
		} else {
			var ca string
			r, ca = startTLS(t)
			r.answer = answer
			block = fmt.Sprintf("\ntls: {enabled: true, ca_file: %q}", ca)
		}
		var open atomic.Int32
		s, err := tryOpen(t, "url: "+r.URL+block, sinks.Env{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			open.Add(1)
			return &counted{Conn: conn, open: &open}, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 3)
		for range 3 {
			go func() { done <- s.Deliver(t.Context(), numbered(1)) }()
			<-asked
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for range 3 {
			if err := <-done; err == nil {
				t.Error("deliver reports success")
			}
		}
		sinktest.Until(t, "no connection is open over "+proto, func() bool { return open.Load() == 0 })
		close(release)
	}
}

// counted is a connection that is counted as open until it is closed.
type counted struct {
	net.Conn
	once sync.Once
	open *atomic.Int32
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// TestProxiesOfTheEnvironmentAreNotUsed: HTTP_PROXY names a place where nobody listens.
func TestProxiesOfTheEnvironmentAreNotUsed(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://127.0.0.1:1")
	}
	r := start(t, nil)
	s := r.open(t, "")
	if proxy := s.(*Sink).transport.Proxy; proxy != nil {
		t.Error("there is a proxy")
	}
	if err := deliver(t, s, numbered(1)); err != nil {
		t.Error(err)
	}
}
