// Package console is the page on which operators see the relay and repair it.
// It holds files only: whatever the page shows or does goes through the admin
// API, which scripts use as well.
package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"io/fs"
	"net/http"
	"strings"
	"time"
)

// Path is where the console is on the admin port.
const Path = "/console"

//go:embed static
var files embed.FS

// policy lets the page load what is its own, and ask the relay that served it.
// It makes no HTML of text: where a script tried to, the browser would refuse.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// Handler serves the console. The files hold nothing of the relay's, so that
// they are for anybody who reaches the port.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, Path+"/")
		if name == "" {
			name = "index.html"
		}
		text, err := fs.ReadFile(files, "static/"+name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")
		// A file of the version before would not fit the API of this one.
		h.Set("Cache-Control", "no-cache")
		sum := sha256.Sum256(text)
		h.Set("ETag", `"`+base64.RawURLEncoding.EncodeToString(sum[:12])+`"`)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(text))
	})
}
