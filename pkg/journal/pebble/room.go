package pebble

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// room is the measured size and space.
type room struct {
	journal.Usage
	// pending is the size of the next flush of the memtables, whose data is on the disk
	// twice until then.
	pending uint64
	counted uint64 // bytes of groups in the measured sizes, since the journal was opened

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

// needs returns the size of the journal after the flush of all memtables, with their logs.
func (r *room) needs() uint64 { return r.Bytes + r.pending }

// Usage implements journal.Journal.
func (j *Journal) Usage() journal.Usage {
	u := j.room.Load().Usage
	u.Trimmed = j.trimmed.Load()
	j.mu.Lock()
	u.Events = uint64(j.durable + 1 - j.oldest)
	if j.store != nil {
		u.Keys = j.store.window.all.Load()
	}
	j.mu.Unlock()
	return u
}

// measure reads the size of the journal and the free space of the disk.
func (j *Journal) measure() {
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
	j.mu.Lock()
	st := j.store
	if st != nil {
		st.users.Add(1)
	}
	j.mu.Unlock()
	r.Bytes, r.pending, r.counted = was.Bytes, was.pending, was.counted
	if st != nil {
		// Before the measurement: bytes written meanwhile count twice rather than not at
		// all.
		r.counted = j.counted.Load()
		m := st.db.Metrics()
		r.Bytes, r.pending = m.DiskSpaceUsage(), m.WAL.Size
		st.users.Done()
	}
	if r.MaxBytes > 0 {
		switch percent := r.needs() * 100 / r.MaxBytes; {
		case percent >= 100 && r.full == "":
			r.full = tooLarge(r.needs(), r.MaxBytes)
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
	return fmt.Sprintf("it needs %d bytes with what is being written, journal.max_bytes is %d", bytes, limit)
}

// roomFor returns an error that wraps journal.ErrFull if as many more bytes do not fit
// journal.max_bytes. Between measurements it adds the written bytes, so that the limit
// holds at any rate.
func (j *Journal) roomFor(bytes int) error {
	if j.opts.MaxBytes == 0 {
		return nil
	}
	r := j.room.Load()
	// In the log now, and in a table after a flush.
	needs := r.needs() + 2*(j.written.Load()-r.counted+uint64(bytes))
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

// makeRoom removes events when the journal is nearly full. It runs beside watch, because
// compactions under load are slow and the limit must hold meanwhile.
func (j *Journal) makeRoom() {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	var trimmed time.Time
	for {
		select {
		case <-tick.C:
		case <-j.stop:
			return
		}
		r := j.room.Load()
		// Removed events take space for a moment.
		if r.MaxBytes == 0 || r.needs() <= r.MaxBytes/100*trimAt || time.Since(trimmed) < 2*time.Second {
			continue
		}
		if err := j.trim(j.life, r.needs()-r.MaxBytes/100*trimTo); err != nil && j.life.Err() == nil {
			j.log.Warn("making room in the journal failed, it will be tried again", zap.Error(err))
		}
		trimmed = time.Now()
	}
}
