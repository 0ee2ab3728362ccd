// Package spelling tells slips of the pen from other words.
package spelling

import "strings"

// Distance counts the letters to insert, delete, replace or swap with their
// neighbor to turn a into b.
func Distance(a, b string) int {
	row := func() []int { return make([]int, len(b)+1) }
	before, last, now := row(), row(), row()
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		now[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			now[j+1] = min(last[j]+cost, last[j+1]+1, now[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		before, last, now = last, now, before
	}
	return last[len(b)]
}

// Nearest returns the word of known that word is most likely a slip of, ""
// if none is near. Case, dashes and underscores do not count, so that maxAge
// finds max_age.
func Nearest(word string, known []string) string {
	fold := strings.NewReplacer("_", "", "-", "", " ", "").Replace
	word = fold(strings.ToLower(word))
	if len(word) > 64 {
		return ""
	}
	best, least := "", 1+len(word)/3
	for _, k := range known {
		folded := fold(strings.ToLower(k))
		d := Distance(word, folded)
		if min(len(word), len(folded)) >= 3 && (strings.HasPrefix(word, folded) || strings.HasPrefix(folded, word)) {
			d = min(d, 1) // warning is meant as warn, conn as connections
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}
