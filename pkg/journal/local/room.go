package local

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// room is the measured size and space.
type room struct {
	journal.Usage
	index uint64 // size of the index

	full string // why appends fail; empty while appends succeed
	near string // why appends will fail soon; empty otherwise
}

// Percentages of journal.max_bytes. Delivered events are removed well before appends fail,
// with a warning in between.
const (
	trimAt = 80 // start of removal
	trimTo = 75
	warnAt = 85
)

// bytes returns the size of the journal. Only the size of the index is as of the last
// measurement.
func (j *Journal) bytes(st *store, index uint64) uint64 {
	return uint64(max(0, st.segments.bytes.Load()+st.staged.Load()+j.quarantineBytes.Load()+j.bodies.reserved.Load())) + index
}

// Usage implements journal.Journal.
func (j *Journal) Usage() journal.Usage {
	u := j.room.Load().Usage
	u.Trimmed = j.trimmed.Load()
	j.mu.Lock()
	u.Events = uint64(j.durable+1-j.oldest) + uint64(len(j.retained.seqs))
	if j.store != nil {
		u.Keys = j.store.window.all.Load()
	}
	j.mu.Unlock()
	return u
}

// measure reads the size of the journal and the free space of the disk.
func (j *Journal) measure() {
	j.measuring.Lock()
	defer j.measuring.Unlock()
	r := &room{Usage: journal.Usage{MaxBytes: j.opts.MaxBytes, MinFree: j.opts.MinFree}}
	was := j.room.Load()
	// Some file systems do not report free space.
	if usage, err := j.opts.FS.GetDiskUsage(j.opts.Dir); err == nil {
		r.Free = usage.AvailBytes
		j.reserve(r.Free)
		switch {
		case r.Free < r.MinFree:
			r.full = fmt.Sprintf("%d bytes are free on the disk of %s, journal.min_free_bytes is %d", r.Free, j.opts.Dir, r.MinFree)
		case r.Free/2 < r.MinFree:
			r.near = "the disk has less than twice journal.min_free_bytes free"
		}
	}
	// As before while the store is reopened.
	r.index = was.index
	j.mu.Lock()
	st := j.store
	if st != nil {
		st.users.Add(1)
	}
	j.mu.Unlock()
	r.Bytes = was.Bytes
	if st != nil {
		r.index = st.db.Metrics().DiskSpaceUsage()
		r.Bytes = j.bytes(st, r.index)
		st.users.Done()
	}
	if r.MaxBytes > 0 {
		switch percent := r.Bytes * 100 / r.MaxBytes; {
		case percent >= 100 && r.full == "":
			r.full = tooLarge(r.Bytes, r.MaxBytes)
		case percent >= warnAt && r.near == "":
			r.near = "the journal has grown near journal.max_bytes"
		}
	}
	j.room.Store(r)
	fields := []zap.Field{
		zap.String("dir", j.opts.Dir), zap.Uint64("bytes", r.Bytes), zap.Uint64("max_bytes", r.MaxBytes),
		zap.Uint64("free_bytes", r.Free), zap.Uint64("min_free_bytes", r.MinFree),
	}
	switch {
	case r.full != "" && was.full == "":
		j.log.Error("the journal is full; new events are refused until there is room", fields...)
	case r.full == "" && was.full != "":
		j.log.Info("the journal has room again", fields...)
	case r.full == "" && r.near != "" && was.near == "":
		j.log.Warn("the journal is nearly full; new events will be refused when it is", append(fields, zap.String("because", r.near))...)
	}
}

func tooLarge(bytes, limit uint64) string {
	return fmt.Sprintf("it has %d bytes with new events, journal.max_bytes is %d", bytes, limit)
}

// roomFor returns an error that wraps journal.ErrFull if as many more bytes do not fit
// journal.max_bytes.
func (j *Journal) roomFor(st *store, bytes int) error {
	if j.opts.MaxBytes == 0 {
		return nil
	}
	needs := j.bytes(st, j.room.Load().index) + uint64(bytes)
	if needs >= j.opts.MaxBytes {
		return fmt.Errorf("%w: %s", journal.ErrFull, tooLarge(needs, j.opts.MaxBytes))
	}
	return nil
}

// watch measures four times a second.
func (j *Journal) watch() {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			j.measure()
			j.discards.log(j.log, false)
		case <-j.stop:
			return
		}
	}
}

// wakeMakeRoom makes makeRoom look at the sizes, without waiting.
func (j *Journal) wakeMakeRoom() {
	select {
	case j.rotated <- struct{}{}:
	default:
	}
}

// makeRoom removes delivered events when the journal or its disk is nearly full, so that no
// webhook is refused while there is something to remove. It looks after each new segment,
// because the limits must hold at any rate of events.
func (j *Journal) makeRoom() {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-j.rotated:
			j.measure()
			if err := j.removeSegments(j.life, false); err != nil && j.life.Err() == nil {
				j.log.Warn("removing a segment of the journal failed, it will be tried again", zap.Error(err))
			}
		case <-j.stop:
			return
		}
		excess := j.excess()
		if excess == 0 {
			continue
		}
		if err := j.trim(j.life, excess); err != nil && j.life.Err() == nil {
			j.log.Warn("making room in the journal failed, it will be tried again", zap.Error(err))
		}
		j.measure()
	}
}

// excess returns the bytes to remove.
func (j *Journal) excess() (excess uint64) {
	r := j.room.Load()
	if r.MaxBytes > 0 && r.Bytes > r.MaxBytes/100*trimAt {
		excess = r.Bytes - r.MaxBytes/100*trimTo
	}
	// Free is 0 if it is unknown.
	if enough := r.MinFree + r.MinFree/2; r.Free > 0 && r.Free < enough {
		excess = max(excess, enough-r.Free)
	}
	return excess
}
