// Each source: what it received, and how it stands with its sender.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, facts, poll, table, note, field, input } from "../parts.js";
import { chart } from "../plot.js";
import { age, count, plural, rate, time } from "../text.js";

const outcomes = [
  ["accepted", "accepted"], ["duplicate", "duplicate: seen before, and dropped"], ["quarantined", "quarantined: genuine, and not understood"],
  ["unauthenticated", "refused: no valid proof of the sender"], ["forbidden", "refused: address not allowed"], ["malformed", "refused: not understood"],
  ["rate_limited", "refused: too many"], ["too_large", "refused: too large"], ["overloaded", "refused: too much to do"], ["unavailable", "refused: the journal could not store"],
];

export default async function sources(page) {
  const registered = new Map(); // by source: an answer, or why there is none
  const again = async () => {
    try {
      const [all, figures] = await Promise.all([api.get("/sources", null, page.gone), api.get("/stats", { points: 240 }, page.gone)]);
      page.show(header("Sources", h("p", { className: "aside" }, "counts since the process began, plots of the last hour")), ...all.sources.map((s, i) => draw(s, i, figures, registered, again)));
    } catch (err) {
      if (err.name !== "AbortError") page.show(header("Sources"), note("bad", err.message));
    }
  };
  await poll(page, 5000, again);
}

function draw(s, i, figures, registered, again) {
  const f = figures.sources[s.source] || { received: [], duplicates: [], refused: [], quarantined: [] };
  const known = new Set(outcomes.map(([o]) => o));
  const rows = [...outcomes, ...Object.keys(s.received).filter((o) => !known.has(o)).map((o) => [o, o.replaceAll("_", " ")])].filter(([o]) => s.received[o] || ["accepted", "duplicate", "quarantined"].includes(o));
  return h("section", { className: "panel", "data-key": s.source, "aria-labelledby": `source-${i}` },
    h("header", null, h("h2", { id: `source-${i}` }, s.source), h("span", { className: "kind" }, s.kind),
      h("span", { className: `state ${s.auth_required ? "good" : "warn"}` }, h("span", { className: "mark", "aria-hidden": "true" }, s.auth_required ? "✓" : "!"), s.auth_required ? "senders prove who they are" : "anybody may send")),
    h("div", { className: "charts" },
      chart(figures.times, f.received, { id: `received-${i}`, label: "Requests a second", format: rate }),
      chart(figures.times, f.duplicates, { id: `duplicates-${i}`, label: "Duplicates a second", format: rate }),
      chart(figures.times, f.refused, { id: `refused-${i}`, label: "Refused a second", tone: "warn", format: rate })),
    h("div", { className: "split" },
      h("div", null, h("h3", null, "Received"),
        table({ caption: `What became of the requests of ${s.source}`, empty: "Nothing yet.", columns: [{ title: "Requests", number: true }, { title: "What became of them" }],
          rows: rows.map(([o, words]) => ({ key: o, cells: [count(s.received[o] || 0), words] })) }),
        facts([["New events", [count(s.stored), " · ", h("a", { href: `#/events?source=${api.name(s.source)}` }, "look for them", h("span", { className: "unseen" }, ` by ${s.source}`))]], ["Paths", s.paths.map((p) => h("code", null, p))]])),
      (s.secret || s.reconcile) && h("div", null, h("h3", null, "With the sender"),
        facts([
          s.secret && ["Signing secret", secret(s.secret)],
          s.reconcile && ["Compared with its history", compared(s.reconcile)],
          s.reconcile && ["Recovered", `${plural(s.reconcile.recovered, "event")} that no webhook told of`],
        ]),
        s.reconcile && registration(s, registered, again),
        s.reconcile && api.operator() && h("div", { className: "actions" }, h("button", { type: "button", "data-act": "reconcile", onclick: () => reconcile(s, again) }, "Compare now…")))));
}

function secret(a) {
  if (!a.known) return h("span", { className: "bad" }, "none is known");
  if (a.from === "configuration") return ["from the configuration, in use since ", time(a.since, true), ` (${age(a.since)} ago)`, a.rotated ? ", in place of another one" : ""];
  return ["read from the sender’s API ", time(a.since, true), ` (${age(a.since)} ago)`, a.rotated ? ", in place of another one" : ""];
}

function compared(c) {
  const every = c.every ? `every ${c.every}` : "by hand only";
  if (!c.last) return `${every}; not yet`;
  if (c.problem) return [`${every}; failed `, time(c.last, true), h("span", { className: "under bad" }, c.problem)];
  const r = c.report;
  return [`${every}; last `, time(c.last, true), r && h("span", { className: "under" }, `${plural(r.uploads, "upload")} in the history, ${count(r.known)} known, ${count(r.recovered)} recovered`)];
}

function registration(s, registered, again) {
  const r = registered.get(s.source);
  const look = async () => {
    try { registered.set(s.source, await api.get(`/sources/${api.name(s.source)}/registration`)); } catch (err) { registered.set(s.source, { problem: err.message }); }
    again();
  };
  return h("div", { className: "registration" },
    r && (r.problem ? note("warn", r.problem) : facts([
      ["Registered at", r.url ? h("span", { className: "id" }, r.url) : "nowhere: no webhooks are sent"],
      r.url && ["Leads here", r.here ? "yes, to a path of this source" : h("span", { className: "bad" }, "its path is none of this source’s")],
      ["Channels", r.channels.join(", ") || "none"], ["Events", r.events.join(", ") || "the service’s default"], ["Signed", r.secret ? "yes" : "no"],
    ])),
    h("button", { type: "button", "data-act": "registration", onclick: look }, r ? "Ask again" : "Ask where webhooks are registered"));
}

async function reconcile(s, again) {
  const from = input("since", { value: "48h", required: true });
  const found = h("p", null, "The history of that time is compared; what is missing is entered as if its webhook had come.");
  let dry = true, report = null;
  const body = h("div", null, field("Uploads from", from, "How long ago, or 2026-01-31T12:00:00Z."), found);
  const done = await ask({
    title: `Compare ${s.source} with its history`, confirm: "Compare, and enter what is missing", body,
    act: async () => {
      if (dry) {
        report = await api.post("/reconcile", { source: s.source, from: from.value.trim(), dry_run: true });
        dry = false;
        found.textContent = `${plural(report.uploads, "upload")} in the history; ${count(report.known)} are known, ${plural(report.recovered, "is", "are")} missing.`;
        if (report.recovered) throw new Error("Confirm once more to enter them.");
        return;
      }
      report = await api.post("/reconcile", { source: s.source, from: from.value.trim() });
    },
  });
  if (done) { say(report.recovered ? `${plural(report.recovered, "event")} entered.` : "Nothing is missing."); again(); }
}
