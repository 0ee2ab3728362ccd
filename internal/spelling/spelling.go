// Package spelling suggests the intended word for a misspelled word.
package spelling

import "strings"

// Distance returns the number of letters to insert, delete, replace or swap with a neighbor
// to turn a into b.
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

// Nearest returns the word of words that is most similar to word, or "" if none is similar.
// Case, dashes and underscores do not count: maxAge finds max_age.
func Nearest(word string, words []string) string {
	fold := strings.NewReplacer("_", "", "-", "", " ", "").Replace
	word = fold(strings.ToLower(word))
	if len(word) > 64 {
		return ""
	}
	best, least := "", 1+len(word)/3
	for _, k := range words {
		folded := fold(strings.ToLower(k))
		d := Distance(word, folded)
		if min(len(word), len(folded)) >= 3 && (strings.HasPrefix(word, folded) || strings.HasPrefix(folded, word)) {
			d = min(d, 1) // a prefix: warning and warn, conn and connections
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}
