package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A segment is a file of frames. A frame is a header and a payload:
//
//	checksum | length | generation | synced | payload
//
// The header has four little-endian numbers of 4 bytes. Length is the size of the payload.
// The checksum is the CRC-32C of the rest of the frame and begins with the salt, a secret
// random number of the journal: a sender that puts the bytes of a frame into a webhook
// cannot make a valid frame.
//
// Every opening of the journal and every new segment gets the next generation, and the name
// of a segment is its first generation. The generations of a segment do not decrease from
// frame to frame, so that neither the frames of a recycled file nor frames after a torn
// write are read as valid frames.
//
// Synced is the offset up to which the segment was on stable storage before the write of
// the frame. A torn write is never before that offset, so an invalid frame before it is
// damage.
const headerBytes = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal fills in the header of a frame whose payload is complete.
func seal(frame []byte, salt, generation, synced uint32) {
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(frame)-headerBytes))
	binary.LittleEndian.PutUint32(frame[8:], generation)
	binary.LittleEndian.PutUint32(frame[12:], synced)
	binary.LittleEndian.PutUint32(frame, crc32.Update(salt, castagnoli, frame[4:]))
}

// errInvalidFrame is wrapped where no valid frame begins.
var errInvalidFrame = errors.New("no valid frame")

// frame is a valid frame of a segment.
type frame struct {
	at         int64 // offset in the segment
	payload    []byte
	generation uint32
	synced     int64
}

// end returns the offset after the frame.
func (f frame) end() int64 { return f.at + headerBytes + int64(len(f.payload)) }

// frameReader reads the frames of a segment in order.
type frameReader struct {
	file       io.ReaderAt
	salt       uint32
	at, limit  int64  // next frame, and the offset at which reading ends
	generation uint32 // lowest valid generation

	buffer []byte // bytes from offset start on
	start  int64
}

// readSize is the size of one read. Frames may be larger.
const readSize = 256 << 10

// window returns n bytes at an offset, or fewer at the limit. The result is valid until
// the next call.
func (r *frameReader) window(at int64, n int) ([]byte, error) {
	if have := r.start + int64(len(r.buffer)) - at; at >= r.start && have >= int64(n) {
		return r.buffer[at-r.start:][:n], nil
	}
	size := int(min(int64(max(n, readSize)), r.limit-at))
	if size <= 0 {
		return nil, nil
	}
	if cap(r.buffer) < size {
		r.buffer = make([]byte, size)
	}
	read, err := r.file.ReadAt(r.buffer[:size], at)
	r.buffer, r.start = r.buffer[:read], at
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return r.buffer[:min(n, read)], nil
}

// next returns the next frame. The payload is valid until the next call. The error is io.EOF
// at the limit, and wraps errInvalidFrame where no valid frame begins.
func (r *frameReader) next() (frame, error) {
	if r.at >= r.limit {
		return frame{}, io.EOF
	}
	f, err := r.frameAt(r.at)
	if err != nil {
		return f, err
	}
	r.at, r.generation = f.end(), f.generation
	return f, nil
}

// frameAt returns the valid frame at an offset.
func (r *frameReader) frameAt(at int64) (frame, error) {
	header, err := r.window(at, headerBytes)
	if err != nil {
		return frame{}, err
	}
	if len(header) < headerBytes {
		return frame{}, fmt.Errorf("%w at offset %d: the file ends", errInvalidFrame, at)
	}
	length := int64(binary.LittleEndian.Uint32(header[4:]))
	f := frame{at: at, generation: binary.LittleEndian.Uint32(header[8:]), synced: int64(binary.LittleEndian.Uint32(header[12:]))}
	switch {
	case f.generation < r.generation:
		return f, fmt.Errorf("%w at offset %d", errInvalidFrame, at)
	case length == 0 || at+headerBytes+length > r.limit || f.synced > at:
		return f, fmt.Errorf("%w at offset %d: invalid header", errInvalidFrame, at)
	}
	whole, err := r.window(at, headerBytes+int(length))
	if err != nil {
		return f, err
	}
	if int64(len(whole)) < headerBytes+length {
		return f, fmt.Errorf("%w at offset %d: the file ends", errInvalidFrame, at)
	}
	if crc32.Update(r.salt, castagnoli, whole[4:]) != binary.LittleEndian.Uint32(whole) {
		return f, fmt.Errorf("%w at offset %d: wrong checksum", errInvalidFrame, at)
	}
	f.payload = whole[headerBytes:]
	return f, nil
}

// resume continues at the next valid frame after an invalid one, with a generation of at
// most newest. It reports false if no valid frame follows.
func (r *frameReader) resume(newest uint32) (bool, error) {
	for at := r.at + 1; ; {
		chunk, err := r.window(at, readSize)
		if err != nil || len(chunk) < headerBytes {
			return false, err
		}
		// Nearly all offsets end here, without a checksum.
		n := 0
		for ; n+headerBytes <= len(chunk); n++ {
			if g := binary.LittleEndian.Uint32(chunk[n+8:]); r.generation <= g && g <= newest {
				break
			}
		}
		if at += int64(n); n+headerBytes > len(chunk) {
			continue
		}
		_, err = r.frameAt(at)
		if err == nil {
			r.at = at
			return true, nil
		}
		if !errors.Is(err, errInvalidFrame) {
			return false, err
		}
		at++
	}
}

// promised returns the offset up to which the frames after an invalid one say that the
// segment was on stable storage, and keeps the position of the reader.
func (r *frameReader) promised(newest uint32) (synced int64, err error) {
	at, generation := r.at, r.generation
	defer func() { r.at, r.generation = at, generation }()
	for {
		found, err := r.resume(newest)
		if err != nil || !found {
			return synced, err
		}
		for {
			f, err := r.next()
			if errors.Is(err, errInvalidFrame) || errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return synced, err
			}
			synced = max(synced, f.synced)
		}
	}
}
