package ingress

// queue is a linked list of allocations in the order of their time, oldest first. An allocation
// can be in two queues and has links for both, so that a queue allocates nothing. The
// field link selects the links that the queue uses.
type queue struct {
	link        int
	first, last *allocation
}

// Indexes into the links of an allocation.
const (
	byClass = iota
	byAddress
)

type links struct{ before, behind *allocation }

// push adds h at the end.
func (q *queue) push(h *allocation) {
	h.links[q.link] = links{before: q.last}
	if q.last == nil {
		q.first = h
	} else {
		q.last.links[q.link].behind = h
	}
	q.last = h
}

// remove removes h, which must be in the queue.
func (q *queue) remove(h *allocation) {
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

// find returns the oldest allocation for which fits is true, or nil.
func (q *queue) find(fits func(*allocation) bool) *allocation {
	for h := q.first; h != nil; h = h.links[q.link].behind {
		if fits(h) {
			return h
		}
	}
	return nil
}
