// Package texts checks texts for users, for tests.
package texts

import "regexp"

// dangling matches words that refer to a different text.
var dangling = regexp.MustCompile(`(?i)\b(them|both|the same|of it|those that|whoever|what became|is told|are told|is let|are let|given up|set aside|taken over|stands? in)\b`)

// Dangling returns the first words of a text that refer to a different text, or "".
// Users read a flag, a metric's HELP or an API description without any other text.
func Dangling(text string) string { return dangling.FindString(text) }
