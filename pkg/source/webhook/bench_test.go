package webhook

import "testing"

// What understanding a delivery costs beside uploadpost's own reader.
func BenchmarkNormalize(b *testing.B) {
	for _, group := range []string{"testdata/github", "testdata/stripe", "testdata/mapped"} {
		b.Run(group, func(b *testing.B) {
			src, file := newSource(b, configOf(b, group)), map[string]string{
				"testdata/github": "/push.http", "testdata/stripe": "/thin.http", "testdata/mapped": "/all.http",
			}[group]
			r := readRequest(b, group+file)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := src.Normalize(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
