package local

import (
	"hash/maphash"
	"strconv"
	"testing"
)

// TestFilter: a filter has every key that was added, and few others.
func TestFilter(t *testing.T) {
	f := &filter{}
	seed := maphash.MakeSeed()
	hash := func(n int) uint64 { return maphash.String(seed, "key "+strconv.Itoa(n)) }
	const keys = 1_000_000
	for n := range keys {
		f.add(hash(n))
	}
	for n := range keys {
		if !f.mayHave(hash(n)) {
			t.Fatalf("key %d is missing", n)
		}
	}
	wrong := 0
	for n := range keys {
		if f.mayHave(hash(keys + n)) {
			wrong++
		}
	}
	if wrong > keys/100 {
		t.Errorf("%d of %d keys that were not added are found", wrong, keys)
	}
	size := 0
	for _, p := range f.parts {
		size += len(p.blocks) * 64
	}
	t.Logf("%d of %d keys are found wrongly, the filter takes %d bytes", wrong, keys, size)
	if size > 64<<20/5 {
		t.Errorf("a filter of %d keys takes %d bytes", keys, size)
	}
	var none *filter
	if none.mayHave(hash(1)) {
		t.Error("no filter has a key")
	}
	for !f.full() {
		f.add(0)
	}
	if size = 0; !f.mayHave(hash(keys + 1)) {
		t.Error("a filter at its largest size must have every key")
	}
	for _, p := range f.parts[:len(f.parts)-1] {
		size += len(p.blocks) * 64
	}
	if size > maxFilter {
		t.Errorf("the largest filter takes %d bytes", size)
	}
}
