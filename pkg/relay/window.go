package relay

// window adapts the batch size to a slow sink. With a fixed size, a broker that cannot take
// a batch within the timeout would get the same batch for ever.
//
// The size follows TCP's congestion window (RFC 5681): one event after a failure, then
// doubled up to half of the failed size, then increased in small steps.
type window struct {
	size, threshold int
	max             int // batch size of the sink
}

func newWindow(maxSize int) window { return window{size: maxSize, threshold: maxSize, max: maxSize} }

// failed records that all n events of an attempt failed.
func (w *window) failed(n int) {
	if n > 1 { // a probe of one event says nothing about larger batches
		w.threshold = n / 2
	}
	w.size = 1
}

// succeeded records that all n events of an attempt were acknowledged.
func (w *window) succeeded(n int) {
	switch {
	case n < w.size: // no more events were pending
	case w.size < w.threshold:
		w.size = min(2*w.size, w.threshold)
	default:
		w.size = min(w.size+max(1, w.max/16), w.max)
	}
}
