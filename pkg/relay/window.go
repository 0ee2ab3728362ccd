package relay

// window is how many events a sink is handed at once. A broker that is too slow
// for a whole batch within the timeout, or a way to it on which no connection
// lasts that long, would otherwise be sent the same batch for ever.
//
// It grows and shrinks as TCP's congestion window does (RFC 5681): one event
// after a failure, then twice as many each time up to half of what failed, and
// from there on a little more each time.
type window struct {
	size, threshold int
	max             int // the sink's batch
}

func newWindow(maxSize int) window { return window{size: maxSize, threshold: maxSize, max: maxSize} }

// failed notes that nothing arrived of n events.
func (w *window) failed(n int) {
	if n > 1 { // a probe tells nothing of how many would be too many
		w.threshold = n / 2
	}
	w.size = 1
}

// succeeded notes that n events arrived.
func (w *window) succeeded(n int) {
	switch {
	case n < w.size: // there were no more: that tells nothing
	case w.size < w.threshold:
		w.size = min(2*w.size, w.threshold)
	default:
		w.size = min(w.size+max(1, w.max/16), w.max)
	}
}
