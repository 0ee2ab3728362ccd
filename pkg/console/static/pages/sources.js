// Sources: received requests by outcome, secret, registration and reconcile.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, facts, poll, table, note, field, input } from "../parts.js";
import { chart } from "../plot.js";
import { age, count, plural, rate, time } from "../text.js";

const outcomes = [
  ["accepted", "accepted"], ["duplicate", "duplicate inside the dedupe window"], ["quarantined", "quarantined: authenticated, and malformed"],
  ["unauthenticated", "refused: authentication failed"], ["forbidden", "refused: address not allowed"], ["malformed", "refused: malformed"],
  ["rate_limited", "refused: rate limit exceeded"], ["too_large", "refused: body too large"], ["overloaded", "refused: relay overloaded"], ["unavailable", "refused: journal unavailable"],
];

export default async function sources(page) {
  const registered = new Map(); // by source: the registration, or an error
  const refresh = async () => {
    try {
      const [all, figures] = await Promise.all([api.get("/sources", null, page.gone), api.get("/stats", { points: 240 }, page.gone)]);
      page.show(header("Sources", h("p", { className: "aside" }, "counts since the start of the process, charts of the last hour")), ...all.sources.map((s, i) => draw(s, i, figures, registered, refresh)));
    } catch (err) {
      if (err.name !== "AbortError") page.show(header("Sources"), note("bad", err.message));
    }
  };
  await poll(page, 5000, refresh);
}

function draw(s, i, figures, registered, refresh) {
  const f = figures.sources[s.source] || { received: [], duplicates: [], refused: [], quarantined: [] };
  const known = new Set(outcomes.map(([o]) => o));
  const rows = [...outcomes, ...Object.keys(s.received).filter((o) => !known.has(o)).map((o) => [o, o.replaceAll("_", " ")])].filter(([o]) => s.received[o] || ["accepted", "duplicate", "quarantined"].includes(o));
  return h("section", { className: "panel", "data-key": s.source, "aria-labelledby": `source-${i}` },
    h("header", null, h("h2", { id: `source-${i}` }, s.source), h("span", { className: "kind" }, s.kind),
      h("span", { className: `state ${s.auth_required ? "good" : "warn"}` }, h("span", { className: "mark", "aria-hidden": "true" }, s.auth_required ? "✓" : "!"), s.auth_required ? "authentication required" : "no authentication")),
    h("div", { className: "charts" },
      chart(figures.times, f.received, { id: `received-${i}`, label: "Requests per second", format: rate }),
      chart(figures.times, f.duplicates, { id: `duplicates-${i}`, label: "Duplicates per second", format: rate }),
      chart(figures.times, f.refused, { id: `refused-${i}`, label: "Refused per second", tone: "warn", format: rate })),
    h("div", { className: "split" },
      h("div", null, h("h3", null, "Received"),
        table({ caption: `Requests of ${s.source} by outcome`, empty: "No request yet.", columns: [{ title: "Requests", number: true }, { title: "Outcome" }],
          rows: rows.map(([o, words]) => ({ key: o, cells: [count(s.received[o] || 0), words] })) }),
        facts([["New events", [count(s.stored), " · ", h("a", { href: `#/events?source=${api.name(s.source)}` }, "show events", h("span", { className: "unseen" }, ` of ${s.source}`))]], ["Paths", s.paths.map((p) => h("code", null, p))]])),
      (s.secret || s.reconcile) && h("div", null, h("h3", null, "Sender"),
        facts([
          s.secret && ["Signing secret", secret(s.secret)],
          s.reconcile && ["Reconcile", lastReconcile(s.reconcile)],
          s.reconcile && ["Backfilled", `${plural(s.reconcile.recovered, "event")} without a webhook`],
        ]),
        s.reconcile && registration(s, registered, refresh),
        s.reconcile && api.operator() && h("div", { className: "actions" }, h("button", { type: "button", "data-act": "reconcile", onclick: () => reconcile(s, refresh) }, "Reconcile now…")))));
}

function secret(a) {
  if (!a.known) return h("span", { className: "bad" }, "unknown");
  if (a.from === "configuration") return ["from the configuration, in use since ", time(a.since, true), ` (${age(a.since)} ago)`, a.rotated ? ", after a rotation" : ""];
  return ["read from the sender’s API ", time(a.since, true), ` (${age(a.since)} ago)`, a.rotated ? ", after a rotation" : ""];
}

function lastReconcile(c) {
  const every = c.every ? `every ${c.every}` : "manual only";
  if (!c.last) return `${every}; no run yet`;
  if (c.problem) return [`${every}; failed `, time(c.last, true), h("span", { className: "under bad" }, c.problem)];
  const r = c.report;
  return [`${every}; last `, time(c.last, true), r && h("span", { className: "under" }, `${plural(r.uploads, "upload")} in the history, ${count(r.known)} known, ${count(r.recovered)} backfilled`)];
}

function registration(s, registered, refresh) {
  const r = registered.get(s.source);
  const look = async () => {
    try { registered.set(s.source, await api.get(`/sources/${api.name(s.source)}/registration`)); } catch (err) { registered.set(s.source, { problem: err.message }); }
    refresh();
  };
  return h("div", { className: "registration" },
    r && (r.problem ? note("warn", r.problem) : facts([
      ["Registered at", r.url ? h("span", { className: "id" }, r.url) : "no URL: Upload-Post sends no webhooks"],
      r.url && ["URL of this relay", r.path_matches ? "yes, a path of this source" : h("span", { className: "bad" }, "no: the path is not a path of this source")],
      ["Channels", r.channels.join(", ") || "none"], ["Events", r.events.join(", ") || "default of Upload-Post"], ["Signed", r.secret ? "yes" : "no"],
    ])),
    h("button", { type: "button", "data-act": "registration", onclick: look }, r ? "Refresh registration" : "Show registered webhook"));
}

async function reconcile(s, refresh) {
  const from = input("since", { value: "48h", required: true });
  const found = h("p", null, "Reconcile compares stored events with the sender’s history of this time, and backfills missing uploads as events.");
  let dry = true, report = null;
  const body = h("div", null, field("Uploads from", from, "Age such as 2h, or a time such as 2026-01-31T12:00:00Z."), found);
  const done = await ask({
    title: `Reconcile ${s.source} with the sender’s history`, confirm: "Reconcile", body,
    act: async () => {
      if (dry) {
        report = await api.post("/reconcile", { source: s.source, from: from.value.trim(), dry_run: true });
        dry = false;
        found.textContent = `${plural(report.uploads, "upload")} in the history; ${count(report.known)} are known, ${plural(report.recovered, "is", "are")} missing.`;
        if (report.recovered) throw new Error("Confirm again to backfill the missing uploads.");
        return;
      }
      report = await api.post("/reconcile", { source: s.source, from: from.value.trim() });
    },
  });
  if (done) { say(report.recovered ? `${plural(report.recovered, "event")} backfilled.` : "No upload is missing."); refresh(); }
}
