package http

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	nethttp "net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/postwire/postwire/config"
)

// AWS signs requests for a service of AWS by Signature Version 4.
type AWS struct {
	Service         string        `yaml:"service" doc:"Name of the service in signatures: execute-api for API Gateway, lambda for a function URL, events for EventBridge." example:"execute-api"`
	Region          string        `yaml:"region" doc:"Region of the receiver. Empty reads AWS_REGION." example:"eu-central-1"`
	AccessKeyID     string        `yaml:"access_key_id" doc:"ID of the access key. Empty reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN at start."`
	SecretAccessKey config.Secret `yaml:"secret_access_key" doc:"Secret of the access key." example:"${AWS_SECRET_ACCESS_KEY}"`
	SessionToken    config.Secret `yaml:"session_token" doc:"Session token of temporary credentials." example:"${AWS_SESSION_TOKEN}"`
}

func (a AWS) used() bool { return a != AWS{} }

func (a AWS) check(p *config.Invalids) {
	if !a.used() {
		return
	}
	if a.Service == "" {
		p.Add("aws.service", "is missing", "for example execute-api")
	}
	if a.AccessKeyID != "" && a.SecretAccessKey == "" {
		p.Add("aws.secret_access_key", "is missing beside access_key_id", "for example ${AWS_SECRET_ACCESS_KEY}")
	}
	if a.AccessKeyID == "" && (a.SecretAccessKey != "" || a.SessionToken != "") {
		p.Add("aws.access_key_id", "is missing beside secret_access_key or session_token", "write the ID of the key, or remove the three keys to read the environment")
	}
}

// awsSigner signs requests. The methods may be called concurrently.
type awsSigner struct {
	signer          *v4.Signer
	credentials     aws.Credentials
	service, region string
}

// newAWSSigner reads what the configuration leaves to the environment.
func newAWSSigner(a AWS, env func(string) string) (*awsSigner, error) {
	s := &awsSigner{service: a.Service, region: a.Region, credentials: aws.Credentials{
		AccessKeyID: a.AccessKeyID, SecretAccessKey: a.SecretAccessKey.Reveal(), SessionToken: a.SessionToken.Reveal(),
	}}
	if s.region == "" {
		s.region = env("AWS_REGION")
	}
	if s.credentials.AccessKeyID == "" {
		s.credentials = aws.Credentials{AccessKeyID: env("AWS_ACCESS_KEY_ID"), SecretAccessKey: env("AWS_SECRET_ACCESS_KEY"), SessionToken: env("AWS_SESSION_TOKEN")}
	}
	switch {
	case s.region == "":
		return nil, errors.New("aws.region is empty, and AWS_REGION is not set; set one of them")
	case !s.credentials.HasKeys():
		return nil, errors.New("aws.access_key_id is empty, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set; set the keys or the variables")
	}
	s.signer = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = a.Service == "s3" })
	return s, nil
}

// sign adds the signature of a request with all its headers.
func (s *awsSigner) sign(ctx context.Context, r *nethttp.Request, body []byte, at time.Time) error {
	sum := sha256.Sum256(body)
	digest := hex.EncodeToString(sum[:])
	r.Header.Set("X-Amz-Content-Sha256", digest)
	// A header without a value is not sent, so that it must not be signed.
	unsent := nethttp.Header{}
	for name, values := range r.Header {
		if len(values) == 0 {
			unsent[name] = values
			delete(r.Header, name)
		}
	}
	err := s.signer.SignHTTP(ctx, s.credentials, r, digest, s.service, s.region, at)
	maps.Copy(r.Header, unsent)
	if err != nil {
		return errors.New("the request cannot be signed for aws") // not wrapped, because the error may quote headers
	}
	return nil
}
