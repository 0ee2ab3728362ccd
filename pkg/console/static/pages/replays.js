// Replays: count the events first, then start, watch, stop and continue.
import { h, say } from "../dom.js";
import * as api from "../api.js";
import { header, field, input, select, table, poll, note } from "../parts.js";
import { count, plural, state, time } from "../text.js";

export default async function replays(page) {
  let planned = null, trouble = "", sinks = [];
  const status = await api.get("/status", null, page.gone);
  sinks = status.sinks.map((s) => s.sink);
  const plannedBox = h("div", { id: "planned", role: "status", "data-kept": "" });

  const wanted = () => {
    const v = (n) => form.elements[n].value.trim();
    const body = { sink: v("sink"), from: v("from"), to: v("to"), filter: v("filter"), subject: v("subject"), topic: v("topic") };
    if (v("rate")) body.rate = Number(v("rate"));
    return Object.fromEntries(Object.entries(body).filter(([, x]) => x !== ""));
  };
  const showPlan = () => {
    plannedBox.replaceChildren(...[
      trouble && note("bad", trouble),
      planned && note(planned.total ? "good" : "warn",
        h("p", null, planned.total
          ? ["This sends ", h("b", null, plural(planned.total, "event")), ` to ${planned.sink} again, accepted from `, time(planned.from, true), " to ", time(planned.to, true), `, at most ${count(planned.rate)} per second.`]
          : "No event of this range matches the sink’s filter and your filter."),
        planned.total > 0 && h("button", { type: "button", id: "start", className: "primary", onclick: start }, `Start the replay of ${plural(planned.total, "event")}`)),
    ].filter(Boolean));
  };
  const plan = async (e) => {
    e.preventDefault();
    planned = null;
    trouble = "";
    try { planned = await api.post("/replays", { ...wanted(), dry_run: true }); } catch (err) { trouble = err.message; }
    showPlan();
  };
  const start = async () => {
    try {
      // Use the counted range: "2h" would now mean a later range.
      await api.post("/replays", { ...wanted(), from: planned.from, to: planned.to });
      planned = null;
      say("The replay has started.");
      showPlan();
      await refresh();
    } catch (err) { trouble = err.message; showPlan(); }
  };
  const form = h("form", { className: "filter", "aria-label": "A replay", "data-kept": "", onsubmit: plan, oninput: () => { if (planned) { planned = null; showPlan(); } } },
    h("div", { className: "fields" },
      field("Sink", select("sink", sinks.map((s) => [s, s]), page.query.get("sink"))),
      field("Accepted from", input("from", { value: "2h", required: true }), "Age such as 2h, or a time such as 2026-01-31T12:00:00Z."),
      field("Accepted before", input("to", { placeholder: "now" })),
      field("Filter (CEL)", input("filter", { placeholder: 'platform == "instagram"' })),
      field("Maximum rate per second", input("rate", { placeholder: "1000", inputmode: "numeric", pattern: "[0-9]+" })),
      field("Different subject", input("subject"), "For NATS. Empty: the subject of the sink."), field("Different topic", input("topic"), "For Kafka. Empty: the topic of the sink.")),
    h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Count")));

  const steer = (id, what) => async () => {
    try { await api.post(`/replays/${api.name(id)}/${what}`); } catch (err) { say(err.message, true); }
    await refresh();
  };
  const draw = (all) => page.show(
    header("Replay", h("p", { className: "aside" }, "deliver stored events to one sink again, beside live traffic")),
    api.operator() ? [form, plannedBox] : h("p", { className: "muted" }, "Only operators can start a replay."),
    h("section", { "aria-labelledby": "all" }, h("h2", { id: "all" }, "Replays"),
      table({
        caption: "Replays, the newest first", empty: "No replay yet.",
        columns: [{ title: "Started" }, { title: "Sink" }, { title: "State" }, { title: "Events" }, { title: "Progress" }, { title: "Action", unseen: true }],
        rows: all.map((r) => ({
          key: r.id,
          cells: [
            time(r.created), r.sink, state(r.state),
            [r.seq ? ["event ", h("a", { href: `#/event/${r.seq}` }, String(r.seq))] : [time(r.from, true), " to ", time(r.to, true)], r.filter && h("code", { className: "under" }, r.filter), r.error && h("span", { className: "under bad" }, r.error)],
            h("span", { className: "progressing" }, h("progress", { max: Math.max(1, r.total), value: r.sent + r.refused, "aria-label": `Progress of the replay to ${r.sink}` }), ` ${count(r.sent)} of ${count(r.total)}`, r.refused ? `, ${count(r.refused)} refused` : "", r.expired ? `, ${count(r.expired)} expired` : ""),
            api.operator() && h("span", { className: "actions" },
              r.state === "running" && h("button", { type: "button", className: "small", "data-act": "stop", onclick: steer(r.id, "stop") }, "Stop"),
              r.state === "stopped" && h("button", { type: "button", className: "small", "data-act": "continue", onclick: steer(r.id, "continue") }, "Continue")),
          ],
        })),
      })));
  const refresh = async () => {
    try { draw((await api.get("/replays", null, page.gone)).replays); } catch (err) { if (err.name !== "AbortError" && err.status !== 401) say(err.message, true); }
  };
  await poll(page, 2000, refresh);
}
