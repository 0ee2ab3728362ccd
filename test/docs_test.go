package test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postwire/postwire/internal/natstest"
)

// fence is a block of a page: ```sh, ```sh norun, or ```yaml FILE.
type fence struct {
	language, rest, text string
}

func fencesOf(t *testing.T, page string) (all []fence) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var open *fence
	for line := range strings.Lines(string(text)) {
		switch info, ok := strings.CutPrefix(strings.TrimSpace(line), "```"); {
		case ok && open == nil:
			language, rest, _ := strings.Cut(info, " ")
			open = &fence{language: language, rest: rest}
		case ok:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += line
		}
	}
	return all
}

// pages are all there are, as paths from the folder of the tests.
func pages(t *testing.T) (all []string) {
	t.Helper()
	for _, root := range []string{"../README.md", "../CONTRIBUTING.md", "../docs", "../examples", "../charts/postwire/README.md"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && filepath.Ext(path) == ".md" && !strings.Contains(path, "node_modules") {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestGuidesRun runs the tutorial and the guides as a reader would: what is
// fenced with the name of a file is written there, and each ```sh block is run
// behind the one before, in one shell that ends with the first command that
// fails. Ports are free ones in place of those that are printed.
func TestGuidesRun(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	guides, err := filepath.Glob("../docs/howto/*.md")
	if err != nil || len(guides) < 7 {
		t.Fatalf("%d guides, %v", len(guides), err)
	}
	for _, page := range append(guides, "../docs/tutorial.md") {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			dir, e := t.TempDir(), newEndpoint(t)
			ports := strings.NewReplacer("127.0.0.1:8080", e.addr, "127.0.0.1:9090", e.admin, "127.0.0.1:8090", natstest.FreeAddr(t))
			script := "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
			for _, f := range fencesOf(t, page) {
				switch {
				case f.language == "sh" && f.rest == "":
					script += ports.Replace(f.text)
				case f.rest != "" && f.language != "sh":
					if err := os.WriteFile(filepath.Join(dir, filepath.Base(f.rest)), []byte(ports.Replace(f.text)), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "bash", "-c", script)
			cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH"), "POSTWIRE_ADMIN=http://"+e.admin)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				log, _ := os.ReadFile(filepath.Join(dir, "relay.log"))
				t.Errorf("%v\n%s\n%s\nthe relay's log:\n%s", err, script, out.String(), log)
			}
			if _, err := net.Dial("tcp", e.admin); err == nil {
				t.Error("the relay that the page starts is not stopped by it")
			}
		})
	}
}

// notRun are the commands in pages that are not run here, and why.
var notRun = map[string]string{
	"kubectl":   "wants a cluster; what is behind -- is read as a command line of ours",
	"helm":      "wants a cluster; charts/test renders the chart with Helm's own library",
	"docker":    "wants an engine",
	"make":      "is what the checks themselves are made of",
	"go":        "builds and tests what is tested here",
	"npm":       "is run by the checks, to install what tests need",
	"./install": "is run by the checks, before TestConsumers",
}

// TestCommandsInPagesParse reads each command line of ours in any page, also of
// those blocks that are not run, with the real parser: an unknown command or flag
// fails. Commands of others must be run by TestGuidesRun, or be in notRun.
func TestCommandsInPagesParse(t *testing.T) {
	ours := regexp.MustCompile(`(?:^|-- |go run ./cmd/|\$\()postwire( [^|>&#;]*)?`)
	count := 0
	for _, page := range pages(t) {
		guide := strings.HasSuffix(page, "tutorial.md") || strings.Contains(page, "/howto/")
		for _, f := range fencesOf(t, page) {
			if f.language != "sh" {
				continue
			}
			text := strings.ReplaceAll(f.text, "\\\n", " ")
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				if m := ours.FindStringSubmatch(strings.ReplaceAll(line, "go run ./cmd/postwire", "postwire")); m != nil {
					count++
					if why := parses(t, m[1]); why != "" {
						t.Errorf("%s: %s: %s", page, line, why)
					}
					continue
				}
				word, _, _ := strings.Cut(line, " ")
				if _, known := notRun[word]; !known && line != "" && !strings.HasPrefix(line, "#") && (!guide || f.rest != "") && !slices.Contains([]string{"curl", "--from-literal"}, strings.Split(word, "=")[0]) {
					if !strings.HasPrefix(word, "POSTWIRE_") {
						t.Errorf("%s: %s: neither run nor in the list of what is not", page, line)
					}
				}
			}
		}
	}
	if count < 40 {
		t.Errorf("only %d command lines were found", count)
	}
}

// parses says what the real binary finds wrong with a command line, whose last
// word is made --help so that nothing is done.
func parses(t *testing.T, args string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", "exec \"$0\" "+strings.TrimSpace(args)+" --help", program)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, out)
	}
	// The help of a word that is no command is that of its parent.
	var words []string
	for word := range strings.FieldsSeq(args) {
		if strings.HasPrefix(word, "-") || strings.ContainsAny(word, "@$\"'/.") {
			break
		}
		words = append(words, word)
	}
	path := strings.Join(append([]string{"postwire"}, words...), " ")
	of := func(usage string) bool { return strings.Contains(string(out), "\n  "+usage) }
	if of(path+" ") || of(path+"\n") {
		return ""
	}
	// The last word may be what the command is about, such as a sink's name.
	if about := strings.LastIndex(path, " "); regexp.MustCompile(`\n  ` + regexp.QuoteMeta(path[:about]) + ` [A-Z]`).Match(out) {
		return ""
	}
	return "the help is not that of " + path
}

// eachLink calls do with each link of a page to a file of this repository, or to a
// heading of the page itself. An anchor is empty where the link has none.
func eachLink(t *testing.T, do func(page, target, anchor string)) {
	t.Helper()
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			target, anchor, _ := strings.Cut(m[1], "#")
			if target != "" {
				target = filepath.Join(filepath.Dir(page), target)
			}
			do(page, cmp.Or(target, page), anchor)
		}
	}
}

// TestLinksInPagesLead: a link to a file leads to one.
func TestLinksInPagesLead(t *testing.T) {
	count := 0
	eachLink(t, func(page, target, _ string) {
		if target == page {
			return
		}
		count++
		if _, err := os.Stat(target); err != nil {
			t.Errorf("%s: the link to %s leads nowhere", page, target)
		}
	})
	if count < 50 {
		t.Errorf("only %d links were found", count)
	}
}

// TestReadmeHasSearchTerms: an engineer of the field finds Postwire by these
// terms.
func TestReadmeHasSearchTerms(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := strings.ToLower(string(text))
	for _, term := range []string{
		"at-least-once", "backpressure", "circuit breaker", "cloudevents", "consumer group", "cursor", "dead-letter queue", "dedupe window", "dlq",
		"exactly-once", "failover", "graceful shutdown", "high availability", "hot reload", "idempotent", "jetstream", "kafka", "offset",
		"partition key", "replay", "webhook",
	} {
		if !strings.Contains(readme, term) {
			t.Errorf("README.md lacks the search term %q", term)
		}
	}
}

// TestPagesHaveSearchedHeadings: the pages have the headings that people search
// for.
func TestPagesHaveSearchedHeadings(t *testing.T) {
	var headings []string
	for _, page := range pages(t) {
		headings = append(headings, anchorsOf(t, page)...)
	}
	for _, heading := range []string{
		"access-control", "audit-log", "dead-letter-queue", "delivery-guarantees", "glossary", "high-availability-and-scaling", "hot-reload", "install", "performance",
		"quarantine", "runbook", "threat-model",
	} {
		if !slices.Contains(headings, heading) {
			t.Errorf("no page has the heading #%s", heading)
		}
	}
}

// TestAnchorsInPagesExist: a link to a heading of a page names a heading of that
// page.
func TestAnchorsInPagesExist(t *testing.T) {
	count := 0
	eachLink(t, func(page, target, anchor string) {
		if anchor == "" {
			return
		}
		count++
		if filepath.Ext(target) == ".md" && !slices.Contains(anchorsOf(t, target), anchor) {
			t.Errorf("%s: %s has no heading #%s", page, target, anchor)
		}
	})
	if count < 10 {
		t.Errorf("only %d links to headings were found", count)
	}
}

// anchorsOf returns the anchors that GitHub gives the headings of a page, and
// the explicit ones.
func anchorsOf(t *testing.T, page string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	dropped := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	fenced := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if level, heading, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !fenced && strings.Trim(level, "#") == "" {
			all = append(all, strings.ReplaceAll(strings.ToLower(dropped.ReplaceAllString(heading, "")), " ", "-"))
		}
	}
	for _, m := range regexp.MustCompile(`<a (?:id|name)="([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		all = append(all, m[1])
	}
	return all
}
