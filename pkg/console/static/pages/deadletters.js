// Dead letters and quarantined requests: count by reason, list, retry, drop.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, field, input, select, table, note } from "../parts.js";
import { brief, bytes, count, plural, reason, time } from "../text.js";

const names = ["kind", "sink", "source", "reason", "since", "until"];
const reasons = ["too_large", "no_destination", "invalid", "unauthorized", "refused", "expired", "max_attempts", "operator", "malformed"];

export default async function deadLetters(page) {
  const value = (n) => page.query.get(n) || "";
  const chosen = new Set();
  let pages = [];
  const filter = () => Object.fromEntries(names.map((n) => [n, value(n)]).filter(([, v]) => v));
  const go = (query) => { location.hash = `#/dlq?${new URLSearchParams(Object.entries(query).filter(([, v]) => v))}`; };

  const form = h("form", {
    className: "filter", role: "search", "aria-label": "Dead letters and quarantine", "data-kept": "",
    onsubmit: (e) => { e.preventDefault(); go(Object.fromEntries(names.map((n) => [n, form.elements[n].value.trim()]))); },
  },
  h("div", { className: "fields" },
    field("Kind", select("kind", [["", "any"], ["dead_letter", "dead letters"], ["quarantine", "quarantine"]], value("kind"))),
    field("Sink", input("sink", { value: value("sink") })), field("Source", input("source", { value: value("source") })),
    field("Reason", select("reason", [["", "any"], ...reasons.map((r) => [r, reason(r)])], value("reason"))),
    field("From", input("since", { value: value("since"), placeholder: "2h" }), "Age such as 2h, or a time such as 2026-01-31T12:00:00Z."), field("Before", input("until", { value: value("until"), placeholder: "now" }))),
  h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Filter"), Object.keys(filter()).length > 0 && h("a", { href: "#/dlq" }, "Show all")));

  const load = async () => {
    const [counts, first] = await Promise.all([api.get("/dlq-count", filter(), page.gone), api.get("/dlq", { ...filter(), limit: 50 }, page.gone)]);
    pages = [first];
    chosen.clear();
    draw(counts);
  };

  const draw = (counts) => {
    const entries = pages.flatMap((p) => p.entries);
    const last = pages[pages.length - 1];
    const redraw = () => draw(counts);
    page.show(
      header("Dead letters and quarantine", h("p", { className: "aside" }, "events that a sink refused permanently, and authenticated requests that a source could not convert")),
      h("section", { "aria-labelledby": "why" }, h("h2", { id: "why" }, "By reason"), groups(counts)),
      form,
      h("section", { "aria-labelledby": "entries" },
        h("h2", { id: "entries" }, "Entries ", h("span", { className: "aside" }, `${plural(counts.total, "entry", "entries")}${counts.more ? " and more" : ""}`)),
        api.operator() && entries.length > 0 && h("div", { className: "actions", id: "bulk" },
          h("button", { type: "button", "data-act": "retry-chosen", disabled: !chosen.size, onclick: () => some("retry") }, `Retry ${chosen.size || ""} selected`),
          h("button", { type: "button", "data-act": "drop-chosen", className: "danger", disabled: !chosen.size, onclick: () => some("drop") }, `Drop ${chosen.size || ""} selected`),
          h("span", { className: "push" }),
          h("button", { type: "button", "data-act": "retry-all", onclick: () => all("retry", filter()) }, `Retry all ${count(counts.total)}`),
          h("button", { type: "button", "data-act": "drop-all", className: "danger", onclick: () => all("drop", filter()) }, `Drop all ${count(counts.total)}`)),
        table({
          caption: "Dead letters and quarantined requests", empty: Object.keys(filter()).length ? "No entry matches." : "No dead letters and no quarantined requests.",
          columns: [
            ...(api.operator() ? [{ title: "Select", unseen: true }] : []),
            { title: "Last" }, { title: "Event" }, { title: "Sink or source" }, { title: "Reason" }, { title: "Count", number: true }, { title: "Size", number: true, className: "wide" },
          ],
          rows: entries.map((e) => ({
            key: e.id,
            cells: [
              ...(api.operator() ? [h("input", { type: "checkbox", "aria-label": `Select ${e.event_id || e.id}`, checked: chosen.has(e.id), onchange: (ev) => { if (ev.target.checked) chosen.add(e.id); else chosen.delete(e.id); redraw(); } })] : []),
              time(e.last),
              [h("a", { href: `#/entry/${api.name(e.id)}`, className: "id", title: e.event_id }, e.event_id ? brief(e.event_id) : "request"), h("span", { className: "under" }, e.kind === "quarantine" ? "quarantine" : e.event_type)],
              e.sink || e.source, [reason(e.reason), h("span", { className: "under" }, e.error)], count(e.count || e.attempts), bytes(e.bytes),
            ],
          })),
        }),
        last.next && h("div", { className: "more" }, h("button", { type: "button", onclick: async () => { pages.push(await api.get("/dlq", { ...filter(), limit: 50, after: last.next }, page.gone)); redraw(); } }, "More")),
      ));
  };

  const groups = (counts) => table({
    caption: "Number of entries by reason", empty: "No dead letters and no quarantined requests.",
    columns: [{ title: "Count", number: true }, { title: "Kind" }, { title: "Sink or source" }, { title: "Reason" }, { title: "Action", unseen: true }],
    rows: counts.groups.map((g) => {
      const only = { kind: g.kind, sink: g.sink, source: g.source, reason: g.reason, since: value("since"), until: value("until") };
      return {
        key: `${g.kind}${g.sink || g.source}${g.reason}`,
        cells: [count(g.count), g.kind === "quarantine" ? "quarantine" : "dead letters", g.sink || g.source,
          h("a", { href: `#/dlq?${new URLSearchParams(Object.entries(only).filter(([, v]) => v))}` }, reason(g.reason)),
          api.operator() && h("span", { className: "actions" },
            h("button", { type: "button", className: "small", "data-act": "retry-reason", onclick: () => all("retry", only) }, "Retry all", h("span", { className: "unseen" }, ` of ${g.sink || g.source}, ${reason(g.reason)}`)),
            h("button", { type: "button", className: "small danger", "data-act": "drop-reason", onclick: () => all("drop", only) }, "Drop all", h("span", { className: "unseen" }, ` of ${g.sink || g.source}, ${reason(g.reason)}`)))],
      };
    }),
  });

  const report = (what, done, kept) => {
    const verb = what === "retry" ? "retried" : "dropped";
    say(`${plural(done, "entry", "entries")} ${verb}.` + (kept.length ? ` ${plural(kept.length, "entry", "entries")} could not be ${verb}: ${kept[0].error}` : ""), kept.length > 0);
  };

  // all retries or drops every entry that matches a filter now. Entries that arrive
  // later are not affected.
  const all = async (what, only) => {
    only = Object.fromEntries(Object.entries(only).filter(([, v]) => v));
    let counts;
    try { counts = await api.get("/dlq-count", only); } catch (err) { say(err.message, true); return; }
    let done = 0;
    const kept = [];
    const acted = await ask({
      title: `${what === "retry" ? "Retry" : "Drop"} ${plural(counts.total, "entry", "entries")}?`, confirm: what === "retry" ? "Retry" : "Drop permanently", dangerous: what === "drop",
      body: [
        h("ul", { className: "preview" }, counts.groups.map((g) => h("li", null, h("b", null, count(g.count)), ` ${g.kind === "quarantine" ? "in quarantine" : "dead letters"} of ${g.sink || g.source}: ${reason(g.reason)}`))),
        h("p", null, what === "retry" ? "Dead letters are delivered to their sink again, after the events that are pending there. Quarantined requests are converted again by their source." : "The entries are removed permanently, and no sink gets the events."),
      ],
      act: async (progress) => {
        let after = "", until = only.until || counts.until;
        do {
          const answer = await api.post(`/dlq-${what}`, { ...only, until, after, limit: 100 });
          done += answer.entries.filter((e) => e.done).length;
          kept.push(...answer.entries.filter((e) => !e.done));
          after = answer.next || "";
          if (/^\d{4}-/.test(answer.until)) until = answer.until;
          progress(h("progress", { max: Math.max(1, counts.total), value: done + kept.length, "aria-label": "Progress" }), `${count(done + kept.length)} of ${count(counts.total)}`);
        } while (after && !page.gone.aborted);
      },
    });
    if (acted) report(what, done, kept);
    if (acted || done) await load();
  };

  const some = async (what) => {
    const ids = [...chosen];
    let done = 0;
    const kept = [];
    const acted = await ask({
      title: `${what === "retry" ? "Retry" : "Drop"} ${plural(ids.length, "entry", "entries")}?`, confirm: what === "retry" ? "Retry" : "Drop permanently", dangerous: what === "drop",
      body: h("p", null, what === "retry" ? "The selected dead letters are delivered to their sink again, and the selected requests are converted again by their source." : "The selected entries are removed permanently, and no sink gets the events."),
      act: async (progress) => {
        for (const id of ids) {
          try {
            await (what === "retry" ? api.post(`/dlq/${api.name(id)}/retry`) : api.remove(`/dlq/${api.name(id)}`));
            done++;
          } catch (err) {
            if (err.status === 401) throw err;
            kept.push({ id, error: err.message });
          }
          progress(h("progress", { max: ids.length, value: done + kept.length, "aria-label": "Progress" }), `${done + kept.length} of ${ids.length}`);
        }
      },
    });
    if (acted) { report(what, done, kept); await load(); }
  };

  try {
    await load();
  } catch (err) {
    if (err.name === "AbortError" || err.status === 401) return;
    page.show(header("Dead letters and quarantine"), form, note("bad", err.message));
  }
}
