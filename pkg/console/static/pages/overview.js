// Problems, and the flow of events.
import { h } from "../dom.js";
import * as api from "../api.js";
import { header, poll, facts } from "../parts.js";
import { spark, latest } from "../plot.js";
import { age, bytes, count, duration, plural, rate, reason, short, sinkState, time } from "../text.js";

export default async function overview(page) {
  const known = { counts: null, counted: 0 };
  await poll(page, 5000, async () => {
    try {
      // Counting many dead letters takes time: count every 20 seconds.
      const due = Date.now() - known.counted > 20000;
      const [status, figures, sources, conf, counts] = await Promise.all([
        api.get("/status", null, page.gone), api.get("/stats", { points: 120 }, page.gone), api.get("/sources", null, page.gone),
        api.get("/configuration", null, page.gone), due ? api.get("/dlq-count", null, page.gone) : known.counts,
      ]);
      if (due) { known.counts = counts; known.counted = Date.now(); }
      page.show(...draw({ status, figures, sources: sources.sources, conf, counts: known.counts }));
      requestAnimationFrame(wires);
    } catch (err) {
      if (err.name !== "AbortError") page.show(header("Overview"), h("div", { className: "note bad", role: "alert" }, err.message));
    }
  });
  addEventListener("resize", wires, { signal: page.gone });
}

const pending = (s) => (s.lag_events === 1 ? "1 event is pending" : `${count(s.lag_events)} events are pending`);

// troubles lists problems, the worst first.
function troubles({ status, sources, figures, conf, counts }) {
  const all = [];
  const add = (tone, title, what, href) => all.push({ tone, title, what, href });
  if (status.journal.problem) add("bad", "No webhooks are accepted", status.journal.problem);
  for (const s of status.sinks) {
    const why = s.recent_errors && s.recent_errors.length ? `Last error: ${s.recent_errors[0].error}.` : "";
    if (s.breaker === "open") add("bad", `Delivery to ${s.sink} fails`, `The circuit breaker is open: the relay probes the sink with one event at a time; ${pending(s)}. ${why}`, "#/sinks");
    else if (s.state === "failing") add("warn", `Delivery to ${s.sink} is retried`, `Attempts fail and are repeated; ${pending(s)}. ${why}`, "#/sinks");
    else if (s.state === "paused") add("warn", `${s.sink} is paused`, `For ${age(s.paused)}; ${pending(s)}.`, "#/sinks");
    else if (s.blocked_destinations) add("warn", `${plural(s.blocked_destinations, "destination")} of ${s.sink} fail`, "Their events wait; all others are delivered.", "#/sinks");
    else if (s.blocked_keys) add("warn", `Failed events of ${plural(s.blocked_keys, "partition key")} wait at ${s.sink}`, "The later events of these keys wait, too; all others are delivered.", "#/sinks");
    const f = s.filter_counts;
    if (f && f.errors) add("warn", `The filter of ${s.sink} cannot be evaluated`, `${plural(f.errors, "event")} did not match because of the error: ${f.last_error}`, "#/sinks");
    else if (f && !f.matched && f.filtered) add("warn", `The filter of ${s.sink} has matched nothing`, `${plural(f.filtered, "event")} were filtered since the relay started or the filter changed.`, "#/sinks");
  }
  for (const u of status.unconfigured_sinks) {
    if (u.lag_events && !u.replay) add("bad", `${u.sink} is not in the configuration`, `${plural(u.lag_events, "pending event")} are not delivered. To deliver them to another sink: postwire sinks adopt ${u.sink} --as NAME`);
  }
  for (const g of (counts && counts.groups) || []) {
    if (g.kind === "dead_letter") add("warn", `${plural(g.count, "dead letter")} of ${g.sink}: ${reason(g.reason)}`, "Redeliver or drop dead letters on the page Dead letters.", `#/dlq?sink=${api.name(g.sink)}&reason=${api.name(g.reason)}`);
    else add("warn", `${plural(g.count, "request")} of ${g.source} in quarantine`, "The requests are authenticated, and the source could not convert the requests to events.", `#/dlq?kind=quarantine&source=${api.name(g.source)}`);
  }
  if (conf.last && !conf.last.applied) add("warn", "A change of the configuration was refused", "The previous configuration is in effect.", "#/configuration");
  if (status.journal.spilled) add("warn", `${plural(status.journal.spilled, "event")} in the spill of this relay`, "The NATS cluster of the journal does not accept events.");
  if (status.journal.max_bytes && status.journal.bytes > 0.8 * status.journal.max_bytes) add("warn", "The journal is nearly full", `${bytes(status.journal.bytes)} of ${bytes(status.journal.max_bytes)}.`);
  for (const s of sources) {
    const refused = sum(((figures.sources[s.source] || {}).refused || []).slice(-10));
    if (refused > 0) add("warn", `${s.source} refuses requests`, `${rate(refused / 10)} requests per second are answered with an error.`, "#/sources");
    if (s.reconcile && s.reconcile.problem) add("warn", `Reconcile of ${s.source} failed`, s.reconcile.problem, "#/sources");
    if (s.secret && !s.secret.known) add("bad", `${s.source} has no signing secret`, "The relay could not read the secret from the sender’s API.", "#/sources");
  }
  return all.sort((a, b) => (a.tone === b.tone ? 0 : a.tone === "bad" ? -1 : 1));
}

const sum = (points) => points.reduce((all, v) => all + (v || 0), 0);

function draw(all) {
  const { status, figures, sources } = all;
  const needs = troubles(all);
  const j = status.journal;
  const received = sources.reduce((n, s) => n + (latest((figures.sources[s.source] || {}).stored) || 0), 0);
  return [
    header("Overview", h("p", { className: "aside" }, `${status.name} · version ${status.version}`)),
    h("section", { "aria-labelledby": "needs" },
      h("h2", { id: "needs" }, "Needs attention"),
      needs.length
        ? h("ul", { className: "needs" }, needs.map((n) => h("li", { className: n.tone, "data-key": n.title },
          h("span", { className: "mark", "aria-hidden": "true" }, n.tone === "bad" ? "✕" : "!"),
          h("div", null, h("strong", null, n.href ? h("a", { href: n.href }, n.title) : n.title), h("p", null, n.what)))))
        : h("p", { className: "calm" }, h("span", { className: "mark", "aria-hidden": "true" }, "✓"), "Nothing. Every sink accepts events, and no event is a dead letter.")),
    h("section", { "aria-labelledby": "flow" },
      h("h2", { id: "flow" }, "Flow ", h("span", { className: "aside" }, "present rates, charts of the last hour")),
      h("div", { className: "flow", id: "picture" },
        h("svg", { className: "wires", "aria-hidden": "true", "data-kept": "" }),
        h("div", { className: "column" }, h("h3", null, "Sources"), sources.map((s) => sourceCard(s, figures.sources[s.source]))),
        h("div", { className: "column middle" }, h("h3", null, "Journal"),
          h("article", { className: `card ${j.problem ? "bad" : ""}`, "data-node": "journal", "data-rate": received },
            h("header", null, h("h4", null, j.engine), j.problem ? h("span", { className: "state bad" }, h("span", { className: "mark", "aria-hidden": "true" }, "✕"), "refuses events") : h("span", { className: "state good" }, h("span", { className: "mark", "aria-hidden": "true" }, "✓"), "accepts events")),
            h("p", { className: "figure" }, h("b", null, rate(received)), " events/s"),
            spark(figures.journal.events, { label: "Events in the journal", format: short }),
            facts([["Events", count(j.events)], ["Size", bytes(j.bytes) + (j.max_bytes ? ` of ${bytes(j.max_bytes)}` : "")]]))),
        h("div", { className: "column" }, h("h3", null, "Sinks"), status.sinks.map((s) => sinkCard(s, figures.sinks[s.sink]))))),
  ];
}

function sourceCard(s, f) {
  const now = latest(f && f.received);
  return h("article", { className: "card", "data-node": "source", "data-key": s.source, "data-rate": now || 0 },
    h("header", null, h("h4", null, h("a", { href: "#/sources" }, s.source)), h("span", { className: "kind" }, s.kind)),
    h("p", { className: "figure" }, h("b", null, rate(now)), " requests/s"),
    spark((f && f.received) || [], { label: `Requests of ${s.source}`, format: (v) => `${rate(v)}/s` }),
    facts([["Stored", count(s.stored)], ["Duplicates", count(s.received.duplicate || 0)]]));
}

function sinkCard(s, f) {
  const now = latest(f && f.delivered);
  const tone = s.breaker === "open" ? "bad" : { failing: "warn", paused: "held" }[s.state] || "";
  return h("article", { className: `card ${tone}`, "data-node": "sink", "data-key": s.sink, "data-rate": now || 0, "data-tone": tone },
    h("header", null, h("h4", null, h("a", { href: "#/sinks" }, s.sink)), sinkState(s)),
    h("p", { className: "figure" }, h("b", null, rate(now)), " events/s"),
    spark((f && f.delivered) || [], { label: `Delivered to ${s.sink}`, tone, format: (v) => `${rate(v)}/s` }),
    facts([["Lag", count(s.lag_events)], ["Oldest", s.oldest && s.lag_events ? duration(Math.max(0, (Date.now() - new Date(s.oldest)) / 1000)) : "–"], s.paused && ["Paused", time(s.paused)]]));
}

// wires draws the lines between the cards; a higher rate is a thicker line.
function wires() {
  const picture = document.getElementById("picture");
  if (!picture) return;
  const svg = picture.querySelector(".wires");
  const box = picture.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  const middle = picture.querySelector('[data-node="journal"]').getBoundingClientRect();
  const wire = (from, to, passes, tone) => {
    const x1 = from.x - box.x, y1 = from.y - box.y, x2 = to.x - box.x, y2 = to.y - box.y, half = (x2 - x1) / 2;
    return h("path", { d: `M${x1} ${y1}C${x1 + half} ${y1} ${x2 - half} ${y2} ${x2} ${y2}`, class: `wire ${tone} ${passes > 0 ? "moving" : ""}`, "stroke-width": (1.5 + Math.min(2.5, Math.log2(1 + passes) / 2)).toFixed(1) });
  };
  const into = [...picture.querySelectorAll('[data-node="source"]')].map((card) => {
    const r = card.getBoundingClientRect();
    return wire({ x: r.right, y: r.top + r.height / 2 }, { x: middle.left, y: middle.top + middle.height / 2 }, Number(card.dataset.rate), "");
  });
  const out = [...picture.querySelectorAll('[data-node="sink"]')].map((card) => {
    const r = card.getBoundingClientRect();
    return wire({ x: middle.right, y: middle.top + middle.height / 2 }, { x: r.left, y: r.top + r.height / 2 }, Number(card.dataset.rate), card.dataset.tone);
  });
  svg.replaceChildren(...into, ...out);
}
