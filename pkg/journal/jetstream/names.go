package jetstream

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
)

// names are the subjects of the stream. Each subject begins with the name of the stream:
//
//	event                 an event
//	part.>                continuation of a long value
//	key.<hash>            the claim of an identity key
//	dead.<sink>.<seq>     a dead letter
//	lost.<sink>           dispositions of a sink, by range
//	rejected.<id>         the constant part of a quarantined request
//	receipts.<source>.<identity>
//	                      count and last receipt of a quarantined request
//	note.<key>            a value of the KV
//	cursor.<cursor>       owner and position of a cursor
//	done.<cursor>.<page>  a page of done events after the committed sequence of a cursor
//	retained.<cursor>.<seq>
//	                      a copy of an event that is open for a cursor
//	quorum.<process>      proves that the cluster stores messages; expires after a minute
//	lead.<name>           holder of a lease, until the message expires
type names struct{ stream string }

func (n names) all() string    { return n.stream + ".>" }
func (n names) event() string  { return n.stream + ".event" }
func (n names) prefix() string { return n.stream + "." }

// key returns the subject of an identity key: the first 128 bits of its SHA-256.
func (n names) key(k event.Key) string {
	sum := sha256.Sum256([]byte(k))
	return n.stream + ".key." + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// part returns the subject that continues a long value of another subject.
func (n names) part(subject string) string {
	return n.stream + ".part." + strings.TrimPrefix(subject, n.prefix())
}

func (n names) dead(id journal.DeliveryID) string {
	return fmt.Sprintf("%s.dead.%s.%020d", n.stream, token(id.Sink), id.Seq)
}

// deadID parses a subject of dead.
func (n names) deadID(subject string) (journal.DeliveryID, error) {
	rest := strings.TrimPrefix(subject, n.stream+".dead.")
	sink, place, _ := strings.Cut(rest, ".")
	s, err := strconv.ParseUint(place, 10, 64)
	if err != nil {
		return journal.DeliveryID{}, fmt.Errorf("subject %s: %w", subject, err)
	}
	return journal.DeliveryID{Sink: untoken(sink), Seq: journal.Seq(s)}, nil
}

func (n names) lost(sink string) string   { return n.stream + ".lost." + token(sink) }
func (n names) rejected(id string) string { return n.stream + ".rejected." + token(id) }
func (n names) receipts(source string, i identity) string {
	return n.receiptsOf(source) + base64.RawURLEncoding.EncodeToString(i[:])
}

func (n names) receiptsOf(source string) string { return n.stream + ".receipts." + token(source) + "." }

// sourceOf parses a subject of receipts.
func (n names) sourceOf(subject string) string {
	source, _, _ := strings.Cut(strings.TrimPrefix(subject, n.stream+".receipts."), ".")
	return untoken(source)
}

func (n names) value(name string) string     { return n.stream + ".note." + token(name) }
func (n names) quorum(process string) string { return n.stream + ".quorum." + token(process) }
func (n names) lead(name string) string      { return n.stream + ".lead." + token(name) }

func (n names) cursors() string                { return n.stream + ".cursor.>" }
func (n names) cursor(name string) string      { return n.stream + ".cursor." + token(name) }
func (n names) donePages(cursor string) string { return n.stream + ".done." + token(cursor) + ".>" }

// done returns the subject of a page of the done messages, of seqset.PageSize message
// sequences.
func (n names) done(cursor string, page uint64) string {
	return fmt.Sprintf("%s.done.%s.%d", n.stream, token(cursor), page)
}

func (n names) allRetained(cursor string) string {
	return n.stream + ".retained." + token(cursor) + ".>"
}

func (n names) retained(cursor string, s journal.Seq) string {
	return fmt.Sprintf("%s.retained.%s.%d", n.stream, token(cursor), s)
}

// last returns the name in the last token of a subject.
func last(subject string) string {
	return untoken(subject[strings.LastIndexByte(subject, '.')+1:])
}

// token encodes a name as one token of a subject, injectively: each character except letters, digits and dashes becomes an underscore and two
// hexadecimal digits.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02X", c)
		}
	}
	if b.Len() == 0 {
		return "_"
	}
	return b.String()
}

// untoken decodes a token.
func untoken(t string) string {
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		if t[i] == '_' && i+3 <= len(t) {
			if c, err := hex.DecodeString(t[i+1 : i+3]); err == nil {
				b.Write(c)
				i += 2
				continue
			}
		}
		if t != "_" {
			b.WriteByte(t[i])
		}
	}
	return b.String()
}
