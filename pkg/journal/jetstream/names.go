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

// names are the subjects of the stream, which all begin with its name:
//
//	event                 an event
//	part.>                the rest of a value too long for one message
//	key.<hash>            an identity key: first seen, and the event it stands for
//	dead.<sink>.<seq>     a dead letter
//	lost.<sink>           what a sink was not given, range by range
//	rejected.<id>         a quarantined request, which does not change
//	receipts.<source>.<identity>
//	                      how often such a request was received, and when last
//	note.<name>           a note
//	holder.<cursor>       who reads
//	lead.<name>           who leads, until the message's time is over
type names struct{ stream string }

func (n names) all() string    { return n.stream + ".>" }
func (n names) event() string  { return n.stream + ".event" }
func (n names) prefix() string { return n.stream + "." }

// key is the subject of an identity key: the first 128 bits of its SHA-256.
func (n names) key(k event.Key) string {
	sum := sha256.Sum256([]byte(k))
	return n.stream + ".key." + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// part is the subject of what does not fit the message of another subject.
func (n names) part(subject string) string {
	return n.stream + ".part." + strings.TrimPrefix(subject, n.prefix())
}

func (n names) dead(id journal.DeliveryID) string {
	return fmt.Sprintf("%s.dead.%s.%020d", n.stream, token(id.Sink), id.Seq)
}

// deadID reads what dead wrote.
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

// sourceOf reads what receipts wrote.
func (n names) sourceOf(subject string) string {
	source, _, _ := strings.Cut(strings.TrimPrefix(subject, n.stream+".receipts."), ".")
	return untoken(source)
}

func (n names) value(name string) string { return n.stream + ".note." + token(name) }
func (n names) owner(name string) string { return n.stream + ".holder." + token(name) }
func (n names) lead(name string) string  { return n.stream + ".lead." + token(name) }

// last is the name that token made the last token of a subject.
func last(subject string) string {
	return untoken(subject[strings.LastIndexByte(subject, '.')+1:])
}

// token makes any name one token of a subject, or the name of a consumer, and no
// two names the same one: whatever is not a letter, a digit or a dash becomes an
// underscore and its two hexadecimal digits.
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

// untoken reads what token wrote.
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
