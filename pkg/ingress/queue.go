package ingress

// queue holds holdings in the order of their time, the oldest first. It allocates
// nothing: a holding has the links of both queues that it can be in, and link says
// which of the two a queue uses.
type queue struct {
	link        int
	first, last *holding
}

// The links of a holding.
const (
	byClass = iota
	byAddress
)

type links struct{ before, behind *holding }

// push adds h at the end.
func (q *queue) push(h *holding) {
	h.links[q.link] = links{before: q.last}
	if q.last == nil {
		q.first = h
	} else {
		q.last.links[q.link].behind = h
	}
	q.last = h
}

// remove takes h out of the queue, in which it is.
func (q *queue) remove(h *holding) {
	l := h.links[q.link]
	if l.before == nil {
		q.first = l.behind
	} else {
		l.before.links[q.link].behind = l.behind
	}
	if l.behind == nil {
		q.last = l.before
	} else {
		l.behind.links[q.link].before = l.before
	}
	h.links[q.link] = links{}
}

// find returns the oldest holding that fits, nil if there is none.
func (q *queue) find(fits func(*holding) bool) *holding {
	for h := q.first; h != nil; h = h.links[q.link].behind {
		if fits(h) {
			return h
		}
	}
	return nil
}
