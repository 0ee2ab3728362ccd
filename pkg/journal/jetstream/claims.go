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

// claim is the message under an identity key: whose key it is, and since when.
// It is written with its event in one atomic batch, and only if nobody else has
// written one: that is what makes a twin a duplicate, in whichever process it
// comes in.
//
//	1 | first seen, 8 bytes | token, 8 bytes | back | seq, 8 bytes, if back is 0 | CloudEvents id
//
// A claim stands in its event's batch, so that how far back the event is says
// where, before either has a place; that of a key learned from a duplicate says
// it outright.
type claim struct {
	at    uint64 // place of the claim itself; 0 is one that is being made
	first int64  // nanoseconds since 1970
	token uint64 // of the append that made it
	seq   journal.Seq
	id    string // of the CloudEvent
}

const claimVersion = 1

// keyHeader is the key itself, in base64, of a claim whose event does not have it:
// one learned from a duplicate, or carried here. It is for carrying it elsewhere.
const keyHeader = "Postwire-Key"

func setKey(m *nats.Msg, k event.Key) {
	m.Header.Set(keyHeader, base64.RawStdEncoding.EncodeToString([]byte(k)))
}

// encode writes a claim whose event is back places before it, or, if back is 0,
// at its seq.
func (c claim) encode(back int) []byte {
	b := binary.BigEndian.AppendUint64([]byte{claimVersion}, uint64(c.first))
	b = binary.BigEndian.AppendUint64(b, c.token)
	b = binary.AppendUvarint(b, uint64(back))
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
		c.seq = journal.Seq(m.seq - min(back, m.seq))
	} else {
		c.seq = journal.Seq(r.Uint64())
	}
	c.id = string(r.B)
	return c, r.Err
}

// within reports whether the claim still counts at now. A clock that was set back
// makes first lie ahead of now; that is inside.
func (c claim) within(window time.Duration, now int64) bool { return now-c.first < int64(window) }

// slack is how much longer a claim is stored than it counts: the clocks of
// servers and processes differ.
const slack = 10 * time.Minute

func randomToken() uint64 { return rand.Uint64() } //nolint:gosec // it tells appends apart, and is no secret
