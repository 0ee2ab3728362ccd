// Sinks: state, lag, failed events that wait, recent errors, pause and resume.
import { h, say, ask } from "../dom.js";
import * as api from "../api.js";
import { header, facts, poll, note, table } from "../parts.js";
import { chart, latest } from "../plot.js";
import { age, brief, count, duration, plural, rate, short, sinkState, time } from "../text.js";

export default async function sinks(page) {
  const refresh = async () => {
    try {
      const [status, figures] = await Promise.all([api.get("/status", null, page.gone), api.get("/stats", { points: 240 }, page.gone)]);
      const blocked = Object.fromEntries(await Promise.all(status.sinks.filter((s) => s.blocked_keys || s.blocked_destinations)
        .map(async (s) => [s.sink, await api.get(`/sinks/${api.name(s.sink)}/blocked`, { limit: 20 }, page.gone)])));
      page.show(header("Sinks", h("p", { className: "aside" }, "charts of the last hour, as observed by this relay")),
        status.sinks.length ? null : h("p", { className: "empty" }, "No sink is configured."), ...status.sinks.map((s, i) => draw(s, i, figures, blocked[s.sink], refresh)));
    } catch (err) {
      if (err.name !== "AbortError") page.show(header("Sinks"), note("bad", err.message));
    }
  };
  await poll(page, 5000, refresh);
}

const breaker = { failing: "closed; failed attempts are retried", paused: "–", remote: "known to the delivering relay only", unassigned: "–" };

function draw(s, i, figures, blocked, refresh) {
  const f = figures.sinks[s.sink] || { lag_events: [], age: [], delivered: [] };
  const steer = (what) => async () => {
    const pausing = what === "pause";
    const done = await ask({
      title: pausing ? `Pause ${s.sink}?` : `Resume ${s.sink}?`, confirm: pausing ? "Pause" : "Resume",
      body: h("p", null, pausing
        ? "Delivery to this sink stops until you resume the sink, replays included. The events stay pending in the journal. The pause outlives a restart, and applies to every relay of the journal. If the sink has discard.after or discard.beyond, events beyond the limit are discarded on resume."
        : `${plural(s.lag_events, "pending event")} will be delivered in order, except events beyond discard.after or discard.beyond of the sink.`),
      act: () => api.post(`/sinks/${api.name(s.sink)}/${what}`),
    });
    if (done) { say(pausing ? `${s.sink} is paused.` : `${s.sink} is resumed.`); refresh(); }
  };
  return h("section", { className: "panel", "data-key": s.sink, "aria-labelledby": `sink-${i}` },
    h("header", null, h("h2", { id: `sink-${i}` }, s.sink), h("span", { className: "kind" }, s.kind), sinkState(s),
      api.operator() && h("span", { className: "push" }, s.paused
        ? h("button", { type: "button", "data-act": "resume", onclick: steer("resume") }, "Resume", h("span", { className: "unseen" }, ` ${s.sink}`))
        : h("button", { type: "button", "data-act": "pause", onclick: steer("pause") }, "Pause", h("span", { className: "unseen" }, ` ${s.sink}`)))),
    h("div", { className: "charts" },
      chart(figures.times, f.lag_events, { id: `behind-${i}`, label: "Lag in events", format: short }),
      chart(figures.times, f.age, { id: `age-${i}`, label: "Age of the oldest pending event", format: duration }),
      chart(figures.times, f.delivered, { id: `delivered-${i}`, label: "Delivered per second", tone: "good", format: rate })),
    facts([
      ["Lag", count(s.lag_events)], ["Delivered now", `${rate(latest(f.delivered))}/s`], ["Circuit breaker", s.breaker === "open" ? "open: the relay probes the sink with one event at a time" : breaker[s.state] || "closed"], ["Paused", s.paused && [time(s.paused, true), ` (${age(s.paused)})`]],
      ["Oldest pending event", s.oldest && s.lag_events ? [time(s.oldest, true), ` (${age(s.oldest)})`] : null],
      ["Delivered by", s.owner ? [s.owner, s.local ? " (this relay)" : "", s.since ? [" since ", time(s.since, true)] : ""] : null],
      ["Read ahead", s.read_limit && (s.read_limit === "sink_down" ? "stopped while the sink is down" : `stopped at the limit ${s.read_limit}`)],
      ["Cursor", `sequence ${count(s.committed)}`], ["Filter", s.filter && h("code", null, s.filter)],
      ["Filter matched", s.filter_counts && `${count(s.filter_counts.matched)} of ${plural(s.filter_counts.matched + s.filter_counts.filtered, "event")}`],
      ["Filter errors", s.filter_counts && s.filter_counts.errors ? `${count(s.filter_counts.errors)}: ${s.filter_counts.last_error}` : null],
    ]),
    blocked && waiting(s, blocked, refresh),
    h("h3", null, "Last errors"),
    s.recent_errors && s.recent_errors.length
      ? h("ul", { className: "troubles" }, s.recent_errors.map((t) => h("li", null,
        h("p", { className: "words" }, t.error),
        h("p", { className: "under" }, t.count > 1 ? [`${plural(t.count, "attempt")} from `, time(t.first, true), " to ", time(t.last, true)] : time(t.last, true)))))
      : h("p", { className: "muted" }, s.state === "remote" ? "Only the delivering relay knows the errors." : "No error since the start of this process."));
}

const decisions = {
  retry: { title: "Retry this event now?", confirm: "Retry", said: "is tried again", body: "The relay does not wait for the next attempt." },
  "dead-letter": { title: "Turn this event into a dead letter?", confirm: "Dead-letter", said: "becomes a dead letter", dangerous: true, body: "The event is not delivered to this sink unless an operator redelivers the dead letter." },
  discard: { title: "Discard this event?", confirm: "Discard", said: "is discarded", dangerous: true, body: "The event is not delivered to this sink, and does not become a dead letter." },
};

// waiting shows the failed events and destinations of a sink, and the actions on an event.
function waiting(s, blocked, refresh) {
  const decide = (what, e) => async () => {
    const d = decisions[what];
    const whole = h("input", { type: "checkbox", name: "whole" });
    const done = await ask({
      title: d.title, confirm: d.confirm, dangerous: d.dangerous,
      body: h("div", null, h("p", { className: "words" }, e.id), h("p", null, d.body),
        d.dangerous && e.partitionkey && h("label", null, whole, " also the later events of its partition key that are stored now")),
      act: () => api.post(`/sinks/${api.name(s.sink)}/blocked/${e.seq}`, { decision: what, whole_key: Boolean(d.dangerous) && whole.checked }),
    });
    if (done) { say(`Event ${count(e.seq)} ${d.said}.`); refresh(); }
  };
  return [
    h("h3", null, "Waiting after a failure"),
    h("p", { className: "muted" }, `${plural(blocked.blocked_keys, "partition key")} with a failed event; ${plural(blocked.deferred_events, "later event")} read again afterwards. All other events are delivered.`),
    blocked.blocked_destinations.length > 0 && h("ul", { className: "troubles" }, blocked.blocked_destinations.map((d) => h("li", null,
      h("p", { className: "words" }, `${d.name}${d.partition ? `, partition ${d.partition}` : ""}: ${d.error}`), h("p", { className: "under" }, "since ", time(d.since, true))))),
    table({
      caption: `Failed events of ${s.sink} that wait`, empty: "No failed event is in hand.",
      columns: [{ title: "Sequence", number: true }, { title: "Event" }, { title: "Attempts", number: true }, { title: "Next attempt" }, { title: "Error" }, { title: "Action", unseen: true }],
      rows: blocked.events.map((e) => ({
        key: `${e.seq}`,
        cells: [h("a", { href: `#/event/${e.seq}` }, count(e.seq)), [h("span", { className: "id", title: e.id }, brief(e.id)), h("span", { className: "under" }, e.partitionkey || "no partition key")],
          count(e.attempts), e.next ? time(e.next) : "with its destination", h("span", { className: "words" }, e.error),
          api.operator() && h("span", { className: "actions" }, Object.keys(decisions).map((what) =>
            h("button", { type: "button", "data-act": what, className: decisions[what].dangerous && "danger", onclick: decide(what, e) }, decisions[what].confirm, h("span", { className: "unseen" }, ` event ${e.seq}`))))],
      })),
    }),
    blocked.more && h("p", { className: "muted" }, "There are more: postwire sinks blocked lists up to 1,000."),
  ];
}
