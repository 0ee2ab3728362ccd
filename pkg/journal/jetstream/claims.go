package jetstream

import (
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// claim is the message of an identity key: the event of the key, and the time of the first
// receipt. One atomic batch stores an event and its claims, and only if no claim of the
// keys exists. So an event with an equal key is a duplicate in every process.
//
//	1 | first receipt, 8 bytes | token, 8 bytes | back | seq, 8 bytes, if back is 0 | CloudEvents id
//
// The sequences of a batch are not known when it is written, so that a claim refers to the
// event by back, the number of event sequences between the event and the message of the
// claim. The claim of a key learned from a duplicate has the sequence instead.
type claim struct {
	at    uint64 // sequence of the claim itself; 0 before it is stored
	first int64  // nanoseconds since 1970
	token uint64 // token of the append that made the claim
	seq   journal.Seq
	id    string // CloudEvents id
}

const claimVersion = 1

// keyHeader holds the identity key, in base64, of a claim whose event does not contain the
// key: a key learned from a duplicate, or a migrated key. A migration reads the header.
const keyHeader = "Postwire-Key"

func setKey(m *nats.Msg, k event.Key) {
	m.Header.Set(keyHeader, base64.RawStdEncoding.EncodeToString([]byte(k)))
}

// encode encodes a claim whose event is back messages before the claim, or has the sequence
// seq if back is 0.
func (c claim) encode(back int) []byte {
	b := binary.BigEndian.AppendUint64([]byte{claimVersion}, uint64(c.first))
	b = binary.BigEndian.AppendUint64(b, c.token)
	b = binary.AppendUvarint(b, uint64(back)*seqsPerMessage)
	if back == 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(c.seq))
	}
	return append(b, c.id...)
}

func decodeClaim(m message) (claim, error) {
	r := &record.Reader{B: m.data}
	if v := r.Byte(); v != claimVersion && r.Err == nil {
		return claim{}, errVersion("identity key", v, claimVersion)
	}
	c := claim{at: m.seq, first: int64(r.Uint64()), token: r.Uint64()}
	if back := r.Uvarint(); back > 0 {
		c.seq = seqOf(m.seq) - min(journal.Seq(back), seqOf(m.seq))
	} else {
		c.seq = journal.Seq(r.Uint64())
	}
	c.id = string(r.B)
	return c, r.Err
}

// within reports whether the dedupe window contains the claim. After a clock was set back,
// first may be later than now; the claim is then inside the window.
func (c claim) within(window time.Duration, now int64) bool { return now-c.first < int64(window) }

// slack is how much longer than the window a claim is stored: the clocks of two processes may
// differ by maxClockSkew, in either direction, and so may the clock of the server that removes
// the claim.
const slack = 2 * maxClockSkew

func randomToken() uint64 { return rand.Uint64() } //nolint:gosec // it tells appends apart, and is no secret
