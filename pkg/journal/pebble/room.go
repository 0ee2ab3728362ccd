package pebble

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// room is how much there is, as of a moment ago.
type room struct {
	journal.Usage
	// pending is what a flush of the memtables will write: until it is done, what
	// they hold is on the disk twice.
	pending uint64
	counted uint64 // bytes of groups that both hold, since the journal was opened

	full string // why appends are refused; empty is that they are taken
	near string // why they soon will be; empty is that they will not
}

// Parts of journal.max_bytes, in percent. History is trimmed well before new
// events are refused, and an operator hears of it in between.
const (
	trimAt = 80 // from here on
	trimTo = 75
	warnAt = 85
)

// needs is how many bytes the journal takes once all that it holds is in tables, and
// their logs are not given up yet.
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

// measure looks at the size of the journal and at the free space of the disk.
func (j *Journal) measure() {
	r := &room{Usage: journal.Usage{MaxBytes: j.opts.MaxBytes, MinFree: j.opts.MinFree}}
	was := j.room.Load()
	// Not every file system can tell; then only its own refusal counts.
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
		// Before it is measured: what comes in between is counted twice, not left out.
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

// roomFor returns an error that wraps journal.ErrFull where as many bytes more do
// not fit journal.max_bytes. Between two measurements it goes by what was written
// since, so that however fast events come, the limit holds.
func (j *Journal) roomFor(bytes int) error {
	if j.opts.MaxBytes == 0 {
		return nil
	}
	r := j.room.Load()
	// In the log now, and in a table soon.
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

// makeRoom trims when the journal is nearly full. It stands beside watch since
// a compaction under load takes its time, and the limit must hold meanwhile.
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
		// What was trimmed takes a moment to be gone from the disk.
		if r.MaxBytes == 0 || r.needs() <= r.MaxBytes/100*trimAt || time.Since(trimmed) < 2*time.Second {
			continue
		}
		if err := j.trim(j.life, r.needs()-r.MaxBytes/100*trimTo); err != nil && j.life.Err() == nil {
			j.log.Warn("making room in the journal failed, it will be tried again", zap.Error(err))
		}
		trimmed = time.Now()
	}
}
