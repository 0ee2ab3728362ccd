package httpserver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
)

// Certificates are the certificates of a server, reloaded when their files change. A
// connecting client triggers a check of the files, at most once a second: this needs
// neither a goroutine nor a file watcher, and works with the symbolic links that Kubernetes
// swaps. The methods may be called concurrently.
type Certificates struct {
	files config.ServerTLS
	log   *zap.Logger

	mu      sync.Mutex
	looked  time.Time
	stamp   string // stamp of the loaded files
	current *tls.Config
}

// LoadCertificates loads the files. Its error names the file.
func LoadCertificates(files config.ServerTLS, log *zap.Logger) (*Certificates, error) {
	r := &Certificates{files: files, log: log}
	stamp := r.fileStamp()
	var err error
	if r.current, err = r.load(); err != nil {
		return nil, err
	}
	r.stamp, r.looked = stamp, time.Now()
	return r, nil
}

// Config returns a server configuration that follows the files.
func (r *Certificates) Config() *tls.Config {
	c := r.current.Clone()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return r.refresh(), nil }
	return c
}

// refresh returns the certificates, reloaded if the files changed. After a failed reload
// the old certificates stay in use.
func (r *Certificates) refresh() *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.looked) < time.Second {
		return r.current
	}
	r.looked = time.Now()
	stamp := r.fileStamp()
	if stamp == r.stamp {
		return r.current
	}
	next, err := r.load()
	if err != nil {
		r.log.Error("the certificate files have changed and cannot be loaded; the old certificate stays in use", zap.Error(err))
		return r.current
	}
	r.log.Info("certificate files loaded again", zap.String("cert_file", r.files.CertFile))
	r.stamp, r.current = stamp, next
	return next
}

// Expiry returns the earliest expiry in the current certificate chain.
func (r *Certificates) Expiry() (first time.Time) {
	for _, der := range r.refresh().Certificates[0].Certificate {
		if c, err := x509.ParseCertificate(der); err == nil && (first.IsZero() || c.NotAfter.Before(first)) {
			first = c.NotAfter
		}
	}
	return first
}

// fileStamp returns a stamp that changes with the files.
func (r *Certificates) fileStamp() string {
	return config.Stamp(r.files.CertFile, r.files.KeyFile, r.files.ClientCAFile)
}

func (r *Certificates) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(r.files.CertFile, r.files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("loading %s and %s: %w", r.files.CertFile, r.files.KeyFile, err)
	}
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if r.files.ClientCAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(r.files.ClientCAFile)
	if err != nil {
		return nil, fmt.Errorf("loading the client CA: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("loading the client CA: %s holds no certificate in PEM form", r.files.ClientCAFile)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}
