package jetstream

import (
	"errors"
	"testing"

	"github.com/postwire/postwire/internal/natstest"
	"github.com/postwire/postwire/pkg/journal"
)

// On a disk that is nearly full, appends fail, and what is stored is still delivered.
func TestTheDiskOfTheServerIsWatched(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	disk := &Disk{Dir: t.TempDir(), MinFree: 1}
	j := process(t, b.URL(), "a", func(o *Options) { o.Disk = disk })
	mustAppend(t, j, of("k", "1"))
	if u := j.Usage(); u.Free == 0 || u.MinFree != 1 {
		t.Errorf("the disk has %d bytes free of at least %d", u.Free, u.MinFree)
	}
	if err := j.Check(); err != nil {
		t.Errorf("Check = %v", err)
	}
	low := process(t, b.URL(), "b", func(o *Options) { o.Disk = &Disk{Dir: t.TempDir(), MinFree: 1 << 60} })
	if _, err := low.Append(t.Context(), of("k", "2")); !errors.Is(err, journal.ErrFull) {
		t.Errorf("Append = %v", err)
	}
	if err := low.Check(); !errors.Is(err, journal.ErrFull) {
		t.Errorf("Check = %v", err)
	}
	if got, err := low.Read(t.Context(), low.Oldest(), 10); err != nil || len(got) != 1 {
		t.Errorf("Read = %v, %v", got, err)
	}
}
