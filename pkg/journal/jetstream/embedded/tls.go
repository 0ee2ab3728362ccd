package embedded

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"time"

	"github.com/postwire/postwire/config"
)

// derive derives 32 bytes for one purpose from the shared secret.
func derive(secret config.Secret, purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, []byte(secret.Reveal()), nil, "postwire "+purpose, 32)
}

// encryption returns the settings for either end of a connection between relays. Both ends
// present a certificate.
func (o Options) encryption() (*tls.Config, error) {
	if o.TLS != (config.PeerTLS{}) {
		return fromFiles(o.TLS)
	}
	return fromSecret(o.Secret, o.Cluster)
}

func fromFiles(files config.PeerTLS) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls: cert_file and key_file: %w", err)
	}
	pem, err := os.ReadFile(files.CAFile)
	if err != nil {
		return nil, fmt.Errorf("tls: ca_file: %w", err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls: ca_file: %s contains no certificate in PEM", files.CAFile)
	}
	return mutual(pair, authorities), nil
}

// peerName is the name in all certificates that are derived from a secret.
const peerName = "peer.postwire.internal"

// fromSecret derives the key of a certificate authority from the secret, and signs a new
// certificate for this process. Every relay with the secret derives the same authority, so
// relays recognise each other without certificate files.
func fromSecret(secret config.Secret, cluster string) (*tls.Config, error) {
	seed, err := derive(secret, "certificate authority "+cluster)
	if err != nil {
		return nil, err
	}
	authorityKey := ed25519.NewKeyFromSeed(seed)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "postwire cluster " + cluster},
		// Clocks of relays may differ, and the secret has no end.
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, fmt.Errorf("deriving the certificate authority: %w", err)
	}
	if authority, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("deriving the certificate authority: %w", err)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: peerName}, DNSNames: []string{peerName},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, authority, public, authorityKey)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of this relay: %w", err)
	}
	authorities := x509.NewCertPool()
	authorities.AddCert(authority)
	c := mutual(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, authorities)
	c.ServerName = peerName // instead of the host name in the list of peers
	return c, nil
}

func mutual(own tls.Certificate, authorities *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own},
		RootCAs: authorities, ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert,
	}
}
