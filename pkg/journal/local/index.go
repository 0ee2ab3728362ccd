package local

import (
	"encoding/binary"
	"slices"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// indexDir is the folder of the index.
const indexDir = "index"

// Key space of the index. Numbers are big-endian, so that keys sort by number.
//
//	a <len><name> <number>    page of done events of a cursor, after its committed seq: package seqset
//	c <name>                  cursor: committed seq and start seq
//	d <len><sink> <seq>       dead letter: JSON with its length, then the record of the event
//	e <seq>                   sparse index: where the event is in the log, acceptance time
//	g <len><sink> <seq>       disposition from seq on: JSON
//	i <identity>              receipts of a quarantined request: JSON
//	k <generation> <key>      identity key: first receipt, seq, CloudEvents id
//	l <seq>                   events that a repair found lost, from seq on: the last seq
//	m first                   oldest seq, after a removal
//	m linked                  newest segment whose file may be linked to by a folder of a repair
//	m log                     position in the log through which the index is complete
//	m marker                  copy of the format marker
//	m keys <generation>       number of identity keys
//	m last                    newest seq, if its event is removed
//	m repaired                newest seq when a repair lost positions of sinks
//	n <key>                   value of the KV
//	o <len><source> <number>  order of the last receipts of a source: identity, size
//	q <id>                    quarantined request without body: identity, then the encoding of package record
//	r <seq>                   retained event: its record
//	s <number>                segment of the log that is complete
const (
	doneSpace        = 'a'
	cursorSpace      = 'c'
	deadSpace        = 'd'
	eventSpace       = 'e'
	dispositionSpace = 'g'
	identitySpace    = 'i'
	keySpace         = 'k'
	lostSpace        = 'l'
	metaSpace        = 'm'
	valueSpace       = 'n'
	orderSpace       = 'o'
	quarantineSpace  = 'q'
	retainedSpace    = 'r'
	segmentSpace     = 's'
)

func eventKey(s journal.Seq) []byte { return appendEventKey(nil, s) }

func appendEventKey(b []byte, s journal.Seq) []byte {
	return binary.BigEndian.AppendUint64(append(b, eventSpace), uint64(s))
}

func seqOf(key []byte) journal.Seq {
	return journal.Seq(binary.BigEndian.Uint64(key[len(key)-8:]))
}

func cursorKey(name string) []byte { return append([]byte{cursorSpace}, name...) }

// sinkPrefix returns the prefix of the keys of a sink in a space.
func sinkPrefix(space byte, sink string) []byte {
	return append(binary.AppendUvarint([]byte{space}, uint64(len(sink))), sink...)
}

func sinkKey(space byte, id journal.DeliveryID) []byte {
	return binary.BigEndian.AppendUint64(sinkPrefix(space, id.Sink), uint64(id.Seq))
}

// sinkOf decodes a key of sinkKey.
func sinkOf(key []byte) (journal.DeliveryID, error) {
	r := &record.Reader{B: key}
	r.Byte()
	sink := r.Bytes()
	s := r.Uint64()
	return journal.DeliveryID{Sink: string(sink), Seq: journal.Seq(s)}, r.Err
}

func quarantineKey(id string) []byte { return append([]byte{quarantineSpace}, id...) }

func identityKey(i identity) []byte { return append([]byte{identitySpace}, i[:]...) }

// orderKey sorts the receipts of a source by number.
func orderKey(source string, number uint64) []byte {
	return sinkKey(orderSpace, journal.DeliveryID{Sink: source, Seq: journal.Seq(number)})
}

func valueKey(name string) []byte { return append([]byte{valueSpace}, name...) }

func metaFirstKey() []byte { return append([]byte{metaSpace}, "first"...) }

func metaKeysKey(generation int64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte{metaSpace}, "keys"...), uint64(generation))
}

func metaLastKey() []byte { return append([]byte{metaSpace}, "last"...) }

func metaLinkedKey() []byte { return append([]byte{metaSpace}, "linked"...) }

func metaLogKey() []byte { return append([]byte{metaSpace}, "log"...) }

func metaMarkerKey() []byte { return append([]byte{metaSpace}, "marker"...) }

func segmentKey(number uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{segmentSpace}, number)
}

func retainedKey(s journal.Seq) []byte {
	return binary.BigEndian.AppendUint64([]byte{retainedSpace}, uint64(s))
}

func metaRepairedKey() []byte { return append([]byte{metaSpace}, "repaired"...) }

func lostKey(s journal.Seq) []byte {
	return binary.BigEndian.AppendUint64([]byte{lostSpace}, uint64(s))
}

// after returns the smallest key after all keys with the prefix.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
