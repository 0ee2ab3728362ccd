package ingress

import (
	"encoding/json"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/pkg/journal"
)

// outcome is the result of a request. The set is closed, because outcome is a label of a
// metric.
type outcome string

const (
	outcomeAccepted        outcome = "accepted"
	outcomeDuplicate       outcome = "duplicate"
	outcomeQuarantined     outcome = "quarantined"
	outcomeConsented       outcome = "consented"
	outcomeChallenge       outcome = "challenge"
	outcomeMalformed       outcome = "malformed"
	outcomeAborted         outcome = "aborted"
	outcomeUnauthenticated outcome = "unauthenticated"
	outcomeForbidden       outcome = "forbidden"
	outcomeNotFound        outcome = "not_found"
	outcomeMethod          outcome = "method_not_allowed"
	outcomeTooSlow         outcome = "too_slow"
	outcomeTooLarge        outcome = "too_large"
	outcomeHeader          outcome = "header_too_large"
	outcomeEncoding        outcome = "unsupported_encoding"
	outcomeRateLimited     outcome = "rate_limited"
	outcomeOverloaded      outcome = "overloaded"
	outcomePanic           outcome = "panic"
	outcomeUnavailable     outcome = "unavailable"
)

// answers has the status and the detail of each outcome. A stranger may see the detail,
// so the detail tells nothing about the configuration.
var answers = map[outcome]struct {
	status int
	detail string
}{
	outcomeAccepted:        {http.StatusAccepted, ""},
	outcomeDuplicate:       {http.StatusOK, ""},
	outcomeQuarantined:     {http.StatusAccepted, ""},
	outcomeConsented:       {http.StatusOK, ""},
	outcomeChallenge:       {http.StatusOK, ""},
	outcomeMalformed:       {http.StatusBadRequest, "The body could not be understood."},
	outcomeAborted:         {http.StatusBadRequest, "The body did not arrive whole."},
	outcomeUnauthenticated: {http.StatusUnauthorized, "Credentials are missing or not valid."},
	outcomeForbidden:       {http.StatusForbidden, "This address may not send here."},
	outcomeNotFound:        {http.StatusNotFound, "There is nothing at this path."},
	outcomeMethod:          {http.StatusMethodNotAllowed, "Webhooks are sent with POST."},
	outcomeTooSlow:         {http.StatusRequestTimeout, "The body did not arrive in time."},
	outcomeTooLarge:        {http.StatusRequestEntityTooLarge, "The body is too large."},
	outcomeHeader:          {http.StatusRequestHeaderFieldsTooLarge, "The header has too many values."},
	outcomeEncoding:        {http.StatusUnsupportedMediaType, "The body is compressed in a way that is not read here, or does not arrive as its Content-Encoding says. It may be sent as it is, or with gzip."},
	outcomeRateLimited:     {http.StatusTooManyRequests, "There are too many requests."},
	outcomePanic:           {http.StatusInternalServerError, "The request could not be handled."},
	outcomeOverloaded:      {http.StatusServiceUnavailable, "There is too much to do at the moment. Send it again."},
	outcomeUnavailable:     {http.StatusServiceUnavailable, "The event cannot be stored at the moment. Send it again."},
}

// answer is the answer to a request.
type answer struct {
	outcome outcome
	id      string        // of the event, or of the quarantined request
	text    string        // replaces the usual body
	retry   time.Duration // Retry-After; 0 is the default of the outcome
	header  http.Header   // additional header of a handshake
	proven  bool          // the sender has authenticated
}

func refuse(o outcome) answer { return answer{outcome: o} }

func (a answer) after(wait time.Duration) answer {
	a.retry = wait
	return a
}

// stored returns accepted if any appended event is new, else duplicate.
func stored(receipts []journal.Receipt) answer {
	for _, r := range receipts {
		if !r.Duplicate {
			return answer{outcome: outcomeAccepted, id: r.ID}
		}
	}
	if len(receipts) == 0 {
		return answer{outcome: outcomeAccepted}
	}
	return answer{outcome: outcomeDuplicate, id: receipts[0].ID}
}

// retryAfter returns the time until the limiter admits one more request.
func retryAfter(l *rate.Limiter) time.Duration {
	return time.Duration(float64(time.Second) / float64(l.Limit()))
}

// problem is the body of every answer other than 2xx (RFC 9457).
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	RequestID string `json:"request_id"`
}

// write writes the answer.
func (a answer) write(w http.ResponseWriter, requestID string) error {
	t := answers[a.outcome]
	h := w.Header()
	switch a.outcome {
	case outcomeConsented:
		maps.Copy(h, a.header)
		h.Set("Allow", http.MethodPost+", "+http.MethodOptions)
		h.Set("Content-Length", "0")
		w.WriteHeader(t.status)
		return nil
	case outcomeChallenge:
		// A browser must not render the sender's text as a page of this host.
		h.Set("Content-Type", "text/plain; charset=utf-8")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Length", strconv.Itoa(len(a.text)))
		w.WriteHeader(t.status)
		_, err := io.WriteString(w, a.text)
		return err
	case outcomeMethod:
		h.Set("Allow", http.MethodPost)
	case outcomeUnauthenticated:
		h.Set("WWW-Authenticate", "Webhook") // RFC 9110, section 15.5.2
	case outcomeEncoding:
		h.Set("Accept-Encoding", "gzip") // RFC 9110, section 15.5.16
		h.Set("Connection", "close")
	case outcomeRateLimited, outcomeUnavailable, outcomeOverloaded:
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(max(a.retry, time.Second).Seconds()))))
	case outcomeTooLarge, outcomeTooSlow, outcomeAborted:
		h.Set("Connection", "close") // the rest of the body is not read
	}
	var body []byte
	var err error
	if t.status < 300 {
		h["Content-Type"] = typeJSON
		body, err = a.receipt()
	} else {
		h["Content-Type"] = typeProblem
		body, err = json.Marshal(problem{"about:blank", http.StatusText(t.status), t.status, t.detail, requestID})
	}
	if err != nil {
		return err
	}
	body = append(body, '\n')
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(t.status)
	_, err = w.Write(body)
	return err
}

// Shared header values; never modified.
var (
	typeJSON    = []string{"application/json"}
	typeProblem = []string{"application/problem+json"}
)

// receipt returns the body of a 2xx, the most frequent answer.
func (a answer) receipt() ([]byte, error) {
	b := make([]byte, 0, 128)
	b = append(b, `{"status":"`...)
	b = append(b, a.outcome...)
	b = append(b, `","id":`...)
	b, err := jsontext.AppendQuote(b, a.id)
	return append(b, '}'), err
}

// guarded answers 500 if do panics.
func (s *Server) guarded(log func() *zap.Logger, do func() answer) (a answer) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		// The text of a runtime error contains no data of the request; other panic
		// values may.
		what := zap.String("panic", "not shown")
		if err, ok := v.(interface {
			error
			RuntimeError()
		}); ok {
			what = zap.String("panic", err.Error())
		}
		log().Error("a request made the relay panic; this is a defect, please report it", what, zap.Stack("stack"))
		a = refuse(outcomePanic)
	}()
	return do()
}

// newRequestID returns the ID of a request for logs and answers.
func newRequestID() string {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	var b [12]byte
	for i, n := 0, rand.Uint64(); i < len(b); i, n = i+1, n>>5 { //nolint:gosec // a name, not a secret
		b[i] = digits[n&31]
	}
	return string(b[:])
}
